"""Gain of a TT layer: its frames' triangular factors enter its core, so that what they stretch is counted once."""

import math

import torch
from torch import Tensor

from svdctl.certify.facts import gamma, norm_above
from svdctl.certify.gains import (
    FINEST,
    UNIT64,
    Gain,
    Stage,
    absolute_norm,
    chain_rounding,
    frame_convolution,
    layer_gain,
    linear_gain,
    norm_above_of,
    summands,
)
from svdctl.layers.frames import qr_positive
from svdctl.layers.tt import TTConv2d
from svdctl.spectral.matrix import matrix_norm_bound
from svdctl.spectral.operator import Convolution


@layer_gain.register
def _tt(layer: TTConv2d, *, tolerance: float | None = None) -> Gain:
    core = Convolution.make(layer.core.detach().double(), stride=layer.stride, dilation=layer.dilation)
    if layer.frame_in is None or layer.frame_out is None:
        return linear_gain(core, layer.bias, tolerance)
    frame_in, frame_out = layer.frame_in.detach().double(), layer.frame_out.detach().double()
    norms = [matrix_norm_bound(frame, tolerance=FINEST).upper for frame in (frame_in, frame_out)]
    core_norm = norm_above_of(core, tolerance)
    # The triangular factors in the core: the norm of the product, not the product of the norms.
    r_in, r_out = qr_positive(frame_in)[1], qr_positive(frame_out)[1]
    joint = core.with_kernel(torch.einsum("cb,bahw,da->cdhw", r_out, layer.core.detach().double(), r_in)[None])
    # Householder QR is exact for a frame off by gamma in each column (Higham 2002, Theorem 19.4).
    slack = gamma(16 * max(frame_in.numel(), frame_out.numel()), UNIT64)
    sizes = norm_above(frame_in) * norm_above(frame_out) * _tap_norms(layer.core)
    together = norm_above_of(joint, tolerance) + slack * sizes
    parts = [frame_convolution(frame_in.T), core, frame_convolution(frame_out)]
    stages = [Stage.of(part, norm) for part, norm in zip(parts, (norms[0], core_norm, norms[1]), strict=True)]
    if together < norms[0] * core_norm * norms[1]:
        factors = {"norm": core_norm, "frames": together / core_norm if core_norm else 0.0}
    else:
        factors = {"norm": core_norm, "frames": norms[0] * norms[1]}
    whole = core.with_kernel(torch.einsum("ob,bahw,ia->oihw", frame_out, core.weight, frame_in)[None])
    absolute, product = absolute_norm(whole), math.prod(absolute_norm(part) for part in parts)
    inner = sum(layer.rank) + 4

    def rounding(unit: float) -> float:
        # The layer multiplies its factors by the image one by one, or with each other first: whichever is cheaper.
        contraction = gamma(inner, unit) * product
        contracted = contraction + gamma(summands(whole) + 1, unit) * (absolute + contraction)
        return max(chain_rounding(stages, unit), contracted)

    return Gain(factors, rounding, layer.bias, summands(whole) + 1, is_affine=True)


def _tap_norms(kernel: Tensor) -> float:
    """Sum over taps of the Frobenius norms: at least the norm of the convolution."""
    return float(kernel.detach().double().flatten(2).square().sum((0, 1)).sqrt().sum()) * (1 + 1e-10)
