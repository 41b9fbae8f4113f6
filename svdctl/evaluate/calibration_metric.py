"""Accuracy and calibration from the logits of the test images."""

from typing import Any

from torch import Tensor

from svdctl.evaluate.calibration import BINS, are_probabilities, calibration, reliability
from svdctl.evaluate.evaluation_data import HeldOut
from svdctl.evaluate.inference import Classifier
from svdctl.evaluate.temperature import temperature_scaling

PROBABILITIES = (
    "the network returns probabilities in place of logits: every row of its outputs is non-negative and sums to 1. "
    "Calibration takes the softmax a second time, and attacks see its small gradients, so these figures are not those "
    "of the network's confidence; evaluate it without its last softmax"
)

BETWEEN_0_AND_1 = (
    "all outputs of the network lie between 0 and 1, as probabilities do and logits do not: if its last layer is a "
    "sigmoid, evaluate it without that"
)


def warning_of(outputs: Tensor) -> str | None:
    """What is to be said of outputs `(N, K)` that are taken for logits; None for what may be logits."""
    if are_probabilities(outputs):
        return PROBABILITIES
    return BETWEEN_0_AND_1 if bool(((outputs >= 0) & (outputs <= 1)).all()) else None


def accuracy(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Top-1 accuracy with Wilson's interval at 95 %, for logits `(N, K)` and labels `(N,)`."""
    found = calibration(logits, labels)
    return {
        "accuracy": found.accuracy,
        "interval": list(found.accuracy_interval),
        "correct": round(found.accuracy * found.count),
        "count": found.count,
    }


def calibrated(logits: Tensor, labels: Tensor, kept: HeldOut, classifier: Classifier) -> dict[str, Any]:
    """Calibration error, proper scores, both again after temperature scaling, and the bins of the diagram."""
    found = calibration(logits, labels)
    bars = reliability(logits, labels)
    results: dict[str, Any] = {
        "ece": found.ece,
        "nll": found.nll,
        "brier": found.brier,
        "accuracy": found.accuracy,
        "count": found.count,
        "bins": {
            "edges": [index / BINS for index in range(BINS + 1)],
            "counts": [round(count) for count in bars.counts.tolist()],
            "confidence": bars.confidence.tolist(),
            "accuracy": bars.accuracy.tolist(),
        },
        "temperature": None,
        "warnings": [text] if (text := warning_of(logits)) is not None else [],
    }
    if len(kept.fit) == 0 or len(kept.judge) == 0:
        return results
    scaled = temperature_scaling(
        classifier.logits(kept.fit.images), kept.fit.labels, logits[kept.judge], labels[kept.judge]
    )
    results["temperature"] = {
        "value": scaled.temperature,
        "determined": scaled.determined,
        "fitted_on": kept.text,
        "fitted_count": scaled.held_out,
        "count": scaled.after.count,
        "ece_before": calibration(logits[kept.judge], labels[kept.judge]).ece,
        "ece": scaled.after.ece,
        "nll": scaled.after.nll,
        "brier": scaled.after.brier,
    }
    return results
