"""How far confidence can be trusted: calibration error, proper scores, and accuracy with its interval.

All functions take logits `(N, K)`, never probabilities, and labels `(N,)`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from svdctl.errors import DataError, ShapeError
from svdctl.evaluate.inference import check_finite
from svdctl.evaluate.metrics.ece import BINS

PROBABILITIES = (
    "the network returns probabilities in place of logits: every row of its outputs is non-negative and sums to 1. "
    "Calibration takes the softmax a second time, and attacks see its small gradients, so these figures are not those "
    "of the network's confidence; evaluate it without its last softmax"
)
_BLOCK = 2**21
"""Logits worked on at a time: 16 MiB in float64."""
BETWEEN_0_AND_1 = (
    "all outputs of the network lie between 0 and 1, as probabilities do and logits do not: if its last layer is a "
    "sigmoid, evaluate it without that"
)


@dataclass(frozen=True)
class Reliability:
    """Predictions sorted into bins of confidence; every tensor is float64 on the CPU, of shape `(bins,)`.

    Bin i holds confidences in `[i / bins, (i + 1) / bins)`, the last one those of exactly 1 too. (torchmetrics gives
    these a bin of their own, beyond the last.)
    """

    counts: Tensor
    confidence: Tensor
    """Mean confidence; 0 where there are no predictions."""
    accuracy: Tensor
    """Share of correct predictions; 0 where there are none."""

    @property
    def calibration_error(self) -> float:
        """Return the expected calibration error: mean over all predictions of their bin's |accuracy - confidence|."""
        gap = (self.accuracy - self.confidence).abs()
        return float((gap * self.counts).sum() / self.counts.sum())


@dataclass(frozen=True)
class Calibration:
    """Figures of one set of logits."""

    count: int
    accuracy: float
    ece: float
    """Expected calibration error, 15 bins, in [0, 1]."""
    nll: float
    """Mean negative log likelihood in nats."""
    brier: float
    """Mean squared distance between probabilities and the one-hot label, in [0, 2]."""


def calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Return accuracy, calibration error and proper scores of logits `(N, K)` for labels `(N,)`.

    Raises:
        ShapeError: logits and labels do not go together.
        DataError: a label without a logit.
        EvaluationError: logits that are not finite.
    """
    logits, labels = checked(logits, labels)
    correct = int((logits.argmax(1) == labels).sum())
    nll = brier = 0.0
    for rows, own in zip(row_blocks(logits), labels.split(len(row_blocks(logits)[0])), strict=True):
        log_probabilities = rows.double().log_softmax(1)
        nll += float(F.nll_loss(log_probabilities, own, reduction="sum"))
        brier += float((log_probabilities.exp() - F.one_hot(own, logits.shape[1])).square().sum())
    return Calibration(
        count=len(labels),
        accuracy=correct / len(labels),
        ece=reliability(logits, labels).calibration_error,
        nll=nll / len(labels),
        brier=brier / len(labels),
    )


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """Return counts, mean confidences and accuracies of `bins` equal bins of confidence (Guo et al. 2017).

    Confidences and edges are float32, as in torchmetrics, so that a confidence on an edge below 1 falls into the same
    bin.
    """
    logits, labels = checked(logits, labels)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    found = [rows.softmax(1).max(1) for rows in row_blocks(wide)]
    confidence, predicted = (torch.cat(parts) for parts in zip(*found, strict=True))
    confidence = confidence.float()
    correct = (predicted == labels).double()
    index = (torch.bucketize(confidence, torch.linspace(0, 1, bins + 1), right=True) - 1).clamp_max(bins - 1)
    counts = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, torch.ones_like(correct))
    some = counts.clamp_min(1)
    return Reliability(
        counts,
        torch.zeros_like(counts).index_add_(0, index, confidence.double()) / some,
        torch.zeros_like(counts).index_add_(0, index, correct) / some,
    )


def row_blocks(logits: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of logits `(N, K)` in blocks of which a few float64 copies fit into memory: N K can be large."""
    return logits.split(max(_BLOCK // logits.shape[1], 1))


def are_probabilities(outputs: Tensor) -> bool:
    """Return whether every row of outputs `(N, K)` is what softmax returns: nowhere negative, with sum 1.

    Logits are that by accident only. The tolerance is that of sums of K numbers rounded to bfloat16.
    """
    wide = outputs.detach().double()
    sums = wide.sum(1)
    return len(wide) > 0 and bool((wide >= 0).all()) and bool(((sums - 1).abs() <= 2**-7).all())


def warning_of(outputs: Tensor) -> str | None:
    """Return what is to be said of outputs `(N, K)` that are taken for logits; None for what may be logits."""
    if are_probabilities(outputs):
        return PROBABILITIES
    return BETWEEN_0_AND_1 if bool(((outputs >= 0) & (outputs <= 1)).all()) else None


def checked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return both on the CPU, where float64 exists; refuse all but one finite row of logits for each label."""
    logits, labels = logits.detach().cpu(), labels.cpu()
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != len(labels) or len(labels) == 0 or logits.shape[1] < 2:
        raise ShapeError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not go together; "
            "give (N, K) and (N,) with N > 0 and K > 1"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise DataError(
            f"labels run from {low} to {high}, but the network tells {logits.shape[1]} classes apart; "
            "give data with the classes that it was trained on"
        )
    check_finite(int((~logits.isfinite()).any(1).sum()), len(logits))
    return logits, labels
