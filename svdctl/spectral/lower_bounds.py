"""Where the symbol is largest: a lower bound of the norm that is nearly sharp, found without looking everywhere.

For a fixed unit vector v, `v^H G(w) v` is a scalar trigonometric polynomial below sigma_max(w)^2: its largest point is
found on a fine grid at little cost, and there Lanczos steps find a better v. Neither step can lower the value.
Constants are for speed; docs/theory.md, "Lower bounds", has the rounding.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import float32_is_exact
from svdctl.spectral.gram import GramField, interpolation, sample_points
from svdctl.spectral.symbol import angles, gram, grid_product, half_grid, phases, symbol

_CANDIDATES = 6
_QUICK_CANDIDATES = 3
_STARTS = 24
_AT_ONCE = 3
_STEPS = (8, 8, 12)
_FINE_POINTS = 4096
_WINDOW = 9


def lower_bound(field: GramField) -> float:
    """Return a proved lower bound of the field's norm, rounding included, close to it."""
    points = field.sample_points
    points = points[:: math.ceil(len(points) / _STARTS)]
    groups = torch.arange(field.groups).repeat(len(points))
    points = points.repeat_interleave(field.groups, 0)
    # The search need not be exact: its result is checked in float64.
    single = float32_is_exact(field.device) and field.side > 32
    vectors = torch.zeros(0)
    spacing = math.pi
    for steps in _STEPS:
        matrices = _pick(field, points, groups, torch.float32 if single else torch.float64)
        values, vectors = _of_matrices(matrices, vectors if len(vectors) else None, steps)
        order = values.argsort(descending=True)[:_CANDIDATES]
        vectors, values, kept = vectors[order], values[order].cpu(), order.cpu()
        points, spacing = _climb(field, points[kept], groups[kept], vectors, values, spacing)
        groups = groups[kept]
    matrices = _pick(field, points[:2], groups[:2], torch.float64)
    _, vectors = _of_matrices(matrices, vectors[:2].to(matrices.dtype), 2 * _STEPS[-1])
    return _quotient(field, matrices, vectors)


def coarse_lower_bound(field: GramField) -> tuple[float, Tensor]:
    """Return a proved lower bound, mostly within 1 % of the norm, for a third of the work of `lower_bound`.

    Returns:
        The bound, and values from below at the field's samples, `(samples,)` on the host.
    """
    dtype = torch.float32 if float32_is_exact(field.device) else torch.float64
    groups = torch.arange(field.groups).repeat(len(field.samples))
    points = field.sample_points.repeat_interleave(field.groups, 0)
    squares, vectors = _of_matrices(field.samples.flatten(0, 1).to(dtype.to_complex()), None, 12)
    seen = squares.clamp_min(0).sqrt().unflatten(0, (-1, field.groups)).amax(1).double().cpu()
    order = squares.argsort(descending=True)[:_QUICK_CANDIDATES]
    kept = order.cpu()
    points, _ = _climb(field, points[kept], groups[kept], vectors[order], squares[order].cpu(), math.pi)
    squares, vectors = _of_matrices(_pick(field, points, groups[kept], dtype), vectors[order], 12)
    best = int(squares.argmax())
    here = slice(best, best + 1)
    return _quotient(field, _pick(field, points[here], groups[kept][here], torch.float64), vectors[here]), seen


def quick_lower_bound(conv: Convolution) -> float:
    """Return a value that is reached but for float32's rounding, mostly 2 to 20 % below the norm.

    It is from a few frequencies; 0 of a kernel that is zero, or not finite.
    """
    kernel = conv.polyphase()
    largest = float(kernel.abs().max()) if kernel.numel() else 0.0
    if largest == 0.0 or not math.isfinite(largest):
        return 0.0
    taps = tuple(kernel.shape[3:])
    kernel = (kernel.double() / largest).to(torch.float32 if float32_is_exact(kernel.device) else torch.float64)
    few = sample_points(taps)[:_AT_ONCE]
    matrices = gram(symbol(kernel, phases(few, taps, kernel)))
    return math.sqrt(max(float(_of_matrices(matrices, None, 8)[0].max()), 0.0)) * largest


def _quotient(field: GramField, matrices: Tensor, vectors: Tensor) -> float:
    """Return the square root of the largest Rayleigh quotient of Gram matrices, in float64, rounded down."""
    column = vectors.to(matrices.dtype)[..., None]
    quotient = (column.mH @ matrices @ column).real.flatten() / column.abs().square().sum((-2, -1))
    # 0 / 0 where a group is all zero: its vector is, too, and 0 is a bound.
    quotient = quotient.nan_to_num(0.0)
    rounding = field.error(torch.float64) + field.quotient_rounding(field.frobenius)
    return math.sqrt(max(float(quotient.max()) - rounding, 0.0)) * (1 - 2.0**-50)


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the largest Ritz values `(B,)` and unit vectors `(B, n)` of Hermitian operators, orthogonalised in full.

    Args:
        product: applies the operators to vectors `(B, n)`.
        start: vectors `(B, n)`.
        steps: products.
    """
    basis = [_unit(start)]
    images = []
    for _ in range(min(steps, start.shape[-1])):
        images.append(product(basis[-1]))
        span = torch.stack(basis, -1)
        residual = images[-1]
        for _twice in range(2):
            residual = residual - (span @ (span.mH @ residual[..., None]))[..., 0]
        # Where the space is exhausted, rounding alone is left: no direction of it, or values would be made up.
        least = torch.finfo(residual.dtype).eps ** 0.5 * images[-1].norm(dim=-1, keepdim=True)
        basis.append(torch.where(residual.norm(dim=-1, keepdim=True) > least, _unit(residual), 0))
    span, image = torch.stack(basis[:-1], -1), torch.stack(images, -1)
    values, coordinates = torch.linalg.eigh(span.mH @ image)
    return values[:, -1], _unit((span @ coordinates[..., -1:])[..., 0])


def _of_matrices(matrices: Tensor, start: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
    """Return `lanczos` of Hermitian matrices `(B, n, n)`, from seeded random vectors if `start` is None."""
    if start is None:
        noise = torch.randn(matrices.shape[-1], 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        start = torch.view_as_complex(noise).to(matrices.device, matrices.dtype).expand(len(matrices), -1)
    return lanczos(lambda vectors: (matrices @ vectors[..., None])[..., 0], start, steps)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


def _pick(field: GramField, points: Tensor, groups: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Gram matrices `(B, n, n)`, of one group at each point."""
    matrices = torch.cat([field.matrices(part, dtype) for part in points.split(field.chunk(dtype))])
    return matrices[torch.arange(len(points)), groups.to(matrices.device)]


def _climb(
    field: GramField, points: Tensor, groups: Tensor, vectors: Tensor, values: Tensor, spacing: float
) -> tuple[Tensor, float]:
    """Return for each vector the grid's point where its polynomial is largest, and the distance of the points."""
    axes = points.shape[1]
    if axes == 0:
        return points, spacing
    here, mirrored = _quadratic_forms(field, groups, vectors)
    if spacing == math.pi:
        offsets, even, odd, spacing = _first_grid(field.taps)
        grid = offsets.expand(len(points), *offsets.shape)
    else:
        steps = torch.linspace(-spacing, spacing, _WINDOW, dtype=torch.float64)
        offsets = grid_product([steps] * axes)
        grid = points[:, None, :] + offsets
        even, odd = (w.reshape(len(points), -1, w.shape[-1]) for w in interpolation(grid.flatten(0, 1), field.taps))
        spacing = 2 * spacing / (_WINDOW - 1)
    polynomial = (even @ (here + mirrored)[..., None] + odd @ (here - mirrored)[..., None])[..., 0] / 2
    largest, place = polynomial.max(1)
    better = largest > values
    return torch.where(better[:, None], grid[torch.arange(len(points)), place], points), spacing


@lru_cache(maxsize=16)
def _first_grid(taps: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return a fine half grid `(F, d)`, the interpolation's weights on it, and the distance of its points."""
    size = min(16 * max(taps), round((2 * _FINE_POINTS) ** (1 / len(taps))))
    sizes = (size,) * len(taps)
    points = angles(half_grid(sizes)[0], sizes)
    return points, *interpolation(points, taps), 2 * math.pi / size


def _quadratic_forms(field: GramField, groups: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return `v^H G_j v` and `v^H conj(G_j) v`, each `(B, samples)`, on the host."""
    both = torch.zeros(len(vectors), 2, len(field.samples), dtype=torch.float64)
    for group in groups.unique():
        chosen = torch.nonzero(groups == group).flatten()
        columns = vectors[chosen].to(field.samples.dtype)
        columns = torch.cat((columns, columns.conj())).T.contiguous()
        forms = (columns.conj() * (field.samples[:, group] @ columns)).sum(-2).real
        both[chosen] = forms.T.reshape(2, len(chosen), -1).transpose(0, 1).cpu().double()
    return both[:, 0], both[:, 1]
