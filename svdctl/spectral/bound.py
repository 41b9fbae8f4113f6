"""The norm of a convolution over every input size, as a proof: floating point included.

Note 1, cells. Let S be the supremum of sigma_max over all frequencies, reached at w*, and m = (k - 1) / 2 the
half-width of the kernel along an axis. `u^H A(w) v` is, up to a phase, a trigonometric polynomial of degree m, and
such a polynomial is at least S cos(m x) at distance x from its maximum (Ehlich and Zeller 1964; M. Riesz). On a grid
of N > 2m points an axis, the grid point nearest to w* therefore has sigma_max >= S prod_axes cos(pi m / N) =: S c_N.
So if S > t, some grid point exceeds t c_N; points that do not cannot be nearest to w*, and only the cells of the
others are looked at on the grid of 2N. When no cell is left, S <= t is proved. Half-integer m (even kernels) obey the
same bound: substitute w = 2v.

Note 2, rounding. At each point one Cholesky factorisation decides whether `t^2 I - A^H A` is positive definite. If it
runs to its end on a matrix shifted down by `c n u trace` the unshifted matrix is positive definite (Rump 2006). The
shift here also covers the Gram product, `8 (n + rows + 8) u trace`; the rounding of the symbol itself,
at most `4 (taps + 8) u sum_p ||K_p||_F` in norm, is taken from t. All of it is done in float64, where these are below
1e-8 relative for a thousand channels.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.operator import Convolution
from svdctl.spectral.symbol import angles, gram, half_grid, phases, symbol, unique_up_to_sign

ROUNDOFF = 2.0**-53
TOLERANCE = 0.01
_FINEST = 4096
_CHUNK_BYTES = 1 << 28


@dataclass(frozen=True)
class Bracket:
    """`lower <= true value <= upper`, rounding errors included."""

    lower: float
    upper: float


@torch.no_grad()
def norm_bound(conv: Convolution, *, tolerance: float = TOLERANCE) -> Bracket:
    """Norm of the convolution on l2 of the whole grid: it bounds the layer at every input size and zero padding.

    Args:
        conv: any stride, dilation, groups and number of axes.
        tolerance: wanted `upper / lower - 1`.
    """
    grid = _Cells(conv)
    if grid.is_zero:
        return Bracket(0.0, 0.0)
    lower = grid.first_lower()
    while not grid.settled(lower * (1 + tolerance)):
        lower = max(lower, grid.strongest())
        grid.refine()
    return Bracket(lower * (1 - 1e-10), lower * (1 + tolerance))


@torch.no_grad()
def is_bounded(conv: Convolution, max: float) -> bool:
    """Whether the norm is proved to be at most `max`; False says that it is not, or by less than 1e-6."""
    grid = _Cells(conv)
    if grid.is_zero:
        return True
    while not grid.settled(max):
        if grid.strongest() > max or grid.slack() < 1e-6:
            return False
        grid.refine()
    return True


@torch.no_grad()
def scale_to_bound(conv: Convolution, max: float, *, tolerance: float = TOLERANCE) -> tuple[Convolution, Bracket]:
    """The seal: the convolution, scaled down if it must be, so that `norm_bound(...).upper <= max` after rounding."""
    bracket = norm_bound(conv, tolerance=tolerance)
    while bracket.upper > max:
        # One step always suffices but for the kernel's own rounding, which the factor anticipates.
        factor = max / bracket.upper * (1 - 8 * torch.finfo(conv.kernel.dtype).eps)
        conv = conv.with_kernel(conv.kernel * factor)
        bracket = norm_bound(conv, tolerance=tolerance)
    return conv, bracket


class _Cells:
    """Grid cells that can still hold the maximum; see Note 1."""

    def __init__(self, conv: Convolution) -> None:
        kernel = conv.polyphase().double()
        if not bool(torch.isfinite(kernel).all()):
            raise ShapeError("the kernel holds values that are not finite; its norm has no bound")
        self.kernel = kernel
        self.taps = tuple(kernel.shape[3:])
        self.half_width = tuple((k - 1) / 2 for k in self.taps)
        self.sizes = tuple(1 if k == 1 else max(4, math.ceil(3.5 * (k - 1))) for k in self.taps)
        per_tap = kernel.flatten(3).square().sum((1, 2)).sqrt().sum(-1)
        self.is_zero = not bool((per_tap > 0).any())
        self.symbol_error = 4 * (math.prod(self.taps) + 8) * ROUNDOFF * float(per_tap.max())
        self.index, _ = half_grid(self.sizes)
        self.grams: Tensor = torch.empty(0)

    def slack(self) -> float:
        """1 - c_N of the present grid."""
        return 1 - self._cosines()

    def _cosines(self) -> float:
        return math.prod(math.cos(math.pi * m / n) for m, n in zip(self.half_width, self.sizes, strict=True))

    def _grams(self, index: Tensor) -> Tensor:
        """`(points, G, n, n)`."""
        phase = phases(angles(index, self.sizes), self.taps, self.kernel)
        groups = self.kernel.shape[0]
        return gram(symbol(self.kernel, phase)).unflatten(0, (-1, groups))

    def first_lower(self) -> float:
        """A lower bound close to the grid's maximum: power steps everywhere, exact values at the best point."""
        best, where = 0.0, self.index[:1]
        for index in self._chunks():
            grams = self._grams(index)
            block = torch.ones(*grams.shape[:2], grams.shape[-1], 1, dtype=grams.dtype, device=grams.device)
            block = block + 0.5 * torch.randn(
                grams.shape[-1], 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
            ).to(grams.device)
            for _ in range(4):
                block = grams @ block
                block = block / block.norm(dim=-2, keepdim=True).clamp_min(1e-300)
            growth = (grams @ block).norm(dim=-2).amax((1, 2))
            value, position = growth.max(0)
            if float(value) > best:
                best, where = float(value), index[position : position + 1]
        return self._exact(where)

    def _exact(self, index: Tensor) -> float:
        top = torch.linalg.eigvalsh(self._grams(index))[..., -1].max()
        return math.sqrt(max(float(top), 0.0))

    def settled(self, bound: float) -> bool:
        """Drop every cell that cannot hold a value above `bound`; whether none is left."""
        level = bound * self._cosines() - self.symbol_error
        kept = [index[self._fails(index, level)] for index in self._chunks()]
        self.index = torch.cat(kept)
        return len(self.index) == 0

    def _fails(self, index: Tensor, level: float) -> Tensor:
        """Which points are not proved to have sigma_max < level; see Note 2."""
        if level <= 0:
            return torch.ones(len(index), dtype=torch.bool)
        grams = self._grams(index)
        size = grams.shape[-1]
        trace = grams.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        rows = max(self.kernel.shape[1:3])
        shift = 8 * (size + rows + 8) * ROUNDOFF * (trace + size * level**2)
        shifted = -grams
        shifted.diagonal(dim1=-2, dim2=-1).add_((level**2 - shift)[..., None])
        info = torch.linalg.cholesky_ex(shifted).info
        return (info != 0).any(-1).cpu()

    def strongest(self) -> float:
        """Largest exact value among the first points that are left."""
        return self._exact(self.index[: max(1, min(len(self.index), 64))])

    def refine(self) -> None:
        """Go on to the grid of twice the points, inside the cells that are left."""
        if max(self.sizes) > _FINEST:
            raise ShapeError("the norm cannot be bounded to this tolerance in float64; ask for a larger tolerance")
        doubled = tuple(n if n == 1 else 2 * n for n in self.sizes)
        steps = torch.tensor(list(itertools.product(*((0,) if n == 1 else (-1, 0, 1) for n in self.sizes))))
        factor = torch.tensor([1 if n == 1 else 2 for n in self.sizes])
        children = (self.index[:, None, :] * factor + steps).flatten(0, 1)
        self.sizes = doubled
        self.index, _ = unique_up_to_sign(children, doubled)

    def _chunks(self) -> list[Tensor]:
        groups, out, channels = self.kernel.shape[:3]
        point = 16 * groups * (2 * out * channels + 3 * min(out, channels) ** 2)
        return list(torch.split(self.index, max(1, _CHUNK_BYTES // point)))
