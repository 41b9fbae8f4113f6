"""Sections of a configuration that choose the network and the kind of its convolutions."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

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


if TYPE_CHECKING:
    Model = ModelConfig
    Layer = Any
else:
    Model = variant(ARCHITECTURES)
    Layer = variant(LAYERS)
