"""Skew orthogonal convolutions."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from svdctl.config.base import Config
from svdctl.config.model_config import LayerConfig
from svdctl.layers.layer_ops import LayerOps, register_layer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from svdctl.layers.layer_bounds import Gain
    from svdctl.layers.layer_ops import ConvFactory
    from svdctl.spectral.convolution import Convolution

REFINE_EVERY = 200
"""Steps between two times that many power steps are taken for the norms of the skew kernels."""


class Soc(LayerConfig):
    """Skew orthogonal convolutions: the exponential of a skew-symmetric one."""

    kind: Literal["soc"] = "soc"
    is_orthogonal: ClassVar[bool] = True


@register_layer
class SocOps(LayerOps):
    """`SOC`."""

    kind = "soc"
    config = Soc
    modules = ("svdctl.layers.soc:SOC",)
    can_control = False

    def factory(self, config: Soc, *, group: int, model: Config) -> "ConvFactory":
        from svdctl.layers.soc import SOC

        again = getattr(model, "checkpoint_activations", False)

        def make(in_channels: int, out_channels: int, kernel_size: int, *, padding: int, **settings: Any) -> SOC:
            assert padding == kernel_size // 2
            return SOC(in_channels, out_channels, kernel_size, checkpoint_activations=again, **settings)

        return make

    def start_as_paper_(self, layer: Any) -> None:
        if layer.bias is not None:
            limit = 1 / math.sqrt(layer.out_channels)
            layer.bias.uniform_(-limit, limit)

    def text(self, config: Soc) -> str:
        return "SOC convolutions"

    def generator(self, layer: Any) -> "tuple[Convolution, int]":
        from svdctl.spectral.convolution import Convolution

        return Convolution.make(layer.skew_kernel()), layer.series_terms(training=False)

    def shape(self, layer: Any) -> tuple[int, ...]:
        return (layer.out_channels, layer.in_channels, layer.kernel_size, layer.kernel_size)

    def frozen(self, layer: Any) -> "nn.Module":
        from svdctl.layers.soc import FixedSOC

        return FixedSOC(layer)

    def plain(self, layer: Any, size: tuple[int, ...] | None = None) -> "nn.Module":
        from svdctl.layers.plain_layers import plain_soc

        return plain_soc(layer)

    def cost(self, layer: Any, size: tuple[int, ...]) -> float:
        return float(math.prod(-(-length // layer.stride) for length in size)) * layer.width**3

    def after_optimizer_step_(
        self, layers: Sequence[Any], *, step: int, optimizer: "torch.optim.Optimizer | None"
    ) -> "Tensor | None":
        if step % REFINE_EVERY == 0:
            for layer in layers:
                layer.refine_norm_estimate_()
        return None

    def due(self, layers: Sequence[Any], step: int) -> tuple[str, ...]:
        return ("norm estimates",) if step % REFINE_EVERY == 0 else ()

    def gain(self, layer: Any, *, tolerance: float | None = None) -> "Gain":
        from svdctl.layers.soc_bounds import soc_gain

        return soc_gain(layer, tolerance)


@register_layer
class FixedSocOps(LayerOps):
    """`FixedSOC`, which certificates put in the place of a SOC layer."""

    kind = "fixed-soc"
    modules = ("svdctl.layers.soc:FixedSOC",)
    can_control = False
    has_spectrum = False

    def gain(self, layer: Any, *, tolerance: float | None = None) -> "Gain":
        from svdctl.layers.soc_bounds import soc_gain

        return soc_gain(layer, tolerance)
