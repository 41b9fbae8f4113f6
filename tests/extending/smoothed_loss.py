"""A user's loss: cross-entropy against labels that are smoothed."""

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import svdctl
from svdctl.config.base import Config
from svdctl.train.loss import Loss, LossBatch


class Smoothed(Config):
    """Cross-entropy with smoothed labels."""

    kind: Literal["smoothed"] = "smoothed"
    share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the label that is spread over all classes."""


@svdctl.register_loss
class SmoothedLoss(Loss):
    """`(1 - share)` times the cross-entropy at the label, plus `share` times its mean over all classes."""

    kind = "smoothed"
    config = Smoothed

    def value(self, batch: LossBatch, config: Smoothed) -> Tensor:
        """Return the sum over the images."""
        return F.cross_entropy(batch.logits, batch.labels, label_smoothing=config.share, reduction="sum")
