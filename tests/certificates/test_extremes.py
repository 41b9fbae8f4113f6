"""Numbers near the ends of float64 and float32: a right bound, or a sentence."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from svdctl.certificates import Certifier, lipschitz_bound, rounding_bound
from svdctl.errors import ShapeError
from svdctl.layers.normalize import Normalize
from svdctl.layers.tt import TTConv2d
from tests.certificates.test_what_is_proved import Runs

SMALLEST = 5e-324


def scaled(factor: float, size: int = 3) -> nn.Linear:
    layer = nn.Linear(size, size, bias=False).double()
    layer.weight.data = torch.eye(size, dtype=torch.float64) * factor
    return layer


def tt(frame_in: float, core: float, frame_out: float) -> TTConv2d:
    torch.manual_seed(0)
    layer = TTConv2d(3, 4, 1, rank=2, frames="free", bias=False).double()
    for parameter, factor in ((layer.frame_in, frame_in), (layer.core, core), (layer.frame_out, frame_out)):
        assert parameter is not None
        parameter.data.mul_(factor)
    return layer


@pytest.fixture(autouse=True)
def not_flushed() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


# To 1e-290 bounds are sharp; below they are that number.
@pytest.mark.parametrize("exponent", [-1074, -1060, -1022, -1021, -970, -600, 0, 600, 1000, 1021, 1022])
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_one_layer(exponent: int, share: float) -> None:
    true = math.ldexp(share, exponent)
    value = lipschitz_bound(scaled(true), (3,)).value
    assert true <= value <= max(true * (1 + 1e-5), 1.1e-290)


@pytest.mark.parametrize(
    ("factors", "true"),
    [
        ((1e-200, 1e-200), SMALLEST),
        ((1e-200, 1e200), 1.0),
        ((1e200, 1e-200), 1.0),
        ((1e-160, 1e-160, 1e160, 1e160), 1.0),
        ((1e-310, 1e300), 1e-10),
    ],
)
def test_products_that_underflow_on_the_way(factors: tuple[float, ...], true: float) -> None:
    assert lipschitz_bound(nn.Sequential(*map(scaled, factors)), (3,)).value >= true * (1 - 1e-12)


@pytest.mark.parametrize("factors", [(1e200, 1e200), (1e300, 1e-300, 1e10, 1e300)])
def test_products_that_overflow_are_refused(factors: tuple[float, ...]) -> None:
    with pytest.raises(ShapeError, match="not finite"):
        lipschitz_bound(nn.Sequential(*map(scaled, factors)), (3,))


@pytest.mark.parametrize(
    "factors",
    [
        (1e-200, 1e200, 1.0),
        (1e-200, 1.0, 1e-200),
        (1e-300, 1e300, 1e-300),
        (1e150, 1e-300, 1e150),
        (1e-310, 1.0, 1e300),
    ],
)
def test_tt_layers(factors: tuple[float, float, float]) -> None:
    layer = tt(*factors)
    kernel = layer.contracted().detach()[:, :, 0, 0]
    largest = float(kernel.abs().max())
    true = largest * float(torch.linalg.matrix_norm(kernel / largest, 2)) if largest else SMALLEST
    assert lipschitz_bound(layer, (3, 2, 2)).value >= true * (1 - 1e-12)


def batch_norm(weight: float, variance: float) -> nn.BatchNorm1d:
    layer = nn.BatchNorm1d(3).double()
    layer.weight.data.fill_(weight)
    assert layer.running_var is not None
    layer.running_var.fill_(variance)
    return layer


class Product(nn.Module):
    def __init__(self, *factors: float | Tensor) -> None:
        super().__init__()
        self.factors = factors
        self.precision = torch.zeros(1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        for factor in self.factors:
            x = x * factor
        return x


@pytest.mark.parametrize(
    ("make", "true"),
    [
        (lambda: batch_norm(1e-200, 1e250), SMALLEST),
        (lambda: batch_norm(SMALLEST, 1.0), SMALLEST),
        (lambda: batch_norm(1e-300, 1e-5), 1e-299),
        (lambda: Product(1e-200, 1e-200), SMALLEST),
        (lambda: Product(1e-200, 1e-200, 1e200, 1e200), 1.0),
        (lambda: Product(torch.full((5, 3), SMALLEST, dtype=torch.float64)), SMALLEST * 3),
    ],
)
def test_other_layers(make: Callable[[], nn.Module], true: float) -> None:
    assert lipschitz_bound(make(), (3,)).value >= true


@pytest.mark.parametrize(
    "make", [lambda: Product(math.inf), lambda: Normalize((0.0,), (0.0,)).double(), lambda: batch_norm(1.0, -2.0)]
)
def test_what_has_no_bound_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ShapeError):
        lipschitz_bound(make(), (3,))


@pytest.mark.parametrize(("weight", "dtype"), [(1e-310, torch.float64), (1e-40, torch.float32), (1e-44, torch.float32)])
def test_flushing_to_zero_changes_nothing(weight: float, dtype: torch.dtype) -> None:
    layer = nn.Sequential(scaled(weight).to(dtype))
    before = lipschitz_bound(layer, (3,)).value
    certifier = Certifier(layer, (3,))
    images = torch.rand(4, 3, dtype=torch.float64)
    logits = certifier.logits(images)
    torch.set_flush_denormal(True)
    assert lipschitz_bound(layer, (3,)).value == before
    assert torch.equal(Certifier(layer, (3,)).logits(images), logits)
    assert torch.equal(certifier.logits(images), logits)
    torch.set_flush_denormal(False)
    assert before >= float(layer[0].weight.detach()[0, 0])


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-250, 1e-200, 1e-160, 1e150, 1e300])
def test_radii_are_never_too_large(scale: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 4, bias=False).double()
    rows = layer.weight.detach().clone()
    layer.weight.data.mul_(scale)
    certifier = Certifier(layer, (3,))
    images = torch.rand(20, 3, dtype=torch.float64)
    logits = certifier.logits(images)
    labels = logits.argmax(1)
    exact = images @ rows.T
    gaps = exact.gather(1, labels[:, None]) - exact
    radii = (gaps / torch.cdist(rows, rows)[labels]).nan_to_num(math.inf).amin(1)
    found = certifier.radii(logits, labels)
    # Of subnormal weights and logits the scaled ones are no exact copy.
    assert bool((found <= radii * (1 + (1e-2 if scale < 1e-307 else 0))).all())
    if scale > 1e-280:
        assert torch.allclose(found, radii, rtol=1e-6)


@pytest.mark.parametrize("factors", [(1e-30, 1e-30, 1e30, 1e30), (1e-38, 1e38), (1e-44, 1e38, 1e6), (1e-20, 1e-20)])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e8])
def test_underflow_is_in_the_rounding_bound(factors: tuple[float, ...], scale: float) -> None:
    layers = nn.Sequential(*map(scaled, factors)).float()
    frames = nn.Sequential(nn.Unflatten(1, (3, 1, 1)), tt(factors[0], 1.0, factors[1])).float()
    product = Product(*factors)
    product.precision = product.precision.float()
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) * scale
    for network in (layers, frames, product):
        narrow = network(x).double().flatten(1)
        exact = network.double()(x.double()).flatten(1)
        network.float()
        largest = float(x.double().norm(dim=1).max())
        error = float((narrow - exact).norm(dim=1).max())
        assert error <= rounding_bound(network, (3,), torch.float32, largest)


@pytest.mark.parametrize(("norm", "overflows"), [(1e-8, False), (1.0, True), (1e10, True)])
def test_overflow_on_the_way_is_in_the_rounding_bound(norm: float, overflows: bool) -> None:
    network = nn.Sequential(scaled(1e20), scaled(1e20), scaled(1e-30)).float()
    x = torch.full((1, 3), norm / 2)
    assert bool(network(x).isfinite().all()) != overflows
    assert math.isinf(rounding_bound(network, (3,), torch.float32, norm)) == overflows


def test_radii_stay_where_nothing_overflows() -> None:
    images = torch.eye(3, dtype=torch.float64)
    labels = torch.arange(3)
    for factor in (1e100, 1e153, 1e154):
        certifier = Certifier(nn.Sequential(scaled(factor), scaled(factor)), (3,))
        radii = certifier.radii(certifier.logits(images), labels)
        # At this distance from the grey image the largest logit leaves float64.
        farthest = torch.finfo(torch.float64).max / factor / factor
        assert bool((radii <= farthest).all())
        assert bool((radii > 0.7).all()) == (factor < 1e153)


SLOPES_OF_NO_NUMBER: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    # Slopes that float64 takes for 0, times factors that make numbers of them again.
    "an exponential": (lambda x: (x.clamp(max=-720) - 30).exp() * 1e300 * 1e20, math.exp(320 * math.log(10) - 750)),
    "a quotient": (lambda x: 1e-200 / x.clamp(1e200, 1e201) * 1e300 * 1e270, 1e-30),
}


@pytest.mark.parametrize("name", SLOPES_OF_NO_NUMBER)
def test_slopes_that_underflow_are_no_zeros(name: str) -> None:
    run, slope = SLOPES_OF_NO_NUMBER[name]
    network = Runs(lambda _, x: run(x), weight=nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    assert lipschitz_bound(network, (4,)).value >= slope
