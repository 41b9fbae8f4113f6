"""Tensor-train convolutions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from svdctl.layers.layer_ops import LayerOps, register_layer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from svdctl.spectral.convolution import Convolution


class FramedOps(LayerOps):
    """What layers between two frames have in common."""

    def frames(self, layer: Any) -> "list[Tensor]":
        return [frame for frame in (layer.frame_in, layer.frame_out) if frame is not None]

    def rank(self, layer: Any) -> tuple[int, int] | None:
        rank_in, rank_out = layer.rank
        return rank_in, rank_out

    def after_optimizer_step_(self, layer: Any, *, step: int, optimizer: "torch.optim.Optimizer | None") -> None:
        if layer.frames_kind == "retract":
            layer.retract_(layer.retraction, optimizer)

    def penalty(self, layer: Any) -> "tuple[list[Tensor], int, float] | None":
        if layer.frames_kind != "penalty" or not layer.has_frames:
            return None
        from svdctl.layers.tt import frame_defects

        return *frame_defects(layer, layer.penalty_count), layer.penalty_weight


@register_layer
class TTOps(FramedOps):
    """`TTConv2d`."""

    kind = "tt"
    modules = ("svdctl.layers.tt:TTConv2d",)

    def operator(self, layer: Any) -> "Convolution":
        import torch

        # Half precision would round what the frames are moved into.
        return _strided(layer, layer.small_kernel().to(torch.promote_types(layer.core.dtype, torch.float32)))

    def exact_operator(self, layer: Any) -> "tuple[Convolution, float]":
        if not layer.has_frames:
            return self.operator(layer), 0.0
        kernel, error = layer.exact_kernel()
        return _strided(layer, kernel), error

    def operators_assuming_orthonormal(self, layers: Sequence[Any]) -> "list[Convolution]":
        return [
            _strided(
                layer,
                layer.core.detach()
                if layer.frames_kind in ("retract", "parametrize")
                else layer.small_kernel(dtype=layer.core.dtype),
            )
            for layer in layers
        ]

    def core_operator(self, layer: Any) -> "Convolution":
        return _strided(layer, layer.core.detach())

    def tensors(self, layer: Any, optimizer: "torch.optim.Optimizer | None" = None) -> "list[Tensor]":
        from svdctl.layers.stiefel import MEANS

        found = [layer.core, *([] if layer.frames_kind == "parametrize" else self.frames(layer))]
        states = [] if optimizer is None else [optimizer.state.get(tensor, {}) for tensor in found]
        return found + [state[key] for state in states for key in MEANS if state.get(key) is not None]

    def write_(self, layer: Any, conv: "Convolution", optimizer: "torch.optim.Optimizer | None" = None) -> None:
        layer.set_small_kernel(conv.weight, optimizer)

    def shape(self, layer: Any) -> tuple[int, ...]:
        return (layer.out_channels, layer.in_channels, *layer.kernel_size)

    def shape_text(self, layer: Any) -> str:
        return f"{super().shape_text(layer)}, rank {layer.rank[1]} x {layer.rank[0]}"


def _strided(layer: Any, kernel: "Tensor") -> "Convolution":
    from svdctl.spectral.convolution import Convolution

    return Convolution.make(kernel, stride=layer.stride, dilation=layer.dilation)
