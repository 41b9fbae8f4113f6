"""Gains of LayerNorm against the dense derivative in float64."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

import svdctl
from svdctl.errors import ShapeError
from svdctl.layers.layer_operator import layernorm_gain

WEIGHTS = {
    "one number": torch.tensor([3.0]),
    "two": torch.tensor([3.0, -1.0]),
    "all equal": torch.full((7,), 0.5),
    "largest twice": torch.tensor([2.0, -2.0, 0.1, 0.0]),
    "one not zero": torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0]),
    "nearly equal": torch.tensor([1.0, 1.0 + 1e-7, 1.0 - 1e-7, 0.3]),
    "zeros": torch.zeros(4),
    "tiny": 1e-30 * torch.arange(1.0, 9.0),
    "huge": 1e30 * torch.arange(1.0, 9.0),
    "random": torch.randn(64, generator=torch.Generator().manual_seed(0)),
}


def derivative(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """The matrix of the layer's derivative, in float64."""
    jacobian = torch.autograd.functional.jacobian(layer.double(), x)
    assert isinstance(jacobian, Tensor)
    return jacobian


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_layernorm_gain_is_the_largest_norm_of_the_derivative(name: str, eps: float) -> None:
    weight = WEIGHTS[name]
    layer = nn.LayerNorm(len(weight), eps=eps)
    layer.weight.data = weight.clone()
    nn.init.normal_(layer.bias)
    gain = layernorm_gain(layer)
    level = torch.full((len(weight),), 0.7, dtype=torch.float64)
    reached = float(torch.linalg.matrix_norm(derivative(layer, level), 2))
    assert gain == pytest.approx(reached, rel=1e-9, abs=0)
    generator = torch.Generator().manual_seed(1)
    for spread in (1e-6, 1e-3, 1.0):
        x = level + spread * torch.randn(len(weight), generator=generator, dtype=torch.float64)
        assert float(torch.linalg.matrix_norm(derivative(layer, x), 2)) <= gain * (1 + 1e-9)


def test_layernorm_gain_without_weights_and_over_several_axes() -> None:
    assert layernorm_gain(nn.LayerNorm((2, 3), eps=0.25, elementwise_affine=False)) == pytest.approx(2.0, rel=1e-12)
    layer = nn.LayerNorm((2, 3), eps=0.25)
    nn.init.normal_(layer.weight)
    dense = derivative(layer, torch.zeros(2, 3, dtype=torch.float64)).reshape(6, 6)
    assert layernorm_gain(layer) == pytest.approx(float(torch.linalg.matrix_norm(dense, 2)), rel=1e-9)


@pytest.mark.parametrize("make", [nn.LayerNorm, LayerNorm2d])
def test_layernorm_has_a_row_with_its_gain(make: type[nn.LayerNorm]) -> None:
    norm = make(4, eps=1e-2)
    nn.init.normal_(norm.weight)
    shape = (4, 3, 5) if make is LayerNorm2d else (4, 5, 4)
    (row,) = (row for row in svdctl.spectrum(nn.Sequential(norm, nn.Conv2d(4, 4, 1)), shape) if row.name == "0")
    assert row.bound is not None
    assert row.bound.lower <= layernorm_gain(norm) <= row.bound.upper <= row.bound.lower * (1 + 1e-5)
    assert (row.kind, row.shape, row.assumption, row.is_normalization) == ("LayerNorm", (4,), "", True)


def test_layernorm_without_a_largest_gain_says_so() -> None:
    for norm in (nn.LayerNorm(4, eps=0.0), nn.LayerNorm(4)):
        if norm.eps:
            norm.weight.data[2] = torch.nan
        row = svdctl.spectrum(nn.Sequential(nn.Conv2d(4, 4, 1), norm), (4, 2, 4))["1"]
        assert row.bound is None
        assert "largest gain" in row.note
    with pytest.raises(ShapeError):
        svdctl.spectral_norm_bound(nn.LayerNorm(4))
    assert svdctl.spectrum(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), (4,)).exceeding(10.0) == ()
