"""Torch's transposed convolutions: each is the adjoint of the convolution with the same weight."""

from svdctl.layers.layer_ops import register_layer
from svdctl.layers.ops.standard_ops import StandardOps


@register_layer
class TransposedOps(StandardOps):
    """`ConvTranspose1d`, `ConvTranspose2d`, `ConvTranspose3d`."""

    kind = "transposed"
    config = None
    modules = tuple(f"torch.nn.modules.conv:ConvTranspose{axes}d" for axes in (1, 2, 3))
    is_adjoint = True
