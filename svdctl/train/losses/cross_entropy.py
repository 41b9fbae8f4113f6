"""Cross-entropy, the loss of every run that names no other."""

from typing import TYPE_CHECKING, Literal

from svdctl.config.base import Config
from svdctl.train.loss import Loss, LossBatch, register_loss

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropyConfig(Config):
    """Cross-entropy of the logits."""

    kind: Literal["cross-entropy"] = "cross-entropy"


@register_loss
class CrossEntropy(Loss):
    """`-log softmax(logits)` at the label."""

    kind = "cross-entropy"
    config = CrossEntropyConfig

    def value(self, batch: LossBatch, config: CrossEntropyConfig) -> "Tensor":
        """Return its sum over the images."""
        import torch.nn.functional as F

        return F.cross_entropy(batch.logits, batch.labels, reduction="sum")
