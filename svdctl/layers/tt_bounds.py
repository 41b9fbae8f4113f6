"""Gain of a TT layer: its frames' triangular factors enter its core, so that what they stretch is counted once."""

import torch
from torch import Tensor

from svdctl.layers.layer_bounds import (
    Gain,
    absolute_norm,
    chain_enlargement,
    chain_rounding,
    frame_convolution,
    linear_gain,
    norm_above_of,
    proved_norm,
    summands,
)
from svdctl.layers.stiefel import QR_ROUNDINGS, qr_positive
from svdctl.layers.tt import TTConv
from svdctl.spectral.bounds import taps_norm
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.gram import UNIT64
from svdctl.spectral.rounding import gamma, norm_above, times, times_power, to_unit_size

# For speed: frames that are farther from orthonormal are bounded one by one.
_LARGEST_DEFECT = 0.01


def tt_gain(layer: TTConv, tolerance: float | None) -> Gain:
    """Return the gain of a TT layer."""
    core = Convolution.make(layer.core.detach().double(), stride=layer.stride, dilation=layer.dilation)
    if layer.frame_in is None or layer.frame_out is None:
        return linear_gain(core, layer.bias, tolerance, proved_norm())
    frame_in, frame_out = layer.frame_in.detach().double(), layer.frame_out.detach().double()
    parts = [frame_convolution(frame_in.T), core, frame_convolution(frame_out)]
    together = proved_norm()
    known = [None] * 3 if together is None else _norms_of_parts(frame_in, frame_out, together)
    stages = [linear_gain(part, None, tolerance, norm) for part, norm in zip(parts, known, strict=True)]
    norms = [stage.factors["norm"] for stage in stages]
    core_norm, product = norms[1], times(*norms)
    if together is None:
        together = _norm_of_product(frame_in, core, frame_out, tolerance)
    frames = times(min(together, product), 1 / core_norm) * (1 + 2.0**-50) if core_norm else 0.0
    factors = {"norm": core_norm, "frames": frames}
    whole = core.with_kernel(torch.einsum("ob,ba...,ia->oi...", frame_out, core.weight, frame_in)[None])
    absolute, absolutes = absolute_norm(whole), times(*(absolute_norm(part) for part in parts))
    inner = sum(layer.rank) + 4

    def rounding(unit: float) -> float:
        # The layer multiplies its factors by the image one by one, or with each other first: whichever is cheaper.
        contraction = gamma(inner, unit) * absolutes
        contracted = contraction + gamma(summands(whole) + 1, unit) * (absolute + contraction)
        return max(chain_rounding(stages, unit), contracted)

    enlarged = chain_enlargement(stages)
    return Gain(factors, rounding, layer.bias, summands(whole) + 1, is_affine=True, enlarged=enlarged)


def _norms_of_parts(frame_in: Tensor, frame_out: Tensor, together: float) -> list[float | None]:
    """Return at least the norms of the input frame, the core and the output frame, given that of all together.

    Singular values of a frame are within `1 +- |U^T U - I|`, and the core is the product of all with the frames'
    pseudo-inverses. None for each if frames are far from orthonormal.
    """
    defects = [_defect(frame) for frame in (frame_in, frame_out)]
    if not all(defect < _LARGEST_DEFECT for defect in defects):
        return [None] * 3
    above_in, above_out = (1 + defect for defect in defects)
    return [above_in, times(together, *(1 / (1 - defect) for defect in defects)) * (1 + 2.0**-50), above_out]


def _defect(frame: Tensor) -> float:
    """Return at least `|U^T U - I|` of a frame `(m, r)` in float64, rounding included."""
    size = norm_above(frame)
    apart = norm_above(frame.mT @ frame - torch.eye(frame.shape[1], dtype=frame.dtype, device=frame.device))
    return apart + 2 * gamma(frame.shape[0] + 2, UNIT64) * size**2


def _norm_of_product(frame_in: Tensor, core: Convolution, frame_out: Tensor, tolerance: float | None) -> float:
    """Return at least the norm of the three together: the frames' triangular factors enter the core."""
    joint, slack, exponent = joint_kernel(frame_in, core.weight, frame_out)
    return times_power(norm_above_of(core.with_kernel(joint[None]), tolerance) + slack, exponent)


def joint_kernel(frame_in: Tensor, core: Tensor, frame_out: Tensor) -> tuple[Tensor, float, int]:
    """Return a kernel `(r_out, r_in, *k)`, how far its norm may be from the layer's, and the exponent of a factor.

    The factor is a power of two, on both. All parts are of unit size, so that nothing over- or underflows that the
    result does not.
    """
    (unit_in, e_in), (unit_core, e_core), (unit_out, e_out) = map(to_unit_size, (frame_in, core, frame_out))
    r_in, r_out = qr_positive(unit_in)[1], qr_positive(unit_out)[1]
    joint = torch.einsum("cb,ba...,da->cd...", r_out, unit_core, r_in)
    # docs/theory.md, "Tensor-train layers".
    slack = gamma(QR_ROUNDINGS * max(frame_in.numel(), frame_out.numel()), UNIT64)
    sizes = norm_above(unit_in) * norm_above(unit_out) * taps_norm(unit_core[None])
    return joint, slack * sizes, e_in + e_core + e_out
