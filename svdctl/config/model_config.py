"""Sections of a configuration that choose the network and the kind of its convolutions."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from svdctl.config.base import Config
from svdctl.config.variants import variant
from svdctl.registry import ARCHITECTURES, LAYERS

ConvInit = Literal["orthogonal", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"]


class ModelConfig(Config):
    """Base of the configuration of an architecture; `kind` is a literal of each."""

    kind: str


class LayerConfig(Config):
    """Base of the configuration of a type of convolution; `kind` is a literal of each."""

    kind: str
    is_orthogonal: ClassVar[bool] = False
    """Whether all singular values are 1 already, so that control has nothing to do."""


PUBLISHED = "torchvision"
"""Word in the place of a file of weights: those that torchvision publishes for its network."""


class InitialWeights(Config):
    """The trained weights that a run starts from; nothing reads them again once it has begun."""

    file: Annotated[str, Field(min_length=1, max_length=4096)]
    """Any file or folder that `inspect-spectrum` reads; or `torchvision`: its weights of the network, downloaded."""
    key: str | None = None
    """Which weights of a file that has several sets of them, as `ema`."""
    lenient: bool = False
    """Take what fits, and name the rest."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the tensors; absent: found when the run starts. Other weights than these are refused."""


if TYPE_CHECKING:
    Model = ModelConfig
    Layer = Any
else:
    Model = variant(ARCHITECTURES)
    Layer = variant(LAYERS)
