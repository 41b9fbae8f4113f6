"""VGG-19 as an architecture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from svdctl.config.base import Config
from svdctl.config.model_config import ModelConfig
from svdctl.models.architecture import Architecture, register_architecture

if TYPE_CHECKING:
    from torch import nn

    from svdctl.layers.layer_ops import ConvFactory
    from svdctl.layers.normalize import Normalize


class Vgg(ModelConfig):
    """VGG-19 with batch normalisation, for images of side 32 or more."""

    kind: Literal["vgg"] = "vgg"


@register_architecture
class VggArchitecture(Architecture):
    """VGG-19."""

    kind = "vgg"
    config = Vgg

    def build(
        self,
        config: Vgg,
        *,
        classes: int,
        convs: "Sequence[ConvFactory]",
        stem: "ConvFactory",
        normalize: "Normalize",
    ) -> "nn.Module":
        from svdctl.models.vgg import Vgg19

        return Vgg19(classes, conv=convs[0], stem=stem, normalize=normalize)

    def name(self, config: Vgg) -> str:
        return "VGG-19"

    def faults(
        self, config: Vgg, *, image_shape: tuple[int, int, int] | None, classes: int | None, layer: Config
    ) -> list[str]:
        if image_shape is None or min(image_shape[1:]) >= 32:
            return []
        height, width = image_shape[1:]
        return [
            f"VGG-19 halves its input five times: images need a side of 32 or more, not {height} x {width} "
            "(`data.size`); resize or pad them"
        ]
