"""Torch's attention: its projections are linear maps, it has no gain itself."""

from typing import TYPE_CHECKING, Any

from svdctl.layers.layer_ops import LayerOps, register_layer

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_layer
class AttentionOps(LayerOps):
    """`MultiheadAttention`."""

    kind = "attention"
    modules = ("torch.nn.modules.activation:MultiheadAttention",)
    can_control = False

    def shape(self, layer: Any) -> tuple[int, ...]:
        return (3 * layer.embed_dim, layer.embed_dim)

    def projections(self, layer: Any) -> "dict[str, nn.Linear]":
        from torch.nn.utils.parametrize import is_parametrized

        from svdctl.layers.layer_operator import why_not_read

        # It reads the weights of `out_proj` and does not call it: no hook that makes them would run.
        if why_not_read(layer) is not None or any(is_parametrized(part) for part in layer.modules()):
            return {}
        if layer.in_proj_weight is None:
            weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        else:
            weights = layer.in_proj_weight.chunk(3)
        named = zip(("q_proj", "k_proj", "v_proj", "out_proj"), (*weights, layer.out_proj.weight), strict=True)
        return {name: _linear(weight) for name, weight in named}


def _linear(weight: "Tensor") -> "nn.Linear":
    """Return a linear layer without bias whose weight `(O, I)` lies in the memory of this one."""
    from torch import nn

    out, inputs = weight.shape
    layer = nn.Linear(inputs, out, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return layer.eval()
