"""VGG-19 as an architecture."""

from typing import Literal

from svdctl.config.base import Config
from svdctl.config.model_config import ModelConfig
from svdctl.models.architecture import Architecture, register_architecture


class Vgg(ModelConfig):
    """VGG-19 with batch normalisation, for images of side 32 or more."""

    kind: Literal["vgg"] = "vgg"


@register_architecture
class VggArchitecture(Architecture):
    """VGG-19."""

    kind = "vgg"
    channels = 3
    config = Vgg
    network = "svdctl.models.vgg:Vgg19"

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
