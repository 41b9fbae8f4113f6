"""Gains of many layers whose norms are proved together: the same as of each, refusals too."""

import pytest
import torch
from torch import nn

import svdctl
from svdctl.certificates import interpreter
from svdctl.errors import ShapeError
from svdctl.layers import layer_bounds
from svdctl.layers.layer_bounds import layer_gain, layer_gains
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
