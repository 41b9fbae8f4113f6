"""Where the symbol is largest: a lower bound of the norm that is nearly sharp, found without looking everywhere.

For a fixed unit vector v, `v^H G(w) v` is a scalar trigonometric polynomial below sigma_max(w)^2: its largest point is
found on a fine grid at little cost, and there a Krylov space has a better v. Neither step can lower the value.
Constants are for speed; docs/theory.md, "Lower bounds", has the rounding.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_with_zeros

from svdctl.spectral.chebyshev_space import largest_ritz_pairs
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import float32_is_exact
from svdctl.spectral.faster_device import launches_dominate
from svdctl.spectral.gram import GramField, interpolation, on_host, sample_points
from svdctl.spectral.symbol import angles, gram, grid_product, half_grid, phases, symbol

_CANDIDATES = 6
_LAST_CANDIDATES = 2
_QUICK_CANDIDATES = 3
_STARTS = 24
_AT_ONCE = 3
_STEPS = (8, 8, 8)
_LAST_STEPS = 12  # in float64, from vectors that are nearly right
_STEPS_FROM_RANDOM = 24
_ROUGH_STEPS = 8
_COARSE_STEPS = 8
_FINE_POINTS = 4096
_WINDOW = 9
_BYTES_OF_ZEROS = 1 << 26


def lower_bounds(fields: Sequence[GramField]) -> list[float]:
    """Return a proved lower bound of each field's norm, rounding included, close to it."""
    return [lower for lower, _ in lower_bounds_and_values(fields)]


def lower_bounds_and_values(fields: Sequence[GramField]) -> list[tuple[float, Tensor]]:
    """Return `lower_bounds`, and values from below at some of each field's samples, on the host."""
    return _search(fields, [field.sample_points for field in fields])


def lower_bounds_near(questions: Sequence[tuple[GramField, Tensor]]) -> list[float]:
    """Return what `lower_bounds` does, of searches that begin at some of given frequencies `(P, d)`."""
    fields, points = zip(*questions, strict=True)
    return [lower for lower, _ in _search(fields, points)]


def _search(fields: Sequence[GramField], begin: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
    """Return lower bounds of searches that begin at some of each field's frequencies `(P, d)`, and values there."""
    points, groups = [], []
    for field, frequencies in zip(fields, begin, strict=True):
        few = frequencies[:: math.ceil(len(frequencies) / _STARTS)]
        groups.append(torch.arange(field.groups).repeat(len(few)))
        points.append(few.repeat_interleave(field.groups, 0))
    # The search need not be exact: its result is checked in float64.
    precisions = [
        torch.float32 if field.side > 32 or launches_dominate(field.device) else torch.float64 for field in fields
    ]
    starts: list[Tensor] | None = None
    spacings = [math.pi] * len(fields)
    for steps in _STEPS:
        found = _of_matrices(_pick(fields, points, groups, precisions), starts, steps)
        if starts is None:
            squares = on_host([values for values, _ in found])
            seen = [_values_of(square, field) for field, square in zip(fields, squares, strict=True)]
            orders = [values.argsort(descending=True)[:_CANDIDATES] for values in squares]
            points = [grid[order] for grid, order in zip(points, orders, strict=True)]
            groups = [group[order] for group, order in zip(groups, orders, strict=True)]
            found = _chosen(found, orders)
        starts = [vectors for _, vectors in found]
        points, reached, spacings = _climb(fields, points, groups, found, spacings)
    orders = [values.argsort(descending=True)[:_LAST_CANDIDATES] for values in reached]
    points = [grid[order] for grid, order in zip(points, orders, strict=True)]
    groups = [group[order] for group, order in zip(groups, orders, strict=True)]
    matrices = _pick(fields, points, groups, [torch.float64] * len(fields))
    starts = [vectors.to(block.dtype) for (_, vectors), block in zip(_chosen(found, orders), matrices, strict=True)]
    vectors = [vectors for _, vectors in _of_matrices(matrices, starts, _LAST_STEPS)]
    return list(zip(_rounded_down(fields, _quotients(matrices, vectors)), seen, strict=True))


def _values_of(squares: Tensor, field: GramField) -> Tensor:
    """Return the largest of the groups' values at each frequency, of squares `(F G,)` on the host."""
    return squares.double().clamp_min(0).sqrt().unflatten(0, (-1, field.groups)).amax(1)


def lower_bound(field: GramField) -> float:
    """Return `lower_bounds` of one field."""
    return lower_bounds([field])[0]


def coarse_lower_bounds(fields: Sequence[GramField]) -> list[tuple[float, Tensor]]:
    """Return proved lower bounds, mostly within 1 % of the norm, for a third of the work of `lower_bounds`.

    Returns:
        The bound of each field, and values from below at its samples, `(samples,)` on the host.
    """
    found = _of_matrices([field.samples.flatten(0, 1).to(torch.complex64) for field in fields], None, _COARSE_STEPS)
    squares = on_host([values for values, _ in found])
    seen = [_values_of(square, field) for field, square in zip(fields, squares, strict=True)]
    orders = [square.argsort(descending=True)[:_QUICK_CANDIDATES] for square in squares]
    groups = [torch.arange(field.groups).repeat(len(field.samples)) for field in fields]
    groups = [group[order] for group, order in zip(groups, orders, strict=True)]
    points = [
        field.sample_points.repeat_interleave(field.groups, 0)[order]
        for field, order in zip(fields, orders, strict=True)
    ]
    found = _chosen(found, orders)
    points, _, _ = _climb(fields, points, groups, found, [math.pi] * len(fields))
    vectors = [vectors for _, vectors in found]
    again = _of_matrices(_pick(fields, points, groups, [torch.float32] * len(fields)), vectors, _COARSE_STEPS)
    best = [values.argmax()[None] for values in on_host([values for values, _ in again])]
    points = [w[place] for w, place in zip(points, best, strict=True)]
    groups = [g[place] for g, place in zip(groups, best, strict=True)]
    matrices = _pick(fields, points, groups, [torch.float64] * len(fields))
    vectors = [vectors for _, vectors in _chosen(again, best)]
    return list(zip(_rounded_down(fields, _quotients(matrices, vectors)), seen, strict=True))


def rough_lower_bounds(fields: Sequence[GramField]) -> list[tuple[float, Tensor]]:
    """Return what `coarse_lower_bounds` does, mostly within 6 % of the norm, of few and small steps."""
    found = _of_matrices([field.samples.flatten(0, 1).to(torch.complex64) for field in fields], None, _ROUGH_STEPS)
    rough = []
    for field, squares in zip(fields, on_host([values for values, _ in found]), strict=True):
        values = _values_of(squares, field)
        # Less than what float32 and the rounding of the samples can have added.
        rough.append((math.sqrt(max(float(values.max()) ** 2 * (1 - 1e-4) - field.error(torch.float32), 0.0)), values))
    return rough


def coarse_lower_bound(field: GramField) -> tuple[float, Tensor]:
    """Return `coarse_lower_bounds` of one field."""
    return coarse_lower_bounds([field])[0]


def values_from_below(questions: Sequence[tuple[GramField, Tensor]]) -> list[float]:
    """Return a proved lower bound of the largest value of each field at its frequencies `(P, d)`, mostly to 1e-3."""
    return [lower for lower, _ in _values_from_below(questions, torch.complex128, _STEPS_FROM_RANDOM)]


def coarse_values_from_below(questions: Sequence[tuple[GramField, Tensor]]) -> list[tuple[float, Tensor]]:
    """Return what `values_from_below` does, mostly to 1e-2, for half as many operations, and values from below.

    Returns:
        The bound of each field, and values at its frequencies, `(P,)` on the host.
    """
    return _values_from_below(questions, torch.complex64, _STEPS_FROM_RANDOM // 2)


def _values_from_below(
    questions: Sequence[tuple[GramField, Tensor]], searched_in: torch.dtype, steps: int
) -> list[tuple[float, Tensor]]:
    fields = [field for field, _ in questions]
    parts = _matrices(fields, [points for _, points in questions], [torch.float64] * len(fields))
    matrices = [part.flatten(0, 1) for part in parts]
    vectors = [vectors for _, vectors in _of_matrices([block.to(searched_in) for block in matrices], None, steps)]
    quotients = _quotients(matrices, vectors)
    seen = [_values_of(row, field) for field, row in zip(fields, quotients, strict=True)]
    return list(zip(_rounded_down(fields, quotients), seen, strict=True))


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
    return math.sqrt(max(float(_of_matrices([matrices], None, 8)[0][0].max()), 0.0)) * largest


def _quotients(matrices: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return the Rayleigh quotients of Gram matrices `(B, n, n)` and vectors, in float64, `(B,)` on the host."""
    wide = [start.to(block.dtype) for block, start in zip(matrices, vectors, strict=True)]
    found: dict[int, Tensor] = {}
    for places in _alike([(block.shape[-1], block.device) for block in matrices]):
        block, column = _joined([matrices[place] for place in places]), _joined([wide[place] for place in places])
        image = (block @ column[..., None])[..., 0]
        quotient = (column.conj() * image).sum(-1).real / column.abs().square().sum(-1)
        counts = [len(wide[place]) for place in places]
        found |= dict(zip(places, quotient.split(counts), strict=True))
    # 0 / 0 where a group is all zero: its vector is, too, and 0 is a bound.
    return [row.nan_to_num(0.0) for row in on_host([found[place] for place in range(len(matrices))])]


def _rounded_down(fields: Sequence[GramField], quotients: Sequence[Tensor]) -> list[float]:
    """Return the square roots of each field's largest quotient, rounded down."""
    squares = [
        float(row.amax()) - field.error(torch.float64) - field.quotient_rounding(field.frobenius)
        for field, row in zip(fields, quotients, strict=True)
    ]
    return [math.sqrt(max(square, 0.0)) * (1 - 2.0**-50) for square in squares]


def _of_matrices(blocks: Sequence[Tensor], starts: Sequence[Tensor] | None, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Return `largest_ritz_pairs` of blocks of Gram matrices `(B, n, n)`, those of one side and precision together.

    On a GPU smaller matrices join larger ones, with zeros around them, as far as that costs little memory.

    Args:
        blocks: the matrices.
        starts: vectors `(B, n)` for each block; None: seeded random ones.
        steps: products.
    """
    alike: dict[tuple[torch.device, torch.dtype], dict[int, list[int]]] = {}
    for place, block in enumerate(blocks):
        alike.setdefault((block.device, block.dtype), {}).setdefault(block.shape[-1], []).append(place)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for (device, dtype), by_side in alike.items():
        counts = {side: sum(len(blocks[place]) for place in places) for side, places in by_side.items()}
        for sides in _joined_sides(counts, dtype.itemsize if launches_dominate(device) else None):
            matrices, begin = [], []
            for side in sides:
                pad = max(sides) - side
                joined = _joined([blocks[place] for place in by_side[side]])
                matrices.append(pad_with_zeros(joined, (0, pad, 0, pad)) if pad else joined)
                if starts is None:
                    noise = torch.randn(side, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
                    start = torch.view_as_complex(noise).to(device, dtype).expand(len(joined), -1)
                else:
                    start = _joined([starts[place] for place in by_side[side]])
                begin.append(pad_with_zeros(start, (0, pad)) if pad else start)
            values, vectors = largest_ritz_pairs(_joined(matrices), _joined(begin), steps)
            places = [place for side in sides for place in by_side[side]]
            parts = [len(blocks[place]) for place in places]
            for place, value, vector in zip(places, values.split(parts), vectors.split(parts), strict=True):
                found[place] = value, vector[:, : blocks[place].shape[-1]]
    return [found[place] for place in range(len(blocks))]


def _joined_sides(counts: dict[int, int], itemsize: int | None) -> list[list[int]]:
    """Return the sides of matrices in groups, each in descending order.

    Args:
        counts: of the matrices of each side.
        itemsize: of their numbers; None: each side is a group.
    """
    groups: list[list[int]] = []
    room = 0
    for side in sorted(counts, reverse=True):
        added = (
            counts[side] * (groups[-1][0] ** 2 - side**2) * itemsize if groups and itemsize is not None else math.inf
        )
        if added <= room:
            groups[-1].append(side)
            room -= int(added)
        else:
            groups.append([side])
            room = _BYTES_OF_ZEROS
    return groups


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _chosen(found: Sequence[tuple[Tensor, Tensor]], orders: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return chosen values and vectors of each field."""
    values: dict[int, Tensor] = {}
    vectors: dict[int, Tensor] = {}
    for places in _alike([(vector.shape[-1], vector.dtype, vector.device) for _, vector in found]):
        begins = [0, *accumulate(len(found[place][0]) for place in places)]
        rows = torch.cat([orders[place] + begin for place, begin in zip(places, begins, strict=False)])
        rows = rows.to(found[places[0]][0].device)
        counts = [len(orders[place]) for place in places]
        for kept, turn in ((values, 0), (vectors, 1)):
            joined = _joined([found[place][turn] for place in places])[rows]
            kept |= dict(zip(places, joined.split(counts), strict=True))
    return [(values[place], vectors[place]) for place in range(len(found))]


def _alike(keys: Sequence[object]) -> list[list[int]]:
    """Return the places of equal keys."""
    alike: dict[object, list[int]] = {}
    for place, key in enumerate(keys):
        alike.setdefault(key, []).append(place)
    return list(alike.values())


def _pick(
    fields: Sequence[GramField], points: Sequence[Tensor], groups: Sequence[Tensor], dtypes: Sequence[torch.dtype]
) -> list[Tensor]:
    """Return Gram matrices `(B, n, n)` of each field, of one group at each of its points."""
    found = _matrices(fields, points, dtypes)
    return [
        part[:, 0] if field.groups == 1 else part[torch.arange(len(part)), group.to(part.device)]
        for field, part, group in zip(fields, found, groups, strict=True)
    ]


def _matrices(fields: Sequence[GramField], points: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """Return Gram matrices `(P, G, n, n)` of each field at its points `(P, d)`, in its precision."""
    found: dict[int, Tensor] = {}
    for places in _alike([(fields[place].taps, dtypes[place], fields[place].device) for place in range(len(fields))]):
        first = fields[places[0]]
        weights = torch.cat(interpolation(torch.cat([points[place] for place in places]), first.taps), 1)
        weights = weights.to(first.device, dtypes[places[0]])
        counts = [len(points[place]) for place in places]
        for place, share in zip(places, weights.split(counts), strict=True):
            field, dtype = fields[place], dtypes[place]
            found[place] = _joined([field.weighted(part, dtype) for part in share.split(field.chunk(dtype))])
    return [found[place] for place in range(len(fields))]


def _climb(
    fields: Sequence[GramField],
    points: Sequence[Tensor],
    groups: Sequence[Tensor],
    pairs: Sequence[tuple[Tensor, Tensor]],
    spacings: Sequence[float],
) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Return for each vector the grid's point where its polynomial is largest, and the value there.

    Args:
        fields: one for each entry of what follows.
        points: frequencies `(B, d)` where the vectors were found.
        groups: of each vector, `(B,)`.
        pairs: quotients at these frequencies, `(B,)`, and the vectors `(B, n)`.
        spacings: distances of the points of the grids that were searched before.

    Returns:
        Points and values on the host, and distances of the grids' points.
    """
    forms = _quadratic_forms(fields, groups, [vectors for _, vectors in pairs])
    read = on_host([*forms, *(values for values, _ in pairs)])
    found: dict[int, Tensor] = {}
    reached: dict[int, Tensor] = {}
    finer = list(spacings)
    for places in _alike([(field.taps, spacing) for field, spacing in zip(fields, spacings, strict=True)]):
        taps, spacing = fields[places[0]].taps, spacings[places[0]]
        if not taps:
            found |= {place: points[place] for place in places}
            reached |= {place: read[len(fields) + place].double() for place in places}
            continue
        old = torch.cat([points[place] for place in places])
        here, mirrored = torch.cat([read[place] for place in places]).unbind(1)
        value = torch.cat([read[len(fields) + place] for place in places])
        if spacing == math.pi:
            offsets, even, odd, distance = _first_grid(taps)
            grid = offsets.expand(len(old), *offsets.shape)
        else:
            steps = torch.linspace(-spacing, spacing, _WINDOW, dtype=torch.float64)
            grid = old[:, None, :] + grid_product([steps] * len(taps))
            even, odd = (w.reshape(len(old), -1, w.shape[-1]) for w in interpolation(grid.flatten(0, 1), taps))
            distance = 2 * spacing / (_WINDOW - 1)
        polynomial = (even @ (here + mirrored)[..., None] + odd @ (here - mirrored)[..., None])[..., 0] / 2
        largest, place_of_it = polynomial.max(1)
        best = torch.where((largest > value)[:, None], grid[torch.arange(len(old)), place_of_it], old)
        counts = [len(points[place]) for place in places]
        found |= dict(zip(places, best.split(counts), strict=True))
        reached |= dict(zip(places, torch.maximum(largest, value.double()).split(counts), strict=True))
        for place in places:
            finer[place] = distance
    order = range(len(fields))
    return [found[place] for place in order], [reached[place] for place in order], finer


@lru_cache(maxsize=16)
def _first_grid(taps: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return a fine half grid `(F, d)`, the interpolation's weights on it, and the distance of its points."""
    size = min(16 * max(taps), round((2 * _FINE_POINTS) ** (1 / len(taps))))
    sizes = (size,) * len(taps)
    points = angles(half_grid(sizes)[0], sizes)
    return points, *interpolation(points, taps), 2 * math.pi / size


def _quadratic_forms(fields: Sequence[GramField], groups: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return `v^H G_j v` and `v^H conj(G_j) v` of each field's vectors `(B, n)`, `(B, 2, samples)`."""
    found: dict[int, Tensor] = {}
    for places in _alike([(*field.batch_key, len(part)) for field, part in zip(fields, vectors, strict=True)]):
        first = fields[places[0]]
        if first.groups > 1:
            found |= {place: _forms_of_groups(fields[place], groups[place], vectors[place]) for place in places}
            continue
        columns = torch.stack([vectors[place] for place in places]).to(first.samples.dtype)
        columns = torch.cat((columns, columns.conj()), 1).mT.contiguous()
        samples = GramField.samples_of([fields[place] for place in places])[:, :, 0]
        # One product of all samples with the vectors of a single field, not one for each sample.
        images = (samples[:, 0] @ columns[0])[:, None] if len(places) == 1 else samples @ columns
        forms = (columns.conj() * images).sum(-2).real.double()
        forms = forms.unflatten(2, (2, -1)).permute(1, 3, 2, 0)
        found |= dict(zip(places, forms.unbind(), strict=True))
    return [found[place] for place in range(len(fields))]


def _forms_of_groups(field: GramField, groups: Tensor, vectors: Tensor) -> Tensor:
    """Return `_quadratic_forms` of a field with several groups, each vector in its own."""
    forms = torch.zeros(len(vectors), 2, len(field.samples), dtype=torch.float64, device=vectors.device)
    for group in groups.unique().tolist():
        chosen = torch.nonzero(groups == group).flatten()
        here = chosen.to(vectors.device)
        columns = vectors[here].to(field.samples.dtype)
        columns = torch.cat((columns, columns.conj())).T.contiguous()
        form = (columns.conj() * (field.samples[:, group] @ columns)).sum(-2).real.to(forms.dtype)
        forms[here] = form.T.reshape(2, len(chosen), -1).transpose(0, 1)
    return forms
