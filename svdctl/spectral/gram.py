"""The Gram matrices `A(w)^H A(w)` of a kernel at any frequencies, by trigonometric interpolation.

Along an axis of k taps the Gram matrix is a trigonometric polynomial of degree k - 1, so its values at 2k - 1
equispaced points determine it; a 3x3 kernel needs 13 products of matrices. docs/theory.md, "Interpolation" and
"Rounding of the Gram matrices", has the proofs. They presume `exact_arithmetic`.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.symbol import angles, gram, half_grid, phases, symbol

# For soundness; docs/theory.md, "Constants".
UNIT64 = 2.0**-53
SECOND_ORDER = 1.1
_WEIGHT_ROUNDINGS = 60
_QUOTIENT_ROUNDINGS = 8
# For speed.
_BLOCK = 32  # length of inner products in float32: a shorter one rounds less, and takes more time
_LEBESGUE_GRID = 128
_MOST_TAPS_ON_A_GRID = 512
_CHUNK_BYTES = 1 << 24
_WORTH_READING = 12


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
        # Exact, but for entries that become subnormal; the error bound covers them.
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
        symbol_error = (4 * (math.prod(self.taps) + 8) + angle) * UNIT64 * per_tap + rounded * math.sqrt(trace)
        parts = torch.view_as_real(self.samples).flatten(2)
        self.frobenius = float(torch.linalg.vector_norm(parts, dim=2, dtype=torch.float64).max())
        self._lebesgue = lebesgue(self.taps)
        self._weights_error = lebesgue(self.taps, error=True) - self._lebesgue
        rows = max(kernel.shape[1:3])
        product = product_roundings(rows, self.product) * unit * trace
        self._sample_error = 2 * math.sqrt(trace) * symbol_error + symbol_error**2 + product

    def error(self, dtype: torch.dtype) -> float:
        """Return how far `matrices(..., dtype)` can be from the true Gram matrices, in norm."""
        unit = torch.finfo(dtype).eps / 2
        interpolation = 2 * (len(self.sample_points) + 16) * unit * self.frobenius
        samples = self._lebesgue * (self._sample_error + interpolation)
        return SECOND_ORDER * (samples + self._weights_error * self.frobenius)

    def quotient_rounding(self, frobenius: float) -> float:
        """Return how far a Rayleigh quotient of a matrix of this Frobenius norm, in float64, can be off."""
        return _QUOTIENT_ROUNDINGS * (self.side + 8) * UNIT64 * frobenius

    def matrices(self, frequencies: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return Gram matrices `(F, G, n, n)` at frequencies `(F, d)` in radians, complex of precision `dtype`."""
        if dtype not in self._parts:
            real, imag = self._parts[self.product]
            self._parts[dtype] = (real.to(dtype), imag.to(dtype))
        real, imag = self._parts[dtype]
        even, odd = (weight.to(self.device, dtype) for weight in interpolation(frequencies, self.taps))
        values = torch.complex(even @ real, odd @ imag)
        return values.reshape(len(frequencies), self.groups, self.side, self.side)

    def chunk(self, dtype: torch.dtype) -> int:
        """Return how many frequencies to compute at once."""
        each = 6 * dtype.itemsize * self.groups * self.side**2
        # All samples are read for each chunk, so that a few at least should come of it.
        return max(1, _CHUNK_BYTES // each, min(_WORTH_READING, 8 * _CHUNK_BYTES // each))


def interpolation(frequencies: Tensor, taps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return weights `(F, samples)` of the samples' real and imaginary parts at frequencies `(F, d)`, float64."""
    samples, shares = _samples(taps)
    points = frequencies[:, None, :]
    there, mirrored = _dirichlet(points - samples, taps), _dirichlet(points + samples, taps)
    return (there + mirrored) * shares, there - mirrored


def power_of_two(value: float) -> float:
    """Return the largest power of two up to a positive number, 1 for 0."""
    return 2.0 ** (math.frexp(value)[1] - 1) if value > 0 else 1.0


def complex_roundings(length: int) -> float:
    """Return the unit roundoffs by which a complex inner product, in any order, errs relative to `|x|.|y|`."""
    return 2 * math.sqrt(2) * length


def product_roundings(length: int, product: torch.dtype) -> float:
    """Return the unit roundoffs by which an inner product of the samples errs relative to `|x|.|y|`."""
    block = _block(product) or max(length, 1)
    return complex_roundings(min(length, block) + 2) + math.ceil(length / block)


def _block(product: torch.dtype) -> int | None:
    return _BLOCK if product == torch.float32 else None


def lebesgue(taps: tuple[int, ...], *, error: bool = False) -> float:
    """Return at least the Lebesgue constant of the interpolation; with `error`, of its weights as computed."""
    own = _WEIGHT_ROUNDINGS * UNIT64 if error else 0.0
    return math.prod(_lebesgue_of_axis(k) + own * k**2 for k in taps)


@lru_cache(maxsize=64)
def _lebesgue_of_axis(taps: int) -> float:
    """Return at least the largest sum of absolute weights along one axis of n = 2 taps - 1 points."""
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
    """Return the frequencies `(samples, d)` whose Gram matrices determine all others; 0 first."""
    return _samples(taps)[0]


@lru_cache(maxsize=64)
def _samples(taps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the half grid `(samples, d)` that determines the Gram matrices, and half of how often each counts."""
    sizes = tuple(2 * k - 1 for k in taps)
    index, counts = half_grid(sizes)
    return angles(index, sizes), counts.double() / 2


def _dirichlet(gap: Tensor, taps: tuple[int, ...]) -> Tensor:
    result = torch.ones(gap.shape[:-1], dtype=torch.float64)
    for axis, k in enumerate(taps):
        waves = torch.arange(1, k, dtype=torch.float64)
        result = result * (1 + 2 * torch.cos(gap[..., axis, None] * waves).sum(-1)) / (2 * k - 1)
    return result
