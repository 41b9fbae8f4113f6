"""Bounds that are refined together are those of each alone, each with its own rounding and proof."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from svdctl.errors import ShapeError
from svdctl.spectral import Convolution, bounds, cholesky_proof, gram
from svdctl.spectral.bounds import are_bounded, is_bounded, norm_bound, norm_bounds
from svdctl.spectral.cholesky_proof import PointsBelow, all_provably_below, provably_below
from svdctl.spectral.gram import GramField, gram_fields
from svdctl.spectral.joint_proofs import Step, run_together
from svdctl.spectral.lower_bounds import rough_lower_bounds
from svdctl.spectral.symbol import angles, half_grid, phases, symbol

SHAPES = [
    ((16, 3, 3, 3), {}),
    ((16, 16, 3, 3), {}),
    ((16, 16, 3, 3), {}),
    ((24, 16, 3, 3), {"stride": 2}),
    ((16, 24, 1, 1), {}),
    ((10, 16, 1), {}),
    ((16, 4, 3, 3), {"groups": 4}),
    ((8, 16, 5), {}),
    ((4, 3, 2, 3, 2), {}),
]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the way of a GPU on the CPU: all convolutions in one batch."""

    def proved(proof: Callable[[int], object], convs: Sequence[Convolution]) -> list[object]:
        return run_together([proof(place) for place in range(len(convs))])

    monkeypatch.setattr(bounds, "_proved", proved)


def convolutions() -> list[Convolution]:
    torch.manual_seed(0)
    found = []
    for place, (shape, how) in enumerate(SHAPES):
        kernel = torch.randn(shape) * 10.0 ** (3 * place - 12)
        found.append(Convolution.make(kernel, **how))
    return [*found, found[1].with_kernel(0 * found[1].kernel), found[1].with_kernel(found[1].kernel.double() * 1e-300)]


def norm_on_grid(conv: Convolution) -> float:
    """Return the largest singular value on a fine grid, in float64."""
    kernel = conv.polyphase().double()
    largest = float(kernel.abs().max()) or 1.0
    taps = tuple(kernel.shape[3:])
    sizes = tuple(1 if k == 1 else {1: 512, 2: 64, 3: 24}[len(taps)] for k in taps)
    points = angles(half_grid(sizes)[0], sizes)
    values = symbol(kernel / largest, phases(points, taps, kernel))
    return float(torch.linalg.matrix_norm(values, 2).max()) * largest


@pytest.mark.parametrize("tolerance", [0.05, 0.02, 0.005, 1e-4])
def test_brackets_of_all_are_those_of_each(tolerance: float, together: None) -> None:
    convs = convolutions()
    found = norm_bounds(convs, tolerance=tolerance)
    for conv, bracket in zip(convs, found, strict=True):
        alone = norm_bound(conv, tolerance=tolerance)
        assert bracket.upper == pytest.approx(alone.upper, rel=1e-6)
        assert bracket.lower == pytest.approx(alone.lower, rel=1e-6)
        assert norm_on_grid(conv) <= bracket.upper
        assert bracket.upper <= bracket.lower * (1 + 1.001 * tolerance)


def test_each_has_its_own_tolerance_and_maximum(together: None) -> None:
    convs = convolutions()[:4]
    norms = [bracket.lower for bracket in norm_bounds(convs, tolerance=1e-5)]
    tolerances = [0.05, 1e-4, 0.01, 0.02]
    found = norm_bounds(convs, tolerance=tolerances, at_most=[norms[0] * 1.01, None, norms[2] * 0.99, norms[3] * 2])
    assert found[0].upper == norms[0] * 1.01
    for place in (1, 2, 3):
        assert norms[place] <= found[place].upper <= found[place].lower * (1 + 1.001 * tolerances[place])
    limits = [norm * factor for norm, factor in zip(norms, (1.001, 0.999, 1.3, 0.5), strict=True)]
    assert are_bounded(convs, limits) == [True, False, True, False]
    assert [is_bounded(conv, limit) for conv, limit in zip(convs, limits, strict=True)] == [True, False, True, False]


@pytest.mark.parametrize("factors", [(1.05, 1.0001), pytest.param((1.3, 1.005), marks=pytest.mark.slow)])
def test_rough_lower_bounds_are_lower_and_enough(factors: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU begins with in place of the sharper bounds of a CPU."""
    convs = [conv for conv in convolutions() if float(conv.kernel.abs().max()) > 0]
    fields = gram_fields(convs, [torch.float64] * len(convs))
    norms = [bracket.lower for bracket in norm_bounds(convs, tolerance=1e-5)]
    for field, norm, (lower, samples) in zip(fields, norms, rough_lower_bounds(fields), strict=True):
        assert 0.8 * norm <= lower * field.scale <= norm
        assert float(samples.max()) * field.scale <= norm * (1 + 1e-5)
    monkeypatch.setattr(bounds, "coarse_lower_bounds", rough_lower_bounds)
    for factor in factors:
        assert are_bounded(convs, [norm * factor for norm in norms]) == [True] * len(convs)
        assert are_bounded(convs, [norm / factor * (1 - 1e-5) for norm in norms]) == [False] * len(convs)


def test_none_is_none() -> None:
    assert norm_bounds([]) == []
    assert are_bounded([], []) == []


@pytest.mark.parametrize("batched", [False, True])
def test_one_that_is_not_finite_is_an_error(batched: bool, request: pytest.FixtureRequest) -> None:
    if batched:
        request.getfixturevalue("together")
    convs = convolutions()[:3]
    convs[1] = convs[1].with_kernel(convs[1].kernel * math.nan)
    with pytest.raises(ShapeError, match="not finite"):
        norm_bounds(convs)
    with pytest.raises(ShapeError, match="not finite"):
        are_bounded(convs, [1.0, 1e300, 1.0])


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_fields_and_answers_do_not_depend_on_the_batch(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    convs = [conv for conv in convolutions() if float(conv.kernel.abs().max()) > 0]
    fields = gram_fields(convs, [precision] * len(convs))
    questions = []
    for conv, field in zip(convs, fields, strict=True):
        alone = GramField(conv, precision)
        assert alone.scale == field.scale
        assert torch.allclose(alone.samples, field.samples, rtol=1e-5, atol=1e-5)
        for dtype in (torch.float32, torch.float64):
            assert field.error(dtype) == pytest.approx(alone.error(dtype), rel=1e-4)
        points = torch.rand(7, len(field.taps), dtype=torch.float64) * 6.28
        squares = torch.linalg.eigvalsh(field.matrices(points).flatten(0, 1))[:, -1]
        # Some of the points are below, some are not.
        questions.append(PointsBelow(field, points, math.sqrt(float(squares.median())) * 1.01, precision))
    whole = all_provably_below(questions)
    assert {bool(answer) for answers in whole for answer in answers} == {True, False}
    monkeypatch.setattr(cholesky_proof, "_capacity", lambda *_: 3)
    for question, answers in zip(questions, whole, strict=True):
        pieces = all_provably_below([question, questions[0]])[0]
        assert torch.equal(answers, pieces)
        alone = provably_below(question.field, question.points, question.level, precision)
        assert torch.equal(answers, alone)


def test_powers_of_two_are_exact_at_all_sizes() -> None:
    for value in (5e-324, 1e-310, 2.0**-1022, 1e-40, 0.75, 1.0, 3.0, 1.7e308):
        kernel = torch.full((1, 1, 1), value, dtype=torch.float64)
        field = GramField(Convolution.make(kernel))
        assert field.scale == gram.power_of_two(value)
        assert float(field.samples.real) == pytest.approx((value / field.scale) ** 2, rel=1e-12)


def test_a_step_of_several_proofs_is_one_call() -> None:
    calls: list[list[int]] = []

    def doubled(arguments: list[int]) -> list[int]:
        calls.append(arguments)
        return [2 * argument for argument in arguments]

    def proof(rounds: int):  # type: ignore[no-untyped-def]
        value = rounds
        for _ in range(rounds):
            value = yield Step(doubled, value)
        return value

    assert run_together([proof(rounds) for rounds in (0, 1, 3, 2)]) == [0, 2, 24, 8]
    assert calls == [[1, 3, 2], [6, 4], [12]]


def test_a_step_of_a_higher_rank_waits_for_others() -> None:
    calls: list[int] = []

    def cheap(arguments: list[int]) -> list[int]:
        return arguments

    def costly(arguments: list[int]) -> list[int]:
        calls.append(len(arguments))
        return [10 * argument for argument in arguments]

    def proof(rounds: int):  # type: ignore[no-untyped-def]
        for _ in range(rounds):
            yield Step(cheap, 0)
        return (yield Step(costly, rounds, 1))

    assert run_together([proof(rounds) for rounds in (3, 0, 1)]) == [30, 0, 10]
    assert calls == [3]


def test_a_device_is_read_once_for_all(monkeypatch: pytest.MonkeyPatch, together: None) -> None:
    reads: list[int] = []

    def read(tensors: Sequence[Tensor]) -> list[Tensor]:
        reads.append(len(tensors))
        return list(tensors)

    convs = convolutions()[:4]
    limits = [1.05 * bracket.upper for bracket in norm_bounds(convs)]
    for module in (gram, cholesky_proof):
        monkeypatch.setattr(module, "on_host", read)
    assert are_bounded(convs, limits) == [True] * 4
    # The numbers of the Gram matrices once, and the answers of each round of cells.
    assert reads[0] == 4
    assert len(reads) <= 4
