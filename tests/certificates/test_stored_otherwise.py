"""Networks whose weights are not plain parameters, or that torch.compile wrapped; arguments that are none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

from svdctl.certificates import Certifier, lipschitz_bound, rounding_bound
from svdctl.errors import ShapeError
from tests.dense import dense_matrix

SHAPE = (3, 6, 6)
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*")


def weight_norm(layer: nn.Module) -> None:
    nn.utils.weight_norm(layer)
    with torch.no_grad():
        layer.weight_g.mul_(1.7)  # the stored weight is older than its parts


def pruned_twice(layer: nn.Module) -> None:
    nn.utils.prune.random_unstructured(layer, "weight", 0.3)
    nn.utils.prune.ln_structured(layer, "weight", 0.3, n=2, dim=0)


def trained_after_pruning(layer: nn.Module) -> None:
    nn.utils.prune.l1_unstructured(layer, "weight", 0.4)
    nn.utils.prune.random_unstructured(layer, "bias", 0.4)
    with torch.no_grad():
        layer.weight_orig.mul_(3)


KINDS: dict[str, Callable[[Any], Any]] = {
    "weight_norm": weight_norm,
    "pruned": lambda layer: nn.utils.prune.random_unstructured(layer, "weight", 0.5),
    "pruned twice": pruned_twice,
    "trained after pruning": trained_after_pruning,
    "spectral_norm": nn.utils.spectral_norm,
}


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(144, 5)).double()
    for index in (0, 2):
        KINDS[kind](layers[index])
    return layers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run_before", [False, True])
def test_weights_that_hooks_compute(kind: str, run_before: bool) -> None:
    layers = network(kind)
    if run_before:
        layers.eval()(torch.zeros(1, *SHAPE, dtype=torch.float64))
    state = {name: value.clone() for name, value in layers.state_dict().items()}
    held = vars(layers[0])["weight"].detach().clone()
    bound = lipschitz_bound(layers, SHAPE).value
    certifier = Certifier(layers, SHAPE)
    assert torch.equal(vars(layers[0])["weight"].detach(), held)
    assert all(torch.equal(value, state[name]) for name, value in layers.state_dict().items())
    layers.eval()
    images = torch.rand(3, *SHAPE, dtype=torch.float64)
    assert torch.allclose(certifier.logits(images), layers(images), rtol=1e-12)
    norms = [torch.linalg.matrix_norm(dense_matrix(layers[0], SHAPE), 2), torch.linalg.matrix_norm(layers[2].weight, 2)]
    product = float((norms[0] * norms[1]).detach())
    assert product <= bound <= 1.3 * product


def test_a_hook_of_ones_own_beside_is_still_refused_or_followed() -> None:
    layers = network("pruned")
    layers[0].register_forward_hook(lambda _m, _i, output: output * 10)
    assert lipschitz_bound(layers, SHAPE).value == pytest.approx(10 * lipschitz_bound(network("pruned"), SHAPE).value)


@pytest.mark.parametrize("wrap", [torch.compile, lambda net: nn.Sequential(torch.compile(net)), torch.nn.Sequential])
def test_compiled_networks(wrap: Callable[[nn.Module], Any]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    bound = lipschitz_bound(plain, SHAPE).value
    wrapped = wrap(plain)
    assert lipschitz_bound(wrapped, SHAPE).value == bound
    plain.compile()
    assert lipschitz_bound(plain, SHAPE).value == bound


def test_hooks_on_a_compiled_network_are_seen() -> None:
    wrapped = torch.compile(nn.Linear(6, 3))
    wrapped.register_forward_hook(lambda _m, _i, output: output * 10)
    with pytest.raises(ShapeError, match="hooks"):
        lipschitz_bound(wrapped, (6,))


@pytest.mark.parametrize("shape", [6, (6.0,), (-6,), (0,), "6", None])
def test_what_is_no_shape(shape: Any) -> None:
    with pytest.raises(ShapeError, match="positive numbers"):
        lipschitz_bound(nn.Linear(6, 3), shape)
    with pytest.raises(ShapeError, match="positive numbers"):
        rounding_bound(nn.Linear(6, 3), shape, torch.float32, 1.0)


def test_what_is_no_network() -> None:
    def function(x: Tensor) -> Tensor:
        return x

    with pytest.raises(ShapeError, match=r"torch\.nn\.Module, not of a function"):
        lipschitz_bound(function, (6,))  # type: ignore[arg-type]
