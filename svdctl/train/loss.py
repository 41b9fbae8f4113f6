"""Losses: what a training makes small; a user's own are registered as those of svdctl are."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from svdctl.config.base import Config
from svdctl.registry import LOSSES

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LossBatch:
    """One process's images of a step, and what the network makes of them."""

    logits: "Tensor"
    """`(N, classes)`, with gradients."""
    labels: "Tensor"
    """`(N,)`, int64."""
    images: "Tensor"
    """`(N, C, H, W)` in [0, 1], augmented."""
    model: "nn.Module"
    """The network, for losses that need it at other images."""


class Loss(ABC):
    """A loss. An object has no state, and no weights of its own: those would not be saved or trained."""

    kind: ClassVar[str]
    """Its name in `loss` of a configuration."""
    config: ClassVar[type[Config]]
    """Its section there; `kind` is a field of it, a literal."""

    @abstractmethod
    def value(self, batch: LossBatch, config: Any) -> "Tensor":
        """Return the SUM of the loss over the images of the batch, 0-d.

        The trainer divides by the number of images in all processes; a mean would weigh the images of a process with
        fewer of them more.

        Args:
            batch: images, labels and logits.
            config: an object of the class `config`.
        """


L = TypeVar("L", bound="Loss | type[Loss]")


def register_loss(loss: L) -> L:
    """Add a loss, so that `loss.kind` of a configuration can name it; usable as a decorator of a class.

    The figure `loss` of the log is its mean over the images; `val_loss` is the cross-entropy whatever the loss.

    Args:
        loss: an object of a class derived from `svdctl.train.loss.Loss`, or such a class.

    Returns:
        What was given.

    Raises:
        UsageError: another loss has its kind already.

    >>> from typing import Literal
    >>> import torch
    >>> from svdctl.config.base import Config
    >>> from svdctl.train.loss import Loss
    >>> class Hinge(Config):
    ...     kind: Literal["hinge"] = "hinge"
    ...     margin: float = 1.0
    >>> @svdctl.register_loss
    ... class HingeLoss(Loss):
    ...     kind, config = "hinge", Hinge
    ...     def value(self, batch, config):
    ...         margin = config.margin
    ...         return torch.nn.functional.multi_margin_loss(batch.logits, batch.labels, margin=margin, reduction="sum")
    """
    LOSSES.register(loss)
    return loss
