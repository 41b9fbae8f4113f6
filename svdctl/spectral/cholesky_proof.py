"""Prove by Cholesky factorisations that norms at frequencies are below a level, their rounding included.

docs/theory.md, "Cholesky factorisation", has the proofs. Questions about many layers are answered together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svdctl.spectral.batched import is_positive_definite
from svdctl.spectral.faster_device import launches_dominate
from svdctl.spectral.gram import SECOND_ORDER, GramField, complex_roundings, interpolation, on_host

# For soundness; docs/theory.md, "Constants".
_OTHER_ROUNDINGS = 8  # operations of a factorisation beside the products of an entry
# For speed: memory of the matrices that are factorised in one call; what fits a CPU's cache, or keeps a GPU busy.
_BYTES_AT_ONCE = {"cpu": 1 << 22}
_BYTES_ON_DEVICE = 1 << 30
_WEIGHTS_AT_ONCE = 1 << 22
_FEWEST = 12  # all samples are read for each batch, so that some matrices at least should come of it
_BYTES_OF_FEWEST = {"cpu": 1 << 27}  # what these may take; on a device `_BYTES_OF_FEWEST_ON_DEVICE`
_BYTES_OF_FEWEST_ON_DEVICE = 1 << 33


@dataclass(frozen=True, eq=False)
class PointsBelow:
    """The question at which frequencies `(P, d)` the norm of a field is below a level.

    Args:
        field: of a convolution.
        points: the frequencies.
        level: the level.
        dtype: precision of the factorisations.
        weights: `negated_weights` at the points, of this precision and on the field's device, where they are at hand.
    """

    field: GramField
    points: Tensor
    level: float
    dtype: torch.dtype
    weights: Tensor | None = None


def provably_below(field: GramField, points: Tensor, level: float, dtype: torch.dtype) -> Tensor:
    """Return which frequencies `(P, d)` are proved to have sigma_max < level, `(P,)` on the host."""
    return all_provably_below([PointsBelow(field, points, level, dtype)])[0]


def all_provably_below(questions: Sequence[PointsBelow]) -> list[Tensor]:
    """Return `provably_below` of each question; matrices of one side are factorised together, with one read."""
    most = min(max(1, _WEIGHTS_AT_ONCE // (2 * len(question.field.sample_points))) for question in questions)
    if any(len(question.points) > most and question.weights is None for question in questions):
        return [_below_in_parts(question, most) for question in questions]
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, question in enumerate(questions):
        field = question.field
        alike.setdefault((field.side, question.dtype, field.device, _is_real(field)), []).append(place)
    masks: dict[int, Tensor] = {}
    for places in alike.values():
        masks |= dict(zip(places, _below([questions[place] for place in places]), strict=True))
    read = on_host([masks[place] for place in range(len(questions))])
    return [
        mask.bool().unflatten(0, (-1, question.field.groups)).all(-1)
        for mask, question in zip(read, questions, strict=True)
    ]


def _below_in_parts(question: PointsBelow, most: int) -> Tensor:
    """Return the answer to a question of more points than `most`, whose weights would not fit in memory."""
    if question.weights is not None:
        return all_provably_below([question])[0]
    parts = question.points.split(most)
    return torch.cat([all_provably_below([replace(question, points=part)])[0] for part in parts])


def _below(questions: Sequence[PointsBelow]) -> list[Tensor]:
    """Return for questions of one side, precision and device whether each matrix `(P G,)` is below; no host sync.

    Either all matrices are real or none counts as real.
    """
    side, dtype, device = questions[0].field.side, questions[0].dtype, questions[0].field.device
    numbers = [(question.level**2, *_rounding(question.field, question.level, dtype)) for question in questions]
    counts = [len(question.points) * question.field.groups for question in questions]
    table = torch.tensor(numbers, dtype=torch.float64).repeat_interleave(torch.tensor(counts), 0).to(device)
    if _is_real(questions[0].field):
        return _matrices_below(questions, table, counts)
    batches = list(_batches(questions, _capacity(side, dtype, device)))
    weights = _weights(questions)
    sizes = [sum((last - first) * questions[place].field.groups for place, first, last in batch) for batch in batches]
    buffer = torch.empty(max(sizes), side, side, dtype=dtype.to_complex(), device=device)
    found = []
    begin = 0
    for batch in batches:
        used = 0
        for place, first, last in batch:
            field = questions[place].field
            rows = buffer[used : used + (last - first) * field.groups]
            flat = torch.view_as_real(rows).view(last - first, field.groups * side * side * 2)
            torch.mm(weights[place][first:last], field.parts(dtype), out=flat)
            used += len(rows)
        found.append(_are_definite(buffer[:used], *table[begin : begin + used].unbind(1)))
        begin += used
    return list(torch.cat(found).split(counts))


def _is_real(field: GramField) -> bool:
    """Return whether to factorise real matrices: on a CPU those without taps, a quarter of the work of complex ones."""
    # A GPU rather takes them in one batch with others.
    return not field.taps and not launches_dominate(field.device)


def _matrices_below(questions: Sequence[PointsBelow], table: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return what `_below` does of kernels without taps, whose Gram matrices are the same at all points."""
    found = []
    for question, rows in zip(questions, table.split(counts), strict=True):
        negated = question.field.samples[0].real.to(question.dtype).neg().repeat(len(question.points), 1, 1)
        found.append(_are_definite(negated, *rows.unbind(1)))
    return found


def _capacity(side: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many matrices to factorise at once."""
    each = 6 * dtype.itemsize * side**2
    limit = _BYTES_AT_ONCE.get(device.type, _BYTES_ON_DEVICE)
    of_fewest = _BYTES_OF_FEWEST.get(device.type, _BYTES_OF_FEWEST_ON_DEVICE)
    return max(1, limit // each, min(_FEWEST, of_fewest // each))


def _batches(questions: Sequence[PointsBelow], capacity: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield batches of pieces (question, first point, last point), in order, of `capacity` matrices or one point."""
    batch: list[tuple[int, int, int]] = []
    room = capacity
    for place, question in enumerate(questions):
        first, groups = 0, question.field.groups
        while first < len(question.points):
            if room < groups and batch:
                yield batch
                batch, room = [], capacity
            last = min(len(question.points), first + max(1, room // groups))
            batch.append((place, first, last))
            room -= (last - first) * groups
            first = last
    if batch:
        yield batch


def _weights(questions: Sequence[PointsBelow]) -> list[Tensor]:
    """Return `negated_weights` at each question's points, of its precision and on its device."""
    alike: dict[tuple[int, ...], list[int]] = {}
    found: dict[int, Tensor] = {}
    for place, question in enumerate(questions):
        if question.weights is None:
            alike.setdefault(question.field.taps, []).append(place)
        else:
            found[place] = question.weights
    for taps, places in alike.items():
        few = [questions[place].points for place in places]
        weights = negated_weights(torch.cat(few), taps).to(questions[0].dtype).to(questions[0].field.device)
        found |= dict(zip(places, weights.split([len(points) for points in few]), strict=True))
    return [found[place] for place in range(len(questions))]


def negated_weights(points: Tensor, taps: tuple[int, ...]) -> Tensor:
    """Return the weights of the samples at frequencies `(P, d)`, negated: `(P, 2 samples)`, float64 on the host."""
    return -torch.cat(interpolation(points, taps), 1)


def _are_definite(negated: Tensor, square: Tensor, each: Tensor, for_all: Tensor) -> Tensor:
    """Return whether `square I - G - shift I` is proved to be positive definite, `(B,)`.

    Args:
        negated: `-G`, `(B, n, n)`; it is overwritten.
        square: of the level, `(B,)`.
        each, for_all: the parts of the shift, as `_rounding` gives them.
    """
    diagonal = negated.diagonal(dim1=-2, dim2=-1).real
    # The diagonal of the matrix that is factorised is at most t^2 less the smallest entry of this one.
    top = square - for_all - each * (square + diagonal.amax(-1))
    if negated.shape[-1] == 1:
        return (-diagonal < top[:, None]).all(-1)
    diagonal.add_(top[:, None].to(diagonal.dtype))
    return is_positive_definite(negated)


def rounding_shift(field: GramField, level: float, dtype: torch.dtype) -> float:
    """Return the shift of a factorisation of diagonal `level**2`, the error of the Gram matrices included."""
    each, for_all = _rounding(field, level, dtype)
    return each * level**2 + for_all


def _rounding(field: GramField, level: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the two parts of the shift: the factor of the largest entry of the diagonal, and the rest."""
    unit, side = torch.finfo(dtype).eps / 2, field.side
    entries = 1 / (4 * math.sin(math.pi / (4 * side + 2)) ** 2) + _OTHER_ROUNDINGS * side
    return SECOND_ORDER * complex_roundings(1) * entries * unit, 2 * unit * level**2 + field.error(dtype)
