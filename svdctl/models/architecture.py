"""Architectures by kind: how a network is built from its configuration, and what it needs."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from svdctl.config.base import Config
from svdctl.config.model_config import ModelConfig
from svdctl.registry import ARCHITECTURES

if TYPE_CHECKING:
    from torch import nn

    from svdctl.layers.layer_ops import ConvFactory
    from svdctl.layers.normalize import Normalize

A = TypeVar("A", bound="Architecture | type[Architecture]")


class Architecture:
    """One kind of network; an object without state, registered with `register_architecture`.

    Attributes:
        kind: the name in configurations (`model.kind`).
        config: the schema of its options, a `ModelConfig` whose `kind` is this one.
        network: its class as `module:Class`, for the inherited `build`.
        channels: of the images that it takes; None: it depends on the network.
        groups: groups of layers that may each have a TT rank of their own.
        is_defined_here: whether svdctl or a plugin defines the network, so that what fits it is known before it runs.
        orthogonal: whether it can be built of SOC and SOTT layers, whose padding is half of their kernel.
    """

    kind: str
    config: type[ModelConfig]
    network: str
    channels: int | None = None
    groups: int = 1
    is_defined_here: bool = True
    orthogonal: bool = False

    def build(
        self,
        config: Any,
        *,
        classes: int,
        convs: "Sequence[ConvFactory]",
        stem: "ConvFactory",
        normalize: "Normalize",
    ) -> "nn.Module":
        """Return the network, which takes pixels in [0, 1] of shape `(N, 3, H, W)` and returns logits `(N, classes)`.

        The class `network`, called with the fields of its configuration, `classes`, `conv`, `stem` and `normalize`, if
        this method is not overridden.

        Args:
            config: its section of the configuration.
            classes: width of the output.
            convs: what makes the convolutions, one for each group of layers.
            stem: what makes the first convolution.
            normalize: the module through which pixels go first.
        """
        module, _, name = self.network.partition(":")
        fields = config.model_dump(exclude={"kind"})
        network: nn.Module = getattr(import_module(module), name)(
            **fields, classes=classes, conv=convs[0], stem=stem, normalize=normalize
        )
        return network

    def start_as_paper_(self, model: "nn.Module") -> None:
        """Draw the weights, besides those of compressed layers, that the paper's public code starts in another way.

        Called without gradients.
        """

    def name(self, config: Any) -> str:
        """Return the name of the network in the literature."""
        return self.kind

    def faults(
        self, config: Any, *, image_shape: tuple[int, int, int] | None, classes: int | None, layer: Config
    ) -> list[str]:
        """Return what does not fit the network, a sentence each.

        Args:
            config: its section of the configuration.
            image_shape: channels, height and width of the images; None before they are known.
            classes: their number; None before it is known.
            layer: the section of the convolutions.
        """
        return []

    def why_not_orthogonal(self, layer: str) -> str:
        """Return why its layers cannot be of this kind of orthogonal ones."""
        return f"layer.kind = {layer!r} belongs to LipConvNet; use `model.kind = lipconv`, or another kind"

    def normalization(self, config: Any) -> dict[str, list[float]] | None:
        """Return the normalisation of a run that names none, a section of a configuration; None: the schema's default.

        Raises:
            UsageError: there is no such network.
        """
        return None

    def smallest(self, config: Any) -> int:
        """Return a number of tensors that every network of this configuration has at least."""
        return 0


def register_architecture(architecture: A) -> A:
    """Add an architecture, so that `model.kind` of a configuration can name it; usable as a decorator of a class.

    Args:
        architecture: an object of a class derived from `svdctl.models.architecture.Architecture`, or such a class.

    Returns:
        What was given.

    Raises:
        UsageError: another architecture has its kind already.

    >>> from typing import Literal
    >>> from torch import nn
    >>> from svdctl.config.configuration import configuration
    >>> from svdctl.config.model_config import ModelConfig
    >>> from svdctl.models.architecture import Architecture
    >>> from svdctl.models.build import build_model
    >>> class Plain(ModelConfig):
    ...     kind: Literal["plain"] = "plain"
    ...     width: int = 8
    >>> @svdctl.register_architecture
    ... class PlainArchitecture(Architecture):
    ...     kind, config = "plain", Plain
    ...     def build(self, config, *, classes, convs, stem, normalize):
    ...         conv = stem(3, config.width, 3, stride=2, padding=1, bias=True)
    ...         pool = nn.AdaptiveAvgPool2d(1)
    ...         return nn.Sequential(normalize, conv, nn.ReLU(), pool, nn.Flatten(), nn.Linear(config.width, classes))
    >>> model = build_model(configuration("quickstart", ["model.kind=plain", "model.width=4"]), classes=10)
    >>> model[-1].in_features
    4
    """
    ARCHITECTURES.register(architecture)
    return architecture


def is_shipped(config: ModelConfig) -> bool:
    """Return whether the network is svdctl's own: what fits it is known before it runs, and no pass of it draws."""
    return ARCHITECTURES.is_builtin(found := architecture_of(config)) and found.is_defined_here


def architecture_of(config: ModelConfig) -> Architecture:
    """Return the architecture that a configuration belongs to."""
    found = ARCHITECTURES.get(config.kind)
    assert isinstance(found, Architecture)
    return found
