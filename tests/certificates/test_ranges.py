"""Ranges of values hold for every image and precision, bound slopes, and do not survive what is written."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.certificates import Certifier, lipschitz_bound, rounding_bound
from svdctl.certificates.interpreter import prove
from svdctl.certificates.intervals import Interval
from svdctl.errors import ShapeError
from tests.certificates.test_what_is_proved import Runs

Function = Callable[[Tensor], Tensor]
COUNT = 4
LIMITS = torch.tensor([-3.0, 0.5, 2.0, 1.0])
INF = math.inf
ONE_THIRD = float(torch.tensor(1 / 3))


def proved(run: Function, dtype: torch.dtype = torch.float64) -> Runs:
    return Runs(lambda _, x: run(x), weight=nn.Parameter(torch.zeros(1, dtype=dtype)))


def range_of(run: Function, dtype: torch.dtype = torch.float64) -> Interval:
    return prove(proved(run, dtype), torch.full((1, COUNT), 0.25, dtype=dtype))[1].bounds.interval


def images(ends: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """Images `(N, COUNT)`: all combinations of numbers at, beside and beyond the ends, and random ones."""
    places = torch.tensor([*ends, -80.0, 0.0, 80.0], dtype=dtype)
    beside = torch.cat((places, places.nextafter(places + 1), places.nextafter(places - 1)))
    generator = torch.Generator().manual_seed(0)
    mixed = beside[torch.randint(len(beside), (2000, COUNT), generator=generator)]
    noise = torch.randn(2000, COUNT, generator=generator, dtype=torch.float64).to(dtype)
    equal = beside[:, None].expand(-1, COUNT)
    return torch.cat((equal, mixed, noise, 30 * noise, mixed + 1e-3 * noise))


# The function, its largest slope, and numbers near which every entry of the image has it.
SLOPES: dict[str, tuple[Function, float, float]] = {
    "exp": (lambda x: x.clamp(max=1.5).exp(), math.exp(1.5), 1.5),
    "exp of the function": (lambda x: torch.exp(torch.clamp_max(x, 1.5)), math.exp(1.5), 1.5),
    "exp in place": (lambda x: (x * 1).clamp_(max=1.5).exp_(), math.exp(1.5), 1.5),
    "exp2": (lambda x: F.hardtanh(x, -3, 2).exp2(), 4 * math.log(2), 2.0),
    "expm1": (lambda x: torch.minimum(x, torch.ones_like(x)).expm1(), math.e, 1.0),
    "sinh": (lambda x: x.clamp(-2, 1).sinh(), math.cosh(2), -2.0),
    "sinh above": (lambda x: x.clamp(-1, 2).sinh(), math.cosh(2), 2.0),
    "cosh": (lambda x: x.clamp(-2, 1).cosh(), math.sinh(2), -2.0),
    "square": (lambda x: x.clamp(-3, 1).square(), 6.0, -3.0),
    "square above": (lambda x: torch.square(F.relu6(x)), 12.0, 6.0),
    "second power": (lambda x: x.clamp(-3, 1) ** 2, 6.0, -3.0),
    "third power": (lambda x: torch.pow(x.clamp(-2, 3), 3), 27.0, 3.0),
    "third power in place": (lambda x: (x * 1).clamp_(-2, 3).pow_(3.0), 27.0, 3.0),
    "fractional power": (lambda x: x.clamp(0, 4) ** 1.5, 3.0, 4.0),
    "root by power": (lambda x: x.clamp(min=0.25) ** 0.5, 1.0, 0.25),
    "power of one third": (lambda x: x.clamp(0.125, 8) ** (1 / 3), 4 / 3, 0.125),
    "inverse power": (lambda x: x.clamp(min=0.5) ** -1.5, 1.5 * 0.5**-2.5, 0.5),
    "inverse of negative numbers": (lambda x: x.clamp(max=-0.5) ** -3, 48.0, -0.5),
    "two to the power": (lambda x: 2 ** x.clamp(max=3), 8 * math.log(2), 3.0),
    "a fraction to the power": (lambda x: torch.pow(0.3, x.clamp(-2, 2)), -math.log(0.3) / 0.09, -2.0),
    "log": (lambda x: x.clamp(min=0.1).log(), 10.0, 0.1),
    "log2": (lambda x: x.clamp(min=0.1).log2(), 10 / math.log(2), 0.1),
    "log10": (lambda x: x.clamp_min(0.1).log10(), 10 / math.log(10), 0.1),
    "log1p": (lambda x: x.clamp(min=-0.75).log1p(), 4.0, -0.75),
    "log of a sigmoid": (lambda x: (x.sigmoid() + 0.25).log(), 0.25 / 0.25, -INF),
    "sqrt": (lambda x: x.clamp(min=0.04).sqrt(), 2.5, 0.04),
    "sqrt of a sum": (lambda x: (F.relu(x) + 1e-2).sqrt(), 5.0, 0.0),
    "rsqrt": (lambda x: x.clamp(min=0.25).rsqrt(), 4.0, 0.25),
    "reciprocal": (lambda x: x.clamp(min=0.25).reciprocal(), 16.0, 0.25),
    "reciprocal below 0": (lambda x: x.clamp(max=-0.25).reciprocal(), 16.0, -0.25),
    "reciprocal in place": (lambda x: (x * 1).clamp_(min=0.25).reciprocal_(), 16.0, 0.25),
    "a quotient in place": (lambda x: (x * 1).clamp_(-1, 1).div_(x.clamp(0.5, 1) - 1.5), 6.0, 1.0),
    "logarithms in place": (lambda x: (x * 1).clamp_min_(0.1).log_(), 10.0, 0.1),
    "a number divided": (lambda x: 3 / x.clamp(min=0.5), 12.0, 0.5),
    "a constant divided": (lambda x: torch.div(torch.full((COUNT,), -3.0).to(x.dtype), x.clamp(min=0.5)), 12.0, 0.5),
    "a product with itself": (lambda x: F.relu6(x) * F.relu6(x), 12.0, 6.0),
    "a product in place": (lambda x: (x * 1).clamp_(-3, 1).mul_(x.clamp(-3, 0)), 6.0, -3.0),
    "a quotient with itself below": (lambda x: x.clamp(0.5, 2) / (5 - x.clamp(0.5, 2)), 1 / 3 + 2 / 9, 2.0),
}  # fmt: skip
LOOSE = {"log of a sigmoid": 0.3}
"""Where the largest slopes of two functions are at other places: the share of the bound that is reached."""


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_are_bounds_and_are_reached(name: str) -> None:
    run, slope, end = SLOPES[name]
    bound = lipschitz_bound(proved(run), (COUNT,)).value
    assert slope * (1 - 1e-12) <= bound <= slope * (1 + 1e-6)
    places = images([end] if math.isfinite(end) else [-1.0])
    steepest = 0.0
    for step in (1e-7, -1e-7, 1e-3, -1e-3, 0.5):
        moved = places + step
        change = (run(moved) - run(places)).norm(dim=1)
        apart = (moved - places).norm(dim=1)
        # Differences of numbers of this size are known to their rounding.
        floor = 1e-15 * (run(places).norm(dim=1) + run(moved).norm(dim=1))
        assert bool((change <= bound * apart * (1 + 1e-9) + floor).all())
        steepest = max(steepest, float((change / apart)[: 3 * 4].max()))
    assert steepest >= LOOSE.get(name, 1 - 1e-4) * bound


@pytest.mark.parametrize("name", SLOPES)
def test_float32_stays_within_the_rounding_bound(name: str) -> None:
    run, _, end = SLOPES[name]
    inputs = images([end] if math.isfinite(end) else [-1.0], torch.float32)
    errors = (run(inputs).double() - run(inputs.double())).norm(dim=1)
    bound = rounding_bound(proved(run), (COUNT,), torch.float32, float(inputs.double().norm(dim=1).max()))
    assert float(errors.max()) <= bound <= 0.1
    near = inputs.norm(dim=1) <= 10
    assert float(errors[near].max()) <= rounding_bound(proved(run), (COUNT,), torch.float32, 10.0)


# The function, and the smallest and largest number among its values.
RANGES: dict[str, tuple[Function, float, float]] = {
    "clamp": (lambda x: x.clamp(-0.1, 0.3), -0.1, 0.3),
    "clamp by tensors": (lambda x: torch.clamp(x, min=LIMITS.to(x.dtype), max=LIMITS.to(x.dtype) + 1), -3, 3),
    "clamp_max": (lambda x: torch.clamp_max(x, 0.3), -INF, 0.3),
    "clamp_min": (lambda x: x.clamp_min(0.3), 0.3, INF),
    "clamp with its ends exchanged": (lambda x: x.clamp(2, 1), 1, 1),
    "hardtanh": (lambda x: F.hardtanh(x), -1, 1),
    "hardtanh of a module": (lambda x: nn.Hardtanh(-0.1, 2.0)(x), -0.1, 2.0),
    "relu": (lambda x: F.relu(x), 0, INF),
    "relu in place": (lambda x: (x + 0).relu_(), 0, INF),
    "relu6": (lambda x: F.relu6(x), 0, 6),
    "sigmoid": (lambda x: x.sigmoid(), 0, 1),
    "sigmoid of a range": (lambda x: x.clamp(-2, 1).sigmoid(), 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-1))),
    "hardsigmoid": (lambda x: F.hardsigmoid(x), 0, 1),
    "tanh": (lambda x: x.tanh(), -1, 1),
    "softmax": (lambda x: x.softmax(-1), 0, 1),
    "log_softmax": (lambda x: x.log_softmax(-1), -INF, 0),
    "logsigmoid": (lambda x: F.logsigmoid(x), -INF, 0),
    "sin": (lambda x: x.sin(), -1, 1),
    "cos": (lambda x: x.cos(), -1, 1),
    "atan": (lambda x: x.atan(), -math.pi / 2, math.pi / 2),
    "asinh": (lambda x: x.clamp(-1, 2).asinh(), math.asinh(-1), math.asinh(2)),
    "softsign": (lambda x: F.softsign(x), -1, 1),
    "erf": (lambda x: x.erf(), -1, 1),
    "abs": (lambda x: x.clamp(-3, 2).abs(), 0, 3),
    "abs below 0": (lambda x: x.clamp(-3, -2).abs(), 2, 3),
    "negative": (lambda x: -x.clamp(-3, 2), -2, 3),
    "square": (lambda x: x.clamp(-3, 2).square(), 0, 9),
    "elu": (lambda x: F.elu(x, 1.7), -1.7, INF),
    "elu downwards": (lambda x: F.elu(x, -1.7), 0, INF),
    "selu": (lambda x: F.selu(x), -1.0507009873554805 * 1.6732632423543772, INF),
    "celu": (lambda x: F.celu(x, 0.5), -0.5, INF),
    "softplus": (lambda x: F.softplus(x), 0, INF),
    "softplus of a range": (
        lambda x: F.softplus(x.clamp(-1, 30), 2.0, 10.0),
        math.log1p(math.exp(-2)) / 2 - math.log1p(math.exp(-10)) / 2,  # torch jumps at its threshold
        30 + math.log1p(math.exp(-10)) / 2,
    ),
    "leaky": (lambda x: F.leaky_relu(x.clamp(-2, 3), 0.1), -0.2, 3),
    "leaky upwards": (lambda x: F.leaky_relu(x.clamp(-2, 3), -0.1), 0, 3),
    "softplus far below": (lambda x: F.softplus(x.clamp(-250, 0), 0.3, 30.0), 0, math.log(2) / 0.3),
    "threshold": (lambda x: F.threshold(x, 0.3, 0.3), 0.3, INF),
    "normalize": (lambda x: F.normalize(x, eps=0.5), -1, 1),
    "norm": (lambda x: x.norm(dim=-1), 0, INF),
    "exp": (lambda x: x.clamp(-2, 1).exp(), math.exp(-2), math.e),
    "exp of anything below": (lambda x: x.clamp(max=1).exp(), 0, math.e),
    "log": (lambda x: x.clamp(0.1, 3).log(), math.log(0.1), math.log(3)),
    "rsqrt": (lambda x: x.clamp(min=0.25).rsqrt(), 0, 2),
    "reciprocal": (lambda x: x.clamp(-4, -0.5).reciprocal(), -2, -0.25),
    "odd power": (lambda x: x.clamp(-2, 1) ** 3, -8, 1),
    "even power": (lambda x: x.clamp(-2, 1) ** 4, 0, 16),
    "inverse power": (lambda x: x.clamp(0.5, 2) ** -2, 0.25, 4),
    "base": (lambda x: 0.3 ** x.clamp(-2, 2), 0.09, 1 / 0.09),
    "cosh": (lambda x: x.clamp(-1, 2).cosh(), 1, math.cosh(2)),
    "plus a constant": (lambda x: x.clamp(-1, 2) + torch.tensor([0.125, 0.25, -0.25, 0.0]).to(x.dtype), -1.25, 2.25),
    "plus a number": (lambda x: F.relu(x) + 1e-5, 1e-5, INF),
    "from a number": (lambda x: 1 - x.sigmoid(), 0, 1),
    "minus with a factor": (lambda x: torch.sub(x.tanh(), x.sigmoid(), alpha=2.5), -3.5, 1),
    "plus itself": (lambda x: x.tanh() + x.tanh(), -2, 2),
    "times a number": (lambda x: -0.3 * x.clamp(-1, 2), -0.6, 0.3),
    "times a constant": (lambda x: x.clamp(-1, 2) * LIMITS.to(x.dtype), -6, 4),
    "over a number": (lambda x: x.clamp(-1, 2) / -0.3, -2 / 0.3, 1 / 0.3),
    "product": (lambda x: x.clamp(-1, 2) * x.clamp(-3, 0), -6, 3),
    "quotient": (lambda x: x.clamp(-1, 2) / x.clamp(0.5, 4), -2, 4),
    "cat": (lambda x: torch.cat((x.clamp(-2, 1), x.clamp(0, 3)), -1), -2, 3),
    "cat with a constant": (lambda x: torch.cat((x.clamp(-2, 1), torch.full_like(x, 7.0)), -1), -2, 7),
    "stack": (lambda x: torch.stack((x.tanh(), x.sigmoid()), -1), -1, 1),
    "where": (lambda x: torch.where(torch.tensor([True, False, True, False]), x.tanh(), 5.0), -1, 5),
    "masked_fill": (lambda x: x.tanh().masked_fill(torch.tensor([True, False, True, False]), -9), -9, 1),
    "maximum": (lambda x: torch.maximum(x.clamp(-2, 1), x.clamp(-1, 3)), -1, 3),
    "min of two": (lambda x: torch.min(x.clamp(-2, 1), x), -INF, 1),
    "pad": (lambda x: F.pad(x.sigmoid(), (1, 1), value=-2.5), -2.5, 1),
    "pad that repeats": (lambda x: F.pad(x.clamp(1, 2), (1, 1), mode="replicate"), 1, 2),
    "shapes": (lambda x: x.clamp(1, 2).view(-1, 2, 2).transpose(1, 2).flatten(1)[:, 1:], 1, 2),
    "chunk": (lambda x: x.clamp(1, 2).chunk(2, -1)[1], 1, 2),
    "max pooling": (lambda x: F.max_pool1d(x.clamp(1, 2), 2, padding=1), 1, 2),
    "adaptive max pooling": (lambda x: F.adaptive_max_pool1d(x.clamp(1, 2), 3), 1, 2),
    "average pooling": (lambda x: F.avg_pool1d(x.clamp(1, 2), 3, 1), 1, 2),
    "average pooling with padding": (lambda x: F.avg_pool1d(x.clamp(1, 3), 3, 1, padding=1), 2 / 3, 3),
    "average pooling by a divisor": (lambda x: F.avg_pool2d(x.clamp(-1, 3)[None], 1, divisor_override=3), -1 / 3, 1),
    "mean": (lambda x: x.clamp(-1, 3).mean(-1), -1, 3),
    "sum": (lambda x: x.clamp(-1, 3).sum(-1), -4, 12),
    "triangle": (lambda x: x.clamp(1, 2)[:, None].expand(-1, 4, 4).tril(), 0, 2),
    "sort": (lambda x: x.tanh().sort(-1)[0], -1, 1),
    "amax": (lambda x: x.tanh().amax(-1), -1, 1),
    "max of an axis": (lambda x: x.tanh().max(-1).values, -1, 1),
    "clone": (lambda x: x.tanh().clone().detach().contiguous(), -1, 1),
    "a linear layer": (lambda x: F.linear(x.tanh(), torch.eye(COUNT).to(x.dtype)), -INF, INF),
    "SiLU": (lambda x: F.silu(x), -INF, INF),
    "nothing": (lambda x: x * 2, -INF, INF),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", RANGES)
def test_ranges_hold_whatever_the_image_and_are_tight(name: str, dtype: torch.dtype) -> None:
    run, lo, hi = RANGES[name]
    found = range_of(run, dtype)
    for inputs, other in itertools.product((images([-3.0, -1.0, 0.3, 0.5, 2.0, 3.0]), 1e20 * images([1.0])), (0, 1)):
        # Float64 values are those of exact arithmetic, but for their own rounding, which is in the range too.
        values = run(inputs.to(dtype).double() if other else inputs.to(dtype)).double()
        assert found.lo <= float(values.min())
        assert float(values.max()) <= found.hi
    room = 2e-4 if dtype == torch.float32 else 1e-11
    assert lo - room <= found.lo <= lo
    assert hi <= found.hi <= hi + room
    if lo == 0 and name != "from a number":
        assert found.lo == 0


@pytest.mark.parametrize(("lo", "hi"), [(-1, 1), (0.5, 1), (-1, -0.5), (0, 1)])
def test_means_of_many_terms_may_be_off_by_many_roundings(lo: float, hi: float) -> None:
    found = range_of(lambda x: x.clamp(lo, hi).expand(4, 1000, 4).mean((0, 1)), torch.float32)
    assert lo - 0.01 < found.lo <= lo - 1e-6 * abs(lo)
    assert hi + 1e-6 * abs(hi) <= found.hi < hi + 0.01


ROUNDED: dict[str, tuple[Function, float]] = {
    "an exponent": (lambda x: x.clamp(0.5, 10) ** 16.3, 10.0),
    "an inverse exponent": (lambda x: x.clamp(0.1, 3) ** -16.3, 0.1),
    "a base": (lambda x: 1.1 ** x.clamp(-10, 100), 100.0),
    "a direction": (lambda x: F.normalize(x, dim=-1, eps=1e-3), 0.3),
    "a direction of tiny numbers": (lambda x: F.normalize(x, dim=-1, eps=1e-12), 1e-13),
    "a quotient": (lambda x: x.tanh() / (x.cos() + 2), 0.7),
    "a product": (lambda x: x.tanh() * x.cos() * x.sigmoid(), 0.7),
    "a distance": (lambda x: (x.clamp(-1, 1).square().sum(-1, keepdim=True) + 0.1).sqrt(), 0.3),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_settings_and_values_that_are_rounded(name: str) -> None:
    run, place = ROUNDED[name]
    inputs = place * (1 + 1e-2 * torch.randn(500, COUNT, generator=torch.Generator().manual_seed(0)))
    # The numbers beside the end of the range, too.
    inputs = torch.cat((inputs, torch.full((1, COUNT), place)))
    errors = (run(inputs).double() - run(inputs.double())).norm(dim=1)
    bound = rounding_bound(proved(run), (COUNT,), torch.float32, float(inputs.double().norm(dim=1).max()))
    assert 0 < float(errors.max()) <= bound
    assert bound <= 1e3 * float(errors.max())


def test_a_difference_with_a_factor_that_cancels() -> None:
    run = lambda x: torch.sub(x.clamp(ONE_THIRD * 3, ONE_THIRD * 3), x.clamp(ONE_THIRD, ONE_THIRD), alpha=3)  # noqa: E731
    found, value = range_of(run, torch.float32), float(run(torch.zeros(COUNT)).amin())
    assert found.lo <= value <= found.hi
    assert found.lo <= -1e-8
    assert found.hi >= 1e-8


class TestIntervals:
    def test_arithmetic_holds_every_combination(self) -> None:
        ends = (-INF, -2.0, -0.5, 0.0, 1.5, 3.0, INF)
        intervals = [
            Interval(*pair) for pair in itertools.combinations_with_replacement(ends, 2) if pair != (-INF,) * 2
        ]
        intervals = [one for one in intervals if one.lo < INF]
        for a, b in itertools.product(intervals, repeat=2):
            for x, y in itertools.product(self.inside(a), self.inside(b)):
                for found, value in (
                    (a + b, x + y), (a * b, x * y), (-a, -x), (a.maximum(b), max(x, y)), (a.minimum(b), min(x, y)),
                    (a.hull(b), x), (a.hull(b), y), (a.image(abs, 0.0), abs(x)),
                ):  # fmt: skip
                    assert found.lo <= value <= found.hi

    def inside(self, interval: Interval) -> list[float]:
        lo, hi = max(interval.lo, -1e9), min(interval.hi, 1e9)
        return [lo, (lo + hi) / 2, hi]

    def test_widened_keeps_signs_and_moves_every_end(self) -> None:
        assert Interval(0.0, 2.0).widened(0.25, 1e-300) == Interval(0.0, math.nextafter(2.5, INF))
        assert Interval(-2.0, 0.0).widened(0.25) == Interval(math.nextafter(-2.5, -INF), 0.0)
        assert Interval(1.0, 2.0).widened(2.0).lo == 0
        assert Interval(-1.0, INF).widened(0.0, 1e-300).lo < -1
        assert Interval(1.0, 2.0).widened(0.0) == Interval(1.0, 2.0)
        assert Interval(-1.0, 1.0).widened(INF) == Interval()

    def test_what_is_no_number_bounds_nothing(self) -> None:
        assert Interval.of(1.0, math.nan) == Interval()
        assert Interval.of(INF, INF) == Interval() == Interval.of(-INF)
        assert Interval(700.0, 800.0).image(math.exp) == Interval()
        assert Interval(0.0, 0.0) * Interval() == Interval(0.0, 0.0)


REFUSED: dict[str, tuple[Function, str]] = {
    "exp": (lambda x: x.exp(), r"exp .*no proved bound.*slope.*they have an upper bound, which a clamp"),
    "exp of what is bounded below": (lambda x: F.relu(x).exp(), r"no proved upper bound \(the lower one is 0\)"),
    "exp of a huge number": (lambda x: x.clamp(max=1e3).exp(), "a smaller upper bound"),
    "cosh": (lambda x: x.cosh(), "a lower bound and an upper bound"),
    "log": (lambda x: F.relu(x).log(), "larger lower bound above 0"),
    "log of a sigmoid": (lambda x: x.sigmoid().log(), "bounds 0 and 1 .*larger lower bound above 0"),
    "log of a clamped value": (lambda x: x.clamp(max=3).log(), "a lower bound above 0"),
    "log1p": (lambda x: x.log1p(), "above -1"),
    "sqrt at 0": (lambda x: x.abs().sqrt(), "above 0"),
    "a power near 0": (lambda x: F.relu(x) ** 0.5, "above 0"),
    "a fractional power": (lambda x: x.clamp(-1, 1) ** 1.5, "at least 0"),
    "an inverse power across 0": (lambda x: x.clamp(-1, 1) ** -2, "above 0"),
    "an exponent that is rounded": (lambda x: x.float().clamp(min=0.1) ** 0.3, "rounds"),
    "a base that is rounded": (lambda x: 0.3 ** x.float().clamp(min=0.1), "rounds"),
    "a negative base": (lambda x: (-2) ** x.clamp(0, 1), "base"),
    "tensors of exponents": (lambda x: x.clamp(1, 2) ** torch.ones(COUNT), "one number"),
    "a power of itself": (lambda x: x.clamp(1, 2) ** x.clamp(1, 2), "one number"),
    "a product": (lambda x: x * x.tanh(), "mul .*both depend.*its first factor has no proved bound"),
    "an excitation": (lambda x: x * F.hardsigmoid(x.mean(-1, keepdim=True)), "mul .*its first factor has no proved bo"),
    "a product in the other order": (lambda x: x.tanh() * F.relu(x), "its second factor has no proved upper bound"),
    "division by 0": (lambda x: x.tanh() / x.abs(), "away from 0 .*lower one is 0.*clamp"),
    "division across 0": (lambda x: 1 / x.tanh(), "away from 0 .*bounds"),
    "division of anything": (lambda x: x / (x.abs() + 1), "what is divided has no proved bound"),
    "tan": (lambda x: x.clamp(0, 1).tan(), "tan .*no rule gives one on a range"),
    "normalize of another order": (lambda x: F.normalize(x, p=1.0), "order"),
    "subnormal numbers": (lambda x: x.float().clamp(min=1e-40).log(), "bound above 0"),
    "a bound that is no number": (lambda x: x.clamp(max=math.nan).exp(), "nan|not finite"),
    "bounds of which one is no number": (lambda x: x.clamp(max=torch.tensor([1, 1, 1, math.nan])), "not finite"),
    "an infinite bound": (lambda x: x.clamp(max=INF).exp(), "no proved bound"),
    "an infinite bound below": (lambda x: x.clamp(min=INF), "not finite"),
    "filled with infinity": (lambda x: x.tanh().masked_fill(torch.ones(COUNT) > 0, -INF).exp(), "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bound_is_refused_with_the_end_that_is_missing(name: str) -> None:
    run, words = REFUSED[name]
    with pytest.raises(ShapeError, match=words):
        lipschitz_bound(Runs(lambda _, x: run(x)), (COUNT,))


def bounded(x: Tensor) -> Tensor:
    return x.clamp(0, 1)


def a_view_is_written(x: Tensor) -> Tensor:
    y = bounded(x)
    y.view(2, -1).mul_(100)
    return y.exp()


def what_a_view_shows_is_written(x: Tensor) -> Tensor:
    y = bounded(x)
    view = y[:, :2]
    y.mul_(100)
    return view.exp()


def a_part_is_clamped(x: Tensor) -> Tensor:
    y = x * 1
    y[:, :2].clamp_(0, 1)
    return y.exp()


def an_alias_from_before(x: Tensor) -> Tensor:
    y = x * 1
    view = y.view(2, -1)
    y.clamp_(0, 1)
    return view.exp()


def data_is_written(x: Tensor) -> Tensor:
    y = bounded(x)
    y.data.mul_(100)
    return y.exp()


def data_is_replaced(x: Tensor) -> Tensor:
    y = bounded(x)
    y.data = x
    return y.exp()


def detached_is_written(x: Tensor) -> Tensor:
    y = bounded(x)
    y.detach().add_(x)
    return y.exp()


def entries_are_assigned(x: Tensor) -> Tensor:
    y = bounded(x)
    y[:, 0] = 100 * x[:, 0]
    return y.exp()


def an_output_is_given(x: Tensor) -> Tensor:
    y = bounded(x)
    torch.mul(x, 100, out=y)
    return y.exp()


def copied_into(x: Tensor) -> Tensor:
    return bounded(x).copy_(x).exp()


def memory_is_set(x: Tensor) -> Tensor:
    return bounded(x).set_(x).exp()


def raised_in_place(x: Tensor) -> Tensor:
    y = bounded(x)
    view = y[:, 1:]
    y **= 2
    return view.exp()


def added_in_place(x: Tensor) -> Tensor:
    y = bounded(x)
    y += x
    return y.exp()


STALE, UNKNOWN = "view of a tensor that was changed in place", "no Lipschitz bound is known for"
WRITTEN = {
    a_view_is_written: STALE,
    what_a_view_shows_is_written: STALE,
    a_part_is_clamped: STALE,
    an_alias_from_before: STALE,
    data_is_written: STALE,
    data_is_replaced: UNKNOWN,
    detached_is_written: STALE,
    entries_are_assigned: UNKNOWN,
    an_output_is_given: UNKNOWN,
    copied_into: UNKNOWN,
    memory_is_set: "given the memory of another",
    raised_in_place: STALE,
    added_in_place: "no proved bound",
}


@pytest.mark.parametrize("run", WRITTEN)
def test_a_range_does_not_survive_what_is_written(run: Function) -> None:
    with pytest.raises(ShapeError, match=WRITTEN[run]):
        lipschitz_bound(Runs(lambda _, x: run(x)), (COUNT,))


def test_a_range_moves_with_what_is_written() -> None:
    def run(x: Tensor) -> Tensor:
        y = bounded(x)
        y.mul_(3).add_(1)
        return y.exp_()

    assert lipschitz_bound(proved(run), (COUNT,)).value == pytest.approx(3 * math.exp(4), rel=1e-6)


def test_a_limit_that_the_network_moves_is_refused() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y = x.clamp(max=net.limit)
        net.limit += 1
        return y.exp()

    with pytest.raises(ShapeError, match=r"limit|something else"):
        lipschitz_bound(Runs(run, limit=torch.ones(())), (COUNT,))


def test_a_limit_moved_between_two_uses_counts_at_each() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        net.limit.fill_(1.0)
        first = x.clamp(max=net.limit).exp()
        net.limit.fill_(3.0)
        return first + x.clamp(max=net.limit).exp()

    bound = lipschitz_bound(Runs(run, limit=torch.full((), 3.0).double()), (COUNT,)).value
    assert bound == pytest.approx(math.e + math.exp(3), rel=1e-6)


def test_a_normalised_direction_has_the_inverse_of_eps() -> None:
    run = lambda x: F.normalize(x, dim=-1, eps=0.5)  # noqa: E731
    bound = lipschitz_bound(proved(run), (COUNT,)).value
    assert 2 <= bound <= 2 * (1 + 1e-6)
    places = 0.2 * images([0.5])
    step = 1e-6 * torch.randn(places.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slopes = (run(places + step) - run(places)).norm(dim=1) / step.norm(dim=1)
    assert 0.999 * bound <= float(slopes.max()) <= bound * (1 + 1e-6)


def test_attention_weights_written_out() -> None:
    def run(x: Tensor) -> Tensor:
        weights = (3 * x.tanh()).exp()
        return weights / weights.sum(-1, keepdim=True)

    bound = lipschitz_bound(proved(run), (COUNT,)).value
    x = images([0.0])[:200]
    jacobians = torch.func.vmap(torch.func.jacrev(run))(x)
    assert float(torch.linalg.matrix_norm(jacobians, 2).max()) <= bound < INF


def test_a_gate_in_a_certifier() -> None:
    network = Runs(
        lambda net, x: net.last(net.first(x).tanh() * net.gate(x).sigmoid()),
        first=nn.Linear(COUNT, COUNT), gate=nn.Linear(COUNT, COUNT), last=nn.Linear(COUNT, 3),
    )  # fmt: skip
    certifier = Certifier(network, (COUNT,))
    inputs = torch.rand(50, COUNT, generator=torch.Generator().manual_seed(0))
    logits = certifier.logits(inputs)
    labels = logits.argmax(1)
    radii = certifier.radii(logits, labels)
    assert float(radii.max()) > 0
    steps = torch.randn(50, COUNT, generator=torch.Generator().manual_seed(1)).double()
    moved = inputs + steps / steps.norm(dim=1, keepdim=True) * radii[:, None] * (1 - 1e-9)
    assert torch.equal(certifier.logits(moved).argmax(1), labels)
