"""The Gram matrices `A(w)^H A(w)` of a kernel at any frequencies, by trigonometric interpolation.

Note 1, interpolation. Along an axis of k taps the Gram matrix is a trigonometric polynomial of degree k - 1, so its
values at 2k - 1 equispaced points determine it: `G(w) = sum_j D(w - w_j) G(w_j)`, D the Dirichlet kernel. A 3x3 kernel
needs 13 products of matrices (half of 5 x 5 points); every other frequency costs a row of one real matrix product.
Since `G(-w) = conj G(w)`, real and imaginary parts are interpolated apart, with the even and the odd part of D.

Note 2, rounding. u is the unit roundoff of float64, v that of the precision asked for, p that of the products, T the
largest trace and F the largest Frobenius norm of a sample, L the sum of the absolute weights (the Lebesgue constant).
- A complex inner product of length r is two real ones of length 2 r. In any order of summation, with or without fused
  multiply-add, each of them errs by at most `gamma_2r |x|.|y|` (Higham 2002, section 3.1; `|Re x Re y| + |Im x Im y|`
  is at most `|x y|`), and both together by `sqrt(2) gamma_2r |x|.|y|`, about `2 sqrt(2) r` roundings.
- A frequency is a multiple of `2 pi / n`, rounded three times, and its product with a tap's position is rounded once
  more, as are the sums over d axes: an angle errs by at most `2 pi (d + 5) u sum_a (k_a - 1)`, and a phase by as much.
- So the symbol's own error is below `e = (4 (taps + 8) + 2 pi (d + 5) sum_a (k_a - 1)) u sum_p ||K_p||_F`, and rounding
  it to the product's precision adds `p sqrt(T)` to e; that moves a sample by `2 sqrt(T) e + e^2`.
- The product's inner products of length r are sums of r / b blocks of length b, each in any order: they err by
  `2 sqrt(2) (b + 2) + r / b` roundings, and the product by as many times `p T`, since `|| |A|^T |A| ||` is at most the
  trace of `A^H A`.
- Interpolation multiplies both by L and adds `2 (samples + 16) v L F`, the rounding of weights and samples included.
- The weights' own error: the gap between two frequencies, of at most 6 pi, errs by 12 pi u, and its product with a
  wave's number j by 6 pi j u more; a mean of `2 k - 1` waves so errs by less than 30 k u, and all `2 k - 1` weights of
  an axis together by less than `60 k^2 u`. That adds `W F`, `W = prod_a (L_a + 60 k_a^2 u) - L`.
`error` adds them up with a margin of a tenth, which covers products of these errors, and what is rounded where numbers
are subnormal: the largest entry of the kernel is between 1 and 2, so that this is below `2^-1000`, in float32 below
`2^-120`. It presumes `exact_arithmetic`: reduced precision products (TF32, bfloat16) are never used here.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.symbol import angles, gram, half_grid, phases, symbol

_CHUNK_BYTES = 1 << 24
_LEBESGUE_GRID = 128
_MOST_TAPS_ON_A_GRID = 512
_WORTH_READING = 12
# Of the inner products of a sample in float32: a shorter one rounds less, and takes more time. Any length is sound.
_BLOCK = 32


class GramField:
    """Gram matrices `(F, G, n, n)` of a convolution's polyphase symbol on its smaller side.

    Axes of one tap are dropped, and the kernel is scaled by a power of two, so that no square can over- or underflow:
    `norm of the convolution = norm of the field * scale`. The field's norm is at most `above`, and may be far below.

    Args:
        conv: the convolution.
        product: precision of the products `A^H A`; float32 takes a third of the time and is right to 1e-3 or so.
    """

    def __init__(self, conv: Convolution, product: torch.dtype = torch.float64) -> None:
        kernel = conv.polyphase().double()
        if not bool(torch.isfinite(kernel).all()):
            raise ShapeError("the kernel holds values that are not finite; its norm has no bound")
        kernel = kernel.reshape(*kernel.shape[:3], *(k for k in kernel.shape[3:] if k > 1))
        largest = float(kernel.abs().max()) if kernel.numel() else 0.0
        self.is_zero = largest == 0.0
        # Exact, but for entries that become subnormal: see Note 2.
        self.scale = power_of_two(largest)
        kernel = kernel / self.scale
        self.taps = tuple(kernel.shape[3:])
        self.groups = kernel.shape[0]
        self.side = min(kernel.shape[1:3])
        self.device = kernel.device
        self.sample_points = sample_points(self.taps)
        symbols = symbol(kernel, phases(self.sample_points, self.taps, kernel))
        grams = gram(symbols.to(product.to_complex()), _block(product))
        count = len(self.sample_points)
        self.samples = grams.unflatten(0, (count, self.groups))
        self._parts = {product: (grams.real.reshape(count, -1), grams.imag.reshape(count, -1))}
        self.product = product
        self._set_errors(kernel)

    def _set_errors(self, kernel: Tensor) -> None:
        unit = torch.finfo(self.product).eps / 2
        rounded = unit if self.product != torch.float64 else 0.0
        trace = float(self.samples.diagonal(dim1=-2, dim2=-1).real.double().sum(-1).max())
        per_tap = float(kernel.reshape(*kernel.shape[:3], -1).square().sum((1, 2)).sqrt().sum(-1).max())
        self.above = per_tap * (1 + 1e-10)
        angle = 2 * math.pi * (len(self.taps) + 5) * sum(k - 1 for k in self.taps)
        symbol_error = (4 * (math.prod(self.taps) + 8) + angle) * 2.0**-53 * per_tap + rounded * math.sqrt(trace)
        parts = torch.view_as_real(self.samples).flatten(2)
        self.frobenius = float(torch.linalg.vector_norm(parts, dim=2, dtype=torch.float64).max())
        self._lebesgue = lebesgue(self.taps)
        self._weights_error = lebesgue(self.taps, error=True) - self._lebesgue
        rows = max(kernel.shape[1:3])
        product = product_roundings(rows, self.product) * unit * trace
        self._sample_error = 2 * math.sqrt(trace) * symbol_error + symbol_error**2 + product

    def error(self, dtype: torch.dtype) -> float:
        """How far `at(..., dtype)` can be from the true Gram matrices, in norm; see Note 2."""
        unit = torch.finfo(dtype).eps / 2
        interpolation = 2 * (len(self.sample_points) + 16) * unit * self.frobenius
        return 1.1 * (self._lebesgue * (self._sample_error + interpolation) + self._weights_error * self.frobenius)

    def at(self, frequencies: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Gram matrices `(F, G, n, n)` at frequencies `(F, d)` in radians, complex of precision `dtype`."""
        if dtype not in self._parts:
            real, imag = self._parts[self.product]
            self._parts[dtype] = (real.to(dtype), imag.to(dtype))
        real, imag = self._parts[dtype]
        even, odd = (weight.to(self.device, dtype) for weight in interpolation(frequencies, self.taps))
        values = torch.complex(even @ real, odd @ imag)
        return values.reshape(len(frequencies), self.groups, self.side, self.side)

    def chunk(self, dtype: torch.dtype) -> int:
        """How many frequencies to ask for at once."""
        each = 6 * dtype.itemsize * self.groups * self.side**2
        # All samples are read for each chunk, so that a few at least should come of it.
        return max(1, _CHUNK_BYTES // each, min(_WORTH_READING, 8 * _CHUNK_BYTES // each))


def interpolation(frequencies: Tensor, taps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Weights `(F, samples)` of the samples' real and imaginary parts at frequencies `(F, d)`, float64."""
    samples, shares = _samples(taps)
    points = frequencies[:, None, :]
    there, mirrored = _dirichlet(points - samples, taps), _dirichlet(points + samples, taps)
    return (there + mirrored) * shares, there - mirrored


def power_of_two(value: float) -> float:
    """Return the largest power of two up to a positive number, 1 for 0."""
    return 2.0 ** (math.frexp(value)[1] - 1) if value > 0 else 1.0


def complex_roundings(length: int) -> float:
    """Unit roundoffs by which a complex inner product errs relative to `|x|.|y|`, in any order of summation."""
    return 2 * math.sqrt(2) * length


def product_roundings(length: int, product: torch.dtype) -> float:
    """Unit roundoffs by which an inner product of the samples errs relative to `|x|.|y|`; see Note 2."""
    block = _block(product) or max(length, 1)
    return complex_roundings(min(length, block) + 2) + math.ceil(length / block)


def _block(product: torch.dtype) -> int | None:
    return _BLOCK if product == torch.float32 else None


def lebesgue(taps: tuple[int, ...], *, error: bool = False) -> float:
    """At least the Lebesgue constant of equispaced odd interpolation; with the weights' own error, see Note 2."""
    own = 60 * 2.0**-53 if error else 0.0
    return math.prod(_lebesgue_of_axis(k) + own * k**2 for k in taps)


@lru_cache(maxsize=64)
def _lebesgue_of_axis(taps: int) -> float:
    """At least the largest sum of absolute weights, of n = 2 taps - 1 points along one axis.

    The sum has the period 2 pi / n. At each place it is the largest value there of an interpolant of data between -1
    and 1, a polynomial of degree `taps - 1` which the constant L itself bounds: by Bernstein's inequality it changes by
    at most `(taps - 1) L` a radian, so that L is at most the largest value on a grid of step h over
    `1 - (taps - 1) h / 2`.
    """
    points = 2 * taps - 1
    if taps > _MOST_TAPS_ON_A_GRID:
        return 2 + (2 / math.pi) * math.log(points)
    step = 2 * math.pi / points / _LEBESGUE_GRID
    # In the middle of two grid points, so that none is a node, where the sum is 1.
    place = (torch.arange(_LEBESGUE_GRID, dtype=torch.float64)[:, None] + 0.5) * step
    gap = place - torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    weights = torch.sin(points * gap / 2) / (points * torch.sin(gap / 2))
    return float(weights.abs().sum(1).max()) / (1 - (taps - 1) * step / 2) * (1 + 1e-10)


def sample_points(taps: tuple[int, ...]) -> Tensor:
    """The frequencies `(samples, d)` whose Gram matrices determine all others; 0 first."""
    return _samples(taps)[0]


@lru_cache(maxsize=64)
def _samples(taps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The half grid `(samples, d)` that determines the Gram matrices, and half of how often each counts."""
    sizes = tuple(2 * k - 1 for k in taps)
    index, counts = half_grid(sizes)
    return angles(index, sizes), counts.double() / 2


def _dirichlet(gap: Tensor, taps: tuple[int, ...]) -> Tensor:
    result = torch.ones(gap.shape[:-1], dtype=torch.float64)
    for axis, k in enumerate(taps):
        waves = torch.arange(1, k, dtype=torch.float64)
        result = result * (1 + 2 * torch.cos(gap[..., axis, None] * waves).sum(-1)) / (2 * k - 1)
    return result
