"""The rounding terms of a proof hold: of products in blocks, of interpolation and of Cholesky factorisations."""

import math

import pytest
import torch
from torch import Tensor

from svdctl.spectral.cholesky_proof import provably_below, rounding_shift
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.gram import GramField
from svdctl.spectral.rounding import norm_above
from tests.dispatched_operations import DispatchedOperations

SIDES = (1, 2, 3, 17, 64, 160, 257)


def kernels(side: int) -> list[Tensor]:
    """Random entries, entries of one sign, and entries of very different sizes."""
    torch.manual_seed(side)
    noise = torch.randn(side, side + 3, 2, 3)
    return [noise, noise.abs(), noise * torch.logspace(-4, 0, side)[:, None, None, None]]


@pytest.mark.parametrize("side", SIDES)
def test_gram_matrices_of_float32_products_are_within_their_error(side: int) -> None:
    for kernel in kernels(side):
        conv = Convolution.make(kernel)
        single, exact = GramField(conv, torch.float32), GramField(conv)
        points = torch.rand(5, 2, dtype=torch.float64) * 6.28
        for precision in (torch.float32, torch.float64):
            moved = single.matrices(points, precision).to(torch.complex128) - exact.matrices(points)
            assert float(torch.linalg.matrix_norm(moved, 2).max()) <= single.error(precision)
        assert single.error(torch.float64) < single.error(torch.float32)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_cholesky_factors_err_entry_by_entry_as_assumed(side: int, precision: torch.dtype) -> None:
    """`|H - R^H R|_ij <= 2 sqrt(2) (min(i, j) + 8) u sqrt(H_ii H_jj)`."""
    torch.manual_seed(side)
    unit = torch.finfo(precision).eps / 2
    for rank, spread in ((side, 0), (max(side // 4, 1), 0), (side, 3)):
        factor = torch.randn(side, rank, dtype=torch.complex128) * torch.logspace(-spread, 0, side)[:, None]
        matrix = factor @ factor.mH
        matrix.diagonal().add_(100 * side * unit * float(matrix.diagonal().real.max()))
        rounded = matrix.to(precision.to_complex())
        lower, info = torch.linalg.cholesky_ex(rounded)
        assert int(info) == 0
        lower = lower.to(torch.complex128)
        exact = rounded.to(torch.complex128)
        moved = (exact - lower @ lower.mH).abs()
        place = torch.arange(1, side + 1, dtype=torch.float64)
        length = exact.diagonal().real.sqrt()
        assumed = 2 * math.sqrt(2) * (torch.minimum(place, place[:, None]) + 8) * unit * torch.outer(length, length)
        # Float64 products of the check itself round as well.
        assert bool((moved <= assumed + (precision == torch.float64) * assumed).all())


@pytest.mark.parametrize("side", SIDES)
def test_the_shift_is_at_least_the_norm_of_the_entrywise_bound(side: int) -> None:
    place = torch.arange(1, side + 1, dtype=torch.float64)
    norm = float(torch.linalg.eigvalsh(torch.minimum(place, place[:, None]) + 8)[-1])
    field = GramField(Convolution.make(kernels(side)[0]))
    for precision in (torch.float32, torch.float64):
        unit = torch.finfo(precision).eps / 2
        shift = rounding_shift(field, 3.0, precision) - field.error(precision)
        assert shift >= 2 * math.sqrt(2) * norm * unit * 9.0
        assert shift <= 1.2 * (2 * math.sqrt(2) * (norm + 8 * side) + 2) * unit * 9.0


@pytest.mark.parametrize("side", SIDES)
def test_nothing_above_a_level_is_proved_to_be_below_it(side: int) -> None:
    for kernel in kernels(side):
        conv = Convolution.make(kernel)
        for field in (GramField(conv, torch.float32), GramField(conv)):
            points = torch.rand(3, 2, dtype=torch.float64) * 6.28
            squares = torch.linalg.eigvalsh(GramField(conv).matrices(points)[:, 0])[:, -1]
            for place, square in enumerate(squares.tolist()):
                for precision in (torch.float32, torch.float64):
                    for below in (1e-14, 1e-10, 1e-7, 1e-6, 1e-4):
                        level = math.sqrt(square) * (1 - below)
                        assert not bool(provably_below(field, points[place : place + 1], level, precision))
                    room = rounding_shift(field, math.sqrt(square), precision) / square
                    level = math.sqrt(square * (1 + 4 * room))
                    assert bool(provably_below(field, points[place : place + 1], level, precision))


def test_a_norm_takes_few_operations_and_one_read() -> None:
    tensor = torch.randn(40, 30)
    exact = float(torch.linalg.vector_norm(tensor.double()))
    with DispatchedOperations() as counted:
        found = norm_above(tensor)
    assert exact <= found <= exact * (1 + 1e-12)
    assert counted.total <= 5
    assert "_local_scalar_dense" not in counted.counts
    for scale in (1e-200, 1e-101, 1e-99, 1e99, 1e101, 1e200):
        assert exact * scale * (1 - 1e-15) <= norm_above(tensor.double() * scale) <= exact * scale * (1 + 1e-12)
