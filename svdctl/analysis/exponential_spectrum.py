"""Spectra of SOC and SOTT layers: the truncated exponential of a skew convolution."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from svdctl.analysis.layer_spectrum import LayerSpectrum, as_it_runs
from svdctl.errors import ShapeError
from svdctl.layers.layer_bounds import layer_gain
from svdctl.layers.layer_ops import ops_of
from svdctl.layers.soc_bounds import series_norm, skew_norm_bound
from svdctl.layers.stiefel import frame_error
from svdctl.spectral.batched import eigenvalues_of
from svdctl.spectral.bounds import Bracket
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.symbol import angles, half_grid, symbol, tap_positions


def exponential_values(generator: Convolution, size: tuple[int, ...], terms: int) -> Tensor:
    """Return the singular values of `sum_{i <= terms} J^i / i!`, J skew with circular padding, descending, float64.

    J is normal, so they are `|sum (i t)^k / k!|` over its eigenvalues `i t`.
    """
    kernel = generator.kernel.double()
    index, counts = half_grid(size)
    # Taps counted from the middle one, where a skew kernel has a skew-Hermitian symbol.
    middle = torch.tensor([k // 2 for k in generator.taps], dtype=torch.float64)
    turn = angles(index, size) @ (tap_positions(generator.taps) - middle).T
    matrices = symbol(kernel, torch.polar(torch.ones_like(turn), -turn).to(kernel.device))
    heights = eigenvalues_of(-1j * matrices).unflatten(0, (len(index), -1)).flatten(1)
    term = total = torch.ones_like(heights, dtype=torch.complex128)
    for i in range(1, terms + 1):
        term = term * (1j * heights) / i
        total = total + term
    return total.abs().repeat_interleave(counts.to(total.device), 0).flatten().sort(descending=True).values


def exponential_row(
    row: LayerSpectrum, layer: nn.Module, generator: Convolution, terms: int, size: tuple[int, ...] | None
) -> LayerSpectrum:
    """Return the row of a layer: the values of its square core, and the proved bound of the whole, frames included.

    Without a size of its input it has a bound alone.
    """
    ops = ops_of(layer)
    stride = ops.stride(layer)
    inner = None if size is None else tuple(max(1, n // step) for n, step in zip(size, stride, strict=True))
    bound = Bracket(0.0, layer_gain(layer).value)
    padded = None if size is None else as_it_runs(layer, size, bound)
    row = replace(row, bound=padded or bound, zero_padded=padded, stride=stride, rank=ops.rank(layer))
    row = replace(row, frame_error=max((float(frame_error(frame)) for frame in ops.frames(layer)), default=None))
    if size is None:
        return row
    row = _with_values(row, generator, terms, inner)
    return replace(row, input_size=size, note=f"{row.note}; the cut of its series leaves them within the bound")


def stored_exponential(
    row: LayerSpectrum, generator: Convolution, terms: int, size: tuple[int, ...] | None, frame_norms: Sequence[float]
) -> LayerSpectrum:
    """Return the same for a layer of a file without a network.

    Raises:
        ShapeError: a generator whose powers are beyond float64.
    """
    try:
        series = series_norm(terms, skew_norm_bound(generator.weight, terms, None))
        upper = series * math.prod(frame_norms) * (1 + 1e-6)
    except OverflowError:
        upper = math.inf
    if not math.isfinite(upper):
        raise ShapeError("its numbers are so large that its exponential is beyond float64")
    return _with_values(replace(row, bound=Bracket(0.0, upper)), generator, terms, size)


def _with_values(row: LayerSpectrum, generator: Convolution, terms: int, size: tuple[int, ...] | None) -> LayerSpectrum:
    values = None if size is None else exponential_values(generator, size, terms).cpu()
    note = f"values of the core of {len(generator.weight)} channels"
    return replace(row, values=values, input_size=size, note=note)
