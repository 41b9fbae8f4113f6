"""Prove bounds of the norm of a convolution over every input size, floating-point rounding included.

The supremum of sigma_max over all frequencies bounds the layer with zero padding at every input size, and is reached in
the limit (docs/theory.md, "Zero padding"). It is found by branch and bound over cells of frequencies ("Exclusion of
cells"); one Cholesky factorisation decides about a cell's centre, its rounding included ("Cholesky factorisation").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral.batched import eigenvalues_of, is_positive_definite
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import exact_arithmetic, float32_is_exact
from svdctl.spectral.frequency_cells import FrequencyCells, cover
from svdctl.spectral.gram import SECOND_ORDER, GramField, complex_roundings, lebesgue, power_of_two, product_roundings
from svdctl.spectral.lower_bounds import coarse_lower_bound, lower_bound, quick_lower_bound

# For soundness; docs/theory.md, "Constants".
_OTHER_ROUNDINGS = 8  # operations of a factorisation beside the products of an entry
_CENTRES = 1e-11  # rounding of the cells' centres and radius
# What float64 can tell apart.
_FINEST = 1e-6
# For speed. A cell of frequencies is proved to be below a bound by comparing its centre with a lower threshold. The
# margin is the difference of the squares of the two; rounding errors of the comparison have to be less than it.
TOLERANCE = 0.005
_TOLERANCE_OVER_MARGIN = 50  # of `scale_to_bound`: its result ends below the maximum by tolerance / 50
_COARSE_TOLERANCE = 0.009  # bounds less than this above the lower bound need a better lower bound first
_CENTRES_EVALUATED = 4  # centres at which the norm is computed, in each pass over the cells
_THRESHOLD_EXPONENT = 0.9  # (bound / lower bound) to this power is bound / threshold for the smallest initial cells
_CLEARLY_ABOVE = 1e-3  # a lower bound this far above the maximum decides at once, whatever its rounding
_FEW_CELLS = 0.25  # share of the cells, examined in float32, that is worth examining again in float64
_MAX_FLOAT32_ERROR = 0.8  # share of the margin: float64 is used when float32's rounding error is larger
_SMALL_FLOAT32_ERROR = 0.15  # share of the margin: float64 would hardly drop more cells


@dataclass(frozen=True)
class Bracket:
    """`lower <= true value <= upper`, rounding errors included."""

    lower: float
    upper: float


@torch.no_grad()
@exact_arithmetic()
def norm_bound(conv: Convolution, *, tolerance: float = TOLERANCE, at_most: float | None = None) -> Bracket:
    """Return a bracket of the norm on l2 of the whole grid, which bounds the layer at every size and zero padding.

    Args:
        conv: any stride, dilation, groups and number of axes.
        tolerance: wanted `upper / lower - 1`.
        at_most: the upper end, in place of one of this tolerance, where it is less and `is_bounded` would prove it.

    Raises:
        ShapeError: the kernel is not finite, or the tolerance is below what float64 can prove.
    """
    if not tolerance < math.inf:
        raise ShapeError(f"a tolerance of {tolerance} says nothing; ask for {TOLERANCE}, say")
    if tolerance < _FINEST:
        raise ShapeError(f"a tolerance of {tolerance} cannot be proved in float64; ask for {_FINEST} or more")
    field = _field(conv, tolerance)
    if field.is_zero:
        return Bracket(0.0, 0.0)

    def target(lower: float) -> float:
        return lower * (1 + tolerance)

    # Between its samples a Gram matrix can be larger than at any of them, and its quotient round more.
    more = field.quotient_rounding(field.frobenius * (lebesgue(field.taps) - 1))
    coarse, samples = coarse_lower_bound(field)
    lower = max(coarse, lower_bound(field)) if tolerance < _COARSE_TOLERANCE else coarse
    proved = False
    while True:
        reached = _rounded_down(math.sqrt(max(lower**2 - more, 0.0)), field.scale)
        if at_most is not None and reached <= at_most < target(lower) * field.scale:
            bound = at_most / field.scale
            if bound >= field.above or _is_below(field, conv, samples, coarse, bound):
                return Bracket(reached, at_most)
            at_most = None
        if proved:
            return Bracket(reached, _rounded_up(target(lower), field.scale))
        known = lower
        lower, proved = _branch_and_bound(field, conv, samples, lower, target)
        if not proved and lower <= known:
            raise ShapeError(f"no bound within {tolerance:g} of the norm can be proved in float64; ask for a wider one")


def _rounded_up(value: float, scale: float) -> float:
    """Return at least `value * scale`, exactly that where it is a normal number; `scale` is a power of two."""
    product = value * scale
    return product if product / scale == value else math.nextafter(product, math.inf)


def _rounded_down(value: float, scale: float) -> float:
    """Return at most `value * scale`, and finite."""
    product = value * scale
    return product if product / scale == value else max(math.nextafter(product, 0.0), 0.0)


@torch.no_grad()
@exact_arithmetic()
def is_bounded(conv: Convolution, max_sigma: float) -> bool:
    """Return whether the norm is proved to be at most `max_sigma`; False: it is not, or is less than 1e-6 below.

    Raises:
        ShapeError: the kernel is not finite, or `max_sigma` is no number.
    """
    if math.isnan(max_sigma):
        raise ShapeError("a norm is held against a number, not against nan")
    if quick_lower_bound(conv) > max_sigma * (1 + _CLEARLY_ABOVE):
        return False
    field = _field(conv, 0.05)
    if field.is_zero:
        return max_sigma >= 0
    bound = max_sigma / field.scale
    if bound >= field.above:
        return True
    lower, samples = coarse_lower_bound(field)
    return _is_below(field, conv, samples, lower, bound)


def _is_below(field: GramField, conv: Convolution, samples: Tensor, lower: float, bound: float) -> bool:
    """Return whether the norm, at least `lower`, is proved to be at most `bound`."""
    if bound < lower * (1 + _COARSE_TOLERANCE):
        lower = lower_bound(_exact(field, conv)) if lower <= bound else lower
    while lower * (1 + _FINEST) <= bound:
        found, proved = _branch_and_bound(field, conv, samples, lower, lambda _: bound)
        if proved:
            return True
        if found <= lower * (1 + _FINEST):
            return False
        lower = found
    return False


def _branch_and_bound(
    field: GramField, conv: Convolution, samples: Tensor, lower: float, target: Callable[[float], float]
) -> tuple[float, bool]:
    """Drop cells until the norm is proved to be at most `target(lower)`, or is found to be above it.

    Args:
        field: of the convolution; made anew in float64 where its products are too coarse.
        conv: the convolution.
        samples: lower bounds of the norm at the field's sample frequencies.
        lower: a proved lower bound; it rises on the way.
        target: what is to be proved once the lower bound is this.

    Returns:
        The lower bound, and whether the proof was completed.
    """
    cells = _initial_cells(field, samples, lower, target(lower))
    while True:
        bound = target(lower)
        level = bound * cells.share * (1 - _CENTRES)
        margin = (1 - cells.share**2) * level**2
        if field.product != torch.float64 and field.error(torch.float64) > 0.3 * margin:
            field = _exact(field, conv)
        # A matrix has no margin: its one cell is a single frequency.
        single = margin > 0 and float32_is_exact(field.device)
        float32_error = rounding_shift(field, level, torch.float32) / margin if single else math.inf
        precision = torch.float32 if float32_error <= _MAX_FLOAT32_ERROR else torch.float64
        examined = len(cells.centres)
        cells = cells.keep(~provably_below(field, cells.centres, level, precision))
        if len(cells.centres) == 0:
            return lower, True
        if level > lower * (1 - 1e-9):
            # The norm may be above the lower bound: compute it at a few of the centres.
            few = cells.centres[:: math.ceil(len(cells.centres) / _CENTRES_EVALUATED)]
            found = _largest(field, few)
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
            cells = cells.keep(~provably_below(field, cells.centres, level, torch.float64))
            if len(cells.centres) == 0:
                return lower, True
        if 1 - math.cos(cells.radius) < min(_FINEST, (bound / lower - 1) / 16):
            return lower, False
        cells = cells.halved()


def _initial_cells(field: GramField, samples: Tensor, lower: float, target: float) -> FrequencyCells:
    """Return the first cells; their radius is the one of least expected work, judged by the values at the samples."""
    ratio = target / lower
    share = 1.0
    if len(field.taps) > 2:
        share, ratio = ratio**-0.4, ratio**0.6
    # Leave a part of it to the rounding of the products and the factorisation, at the precision that will be used.
    rounding = 2 * rounding_shift(field, lower, field.product) / lower**2
    if rounding < 0.5 * (ratio**2 - 1):
        ratio /= math.sqrt(1 + rounding)
    finest = math.acos(ratio**-_THRESHOLD_EXPONENT)
    shape = len(field.taps[-2:])
    values = samples * (lower / max(float(samples.max()), torch.finfo(torch.float64).tiny))
    cost, best, radius = 1.0, finest, finest
    count = 1.0
    for _ in range(4):
        radius, count = 2 * radius, count / 2**shape
        if radius > 1:
            break
        # Those that fail are cut to half the radius, at the cost of starting there.
        failing = float((values > target * share * math.cos(radius)).double().mean())
        cost_here = count + failing * cost
        if cost_here < cost:
            cost, best = cost_here, radius
    return cover(field.taps, best, share)


def _largest(field: GramField, points: Tensor) -> float:
    """Return a lower bound of the largest value at some points, sharp but for rounding."""
    squares = eigenvalues_of(field.matrices(points).flatten(0, 1))[:, -1].max()
    error = field.error(torch.float64) + field.quotient_rounding(field.frobenius)
    return math.sqrt(max(float(squares) - error, 0.0))


def _field(conv: Convolution, tolerance: float) -> GramField:
    """Return Gram matrices, from float32 products where their rounding error is small against the tolerance."""
    rows, columns = conv.polyphase().shape[1:3]
    # `GramField.error` of a kernel whose values are spread as a random one's.
    roundings = product_roundings(max(rows, columns), torch.float32) + 2
    rounding = SECOND_ORDER * lebesgue(conv.taps) * roundings * 2.0**-24 * min(rows, columns) / 4
    single = float32_is_exact(conv.kernel.device) and rounding < 0.1 * tolerance
    return GramField(conv, torch.float32 if single else torch.float64)


def _exact(field: GramField, conv: Convolution) -> GramField:
    """Return the field with float64 products."""
    return field if field.product == torch.float64 else GramField(conv)


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
    if kernel.numel() == 0:
        return 0.0
    wide = kernel.double()
    largest = float(wide.abs().max())
    if not math.isfinite(largest):
        return math.nan
    # No square over- or underflows.
    scale = power_of_two(largest)
    per_tap = (wide / scale).flatten(3).square().sum((1, 2)).sqrt().sum(-1)
    return _rounded_up(float(per_tap.max()) * (1 + 1e-10), scale)


def provably_below(field: GramField, points: Tensor, level: float, dtype: torch.dtype) -> Tensor:
    """Return which frequencies `(P, d)` are proved to have sigma_max < level, `(P,)` on the host."""
    each, for_all = _rounding(field, level, dtype)

    def below(part: Tensor) -> Tensor:
        grams = field.matrices(part, dtype).flatten(0, 1)
        diagonal = grams.diagonal(dim1=-2, dim2=-1).real
        # The diagonal of the matrix that is factorised is at most t^2 less the smallest entry of this one.
        top = level**2 - for_all - each * (level**2 - diagonal.amin(-1, keepdim=True))
        if field.side == 1:
            definite = (diagonal < top).all(-1)
        else:
            shifted = grams.neg_()
            shifted.diagonal(dim1=-2, dim2=-1).add_(top)
            definite = is_positive_definite(shifted)
        return definite.unflatten(0, (len(part), field.groups)).all(-1).cpu()

    return torch.cat([below(chunk) for chunk in points.split(field.chunk(dtype))])


def rounding_shift(field: GramField, level: float, dtype: torch.dtype) -> float:
    """Return the shift of a factorisation of diagonal `level**2`, the error of the Gram matrices included."""
    each, for_all = _rounding(field, level, dtype)
    return each * level**2 + for_all


def _rounding(field: GramField, level: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the two parts of the shift: the factor of the largest entry of the diagonal, and the rest."""
    unit, side = torch.finfo(dtype).eps / 2, field.side
    entries = 1 / (4 * math.sin(math.pi / (4 * side + 2)) ** 2) + _OTHER_ROUNDINGS * side
    return SECOND_ORDER * complex_roundings(1) * entries * unit, 2 * unit * level**2 + field.error(dtype)
