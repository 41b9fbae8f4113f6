"""Cross-entropy, the loss of every run that names no other."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from svdctl.config.base import Config
from svdctl.train.loss import Loss, LossBatch, register_loss

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropyConfig(Config):
    """Cross-entropy of the logits."""

    kind: Literal["cross-entropy"] = "cross-entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of each label that is spread evenly over all classes. Absent: none."""


@register_loss
class CrossEntropy(Loss):
    """`-log softmax(logits)` at the label, or its mean over a label that is spread over the classes."""

    kind = "cross-entropy"
    config = CrossEntropyConfig

    def value(self, batch: LossBatch, config: CrossEntropyConfig) -> "Tensor":
        """Return its sum over the images."""
        import torch.nn.functional as F

        smoothing = config.label_smoothing or 0.0
        return F.cross_entropy(batch.logits, batch.labels, reduction="sum", label_smoothing=smoothing)
