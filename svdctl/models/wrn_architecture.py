"""Wide residual networks as an architecture."""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from svdctl.config.model_config import ModelConfig
from svdctl.models.architecture import Architecture, register_architecture

if TYPE_CHECKING:
    from torch import nn


class Wrn(ModelConfig):
    """Wide residual network with pre-activation blocks; depth 6n + 4."""

    kind: Literal["wrn"] = "wrn"
    depth: Annotated[int, Field(ge=1, le=2_000)] = 16
    """Layers of the network, 6n + 4: n blocks in each of the three stages."""
    width: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Factor on the base widths 16, 32, 64 of the three stages."""

    @model_validator(mode="after")
    def _depth(self) -> Self:
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(f"a WRN's depth is 6n + 4 (10, 16, 22, 28, ...), not {self.depth} (`model.depth`)")
        return self


@register_architecture
class WrnArchitecture(Architecture):
    """WRN-depth-width."""

    kind = "wrn"
    channels = 3
    config = Wrn
    network = "svdctl.models.wrn:WideResNet"

    def start_as_paper_(self, model: "nn.Module") -> None:
        last: Any = model.get_submodule("fc")
        limit = 1 / math.sqrt(last.in_features)
        last.bias.uniform_(-limit, limit)

    def name(self, config: Wrn) -> str:
        return f"WRN-{config.depth}-{config.width}"

    def smallest(self, config: Wrn) -> int:
        return config.depth
