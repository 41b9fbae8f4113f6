"""Certified accuracy is at most accuracy under attack, and that at most clean accuracy: asserted image by image."""

import math
from collections.abc import Mapping, Sequence

from svdctl.errors import EvaluationError
from svdctl.evaluate.attack_settings import Norm

SLACK = 1e-4
"""Relative distance by which an attacked image must lie within its certified ball to count: rounding is far below."""


def assert_order(
    certified: Sequence[Mapping[str, str]],
    attacked: Sequence[Mapping[str, str]],
    *,
    norm: Norm,
    eps: float,
    pixels: int,
) -> dict[str, float]:
    """Compare certificates and attacks on the images that both know; the three accuracies at this eps.

    Args:
        certified: rows with `image` and `radius` (Euclidean, pixels in [0, 1]; 0 where misclassified).
        attacked: rows with `image`, `outcome`, and `nearest`, the size of a perturbation that changes the prediction.
        norm, eps: of the attack.
        pixels: values of one image.

    Raises:
        EvaluationError: an image was changed within its certified radius, or an accuracy is above the one that bounds
            it. One of both figures is wrong then.
    """
    radius = {row["image"]: float(row["radius"]) for row in certified}
    rows = [row for row in attacked if row["image"] in radius]
    if not rows:
        raise EvaluationError("certificates and attacks have no image in common; measure both anew with `force`")
    # The largest Euclidean norm of a perturbation whose own norm is 1.
    factor = math.sqrt(pixels) if norm == "Linf" else 1.0
    broken = {
        row["image"]: float(row["nearest"]) * factor
        for row in rows
        if row["outcome"] == "broken" and float(row["nearest"]) * factor < radius[row["image"]] * (1 - SLACK)
    }
    if broken:
        first = next(iter(broken))
        raise EvaluationError(
            f"BUG: {len(broken)} images were changed within their certified radius (image {first} at "
            f"{broken[first]:.4g}, certified to {radius[first]:.4g}); certificate or attack is wrong, use neither, and "
            "report this"
        )
    count = len(rows)
    proved = sum(radius[row["image"]] * (1 - SLACK) > eps * factor for row in rows) / count
    robust = sum(row["outcome"] == "robust" for row in rows) / count
    clean = sum(row["outcome"] != "misclassified" for row in rows) / count
    if not proved <= robust <= clean:
        raise EvaluationError(
            f"BUG: on the same {count} images, certified accuracy {proved:.2%}, accuracy under attack {robust:.2%} and "
            f"clean accuracy {clean:.2%} are not in this order; use none of them, and report this"
        )
    return {"count": count, "certified": proved, "attacked": robust, "clean": clean}
