"""Certified accuracy: correct, and proved to stay so within a radius."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svdctl.certificates import Certifier
from svdctl.data.streamed_images import to_device
from svdctl.errors import ShapeError, UnprovedError
from svdctl.evaluate.auto_batch_size import MOST, AutoBatchSize, batch_size_for, blocks_in_memory
from svdctl.evaluate.inference import Classifier, check_finite
from svdctl.evaluate.metric import MeasurementContext
from svdctl.utils.rounded_figures import exact

SAME_PROOF = 1e-6
"""Relative difference of two proofs of one constant on two machines: rounding is far below."""
_LAYERS = 8
"""Layers of the largest factors that the results name."""


def measure(context: MeasurementContext, at: Sequence[float]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return certified accuracy at some radii, in 255ths of a pixel's range, and a row for each test image.

    Raises:
        UnprovedError: nothing is proved of the network.
    """
    classifier, test, tell = context.classifier, context.data.test, context.progress
    tell(0, len(test), "proving the Lipschitz constant, before any image")
    certifier = _certifier(context)
    if not math.isfinite(certifier.bound.value):
        raise UnprovedError("no finite Lipschitz constant is proved of this network, so nothing can be certified")
    device = certifier_device(classifier)

    def some(images: Tensor, labels: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        logits = certifier.logits(to_device(images[part], device).double() / 255)
        broken = (~logits.isfinite()).any(1)
        return certifier.radii(logits, to_device(labels[part], device)), logits.argmax(1), broken

    # Passes in float64 hold fewer images than others.
    most = min(context.config.batch_size or MOST, classifier.halving.size)
    batches = AutoBatchSize(batch_size_for(test.image_shape, most), classifier.halving.log)
    found = []
    with certifier.checks_at_the_end():
        for before, block in blocks_in_memory(test.images):
            work = partial(some, block, test.labels[before : before + len(block)])
            for part, three in batches.parts(len(block), work, device):
                found.append(three)
                tell(before + part.stop, len(test), "radii")
    radii, predicted, broken = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    check_finite(int(broken.sum()), len(test))
    # No two images of [0, 1] are farther apart than this.
    farthest = math.sqrt(test.images[0].numel())
    return _results(radii.clamp_max(farthest), predicted, test.labels, certifier, at)


def certifier_device(classifier: Classifier) -> torch.device:
    """Return where certificates are computed: Apple's devices have no float64."""
    return torch.device("cpu") if classifier.device.type == "mps" else classifier.device


def _certifier(context: MeasurementContext) -> Certifier:
    classifier = context.classifier
    try:
        model = classifier.model.to(certifier_device(classifier))
        return Certifier(model, context.data.test.image_shape, maxima=context.model.maxima)
    except ShapeError as error:
        raise UnprovedError(f"nothing is certified of this network: {error}") from error
    finally:
        classifier.model.to(classifier.device)


def fault_of_proof(context: MeasurementContext, stored: float) -> str | None:
    """Prove the Lipschitz constant again; return what contradicts the stored one, None if nothing does.

    Raises:
        UnprovedError: nothing is proved of the network.
    """
    proved = _certifier(context).bound.value
    if math.isclose(stored, proved, rel_tol=SAME_PROOF):
        return None
    return f"the certificates were made with L = {stored:.6g}, and {proved:.6g} is proved of these weights"


def _results(
    radii: Tensor, predicted: Tensor, labels: Tensor, certifier: Certifier, at: Sequence[float]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    correct = predicted == labels
    accuracy = {exact(radius): float((radii > radius / 255).double().mean()) for radius in at}
    largest = sorted(certifier.bound.layers, key=lambda layer: -math.prod(layer.factors.values()))[:_LAYERS]
    results = {
        "lipschitz": certifier.bound.value,
        "accuracy": accuracy,
        "count": len(labels),
        "clean": float(correct.double().mean()),
        "mean_radius": float(radii.mean()),
        "largest_radius": float(radii.max()),
        "vacuous": accuracy[exact(min(at))] == 0,
        "largest_factors": [
            {"layer": layer.name, "kind": layer.kind, "factors": dict(layer.factors)} for layer in largest
        ],
    }
    rows = [
        {"image": n, "label": label, "prediction": found, "correct": int(found == label), "radius": repr(radius)}
        for n, (label, found, radius) in enumerate(zip(*(t.tolist() for t in (labels, predicted, radii)), strict=True))
    ]
    return results, rows
