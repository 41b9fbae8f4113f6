"""The lemmas of docs/theory.md, each against a dense matrix, a fine grid or an exact sum in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.certificates import layer_gain
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.normalize import Normalize
from svdctl.layers.padding import padding_factor
from svdctl.layers.skew import skew_part
from svdctl.spectral import Convolution, norm_bound, scale_to_bound
from svdctl.spectral.batched import clip_singular_values, polar_factors
from svdctl.spectral.bounds import taps_norm
from svdctl.spectral.frequency_cells import cover
from svdctl.spectral.gram import GramField, interpolation, lebesgue
from svdctl.spectral.lower_bounds import coarse_lower_bound, lower_bound
from svdctl.spectral.projection import project_kernel
from svdctl.spectral.symbol import angles, grid_product, half_grid, kernel_from_symbol, phases, symbol
from tests.dense import dense_matrix, dense_values

FLOAT64 = {"dtype": torch.float64}


def symbols(kernel: Tensor, frequencies: Tensor) -> Tensor:
    """Symbols `(F, O, I)` of a kernel `(O, I, *k)`, by their definition."""
    taps = grid_product([torch.arange(k, **FLOAT64) for k in kernel.shape[2:]])
    waves = torch.exp(-1j * (frequencies @ taps.T))
    return torch.einsum("oip,fp->foi", kernel.flatten(2).to(torch.complex128), waves)


def largest(matrices: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrices, 2)


def fine_grid(axes: int, points: int) -> Tensor:
    return angles(grid_product([torch.arange(points)] * axes).long(), (points,) * axes)


class TestZeroPadding:
    @pytest.mark.parametrize(
        ("k", "s", "e"), [(2, 1, 1), (3, 1, 2), (3, 2, 1), (4, 3, 1), (3, 2, 2), (3, 4, 6), (2, 3, 2)]
    )
    @pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
    def test_every_size_is_a_compression_and_large_ones_reach_the_norm(
        self, kind: type[nn.Conv1d], k: int, s: int, e: int
    ) -> None:
        torch.manual_seed(0)
        for padding in (0, 1, 5):
            layer = kind(2, 3, k, stride=s, dilation=e, padding=padding, bias=False).double()
            bound = norm_bound(operator_of(layer), tolerance=1e-3)
            norms = [float(dense_values(layer, (2, n))[0]) for n in (20, 45, 150)]
            assert max(norms) <= bound.upper
            assert 0.99 * bound.lower <= norms[-1]

    def test_singular_values_of_a_small_input_are_at_most_those_of_a_larger_one(self) -> None:
        torch.manual_seed(0)
        layer = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
        small, large = dense_values(layer, (2, 3, 4)), dense_values(layer, (2, 6, 7))
        assert bool((small <= large[: len(small)] + 1e-12).all())

    @pytest.mark.parametrize("k", [2, 3, 5])
    @pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
    def test_padding_factors_bound_every_small_case(self, mode: str, k: int) -> None:
        torch.manual_seed(k)
        for p, s, e in itertools.product((0, 1, 2, 4), (1, 2, 3, 5), (1, 2)):
            layer = nn.Conv1d(1, 1, k, stride=s, padding=p, dilation=e, padding_mode=mode, bias=False).double()
            for ones in (False, True):
                if ones:
                    nn.init.ones_(layer.weight)
                bound = norm_bound(operator_of(layer)).upper * padding_factor(layer)
                for n in range(1, 7):
                    cyclic = mode == "circular" and 2 * p <= e * (k - 1)
                    fits = p <= (n if mode == "circular" else n - 1) or mode == "replicate" or p == 0
                    if fits and n + 2 * p > e * (k - 1) and not (cyclic and n % s):
                        assert float(dense_values(layer, (1, n))[0]) <= bound * (1 + 1e-12), (p, s, e, n)


class TestExclusion:
    @pytest.mark.parametrize("seed", range(20))
    def test_waves_stay_above_the_cosine_near_their_maximum(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        rates = torch.rand(6, generator=generator, **FLOAT64)
        turns = 2 * math.pi * torch.rand(6, generator=generator, **FLOAT64)
        sizes = torch.randn(6, generator=generator, **FLOAT64)
        place = torch.linspace(-400, 400, 400_001, **FLOAT64)
        values = (torch.cos(place[:, None] * rates + turns) * sizes).sum(1)
        highest = float(values.abs().max())
        at = int(values.abs().argmax())
        around = torch.linspace(-math.pi, math.pi, 201, **FLOAT64) / float(rates.max())
        near = (torch.cos((place[at] + around)[:, None] * rates + turns) * sizes).sum(1) * values[at].sign()
        # The supremum may lie between two points of the grid, or outside of it, but hardly.
        assert bool((near >= highest * torch.cos(float(rates.max()) * around) - 2e-3 * highest).all())

    @pytest.mark.parametrize("taps", [(4,), (3, 3), (2, 5), (2, 3, 2)])
    def test_values_near_a_maximiser(self, taps: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        kernel = torch.randn(2, 3, *taps, **FLOAT64)
        grid = fine_grid(len(taps), {1: 4096, 2: 256, 3: 36}[len(taps)])
        values = largest(symbols(kernel, grid))
        best = grid[int(values.argmax())]
        gap = (grid - best + math.pi) % (2 * math.pi) - math.pi
        distance = (gap.abs() * torch.tensor([(k - 1) / 2 for k in taps])).sum(1)
        near = distance <= math.pi / 2
        # The grid's maximum stands for the true one, at most a step away.
        highest = float(values.max())
        assert bool((values[near] >= highest * torch.cos(distance[near]) * (1 - 1e-12) - 0.02 * highest).all())

    @pytest.mark.parametrize("lead", [0.75, 0.9])
    def test_a_grid_of_the_leading_axis_sees_its_share(self, lead: float) -> None:
        torch.manual_seed(1)
        kernel = torch.randn(2, 2, 4, 2, 2, **FLOAT64)
        cells = cover((4, 2, 2), 0.5, lead)
        seen = cells.centres[:, 0].unique()
        inner = fine_grid(2, 24)
        on_grid = max(
            float(largest(symbols(kernel, torch.cat((w.expand(len(inner), 1), inner), 1))).max()) for w in seen
        )
        assert on_grid >= cells.lead * norm_bound(Convolution.make(kernel)).lower * 0.99
        assert cells.lead >= lead

    @pytest.mark.parametrize("taps", [(5,), (3, 3), (3, 2, 2)])
    def test_what_is_excluded_is_below(self, taps: tuple[int, ...]) -> None:
        torch.manual_seed(2)
        kernel = torch.randn(3, 2, *taps, **FLOAT64)
        found = norm_bound(Convolution.make(kernel), tolerance=1e-4)
        values = largest(symbols(kernel, fine_grid(len(taps), {1: 4096, 2: 200, 3: 32}[len(taps)])))
        assert float(values.max()) <= found.upper
        assert found.lower <= found.upper <= found.lower * (1 + 1.01e-4)


class TestInterpolation:
    @pytest.mark.parametrize("taps", [(2,), (5,), (3, 3), (2, 4), (2, 3, 2)])
    @pytest.mark.parametrize("shape", [(3, 2), (2, 4)])
    def test_gram_matrices_at_any_frequency(self, taps: tuple[int, ...], shape: tuple[int, int]) -> None:
        torch.manual_seed(0)
        kernel = torch.randn(*shape, *taps, **FLOAT64)
        field = GramField(Convolution.make(kernel))
        points = 20 * torch.rand(30, len(taps), **FLOAT64) - 10
        matrices = symbols(kernel / field.scale, points)
        wide = shape[0] < shape[1]
        # On the smaller side; of the conjugate where that is the left one, with the same eigenvalues.
        true = matrices.conj() @ matrices.mT if wide else matrices.mH @ matrices
        found = field.matrices(points)[:, 0]
        assert float(largest(found - true).max()) <= field.error(torch.float64) + 1e-13 * float(largest(true).max())
        assert float(torch.linalg.matrix_norm(found).max()) <= lebesgue(taps) * field.frobenius * (1 + 1e-12)

    @pytest.mark.parametrize("taps", [2, 3, 8, 100, 512, 513, 700])
    def test_the_lebesgue_constant_of_an_axis(self, taps: int) -> None:
        points = 2 * taps - 1
        place = torch.linspace(0, 2 * math.pi / points, 203, **FLOAT64)[1:-1]
        gap = place[:, None] - torch.arange(points) * (2 * math.pi / points)
        sums = (torch.sin(points * gap / 2) / (points * torch.sin(gap / 2))).abs().sum(1)
        assert float(sums.max()) <= lebesgue((taps,)) <= 1.45 * float(sums.max())

    @pytest.mark.parametrize("taps", [(2,), (9,), (60,)])
    def test_weights_err_by_no_more_than_assumed(self, taps: tuple[int, ...]) -> None:
        points = torch.rand(50, 1, generator=torch.Generator().manual_seed(0), **FLOAT64) * 6
        even, odd = interpolation(points, taps)
        exact = [[], []]  # type: list[list[float]]
        n = 2 * taps[0] - 1
        for w in points.flatten().tolist():
            sums = [0.0, 0.0]
            for j in range(taps[0]):
                there, mirrored = (_kernel(w - 2 * math.pi * sign * j / n, taps[0]) for sign in (1, -1))
                sums[0] += abs(float((there + mirrored) * (0.5 if j == 0 else 1)) - float(even[len(exact[0]), j]))
                sums[1] += abs(there - mirrored - float(odd[len(exact[0]), j]))
            exact[0].append(sums[0])
            exact[1].append(sums[1])
        # The check's own closed form errs near its poles; hence the factor.
        assert max(map(max, exact)) <= 60 * taps[0] ** 2 * 2.0**-53


def _kernel(gap: float, taps: int) -> float:
    return math.fsum([1.0, *(2 * math.cos(math.remainder(gap * j, 2 * math.pi)) for j in range(1, taps))]) / (
        2 * taps - 1
    )


class TestRounding:
    @pytest.mark.parametrize("n", [1, 2, 5, 40, 300])
    def test_the_largest_eigenvalue_of_minima(self, n: int) -> None:
        place = torch.arange(1, n + 1, **FLOAT64)
        largest_one = float(torch.linalg.eigvalsh(torch.minimum(place, place[:, None]))[-1])
        assert largest_one == pytest.approx(1 / (4 * math.sin(math.pi / (4 * n + 2)) ** 2), rel=1e-11)

    @pytest.mark.parametrize("taps", [(3,), (3, 3), (7, 7)])
    def test_symbols_err_by_no_more_than_assumed(self, taps: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        kernel = torch.randn(1, 4, 3, *taps, **FLOAT64)
        sizes = tuple(2 * k - 1 for k in taps)
        index = grid_product([torch.arange(n) for n in sizes]).long()
        found = symbol(kernel, phases(angles(index, sizes), taps, kernel))
        # Whole turns are taken off in integers, so that the angles are right to a rounding.
        places = grid_product([torch.arange(k) for k in taps]).long()
        turns = sum((index[:, None, a] * places[None, :, a] % n).double() / n for a, n in enumerate(sizes))
        assert isinstance(turns, Tensor)
        exact = torch.einsum("oip,fp->foi", kernel[0].flatten(2).to(torch.complex128), torch.exp(-2j * math.pi * turns))
        angle = 2 * math.pi * (len(taps) + 5) * sum(k - 1 for k in taps)
        allowed = (4 * (math.prod(taps) + 8) + angle) * 2.0**-53 * taps_norm(kernel)
        assert float(torch.linalg.matrix_norm(found - exact).max()) <= allowed

    @pytest.mark.parametrize("side", [1, 3, 40])
    def test_lower_bounds_are_lower_of_kernels_of_rank_one(self, side: int) -> None:
        generator = torch.Generator().manual_seed(side)
        left, right = (torch.randn(side, generator=generator, **FLOAT64) for _ in range(2))
        wave = torch.randn(3, 3, generator=generator, **FLOAT64)
        kernel = left[:, None, None, None] * right[:, None, None] * wave
        # The norm of a product of vectors and a scalar filter, on a grid that holds the filter's maximum nearly.
        scalar = largest(symbols(wave[None, None], fine_grid(2, 720))).max()
        true = float(left.norm() * right.norm() * scalar)
        field = GramField(Convolution.make(kernel))
        for value in (lower_bound(field), coarse_lower_bound(field)[0]):
            assert value * field.scale <= true * (1 + 1e-4)
        found = norm_bound(Convolution.make(kernel), tolerance=1e-5)
        assert found.lower <= true * (1 + 1e-4)
        assert true <= found.upper


class TestProjection:
    @pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3)])
    def test_clipping_singular_values_is_the_nearest_matrix(self, shape: tuple[int, int]) -> None:
        torch.manual_seed(0)
        tall = torch.randn(5, max(shape), min(shape), dtype=torch.complex128)
        clipped = clip_singular_values(tall, tall.mH @ tall, 1.5)
        left, values, right = torch.linalg.svd(tall, full_matrices=False)
        wanted = (left * values.clamp_max(1.5)[:, None, :]) @ right
        assert torch.allclose(clipped, wanted, atol=1e-12)
        # No matrix of the ball is nearer: the angle to each of them is obtuse.
        others = torch.randn(200, 1, *tall.shape[1:], dtype=torch.complex128)
        others = 1.5 * others / largest(others)[..., None, None]
        inner = ((tall - clipped).conj() * (others - clipped)).sum((-2, -1)).real
        assert float(inner.max()) <= 1e-12

    def test_polar_factors_are_the_nearest_matrices_of_equal_singular_values(self) -> None:
        torch.manual_seed(0)
        matrices = torch.randn(4, 6, 3, dtype=torch.complex128)
        found = 1.3 * polar_factors(matrices)
        assert torch.allclose(torch.linalg.svdvals(found), torch.full((4, 3), 1.3, **FLOAT64))
        others = 1.3 * torch.linalg.qr(torch.randn(200, 1, 6, 3, dtype=torch.complex128)).Q
        distance = torch.linalg.matrix_norm(found - matrices)
        assert bool((torch.linalg.matrix_norm(others - matrices) >= distance).all())

    def test_the_way_back_from_a_symbol_is_least_squares(self) -> None:
        torch.manual_seed(0)
        taps, sizes = (2, 3), (3, 5)
        index, counts = half_grid(sizes)
        phase = phases(angles(index, sizes), taps, torch.zeros(0, **FLOAT64))
        kernel = torch.randn(1, 2, 2, *taps, **FLOAT64)
        symbols_of = symbol(kernel, phase)
        # Beside it what no kernel of this support has: the symbol of longer ones.
        longer = symbol(torch.randn(1, 2, 2, *sizes, **FLOAT64), phases(angles(index, sizes), sizes, kernel))
        weights = counts / math.prod(sizes)
        found = kernel_from_symbol(symbols_of + longer, phase, weights, kernel.shape)
        roots = weights.sqrt().repeat_interleave(2)[:, None]
        rows = torch.view_as_real(phase).transpose(1, 2).reshape(-1, 6) * roots
        wanted = torch.view_as_real((symbols_of + longer).flatten(1)).transpose(1, 2).reshape(-1, 4) * roots
        solved = torch.linalg.lstsq(rows, wanted).solution.T.reshape(kernel.shape)
        assert torch.allclose(found, solved, atol=1e-12)
        assert torch.allclose(kernel_from_symbol(symbols_of, phase, weights, kernel.shape), kernel, atol=1e-12)

    def test_many_rounds_of_clip_near_the_nearest_kernel(self) -> None:
        torch.manual_seed(0)
        conv = Convolution.make(torch.randn(6, 6, 3, 3, **FLOAT64))
        conv = conv.with_kernel(conv.kernel * (1.6 / norm_bound(conv).lower))
        nearest = project_kernel(conv, 1.0, rounds=200, oversampling=3.0)
        assert norm_bound(conv.with_kernel(nearest)).upper <= 1.02
        for _ in range(30):
            other = conv.with_kernel(torch.randn_like(conv.kernel))
            other = other.with_kernel(other.kernel / norm_bound(other).upper)
            for share in (0.05, 1.0):
                # Feasible points beside the found one; none of them is nearer but for what is left to do.
                mixed = (1 - share) * nearest / 1.02 + share * other.kernel
                assert float((mixed - conv.kernel).norm()) >= float((nearest - conv.kernel).norm()) * (1 - 1e-3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_the_seal_bounds_what_was_written(self, dtype: torch.dtype, stride: int) -> None:
        torch.manual_seed(0)
        conv = Convolution.make(torch.randn(5, 4, 3, 3, dtype=dtype), stride=stride)
        sealed, bracket = scale_to_bound(conv, 0.7)
        assert norm_bound(sealed, tolerance=1e-4).upper <= 0.7
        assert bracket.upper <= 0.7
        assert bracket.lower <= 0.7
        found = norm_bound(conv).lower
        assert found <= taps_norm(conv.kernel)
        layer = nn.Conv2d(4, 5, 3, stride=stride, padding=1, bias=False).to(dtype)
        layer.weight.data.copy_(sealed.weight)
        assert float(dense_values(layer.double(), (4, 9, 9))[0]) <= 0.7


@pytest.mark.parametrize("size", [1, 3, 5])
def test_skew_kernels_give_skew_matrices(size: int) -> None:
    torch.manual_seed(0)
    kernel = skew_part(torch.randn(3, 3, size, size, **FLOAT64))

    class Skew(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, kernel, padding=size // 2)

    matrix = dense_matrix(Skew(), (3, 4, 6))
    assert torch.equal(matrix, -matrix.T)


def test_batchnorm_and_normalisation_are_diagonal() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, eps=1e-3).double().eval()
    nn.init.normal_(norm.weight)
    assert norm.running_var is not None
    norm.running_var.uniform_(0.1, 2)
    scaled = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)).double()
    for layer, gain in (
        (norm, (norm.weight / (norm.running_var + 1e-3).sqrt()).abs().max()),
        (scaled, 1 / scaled.std.min()),
    ):
        largest_value = float(dense_values(layer, (3, 2, 2))[0])
        assert largest_value == pytest.approx(float(gain))
        assert largest_value <= layer_gain(layer).value * (1 + 1e-12) <= largest_value * (1 + 1e-9)
