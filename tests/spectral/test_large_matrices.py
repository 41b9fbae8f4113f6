"""Matrices, large ones and those of 1 x 1 layers: real products, mirrored halves, sharp bounds, values found once."""

import pytest
import torch
from torch import nn

from svdctl.layers import layer_bounds
from svdctl.layers.layer_operator import operator_of
from svdctl.spectral import norm_bound, singular_values
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.gram import GramField
from svdctl.spectral.symbol import gram
from svdctl.spectral.values import operations_of_values
from tests.dense import dense_values


@pytest.mark.parametrize("side", [255, 256, 301])
@pytest.mark.parametrize("block", [None, 32])
def test_gram_matrices_in_strips_are_the_whole_product(side: int, block: int | None) -> None:
    generator = torch.Generator().manual_seed(side)
    for dtype in (torch.float64, torch.complex128):
        matrices = torch.randn(2, side + 40, side, dtype=dtype, generator=generator)
        want = matrices.mH @ matrices
        for given in (matrices, matrices.mT):
            found = gram(given, block)
            assert (found - want).abs().max() <= 1e-13 * want.abs().max()


@pytest.mark.parametrize(("rows", "columns"), [(300, 700), (700, 300), (5, 3)])
def test_brackets_of_matrices_hold_the_norm(rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    conv = Convolution.make(weight[:, :, None])
    norm = float(torch.linalg.matrix_norm(weight.double(), 2))
    for tolerance in (1e-6, 1e-3, 0.02):
        bound = norm_bound(conv, tolerance=tolerance)
        assert bound.lower <= norm <= bound.upper <= norm * (1 + tolerance)
    samples = GramField(conv).samples
    assert samples.dtype == torch.complex128
    assert samples.imag.abs().max() == 0


def test_gains_of_large_matrices_are_proved_to_less_than_those_of_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(300, 200)
    norm = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    fine = layer_bounds.layer_gain(layer).value
    monkeypatch.setattr(layer_bounds, "_LARGE", 2 * 300 * 200 * 200 - 1)
    coarse = layer_bounds.layer_gain(layer).value
    assert norm <= fine <= norm * (1 + 1.1e-6)
    assert norm * (1 + 1e-5) <= coarse <= norm * (1 + 1.1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kernel", "stride", "matrices"),
    [((1, 1), (1, 1), 1), ((3, 1), (1, 1), 5), ((1, 1), (2, 2), 1), ((2, 2), (2, 2), 1)],
)
def test_axes_of_one_tap_have_values_that_are_computed_once(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    matrices: int,
) -> None:
    """Of a grid of 8 x 12 outputs, 5 of 8 frequencies along an axis are left without their mirror images."""
    layer = nn.Conv2d(4, 3, kernel, stride, bias=False).to(dtype)
    size = (8 * stride[0], 12 * stride[1])
    counted = []
    for name in ("eigvalsh", "svdvals"):
        function = getattr(torch.linalg, name)
        monkeypatch.setattr(
            torch.linalg, name, lambda given, function=function: counted.append(len(given)) or function(given)
        )
    values = singular_values(operator_of(layer), size)
    monkeypatch.undo()
    assert sum(counted) == matrices
    padded = nn.Conv2d(4, 3, kernel, stride, padding=((kernel[0] - 1) // 2, 0), padding_mode="circular", bias=False)
    padded.weight = nn.Parameter(layer.weight.detach().clone())
    want = dense_values(padded.double(), (4, *size))
    assert len(values) == len(want) == 3 * 96
    assert (values.double() - want).abs().max() <= 1e-6 * want[0]


def test_operations_of_values_do_not_grow_with_the_input_of_a_1x1_layer() -> None:
    pointwise, other = (operator_of(nn.Conv2d(8, 8, k)) for k in (1, 3))
    assert operations_of_values(pointwise, (224, 224)) == operations_of_values(pointwise, (2, 2))
    assert operations_of_values(other, (224, 224)) > 500 * operations_of_values(other, (8, 8))
