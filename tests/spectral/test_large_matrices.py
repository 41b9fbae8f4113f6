"""Large matrices: real products, halves of Gram matrices that are mirrored, and bounds that hold and are sharp."""

import pytest
import torch
from torch import nn

from svdctl.layers import layer_bounds
from svdctl.spectral import norm_bound
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.gram import GramField
from svdctl.spectral.symbol import gram


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
