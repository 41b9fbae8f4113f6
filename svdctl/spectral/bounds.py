"""Prove bounds of the norm of a convolution over every input size, floating-point rounding included.

The supremum of sigma_max over all frequencies bounds the layer with zero padding at every input size, and is reached in
the limit (docs/theory.md, "Zero padding"). It is found by branch and bound over cells of frequencies ("Exclusion of
cells"); one Cholesky factorisation decides about a cell's centre, its rounding included ("Cholesky factorisation").
"""

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.batched import eigenvalues_of
from svdctl.spectral.cholesky_proof import PointsBelow, all_provably_below, negated_weights, rounding_shift
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import exact_arithmetic, float32_is_exact
from svdctl.spectral.faster_device import launches_dominate
from svdctl.spectral.frequency_cells import CELL_AXES, FrequencyCells, cover
from svdctl.spectral.gram import (
    SECOND_ORDER,
    GramField,
    gram_fields,
    lebesgue,
    looks_flat,
    normal_form,
    on_host,
    power_of_two,
    powers_of_two,
    product_roundings,
    ranges_by_flatness,
)
from svdctl.spectral.joint_proofs import Proof, Step, run_together
from svdctl.spectral.lower_bounds import (
    coarse_lower_bounds,
    coarse_values_from_below,
    lower_bounds,
    lower_bounds_and_values,
    lower_bounds_near,
    quick_lower_bound,
    rough_lower_bounds,
    values_from_below,
)
from svdctl.spectral.parallel_map import parallel_map
from svdctl.spectral.scalar_symbols import FINEST, ScalarSymbol, is_scalar, prove
from svdctl.spectral.stacks import in_stacks

# For soundness; docs/theory.md, "Constants".
_CENTRES = 1e-11  # rounding of the cells' centres and radius
# For speed. A cell of frequencies is proved to be below a bound by comparing its centre with a lower threshold. The
# margin is the difference of the squares of the two; rounding errors of the comparison have to be less than it.
TOLERANCE = 0.005
_TOLERANCE_OVER_MARGIN = 50  # of `scale_to_bound`: its result ends below the maximum by tolerance / 50
_COARSE_TOLERANCE = 0.009  # bounds less than this above the lower bound need a better lower bound first
_CENTRES_EVALUATED = 4  # centres at which the norm is computed, in each pass over the cells
_CENTRES_EVALUATED_AT_FIRST = 48  # in the passes of a GPU with no lower bound
_SEARCHED_BELOW = 0.004  # tolerance from which a GPU begins with values at many frequencies, without a search
_BYTES_OF_FIRST = 1 << 28  # of the matrices at these
_THRESHOLD_EXPONENT = 0.95  # (bound / lower bound) to this power is bound / threshold for the smallest initial cells
_CLEARLY_ABOVE = 1e-3  # a lower bound this far above the maximum decides at once, whatever its rounding
_FEW_CELLS = 0.25  # share of the cells, examined in float32, that is worth examining again in float64
_LARGE_ROUNDING = 0.1  # share of the margin: a better lower bound is worth its time when float32 takes this much
_MAX_FLOAT32_ERROR = 0.5  # share of the margin: float64 is used when float32's rounding error is larger
_SMALL_FLOAT32_ERROR = 0.15  # share of the margin: float64 would hardly drop more cells
_SMALL_SIDE = 128  # up to which a CPU finds all eigenvalues of a few matrices in less time than one of a Krylov space
_SHARP = 1e-3  # bounds less than this above the lower bound need the largest values to all digits
_FIRST_SHARE = 0.965  # of the cells by which a GPU proves a maximum: a norm 4 % below is proved by one round of them
_MOST_HALVINGS = 4  # of those cells before a better lower bound is sought
_MOST_OF_BEFORE = 2  # cells left of halves, over those before: with more of them the norm may be above the bound
_NEARLY_FLAT = 0.05  # tolerance at which all squared values are bounded from below, so that cells may be wider
_LEAST_LEAD = 0.75  # share of the norm that the grid of the leading axes sees at least
_FLAT = 0.01  # tolerance at which a spectrum counts as flat where a maximum is to be proved
_SCALAR_TOLERANCE = 0.02  # of the grid by which a maximum of symbols that are vectors is proved
_MOST_KEPT_WEIGHTS = 1 << 20
_BYTES_TOGETHER = 1 << 31  # of Gram matrices that are kept of layers whose bounds are refined together

# Ranks of steps: the more of them are taken at once, the fewer operations a device is given.
_VALUES, _SEARCH = 1, 2

T = TypeVar("T")


@dataclass(frozen=True)
class Bracket:
    """`lower <= true value <= upper`, rounding errors included."""

    lower: float
    upper: float

    def _repr_html_(self) -> str:
        """Return what it says as HTML, which a notebook shows, with all digits: none is rounded."""
        return f"{self.lower!r} &le; norm &le; {self.upper!r}"


def norm_bound(conv: Convolution, *, tolerance: float = TOLERANCE, at_most: float | None = None) -> Bracket:
    """Return a bracket of the norm on l2 of the whole grid, which bounds the layer at every size and zero padding.

    Args:
        conv: any stride, dilation, groups and number of axes.
        tolerance: wanted `upper / lower - 1`.
        at_most: the upper end, in place of one of this tolerance, where it is less and `is_bounded` would prove it.

    Raises:
        ShapeError: the kernel is not finite, or the tolerance is below what float64 can prove.
    """
    return norm_bounds([conv], tolerance=tolerance, at_most=[at_most])[0]


@torch.no_grad()
@exact_arithmetic()
def norm_bounds(
    convs: Sequence[Convolution],
    *,
    tolerance: float | Sequence[float] = TOLERANCE,
    at_most: Sequence[float | None] | None = None,
) -> list[Bracket]:
    """Return `norm_bound` of each convolution, those of a GPU refined together, on a CPU several in threads.

    Args:
        convs: any number.
        tolerance: of all, or of each.
        at_most: of each.

    Raises:
        ShapeError: as `norm_bound`, of any of them.
    """
    tolerances: list[Any] = list(tolerance) if isinstance(tolerance, Sequence) else [tolerance] * len(convs)
    limits = [None] * len(convs) if at_most is None else at_most
    if len(tolerances) != len(convs):
        raise ShapeError(f"a tolerance is one number, as {TOLERANCE}, or one for each kernel, not {tolerance!r}")
    for each in tolerances:
        if not isinstance(each, numbers.Real):
            raise ShapeError(f"a tolerance is a number, as {TOLERANCE}, not a {type(each).__name__}")
        if not each < math.inf:
            raise ShapeError(f"a tolerance of {each} says nothing; ask for {TOLERANCE}, say")
        if each < FINEST:
            raise ShapeError(f"a tolerance of {each} cannot be proved in float64; ask for {FINEST} or more")
    return _proved(lambda place: _bracket(convs[place], tolerances[place], limits[place]), convs)


def is_bounded(conv: Convolution, max_sigma: float) -> bool:
    """Return whether the norm is proved to be at most `max_sigma`; False: it is not, or is less than 1e-6 below.

    Raises:
        ShapeError: the kernel is not finite, or `max_sigma` is no number.
    """
    return are_bounded([conv], [max_sigma])[0]


@torch.no_grad()
@exact_arithmetic()
def are_bounded(convs: Sequence[Convolution], max_sigmas: Sequence[float]) -> list[bool]:
    """Return `is_bounded` of each convolution and its own maximum, computed as `norm_bounds` does.

    Raises:
        ShapeError: as `is_bounded`, of any of them.
    """
    _require_numbers(max_sigmas)
    return _proved(lambda place: _is_at_most(convs[place], max_sigmas[place]), convs)


@torch.no_grad()
@exact_arithmetic()
def upper_ends(convs: Sequence[Convolution], at_least: Sequence[float]) -> list[float]:
    """Return a proved upper end of each norm: `at_least` where `is_bounded` would prove it, else one of `TOLERANCE`.

    A norm that is found to be above goes on from what was proved of it, as far as a device is concerned.

    Args:
        convs: any number.
        at_least: of each.

    Raises:
        ShapeError: as `are_bounded`.
    """
    _require_numbers(at_least)
    return _proved(lambda place: _upper_end(convs[place], at_least[place]), convs)


def _require_numbers(max_sigmas: Sequence[float]) -> None:
    if any(math.isnan(max_sigma) for max_sigma in max_sigmas):
        raise ShapeError("a norm is held against a number, not against nan")


_heard: ContextVar[Callable[[int], None] | None] = ContextVar("hears of proofs", default=None)


@contextmanager
def proofs_heard(hear: Callable[[int], None]) -> Iterator[None]:
    """Say how many proofs about norms have ended, while the body runs.

    Args:
        hear: called with the number of those that have ended since its last call; on a CPU in several threads at once.
    """
    token = _heard.set(hear)
    try:
        yield
    finally:
        _heard.reset(token)


def _proved(proof: Callable[[int], Proof[T]], convs: Sequence[Convolution]) -> list[T]:
    """Return what the proof about each convolution returns: of a device in batches, on the CPU one in each thread."""
    heard = _heard.get()
    found: dict[int, T] = {}
    batches: dict[torch.device, list[list[int]]] = {}
    costs = [math.prod(conv.polyphase_shape[:3]) * min(conv.polyphase_shape[1:3]) for conv in convs]
    for place in sorted(range(len(convs)), key=lambda place: -costs[place]):
        conv = convs[place]
        parts = batches.setdefault(conv.kernel.device, [])
        if (
            not launches_dominate(conv.kernel.device)
            or not parts
            or _bytes(convs, [*parts[-1], place]) > _BYTES_TOGETHER
        ):
            parts.append([])
        parts[-1].append(place)
    for device, parts in batches.items():

        def run(places: list[int]) -> list[T]:
            results = run_together([proof(place) for place in places])
            if heard is not None:
                heard(len(places))
            return results

        done = map(run, parts) if launches_dominate(device) else parallel_map(run, parts)
        for places, results in zip(parts, done, strict=True):
            found |= dict(zip(places, results, strict=True))
    return [found[place] for place in range(len(convs))]


def _bytes(convs: Sequence[Convolution], places: Sequence[int]) -> int:
    """Return about how much memory the Gram matrices of convolutions at their samples take, in both forms."""
    total = 0
    for place in places:
        groups, out, channels, *taps = convs[place].polyphase_shape
        total += 3 * 16 * groups * min(out, channels) ** 2 * math.prod(2 * k - 1 for k in taps) // 2
    return total


def _bracket(conv: Convolution, tolerance: float, at_most: float | None) -> Proof[Bracket]:
    """Prove a bracket, as `norm_bound` returns it."""
    kernel = normal_form(conv)
    if is_scalar(kernel):
        return _scalar_bracket(ScalarSymbol(kernel), tolerance, at_most)
    field = yield Step(_fields, (conv, _product(conv, tolerance)))
    if field.is_zero:
        return Bracket(0.0, 0.0)

    def target(lower: float) -> float:
        return lower * (1 + tolerance)

    # Between its samples a Gram matrix can be larger than at any of them, and its quotient round more.
    more = field.quotient_rounding(field.frobenius * (lebesgue(field.taps) - 1))
    few_steps = launches_dominate(field.device)
    searched = not (few_steps and tolerance >= _SEARCHED_BELOW and _has_first_cells(conv))
    if not searched:
        found, samples = yield Step(coarse_values_from_below, (field, _first_points(field)), _SEARCH)
        coarse = max(found, field.below)
    else:
        coarse, samples = yield Step(lower_bounds_and_values if few_steps else coarse_lower_bounds, field, _SEARCH)
    lower = coarse
    rounding = _float32_rounding(field, coarse)
    is_coarse = tolerance < _COARSE_TOLERANCE or _LARGE_ROUNDING * tolerance * (2 + tolerance) < rounding < math.inf
    if is_coarse and not few_steps:
        lower = max(coarse, (yield Step(lower_bounds, field, _SEARCH)))
    # Cells would have to be as small as the tolerance wherever the spectrum is flat.
    floor, above = yield from _range(field, max(tolerance, _NEARLY_FLAT))
    proved = above <= target(lower)
    while True:
        reached = _rounded_down(math.sqrt(max(lower**2 - more, 0.0)), field.scale)
        if at_most is not None and reached <= at_most < target(lower) * field.scale:
            bound = at_most / field.scale

            def first(known: float, bound: float = bound) -> FrequencyCells:
                return _initial_cells(field, samples, known, bound, floor)

            if bound >= field.above or (yield from _is_below(field, conv, first, coarse, bound, floor)):
                return Bracket(reached, at_most)
            at_most = None
        if proved:
            return Bracket(reached, _rounded_up(target(lower), field.scale))
        known = lower
        cells = _initial_cells(field, samples, lower, target(lower), floor)
        lower, proved = yield from _branch_and_bound(field, conv, cells, lower, target, floor)
        if not proved and lower <= known and not searched:
            lower, searched = max(lower, (yield Step(lower_bounds, field, _SEARCH))), True
        if not proved and lower <= known:
            raise ShapeError(f"no bound within {tolerance:g} of the norm can be proved in float64; ask for a wider one")


def _scalar_bracket(symbol: ScalarSymbol, tolerance: float, at_most: float | None) -> Bracket:
    """Return `_bracket` of a kernel whose symbols are vectors."""
    if symbol.is_zero:
        return Bracket(0.0, 0.0)
    lower, proved = prove(symbol, lambda known: known * (1 + tolerance), tolerance)
    if not proved:
        raise ShapeError(f"no bound within {tolerance:g} of the norm can be proved in float64; ask for a wider one")
    reached, upper = _rounded_down(lower, symbol.scale), _rounded_up(lower * (1 + tolerance), symbol.scale)
    if at_most is not None and reached <= at_most < upper and _is_scalar_below(symbol, at_most):
        upper = at_most
    return Bracket(reached, upper)


def _is_scalar_below(symbol: ScalarSymbol, max_sigma: float) -> bool:
    """Prove a maximum of a kernel whose symbols are vectors."""
    if symbol.is_zero:
        return max_sigma >= 0
    bound = max_sigma / symbol.scale
    return bound >= symbol.above or prove(symbol, lambda _: bound, _SCALAR_TOLERANCE)[1]


def _is_at_most(conv: Convolution, max_sigma: float) -> Proof[bool]:
    """Prove a maximum, as `is_bounded` returns it."""
    few_steps = launches_dominate(conv.kernel.device)
    # Nearly free, whatever the number of taps.
    if (not few_steps or max_sigma == math.inf) and taps_norm(conv.kernel) <= max_sigma:
        return True
    kernel = normal_form(conv)
    if is_scalar(kernel):
        return _is_scalar_below(ScalarSymbol(kernel), max_sigma)
    if not few_steps and quick_lower_bound(conv) > max_sigma * (1 + _CLEARLY_ABOVE):
        return False
    field = yield Step(_fields, (conv, _product(conv, 0.05)))
    if field.is_zero:
        return max_sigma >= 0
    bound = max_sigma / field.scale
    if bound >= field.above:
        return True
    if bound < field.below:
        return False
    if looks_flat(field, _FLAT):
        # What float32 leaves of its sharpness would not do for maxima that are close.
        field = yield from _exact(field, conv)
    floor, above = yield from _range(field, _NEARLY_FLAT)
    if above <= bound:
        return True
    if few_steps and _has_first_cells(conv):
        return (yield from _is_below_by_cells(field, conv, bound, floor))[0]
    lower, samples = yield Step(rough_lower_bounds if few_steps else coarse_lower_bounds, field)

    def first(known: float) -> FrequencyCells:
        return _initial_cells(field, samples, known, bound, floor)

    return (yield from _is_below(field, conv, first, lower, bound, floor))


def _range(field: GramField, tolerance: float) -> Proof[tuple[float, float]]:
    """Return a proved lower bound of all squared values, and an upper one of the norm; 0 and infinite if not flat."""
    if not looks_flat(field, tolerance):
        return 0.0, math.inf
    least, largest = yield Step(ranges_by_flatness, field)
    return least, math.sqrt(largest) * (1 + 1e-12)


def _upper_end(conv: Convolution, at_least: float) -> Proof[float]:
    """Prove an upper end, as `upper_ends` returns it."""
    if not launches_dominate(conv.kernel.device) or not _has_first_cells(conv):
        proved = yield from _is_at_most(conv, at_least)
        return at_least if proved else (yield from _bracket(conv, TOLERANCE, None)).upper
    field = yield Step(_fields, (conv, _product(conv, TOLERANCE)))
    if field.is_zero:
        return max(at_least, 0.0)
    bound = at_least / field.scale
    if bound >= field.above:
        return at_least
    floor, above = yield from _range(field, _NEARLY_FLAT)
    if above <= bound:
        return at_least
    proved, lower, cells = yield from _is_below_by_cells(field, conv, bound, floor)
    if proved:
        return at_least
    if lower > max(bound, 0.0):
        # The cells that were dropped hold no norm above the bound, and so none above a larger one.
        lower = max(lower, (yield Step(lower_bounds_near, (field, cells.centres), _SEARCH)))
        lower, proved = yield from _branch_and_bound(
            field, conv, cells, lower, lambda known: known * (1 + TOLERANCE), floor
        )
        if proved:
            return _rounded_up(lower * (1 + TOLERANCE), field.scale)
    return (yield from _bracket(conv, TOLERANCE, None)).upper


def _has_first_cells(conv: Convolution) -> bool:
    """Return whether a proof on a device may begin without a lower bound."""
    # Of more axes the first ones are put on a grid, which has to be chosen by a lower bound.
    return sum(k > 1 for k in conv.polyphase_shape[3:]) <= CELL_AXES


def _is_below_by_cells(
    field: GramField, conv: Convolution, bound: float, floor: float
) -> Proof[tuple[bool, float, FrequencyCells]]:
    """Prove that the norm is at most `bound`, with no lower bound to begin with: mostly by rounds of Cholesky steps.

    Returns:
        Whether it is proved, a lower bound of the norm, and cells that hold a maximiser of any norm above the bound.
    """
    cells = _first_cells(field.taps)
    if bound <= 0:
        return False, 0.0, cells
    first = len(cells.centres)
    weights = _first_weights(field.taps, field.device)
    lower, before = 0.0, first
    for turn in range(_MOST_HALVINGS + 1):
        level = _level(bound, cells, floor)
        below = yield Step(all_provably_below, PointsBelow(field, cells.centres, level, torch.float64, weights))
        cells, weights = cells.keep(~below), None
        count = len(cells.centres)
        if count == 0:
            return True, lower, cells
        finer = cells.halved()
        # Around a norm below the bound the cells that are left become fewer or not many more.
        ends = turn == _MOST_HALVINGS or cells.radius == 0.0 or len(finer.centres) > first
        if ends or (turn > 0 and count > _MOST_OF_BEFORE * before):
            few = _few_of(cells.centres, _CENTRES_EVALUATED_AT_FIRST)
            found, _ = yield Step(coarse_values_from_below, (field, few), _VALUES)
            lower = max(lower, found)
            if lower > bound or cells.radius == 0.0:
                return False, lower, cells
        cells, before = finer, count
        if ends:
            break
    return (yield from _is_below(field, conv, lambda _: cells, lower, bound, floor)), lower, cells


@lru_cache(maxsize=16)
def _first_cells(taps: tuple[int, ...]) -> FrequencyCells:
    """Return the cells by which a GPU proves a maximum."""
    return cover(taps, math.acos(_FIRST_SHARE))


def _first_weights(taps: tuple[int, ...], device: torch.device) -> Tensor | None:
    """Return the weights of `PointsBelow` at the centres of `_first_cells`; None where they are too many to be kept."""
    if len(_first_cells(taps).centres) * math.prod(2 * k - 1 for k in taps) > _MOST_KEPT_WEIGHTS:
        return None
    return _kept_weights(taps, device)


@lru_cache(maxsize=16)
def _kept_weights(taps: tuple[int, ...], device: torch.device) -> Tensor:
    return negated_weights(_first_cells(taps).centres, taps).to(device)


def _first_points(field: GramField) -> Tensor:
    """Return the centres of `_first_cells` at which a GPU begins, of large matrices fewer ones."""
    each = 16 * field.groups * field.side**2
    return _few_of(_first_cells(field.taps).centres, max(_CENTRES_EVALUATED_AT_FIRST // 2, _BYTES_OF_FIRST // each))


def _few_of(centres: Tensor, count: int) -> Tensor:
    return centres[:: math.ceil(len(centres) / count)]


def _rounded_up(value: float, scale: float) -> float:
    """Return at least `value * scale`, exactly that where it is a normal number; `scale` is a power of two."""
    product = value * scale
    return product if product / scale == value else math.nextafter(product, math.inf)


def _rounded_down(value: float, scale: float) -> float:
    """Return at most `value * scale`, and finite."""
    product = value * scale
    return product if product / scale == value else max(math.nextafter(product, 0.0), 0.0)


def _level(bound: float, cells: FrequencyCells, floor: float) -> float:
    """Return the value below which a cell's centre shows that the cell has no maximiser of a norm above the bound.

    Args:
        bound: of the norm.
        cells: of one radius.
        floor: at most every eigenvalue of every Gram matrix; docs/theory.md, "Exclusion of cells".
    """
    square = cells.share**2
    return math.sqrt(square * bound**2 + (1 - square) * floor) * (1 - _CENTRES)


def _is_below(
    field: GramField,
    conv: Convolution,
    first: Callable[[float], FrequencyCells],
    lower: float,
    bound: float,
    floor: float,
) -> Proof[bool]:
    """Prove that the norm is at most `bound`; returns whether it is proved.

    Args:
        field: of the convolution.
        conv: the convolution.
        first: cells that hold a maximiser of any norm above the bound, given a lower bound of the norm.
        lower: a proved lower bound of the norm.
        bound: what is to be proved.
        floor: of `_level`.
    """
    if lower <= bound < lower * (1 + _COARSE_TOLERANCE):
        field = yield from _exact(field, conv)
        lower = yield Step(lower_bounds, field, _SEARCH)
    while lower * (1 + FINEST) <= bound:
        found, proved = yield from _branch_and_bound(field, conv, first(lower), lower, lambda _: bound, floor)
        if proved:
            return True
        if found <= lower * (1 + FINEST):
            return False
        lower = found
    return False


def _branch_and_bound(
    field: GramField,
    conv: Convolution,
    cells: FrequencyCells,
    lower: float,
    target: Callable[[float], float],
    floor: float,
) -> Proof[tuple[float, bool]]:
    """Drop cells until the norm is proved to be at most `target(lower)`, or is found to be above it.

    Args:
        field: of the convolution; made anew in float64 where its products are too coarse.
        conv: the convolution.
        cells: they hold a maximiser of any norm above `target(lower)`.
        lower: a proved lower bound; it rises on the way.
        target: what is to be proved once the lower bound is this.
        floor: of `_level`.

    Returns:
        The lower bound, and whether the proof was completed.
    """
    while True:
        bound = target(lower)
        level = _level(bound, cells, floor)
        margin = (1 - cells.share**2) * (level**2 - floor)
        if field.product != torch.float64 and field.error(torch.float64) > 0.3 * margin:
            field = yield from _exact(field, conv)
        # A matrix has no margin: its one cell is a single frequency.
        single = margin > 0 and float32_is_exact(field.device)
        shift = rounding_shift(field, level, torch.float32)
        float32_error = shift / margin if single else math.inf
        # Either it leaves few cells, or all that are below the lower bound can be dropped.
        suffices = float32_error <= _MAX_FLOAT32_ERROR or (single and shift < level**2 - lower**2)
        precision = torch.float32 if suffices else torch.float64
        examined = len(cells.centres)
        below = yield Step(all_provably_below, PointsBelow(field, cells.centres, level, precision))
        cells = cells.keep(~below)
        if len(cells.centres) == 0:
            return lower, True
        if level > lower * (1 - 1e-9):
            # The norm may be above the lower bound: compute it at a few of the centres.
            few = _few_of(cells.centres, _CENTRES_EVALUATED)
            is_small = field.side <= _SMALL_SIDE and not launches_dominate(field.device)
            sharp = is_small or bound < lower * (1 + _SHARP)
            found = yield Step(_largest if sharp else values_from_below, (field, few), _VALUES)
            if found > bound and target(found) > bound:
                # The search for the lower bound missed this peak; here its top is found.
                found = max(found, (yield Step(lower_bounds_near, (field, cells.centres), _SEARCH)))
            risen = found > lower * (1 + 1e-9)
            lower = max(lower, found)
            if lower > bound and target(lower) == bound:
                return lower, False
            if risen and target(lower) > bound:
                continue
        if (
            precision == torch.float32
            and float32_error > _SMALL_FLOAT32_ERROR
            and len(cells.centres) <= _FEW_CELLS * examined
        ):
            # A few cells, close to the bound, are examined in float64; many are rather cut into smaller ones.
            below = yield Step(all_provably_below, PointsBelow(field, cells.centres, level, torch.float64))
            cells = cells.keep(~below)
            if len(cells.centres) == 0:
                return lower, True
        seen = 1 - math.cos(cells.radius)
        if seen < FINEST and 16 * seen * lower < bound - lower:
            return lower, False
        cells = cells.halved()


def _initial_cells(field: GramField, samples: Tensor, lower: float, target: float, floor: float) -> FrequencyCells:
    """Return the first cells; their radius is the one of least expected work, judged by the values at the samples."""
    # What is above the floor counts alone; rounding can have put the lower bound below it.
    floor = min(floor, lower**2 * (1 - FINEST))
    ratio = math.sqrt((target**2 - floor) / (lower**2 - floor))
    share = 1.0
    if len(field.taps) > 2:
        share, ratio = max(ratio**-0.4, _LEAST_LEAD), ratio**0.6
    # Leave a part of it to float32's rounding, unless float64, at twice the cost of a cell, then takes less time.
    rounding = _float32_rounding(field, lower) * lower**2 / (lower**2 - floor)
    if rounding < 0.5 * (ratio**2 - 1):
        ratio /= math.sqrt(1 + rounding)
    finest = math.acos(ratio**-_THRESHOLD_EXPONENT)
    shape = len(field.taps[-2:])
    values = samples * (lower / max(float(samples.max()), torch.finfo(torch.float64).tiny))
    squares = (values.square() - floor).tolist()
    cost, best, radius = 1.0, finest, finest
    count = 1.0
    while 2 * radius <= 1:
        radius, count = 2 * radius, count / 2**shape
        # Those that fail are cut to half the radius, at the cost of starting there.
        threshold = (target**2 - floor) * (share * math.cos(radius)) ** 2
        failing = sum(square > threshold for square in squares) / len(squares)
        cost_here = count + failing * cost
        if cost_here < cost:
            cost, best = cost_here, radius
    return cover(field.taps, best, share)


def _float32_rounding(field: GramField, value: float) -> float:
    """Return the share of a squared norm by which float32 factorisations may err; infinite where none are used."""
    if not field.taps or value == 0.0 or not float32_is_exact(field.device):
        return math.inf
    return rounding_shift(field, value, torch.float32) / value**2


def _largest(questions: Sequence[tuple[GramField, Tensor]]) -> list[float]:
    """Return a lower bound of the largest value of each field at its frequencies `(P, d)`, sharp but for rounding."""
    found = []
    for field, points in questions:
        matrices = field.matrices(points).flatten(0, 1)
        # Without taps they are real: a quarter of the work.
        squares = eigenvalues_of(matrices if field.taps else matrices.real.contiguous())[:, -1].max()
        error = field.error(torch.float64) + field.quotient_rounding(field.frobenius)
        found.append(math.sqrt(max(float(squares) - error, 0.0)))
    return found


def _product(conv: Convolution, tolerance: float) -> torch.dtype:
    """Return the precision of products whose rounding error is small against the tolerance."""
    rows, columns = conv.polyphase_shape[1:3]
    # `GramField.error` of a kernel whose values are spread as a random one's.
    roundings = product_roundings(max(rows, columns), torch.float32) + 2
    rounding = SECOND_ORDER * lebesgue(conv.taps) * roundings * 2.0**-24 * min(rows, columns) / 4
    single = float32_is_exact(conv.kernel.device) and rounding < 0.1 * tolerance
    return torch.float32 if single else torch.float64


def _fields(questions: Sequence[tuple[Convolution, torch.dtype]]) -> list[GramField]:
    convs, products = zip(*questions, strict=True)
    return gram_fields(convs, products)


def _exact(field: GramField, conv: Convolution) -> Proof[GramField]:
    """Return the field with float64 products."""
    if field.product == torch.float64:
        return field
    return (yield Step(_fields, (conv, torch.float64)))


@torch.no_grad()
def scale_to_bound(conv: Convolution, max_sigma: float, *, tolerance: float = TOLERANCE) -> tuple[Convolution, Bracket]:
    """Return the convolution, scaled down if need be so that its norm is proved to be at most `max_sigma`."""
    bracket = norm_bound(conv, tolerance=tolerance)
    if bracket.upper <= max_sigma:
        return conv, bracket
    if not math.isfinite(bracket.upper):
        raise ShapeError("the kernel's norm is above 1.8e308, the largest number of float64; scale it first")
    # A little more than needed, so that a later bracket, which may differ in its last figures, ends below too.
    # Rounding moves each entry of the scaled kernel by at most half a unit, and its norm by that share of the taps'.
    unit = torch.finfo(conv.kernel.dtype).eps
    room = bracket.upper * (1 + tolerance / _TOLERANCE_OVER_MARGIN) + unit * taps_norm(conv.kernel)
    factor = max_sigma / room * (1 - 4 * unit)
    scaled = conv.with_kernel(conv.kernel * factor)
    return scaled, Bracket(min(bracket.lower * factor * (1 - 4 * unit), max_sigma), max_sigma)


def taps_norm(kernel: Tensor) -> float:
    """Return `sum_p ||K_p||_F` of a kernel `(G, O, I, *k)`: above the norm, and nearly free.

    Infinite above the largest number of float64; not a number of a kernel that is not finite.
    """
    return taps_norms([kernel])[0]


def taps_norms(kernels: Sequence[Tensor]) -> list[float]:
    """Return `taps_norm` of each kernel, those of one shape computed together, with one read of a device."""
    numbers = in_stacks(_taps_norms, kernels)
    found = []
    for largest, norm in (row.tolist() for row in on_host([row for (row,) in numbers])):
        inside = math.isfinite(largest)
        found.append(_rounded_up(norm * (1 + 1e-10), power_of_two(largest)) if inside else math.nan)
    return found


def _taps_norms(kernels: Tensor) -> tuple[Tensor]:
    """Return the largest entry of kernels `(L, G, O, I, *k)`, and `taps_norm` over its power of two, `(L, 2)`."""
    if kernels[0].numel() == 0:
        return (kernels.new_zeros(len(kernels), 2, dtype=torch.float64),)
    wide = kernels.double().flatten(4)
    largest = wide.abs().amax((1, 2, 3, 4))
    # No square over- or underflows.
    scaled = wide / powers_of_two(largest)[:, None, None, None, None]
    return (torch.stack((largest, scaled.square().sum((2, 3)).sqrt().sum(-1).amax(-1)), 1),)
