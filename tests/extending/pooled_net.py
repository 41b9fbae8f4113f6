"""A user's architecture: three convolutions, a mean over the image, a linear layer."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import PositiveInt
from torch import nn

import svdctl
from svdctl.config.model_config import ModelConfig
from svdctl.layers.layer_ops import ConvFactory
from svdctl.layers.normalize import Normalize
from svdctl.models.architecture import Architecture


class Pooled(ModelConfig):
    """Convolutions of one width."""

    kind: Literal["pooled"] = "pooled"
    width: PositiveInt = 8


@svdctl.register_architecture
class PooledArchitecture(Architecture):
    """Convolutions come from the factories, so that `layer.kind` chooses them as in any network."""

    kind = "pooled"
    config = Pooled

    def build(
        self, config: Pooled, *, classes: int, convs: Sequence[ConvFactory], stem: ConvFactory, normalize: Normalize
    ) -> nn.Module:
        """Return the network; `normalize` stands first, so that bounds and attacks are of pixels."""
        width, conv = config.width, convs[0]
        return nn.Sequential(
            normalize,
            stem(3, width, 3, stride=1, padding=1, bias=True),
            nn.ReLU(),
            conv(width, 2 * width, 3, stride=2, padding=1, bias=True),
            nn.ReLU(),
            conv(2 * width, 2 * width, 3, stride=1, padding=1, bias=True),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, classes),
        )

    def name(self, config: Pooled) -> str:
        """Return the name in plans and reports."""
        return f"PooledNet-{config.width}"

    def faults(
        self, config: Pooled, *, image_shape: tuple[int, int, int] | None, classes: int | None, layer: Any
    ) -> list[str]:
        """Return a sentence for images that are too small."""
        small = image_shape is not None and min(image_shape[1:]) < 4
        return ["PooledNet needs images of side 4 or more"] * small
