"""Rows of SOC and SOTT layers against the dense matrix."""

import pytest
import torch
from torch import nn

import svdctl
from svdctl.analysis.exponential_spectrum import exponential_values
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.spectral.convolution import Convolution
from tests.dense import dense_matrix, dense_values


def test_values_are_those_of_the_truncated_exponential() -> None:
    torch.manual_seed(0)
    kernel = SOC(4, 4).double().skew_kernel()
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", bias=False).double()
    conv.weight.data = kernel
    generator = dense_matrix(conv, (4, 5, 6))
    power = total = torch.eye(len(generator), dtype=torch.float64)
    for i in range(1, 4):
        power = power @ generator / i
        total = total + power
    want = torch.linalg.svdvals(total)
    assert torch.allclose(exponential_values(Convolution.make(kernel), (5, 6), 3), want, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: SOC(4, 6), lambda: SOC(3, 8, stride=2), lambda: SOTT(6, 8, rank=4)])
def test_rows_bound_the_layer(make) -> None:
    torch.manual_seed(0)
    layer = make()
    found = svdctl.spectrum(nn.Sequential(layer), (layer.in_channels, 6, 6))
    row = found["0"]
    truth = float(dense_values(layer.double().eval(), (layer.in_channels, 6, 6))[0])
    assert row.zero_padded.lower <= truth * (1 + 1e-6)
    assert truth <= row.bound.upper * (1 + 1e-9)
    assert row.zero_padded.lower >= 0.99 * truth
    assert row.values.max() <= row.bound.upper + 1e-6
    assert len(found) == 1
    assert found.lipschitz == pytest.approx(row.bound.upper, rel=1e-5)
