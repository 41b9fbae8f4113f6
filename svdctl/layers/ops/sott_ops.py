"""SOTT, a skew orthogonal convolution between two frames."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from svdctl.config.base import Config
from svdctl.layers.layer_ops import register_layer
from svdctl.layers.ops.soc_ops import SocOps
from svdctl.layers.ops.tt_ops import FramedOps, RankedConfig, keep_frames_, rank_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from svdctl.layers.layer_bounds import Gain
    from svdctl.layers.layer_ops import ConvFactory
    from svdctl.layers.stiefel import Method
    from svdctl.spectral.convolution import Convolution


class Sott(RankedConfig):
    """Skew orthogonal convolutions of width `rank` between two frames."""

    kind: Literal["sott"] = "sott"
    is_orthogonal: ClassVar[bool] = True
    pointwise_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the skew kernel of 1x1 convolutions; wider ones have 0.7, as in the paper's code these have too."""

    @model_validator(mode="after")
    def _has_rank(self) -> Self:
        if self.rank is None:
            raise ValueError("SOTT layers need a rank, or one for each of 6 groups (`layer.rank`)")
        return self


@register_layer
class SottOps(FramedOps):
    """`SOTT`."""

    kind = "sott"
    config = Sott
    modules = ("svdctl.layers.sott:SOTT",)
    can_control = False

    def factory(self, config: Sott, *, group: int, model: Config) -> "ConvFactory":
        from svdctl.layers.sott import SOTT

        again, rank = getattr(model, "checkpoint_activations", False), rank_of(config, group)
        assert rank is not None

        def make(in_channels: int, out_channels: int, kernel_size: int, *, padding: int, **settings: Any) -> SOTT:
            assert padding == kernel_size // 2
            settings |= {"scale": config.pointwise_scale if kernel_size == 1 else None, "checkpoint_activations": again}
            kind = config.frames.kind
            layer = SOTT(in_channels, out_channels, kernel_size, rank=rank, frames=kind, **settings)
            keep_frames_(layer, config.frames)
            return layer

        return make

    def start_as_paper_(self, layer: Any) -> None:
        SocOps().start_as_paper_(layer)

    def uncompressed(self, config: Sott) -> str:
        return "soc"

    def generator(self, layer: Any) -> "tuple[Convolution, int]":
        return SocOps().generator(layer.core)

    def parts(self, layer: Any) -> "tuple[nn.Module, ...]":
        return (layer.core,)

    def shape(self, layer: Any) -> tuple[int, ...]:
        return (layer.out_channels, layer.in_channels, layer.kernel_size, layer.kernel_size)

    def plain(self, layer: Any, size: tuple[int, ...] | None = None) -> "nn.Module":
        from svdctl.layers.plain_layers import plain_sott

        return plain_sott(layer)

    def retract_(
        self, layers: Sequence[Any], method: "Method", optimizer: "torch.optim.Optimizer | None"
    ) -> "Tensor | None":
        from svdctl.layers.sott import retract_sott_layers_

        return retract_sott_layers_(layers, method, optimizer)

    def gain(self, layer: Any, *, tolerance: float | None = None) -> "Gain":
        from svdctl.layers.soc_bounds import sott_gain

        return sott_gain(layer, tolerance)
