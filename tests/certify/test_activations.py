"""The largest slope of every activation, proved on a grid: `|f'|` there, and its own slope between the points."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.certify import lipschitz_bound, rounding_bound
from svdctl.certify.activations import GELU, GELU_TANH, MISH, SILU

# Beyond |x| = 30 every one of them is linear or constant to 1e-9; third derivatives of the smooth ones are below 3.
GRID = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
ACTIVATIONS: dict[str, tuple[nn.Module, float]] = {
    "gelu": (nn.GELU(), GELU),
    "gelu tanh": (nn.GELU("tanh"), GELU_TANH),
    "silu": (nn.SiLU(), SILU),
    "mish": (nn.Mish(), MISH),
    "tanh": (nn.Tanh(), 1.0),
    "sigmoid": (nn.Sigmoid(), 0.25),
    "softplus": (nn.Softplus(beta=2.0), 1.0),
    "elu": (nn.ELU(alpha=1.7), 1.7),
    "celu": (nn.CELU(alpha=0.6), 1.0),
    "selu": (nn.SELU(), 1.0507009873554805 * 1.6732632423543772),
    "hardswish": (nn.Hardswish(), 1.5),
    "hardsigmoid": (nn.Hardsigmoid(), 1 / 6),
    "leaky": (nn.LeakyReLU(-1.3), 1.3),
    "softsign": (nn.Softsign(), 1.0),
    "log sigmoid": (nn.LogSigmoid(), 1.0),
    "tanhshrink": (nn.Tanhshrink(), 1.0),
    "softshrink": (nn.Softshrink(), 1.0),
    "hardtanh": (nn.Hardtanh(-2, 3), 1.0),
    "relu6": (nn.ReLU6(), 1.0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope(name: str) -> None:
    activation, gain = ACTIVATIONS[name]
    x = GRID.clone().requires_grad_()
    (slope,) = torch.autograd.grad(activation(x).sum(), x)
    largest = float(slope.abs().max())
    # At a smooth maximum of |f'|, f'' is 0: the nearest point, within h / 2, misses at most h^2 / 8 * max |f'''|. The
    # others reach their largest slope at a kink or in a limit, where the closed form is plain.
    if name in ("gelu", "gelu tanh", "silu", "mish"):
        largest += 1e-4**2 / 8 * 3
    # torch's derivative of the hard sigmoid, unlike its value, knows 1/6 to single precision.
    assert largest <= gain * (1 + (1e-7 if name == "hardsigmoid" else 1e-12))
    assert gain <= largest + 1e-6
    proved = lipschitz_bound(nn.Sequential(activation.double()), (4,)).value
    assert gain * (1 - 1e-6) <= proved <= gain * (1 + 1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_evaluation_error(name: str, scale: float) -> None:
    activation, _ = ACTIVATIONS[name]
    x = torch.randn(2000, 40, generator=torch.Generator().manual_seed(0)) * scale
    errors = (activation(x).double() - activation(x.double())).norm(dim=1)
    for image, error in zip(x[:3], errors[:3], strict=True):
        assert float(error) <= rounding_bound(activation, (40,), torch.float32, float(image.norm()))
    assert float(errors.max()) <= rounding_bound(activation, (40,), torch.float32, float(x.norm(dim=1).max()))


def test_softmax_is_a_half() -> None:
    def probability(x: Tensor) -> Tensor:
        return F.softmax(x, 0)

    steepest = torch.linalg.matrix_norm(torch.autograd.functional.jacobian(probability, torch.zeros(2)), 2)
    assert float(steepest) == pytest.approx(0.5)
    assert lipschitz_bound(nn.Softmax(1), (2,)).value == pytest.approx(0.5)


def test_the_jump_of_softplus_is_an_error_not_a_slope() -> None:
    blunt = nn.Softplus(beta=1.0, threshold=2.0)
    assert rounding_bound(blunt, (9,), torch.float64, 1.0) >= 3 * math.log1p(math.exp(-2))
