"""Gains of many layers whose norms are proved together: the same as of each, refusals too."""

import pytest
import torch
from torch import nn

import svdctl
from svdctl.certificates import interpreter
from svdctl.certificates.interpreter import ProvedLayer
from svdctl.certificates.lipschitz import bound_of_proved_layers
from svdctl.errors import ShapeError
from svdctl.layers import layer_bounds
from svdctl.layers.layer_bounds import layer_gain, layer_gains
from svdctl.layers.norms import layer_norm_bound
from svdctl.layers.tt import TTConv2d
from svdctl.spectral import Bracket, Convolution


def _layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Conv2d(6, 6, 3, stride=2, padding=1, padding_mode="circular"),
        TTConv2d(6, 8, 3, rank=4, padding=1),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.Linear(4, 3),
    ]


def _network() -> nn.Sequential:
    *convolutions, last = _layers()
    return nn.Sequential(*convolutions, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


@pytest.mark.parametrize("tolerance", [None, 0.02])
def test_gains_together_are_those_of_each(tolerance: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = _layers()
    alone = [layer_gain(layer, tolerance=tolerance) for layer in layers]
    # Every norm is proved in the one call.
    monkeypatch.setattr(layer_bounds, "norm_bound", lambda *_args, **_options: pytest.fail("a norm was proved alone"))
    together = layer_gains(layers, tolerance=tolerance)
    for one, other in zip(together, alone, strict=True):
        assert one.factors == other.factors
        assert one.enlarged == other.enlarged
        for unit in (2.0**-53, 2.0**-24):
            assert one.rounding(unit) == other.rounding(unit)


def test_a_gain_that_asks_for_another_norm_the_second_time_gets_that_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = [nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)]
    proved = layer_bounds.norm_bounds

    def then_changed(convs: list[Convolution], **options: object) -> list[Bracket]:
        found = proved(convs, **options)
        with torch.no_grad():
            layers[1].weight.mul_(3)
        return found

    monkeypatch.setattr(layer_bounds, "norm_bounds", then_changed)
    first, second = layer_gains(layers)
    assert first.value == layer_gain(layers[0]).value
    assert second.value == layer_gain(layers[1]).value


def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "few_batches_are_faster", lambda device: True)


def test_a_networks_constant_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, asked = _network(), []
    alone = svdctl.lipschitz_bound(network, (3, 8, 8))
    _as_on_a_device(monkeypatch)
    proved = layer_bounds.norm_bounds

    def counted(convs: list[Convolution], **options: object) -> list[Bracket]:
        asked.append(len(convs))
        return proved(convs, **options)

    monkeypatch.setattr(layer_bounds, "norm_bounds", counted)
    monkeypatch.setattr(layer_bounds, "norm_bound", lambda *_args, **_options: pytest.fail("a norm was proved alone"))
    together = svdctl.lipschitz_bound(network, (3, 8, 8))
    assert together == alone
    # Two of the circular layer (with its stride and without), four of the TT layer (three factors and their product).
    assert asked == [9]


def test_a_refusal_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = _network()
    with torch.no_grad():
        network[2].core[0, 0, 0, 0] = torch.nan
    with pytest.raises(ShapeError) as alone:
        svdctl.lipschitz_bound(network, (3, 8, 8))
    _as_on_a_device(monkeypatch)
    with pytest.raises(ShapeError) as together:
        svdctl.lipschitz_bound(network, (3, 8, 8))
    assert str(together.value) == str(alone.value)


def test_weights_that_change_in_the_pass_are_not_given_the_gain_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.second.weight.mul_(2)
            return self.second(self.first(x.flatten(1)))

    _as_on_a_device(monkeypatch)
    with pytest.raises(ShapeError, match="stays as it is"):
        svdctl.lipschitz_bound(Doubling(), (1, 2, 2))


def _proved(network: nn.Sequential) -> dict[str, ProvedLayer]:
    controllable = nn.Conv2d | TTConv2d | nn.Linear
    found = {name: layer for name, layer in network.named_children() if isinstance(layer, controllable)}
    return {name: ProvedLayer.of(layer, layer_norm_bound(layer).upper) for name, layer in found.items()}


def test_layers_that_are_proved_are_not_proved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), TTConv2d(6, 8, 3, rank=4, padding=1), nn.ReLU(), nn.Flatten()),
        nn.Linear(8 * 25, 3),
    )
    alone = svdctl.lipschitz_bound(network, (3, 5, 5)).value
    known = _proved(network)
    monkeypatch.setattr(layer_bounds, "norm_bound", lambda *_args, **_options: pytest.fail("a norm was proved again"))
    asked: list[Convolution] = []
    monkeypatch.setattr(layer_bounds, "norm_bounds", lambda convs, **_options: asked.extend(convs) or [])
    found = bound_of_proved_layers(network.train(), (3, 5, 5), known).value
    assert asked == []
    assert found >= alone * (1 - 1e-2)
    assert found <= alone * 1.02


@pytest.mark.parametrize("name", ["0", "2", "4"])
def test_a_layer_that_changed_since_it_was_proved_is_proved_again(name: str) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), TTConv2d(6, 8, 3, rank=4), nn.Flatten(), nn.Linear(8 * 9, 3)
    )
    known = _proved(network)
    with torch.no_grad():
        next(network.get_submodule(name).parameters()).mul_(3)
    alone = svdctl.lipschitz_bound(network, (3, 5, 5)).value
    assert bound_of_proved_layers(network, (3, 5, 5), known).value == pytest.approx(alone, rel=0.02)


@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.5])
def test_a_known_norm_of_a_tt_layer_bounds_its_parts(spread: float) -> None:
    torch.manual_seed(1)
    layer = TTConv2d(12, 16, 3, rank=5, bias=False, frames="free").double()
    with torch.no_grad():
        for frame in (layer.frame_in, layer.frame_out):
            assert frame is not None
            frame.copy_(torch.linalg.qr(frame)[0] + spread * torch.randn_like(frame) / 4)
    upper = layer_norm_bound(layer).upper
    (gain,) = layer_gains([layer], proved=[upper])
    core = nn.Conv2d(5, 5, 3, bias=False).double()
    core.weight = nn.Parameter(layer.core.detach())
    assert upper <= gain.value <= upper * (1 + 1e-12)
    assert gain.factors["norm"] >= layer_norm_bound(core).lower
