"""Proofs in the few steps that a GPU takes, run on the CPU: against dense matrices in float64."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from svdctl.errors import ShapeError
from svdctl.layers.layer_operator import exact_operators
from svdctl.layers.norms import are_layers_bounded, layer_norm_bounds
from svdctl.layers.tt import TTConv2d
from svdctl.spectral import Convolution, bounds, cholesky_proof, frequency_cells, gram, lower_bounds
from svdctl.spectral.bounds import are_bounded, norm_bounds, upper_ends
from svdctl.spectral.symbol import angles, grid_product, half_grid, phases, symbol
from tests.dispatched_operations import DispatchedOperations

SHAPES = [
    ((12, 8, 3, 3), {}),
    ((12, 8, 3, 3), {}),
    ((8, 12, 3, 3), {"stride": 2}),
    ((12, 4, 3, 3), {"groups": 3}),
    ((6, 5, 5, 5), {"stride": 3}),
    ((8, 8, 4, 3), {"dilation": 2}),
    ((9, 14, 1, 1), {}),
    ((9, 14, 1, 1), {"stride": 2}),
    ((10, 7, 1), {}),
    ((7, 6, 7), {}),
    ((1, 1, 3, 3), {}),
    ((4, 3, 2, 3, 2), {}),
]


@pytest.fixture(autouse=True)
def device_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose all ways by the kind of a device as on a GPU."""
    for module in (bounds, lower_bounds):
        monkeypatch.setattr(module, "launches_dominate", lambda _: True)
        monkeypatch.setattr(module, "float32_is_exact", lambda _: False)


def norm_of(conv: Convolution) -> float:
    """Return the norm: dense SVDs on a fine grid of frequencies, and on ever finer ones around the largest value."""
    kernel = conv.polyphase().double()
    taps = tuple(kernel.shape[3:])
    sizes = tuple(1 if k == 1 else {1: 256, 2: 32, 3: 16}[len(taps)] for k in taps)

    def values(points: torch.Tensor) -> torch.Tensor:
        found = torch.linalg.matrix_norm(symbol(kernel, phases(points, taps, kernel)), 2)
        return found.reshape(len(points), -1).amax(1)

    points = angles(half_grid(sizes)[0], sizes)
    grid = values(points)
    best = 0.0
    for start in points[grid.argsort(descending=True)[:4]]:
        centre, width = start, 2 * math.pi / max(sizes)
        for _ in range(18):
            steps = torch.linspace(-width, width, 5, dtype=torch.float64)
            near = centre + grid_product([steps if n > 1 else steps[2:3] for n in sizes])
            here = values(near)
            centre, width = near[here.argmax()], width / 2
            best = max(best, float(here.max()))
    return best


def convolutions() -> list[Convolution]:
    torch.manual_seed(0)
    found = []
    for place, (shape, how) in enumerate(SHAPES):
        found.append(Convolution.make(torch.randn(shape) * 10.0 ** (3 * place - 12), **how))
    # Values that are nearly equal at all frequencies, and a maximum between the first samples.
    flat = torch.zeros(6, 6, 3, 3)
    flat[:, :, 1, 1] = torch.linalg.qr(torch.randn(6, 6))[0]
    found.append(Convolution.make(flat + 0.01 * torch.randn(6, 6, 3, 3)))
    found.append(Convolution.make(torch.tensor([[[1.0, -0.7, 0.31, -1.0]]])))
    return found


@pytest.fixture(scope="module")
def norms() -> list[float]:
    return [norm_of(conv) for conv in convolutions()]


@pytest.mark.parametrize(
    "share", [1.5, 1.05, 1.01, pytest.param(1e-3, marks=pytest.mark.slow), 1e-5, -1e-5, -1e-3, -0.02, -0.5]
)
def test_a_maximum_is_proved_above_the_norm_alone(share: float, norms: list[float]) -> None:
    convs = convolutions()
    factor = share if share > 1 else 1 + share
    assert are_bounded(convs, [factor * norm for norm in norms]) == [factor > 1] * len(convs)


def test_each_layer_is_held_against_its_own_maximum(norms: list[float]) -> None:
    convs = convolutions()
    above = [place % 3 == 0 for place in range(len(convs))]
    limits = [norm * (0.999 if high else 1.001) for norm, high in zip(norms, above, strict=True)]
    assert are_bounded(convs, limits) == [not high for high in above]


@pytest.mark.parametrize("tolerance", [0.05, 0.005, 1e-4])
def test_brackets_hold_the_norm(tolerance: float, norms: list[float]) -> None:
    convs = convolutions()
    for norm, bracket in zip(norms, norm_bounds(convs, tolerance=tolerance), strict=True):
        assert bracket.lower <= norm * (1 + 1e-12)
        assert norm * (1 - 1e-12) <= bracket.upper <= bracket.lower * (1 + 1.001 * tolerance)
    maxima = [norm * 1.003 for norm in norms]
    found = norm_bounds(convs, tolerance=0.01, at_most=maxima)
    assert [bracket.upper for bracket in found] == maxima


@pytest.mark.parametrize(
    "share", [2.0, 1.05, 1.005, 1.0001, pytest.param(1 - 1e-5, marks=pytest.mark.slow), 0.999, 0.98, 0.5, 1e-3]
)
def test_an_upper_end_is_the_maximum_or_near_the_norm(share: float, norms: list[float]) -> None:
    convs = convolutions()
    for norm, upper in zip(norms, upper_ends(convs, [share * norm for norm in norms]), strict=True):
        assert upper >= norm * (1 - 1e-12)
        assert upper == share * norm if share > 1 else upper <= norm * (1 + 1.001 * bounds.TOLERANCE)


def test_brackets_hold_where_the_first_values_are_far_below(
    norms: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(questions: Sequence[tuple[gram.GramField, torch.Tensor]]) -> list[tuple[float, torch.Tensor]]:
        return [(0.0, values) for _, values in lower_bounds.coarse_values_from_below(questions)]

    monkeypatch.setattr(bounds, "coarse_values_from_below", worse)
    for norm, bracket in zip(norms, norm_bounds(convolutions(), tolerance=0.01), strict=True):
        assert bracket.lower <= norm * (1 + 1e-12)
        assert norm * (1 - 1e-12) <= bracket.upper <= bracket.lower * 1.0101
    # Of a matrix there are no cells to cut: where values do not rise, it is searched for.
    monkeypatch.setattr(bounds, "values_from_below", lambda questions: [0.0] * len(questions))
    matrix = Convolution.make(torch.randn(30, 20, 1))
    (bracket,) = norm_bounds([matrix])
    assert bracket.lower <= float(torch.linalg.matrix_norm(matrix.kernel[0, ..., 0].double(), 2)) <= bracket.upper


def test_a_norm_that_traces_show_to_be_above_is_not_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    convs = [conv for conv in convolutions() if math.prod(conv.polyphase_shape[1:3]) > 1]
    fields = [gram.GramField(conv) for conv in convs]
    for conv, field in zip(convs, fields, strict=True):
        square = field.samples.abs().square().sum((-2, -1)).sqrt().max()
        trace = field.samples.diagonal(dim1=-2, dim2=-1).real.sum(-1).max()
        assert field.below == pytest.approx(float(square / trace.sqrt()), rel=1e-6)
        assert field.below * field.scale <= norm_of(conv)
    for name in ("all_provably_below", "coarse_values_from_below", "rough_lower_bounds"):
        monkeypatch.setattr(bounds, name, lambda _: pytest.fail("it was searched for"))
    assert are_bounded(convs, [0.99 * field.below * field.scale for field in fields]) == [False] * len(convs)


def test_upper_ends_of_zero_kernels_and_odd_maxima() -> None:
    zero, conv = Convolution.make(torch.zeros(3, 4, 3, 3)), Convolution.make(torch.randn(3, 4, 3, 3))
    (bracket,) = norm_bounds([conv])
    found = upper_ends([zero, zero, conv, conv, conv], [0.0, -1.0, 0.0, -1.0, math.inf])
    assert found == [0.0, 0.0, bracket.upper, bracket.upper, math.inf]
    with pytest.raises(ShapeError, match="nan"):
        upper_ends([conv], [math.nan])


def test_a_norm_above_its_maximum_is_bounded_without_a_second_search(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    convs = [Convolution.make(torch.randn(8, 8, 3, 3)) for _ in range(3)]
    exact = [bracket.upper for bracket in norm_bounds(convs, tolerance=1e-5)]
    for name in ("lower_bounds", "lower_bounds_and_values"):
        monkeypatch.setattr(bounds, name, lambda _: pytest.fail("the norm was searched for"))
    found = upper_ends(convs, [norm / 1.02 for norm in exact])
    assert all(norm * (1 - 2e-5) <= upper <= norm * 1.006 for norm, upper in zip(exact, found, strict=True))


def test_zero_kernels_and_odd_maxima() -> None:
    zero = Convolution.make(torch.zeros(3, 4, 3, 3))
    conv = Convolution.make(torch.randn(3, 4, 3, 3))
    limits = [0.0, 1e-300, -1.0, math.inf, 0.0, -1.0, math.inf]
    expected = [True, True, False, True, False, False, True]
    assert are_bounded([zero, zero, zero, zero, conv, conv, conv], limits) == expected
    assert norm_bounds([zero])[0].upper == 0


def test_many_taps_keep_no_weights(monkeypatch: pytest.MonkeyPatch, norms: list[float]) -> None:
    convs = convolutions()
    monkeypatch.setattr(bounds, "_MOST_KEPT_WEIGHTS", 100)
    monkeypatch.setattr(bounds, "_kept_weights", None)
    convs, few = convs[:6], norms[:6]
    assert are_bounded(convs, [norm * 1.05 for norm in few]) == [True] * 6


def test_the_first_cells_and_their_weights_are_made_once(monkeypatch: pytest.MonkeyPatch, norms: list[float]) -> None:
    chosen = [place for place, conv in enumerate(convolutions()) if conv.axes < 3]
    convs, limits = [convolutions()[place] for place in chosen], [1.05 * norms[place] for place in chosen]
    assert all(are_bounded(convs, limits))
    for module, name in ((bounds, "cover"), (frequency_cells, "cover"), (cholesky_proof, "interpolation")):
        monkeypatch.setattr(module, name, None)
    assert all(are_bounded(convs, limits))


@pytest.fixture
def layers() -> list[nn.Module]:
    """Layers as of a small residual network."""
    torch.manual_seed(0)
    widths = [(3, 16), *[(16, 16)] * 4, (16, 32), *[(32, 32)] * 3, (32, 64), *[(64, 64)] * 3]
    return [*(nn.Conv2d(i, o, 3, stride=1 + (o == 2 * i)) for i, o in widths), nn.Linear(64, 10)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of tensors of each read of a device."""
    found: list[int] = []

    def read(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found.append(len(tensors))
        return list(tensors)

    for module in (gram, cholesky_proof, lower_bounds):
        monkeypatch.setattr(module, "on_host", read)
    return found


def test_a_maximum_of_a_network_takes_few_operations(layers: list[nn.Module], reads: list[int]) -> None:
    """Launches are what a GPU's time goes into."""
    maxima = [1.05 * bracket.upper for bracket in layer_norm_bounds(layers)]
    are_layers_bounded(layers, maxima)
    reads.clear()
    with DispatchedOperations() as counted:
        assert are_layers_bounded(layers, maxima) == [True] * len(layers)
    assert counted.total <= 600
    assert len(reads) == 2


@pytest.mark.parametrize(("tolerance", "operations", "most_reads"), [(0.005, 3000, 13), (0.02, 1800, 6)])
def test_brackets_of_a_network_take_few_operations(
    tolerance: float, operations: int, most_reads: int, layers: list[nn.Module], reads: list[int]
) -> None:
    layer_norm_bounds(layers, tolerance=tolerance)
    reads.clear()
    with DispatchedOperations() as counted:
        layer_norm_bounds(layers, tolerance=tolerance)
    assert counted.total <= operations
    assert len(reads) <= most_reads


def test_a_network_above_its_maxima_is_bounded_in_few_operations(layers: list[nn.Module], reads: list[int]) -> None:
    norms = [bracket.upper for bracket in layer_norm_bounds(layers, tolerance=1e-4)]
    convs = [conv for conv, _ in exact_operators(layers)]
    reads.clear()
    with DispatchedOperations() as counted:
        found = upper_ends(convs, [norm / 1.02 for norm in norms])
    assert all(norm * (1 - 2e-4) <= upper <= norm * 1.006 for norm, upper in zip(norms, found, strict=True))
    assert counted.total <= 4700
    assert len(reads) <= 22


def test_a_maximum_of_a_tt_network_is_proved_in_few_operations(reads: list[int]) -> None:
    torch.manual_seed(0)
    layers = [TTConv2d(i, o, 3, rank=12, frames="free") for i, o in ((8, 16), (16, 16), (16, 24), (24, 24))]
    brackets = layer_norm_bounds(layers, tolerance=1e-5)
    assert are_layers_bounded(layers, [1.0001 * bracket.upper for bracket in brackets]) == [True] * 4
    assert are_layers_bounded(layers, [0.9999 * bracket.lower for bracket in brackets]) == [False] * 4
    maxima = [1.05 * bracket.upper for bracket in brackets]
    are_layers_bounded(layers, maxima)
    reads.clear()
    with DispatchedOperations() as counted:
        assert are_layers_bounded(layers, maxima) == [True] * 4
    assert counted.total <= 260
    assert len(reads) <= 6


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("room", [0, 1 << 12, 1 << 26])
def test_krylov_spaces_of_joined_matrices_are_those_of_each(
    dtype: torch.dtype, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the space is exhausted: of small sides, and of matrices of low rank."""
    torch.manual_seed(0)
    monkeypatch.setattr(lower_bounds, "_BYTES_OF_ZEROS", room)
    blocks = []
    for side, rank, count in ((20, 20, 3), (7, 7, 2), (20, 2, 1), (1, 1, 4), (12, 1, 2), (5, 0, 2)):
        parts = torch.randn(count, side, rank, dtype=torch.complex128)
        blocks.append((parts @ parts.mH).to(dtype))
    for steps in (3, 24):
        for block, (values, vectors) in zip(blocks, lower_bounds._of_matrices(blocks, None, steps), strict=True):
            largest = torch.linalg.eigvalsh(block.to(torch.complex128))[:, -1]
            digits = 1e-5 if dtype == torch.complex64 else 1e-12
            assert (values <= largest * (1 + digits) + 1e-30).all()
            assert vectors.shape == block.shape[:2]
            wide = vectors.to(torch.complex128)
            quotients = (wide.conj() * (block.to(wide.dtype) @ wide[..., None])[..., 0]).sum(-1).real
            assert torch.allclose(quotients, values.double(), rtol=digits, atol=1e-30)
            if steps == 24:
                assert torch.allclose(values.double(), largest, rtol=digits, atol=1e-30)
