"""SOC and SOTT: the series' norm, gains against the dense matrix, rounding, and certificates of whole LipConvNets."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from svdctl.certificates import Certifier, layer_gain, lipschitz_bound, rounding_bound
from svdctl.errors import ShapeError
from svdctl.layers.minmax import MinMax
from svdctl.layers.normalize import Normalize
from svdctl.layers.soc import SOC
from svdctl.layers.soc_bounds import FixedSOC, series_norm, squared_modulus
from svdctl.layers.sott import SOTT
from svdctl.models.lipconvnet import LipConvNet
from tests.certificates.networks import steepest
from tests.dense import dense_matrix

LAYERS = {
    "same": (lambda: SOC(4, 4), (4, 5, 6)),
    "wider": (lambda: SOC(3, 6), (3, 4, 4)),
    "narrower": (lambda: SOC(6, 3), (6, 4, 4)),
    "strided": (lambda: SOC(2, 4, stride=2), (2, 6, 4)),
    "strided, padded": (lambda: SOC(1, 6, stride=2), (1, 6, 4)),
    "strided, cut": (lambda: SOC(3, 4, 5, stride=2), (3, 6, 8)),
    "matrix": (lambda: SOC(5, 3, 1), (5, 2, 2)),
    "five terms": (lambda: SOC(4, 4, eval_terms=5, scale=1.2), (4, 6, 6)),
    "two terms": (lambda: SOC(4, 4, eval_terms=2), (4, 6, 6)),
    "sott": (lambda: SOTT(6, 6, rank=3), (6, 5, 5)),
    "sott, unequal": (lambda: SOTT(5, 7, rank=(2, 4)), (5, 5, 5)),
    "sott, strided": (lambda: SOTT(4, 8, rank=3, stride=2), (4, 6, 6)),
    "sott, whole": (lambda: SOTT(3, 3, rank=9), (3, 5, 5)),
    "sott, matrix": (lambda: SOTT(8, 4, 1, rank=4), (8, 1, 1)),
    "sott, parametrized": (lambda: SOTT(6, 6, rank=3, frames="parametrize"), (6, 5, 5)),
}


def made(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(len(name))
    build, shape = LAYERS[name]
    layer = build().double().eval()
    with torch.no_grad():
        for parameter_name, parameter in layer.named_parameters():
            # A bias that is not zero, and frames that are not orthonormal (if they are not kept so by construction).
            if "parametrizations" not in parameter_name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return layer, shape


class TestSeries:
    @pytest.mark.parametrize("terms", [1, 2, 3, 5, 8, 12])
    @pytest.mark.parametrize("reach", [0.1, 0.7, 1.5, 4.0, 9.0])
    def test_against_samples(self, terms: int, reach: float) -> None:
        t = torch.linspace(0, reach, 5001, dtype=torch.float64)
        total = sum((1j * t) ** k / math.factorial(k) for k in range(terms + 1))
        largest = float(total.abs().max())
        assert largest <= series_norm(terms, reach) <= largest * (1 + 0.02)

    def test_coefficients_below_the_order_vanish(self) -> None:
        assert squared_modulus(12)[1:7] == (0.0,) * 6
        assert squared_modulus(1) == (1.0, 1.0)

    def test_twelve_terms_cost_nothing(self) -> None:
        assert series_norm(12, 2.5) <= 1 + 1e-13
        assert series_norm(5, 1.0) > 1 + 5e-4


@pytest.mark.parametrize("name", LAYERS)
def test_gain_holds_and_is_sharp(name: str) -> None:
    layer, shape = made(name)
    norm = float(torch.linalg.matrix_norm(dense_matrix(layer, shape), 2))
    gain = layer_gain(layer).value
    assert 0.3 < norm <= gain
    assert gain <= norm * (1.01 if name == "matrix" else 1.35)
    assert lipschitz_bound(layer, shape).value == pytest.approx(gain, rel=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_the_fixed_layer_computes_the_same(name: str) -> None:
    layer, shape = made(name)
    certifier = Certifier(nn.Sequential(layer, nn.Flatten()), shape)
    assert not any(isinstance(module, SOC) for module in certifier.network.modules())
    images = torch.rand(3, *shape, dtype=torch.float64)
    assert torch.allclose(certifier.logits(images), layer(images).flatten(1), atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_stays_within_the_rounding_bound(name: str) -> None:
    layer, shape = made(name)
    layer = layer.float()
    images = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0))
    narrow = Certifier(nn.Sequential(layer, nn.Flatten()), shape, dtype=torch.float32)
    # The same kernels, exactly, in float64.
    exact = narrow.network.double()(images.double()).detach()
    computed = narrow.network.float()(images).double().detach()
    bound = rounding_bound(layer, shape, torch.float32, float(images.flatten(1).norm(dim=1).max()))
    assert float((computed - exact).norm(dim=1).max()) <= bound
    assert bound < 0.05


def test_a_kernel_that_is_not_skew_is_refused() -> None:
    fixed = FixedSOC(SOC(4, 4))
    fixed.kernel[0, 0, 0, 0] += 1e-3
    with pytest.raises(ShapeError, match="not skew"):
        layer_gain(fixed)


def test_minmax_is_one() -> None:
    assert 1 <= lipschitz_bound(nn.Sequential(MinMax()), (4, 3, 3)).value <= 1 + 1e-9
    assert rounding_bound(MinMax(), (4, 3, 3), torch.float32, 5.0) == 0.0


def lipconvnet(kind: str, frames: str = "retract") -> LipConvNet:
    torch.manual_seed(0)

    def conv(i: int, o: int, k: int, *, stride: int, padding: int, bias: bool) -> nn.Module:
        if kind == "soc":
            return SOC(i, o, k, stride=stride, bias=bias)
        return SOTT(i, o, k, rank=4, stride=stride, bias=bias, frames=frames)

    return LipConvNet(1, 4, in_channels=2, conv=conv, normalize=Normalize((0.5,) * 3, (0.25, 0.3, 0.3)))


class TestLipConvNet:
    @pytest.mark.parametrize(("kind", "frames"), [("soc", ""), ("sott", "retract"), ("sott", "parametrize")])
    def test_orthogonal_layers_leave_the_normalisation_alone(self, kind: str, frames: str) -> None:
        network = lipconvnet(kind, frames).double()
        if frames == "retract":
            for module in network.modules():
                if isinstance(module, SOTT):
                    module.retract_("qr")
        bound = lipschitz_bound(network, (3, 32, 32))
        assert 4.0 * (1 - 1e-4) <= bound.value <= 4.0 * (1 + 5e-5)
        assert bound.by_kind()["normalisation"] == pytest.approx(4.0)
        assert bound.by_kind()["series"] == pytest.approx(1.0, abs=1e-4)

    def test_a_frame_scaled_behind_its_back_makes_the_constant_grow_by_it(self) -> None:
        network = lipconvnet("sott").double()
        before = lipschitz_bound(network, (3, 32, 32))
        with torch.no_grad():
            network.layer3[0].conv.frame_out.mul_(1.1)
        after = lipschitz_bound(network, (3, 32, 32))
        assert after.value == pytest.approx(1.1 * before.value, rel=1e-4)
        assert after.by_kind()["frames"] == pytest.approx(1.1 * before.by_kind()["frames"], rel=1e-4)
        assert after.by_kind()["series"] == before.by_kind()["series"]

    def test_never_below_the_jacobian(self) -> None:
        network = lipconvnet("soc").double().eval()
        assert steepest(network, (3, 32, 32), starts=2, climbs=1) <= lipschitz_bound(network, (3, 32, 32)).value

    def test_rows_of_the_last_layer_pass_through_the_mean(self) -> None:
        network = lipconvnet("soc").double()
        rows = dense_matrix(network.final_conv.eval(), (64, 1, 1))
        certifier = Certifier(network, (3, 32, 32))
        expected = torch.cdist(rows, rows) * 4.0
        assert torch.allclose(certifier.pairwise, expected, rtol=1e-4)
        assert bool((certifier.pairwise <= math.sqrt(2) * certifier.bound.value * (1 + 1e-9)).all())
        # At twice the size it is the mean over four positions.
        larger = Certifier(network, (3, 64, 64))
        assert torch.allclose(larger.pairwise, expected / 2, rtol=1e-4)

    def test_rounding_in_float64_takes_nothing_off(self) -> None:
        certifier = Certifier(lipconvnet("sott"), (3, 32, 32))
        assert certifier.rounding(certifier.half_diagonal) < 1e-9


def test_certificates_of_a_network_trained_and_not_retracted_again() -> None:
    """Certificates follow the frames wherever training leaves them."""
    torch.manual_seed(1)
    make = partial(SOTT, rank=4, frames="penalty")
    network = nn.Sequential(make(4, 8), MinMax(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8, 3))
    images = torch.rand(30, 4, 4, 4)
    labels = torch.arange(30) % 3
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    bound = lipschitz_bound(network, (4, 4, 4))
    assert bound.by_kind()["frames"] > 1.001
    network = network.double().eval()
    assert steepest(network, (4, 4, 4)) <= lipschitz_bound(network, (4, 4, 4)).value

    def logits(x: Tensor) -> Tensor:
        return network(x)

    certifier = Certifier(network, (4, 4, 4))
    assert torch.allclose(certifier.logits(images), logits(images.double()))
