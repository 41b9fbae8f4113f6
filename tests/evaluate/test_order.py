"""Certified <= attacked <= clean, and no image changed within its certified radius; violations are told."""

import math
from typing import Any

import pytest

from svdctl.errors import EvaluationError
from svdctl.evaluate.consistency import assert_order


def certified(*radii: float | None) -> list[dict[str, str]]:
    """One image each; None: misclassified."""
    return [{"image": str(image), "radius": str(0 if radius is None else radius)} for image, radius in enumerate(radii)]


def attacked(*outcomes: float | str) -> list[dict[str, str]]:
    """One image each: a distance at which it was broken, `robust` or `misclassified`."""
    rows = []
    for image, outcome in enumerate(outcomes):
        broken = not isinstance(outcome, str)
        nearest = str(outcome) if broken else "0" if outcome == "misclassified" else ""
        rows.append({"image": str(image), "outcome": "broken" if broken else str(outcome), "nearest": nearest})
    return rows


def check(proofs: list[dict[str, str]], attacks: list[dict[str, str]], **changes: Any) -> dict[str, float]:
    return assert_order(proofs, attacks, **{"norm": "L2", "eps": 0.5, "pixels": 48, **changes})


def test_the_three_accuracies_are_those_of_the_common_images() -> None:
    proofs = certified(0.6, 0.2, 0.2, None, 0.9)
    found = check(proofs, attacked("robust", "robust", 0.4, "misclassified"))
    assert found == {"count": 4, "certified": 0.25, "attacked": 0.5, "clean": 0.75}


def test_an_image_changed_within_its_radius_is_a_bug() -> None:
    with pytest.raises(EvaluationError, match=r"BUG: 1 images .*image 1 at 0\.2, certified to 0\.3"):
        check(certified(0.2, 0.3), attacked(0.4, 0.2))


def test_a_certificate_above_the_attack_is_a_bug_even_if_the_totals_agree() -> None:
    # Image 0 is certified and broken, image 1 neither: the sums alone would not tell.
    with pytest.raises(EvaluationError, match="BUG"):
        check(certified(0.6, 0.1), attacked(0.49, "robust"))


def test_certified_images_that_are_misclassified_for_the_attack_are_a_bug() -> None:
    with pytest.raises(EvaluationError, match="are not in this order"):
        check(certified(0.6, 0.6), attacked("misclassified", "robust"))


@pytest.mark.parametrize(("norm", "factor"), [("L2", 1.0), ("L1", 1.0), ("Linf", math.sqrt(48))])
def test_norms_are_compared_as_euclidean_balls(norm: Any, factor: float) -> None:
    inside, outside = 0.99 * 0.3 / factor, 1.01 * 0.3 / factor
    check(certified(0.3), attacked(outside), norm=norm, eps=1.0)
    with pytest.raises(EvaluationError, match="BUG"):
        check(certified(0.3), attacked(inside), norm=norm, eps=1.0)


def test_no_common_image_is_no_agreement() -> None:
    with pytest.raises(EvaluationError, match="no image in common"):
        check([], attacked(0.4))
