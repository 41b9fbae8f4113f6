"""Spectra of large networks: what is told before and while they are computed, and how long real networks take."""

import textwrap
import time

import pytest
import torch
from torch import nn

import svdctl
from svdctl.analysis import network_spectrum
from svdctl.analysis.network_spectrum import SpectrumRequest, requested_spectrum
from svdctl.layers.shapes import observed_calls
from tests.spectral.test_large_kernels import within

PROVING = "bounds of all layers, the costliest first"
WHOLE = "Lipschitz constant of the whole network, after its layers"


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))


def test_each_layer_and_the_network_are_told_before_the_work() -> None:
    told: list[tuple[int, int, str]] = []
    svdctl.spectrum(small_network(), (3, 16, 16), tell=lambda *now: told.append(now))
    assert told == [(0, 2, PROVING), (0, 2, "0"), (1, 2, "2"), (2, 2, WHOLE)]


def test_long_work_is_told_of_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    network = small_network()
    svdctl.spectrum(network, (3, 16, 16), log=events.append)
    assert events == []
    monkeypatch.setattr(network_spectrum, "OPERATIONS_PER_SECOND", 1.0)
    svdctl.spectrum(network, (3, 16, 16), log=events.append, tell=lambda *now: events.append(now[2]))
    assert "`accuracy` = fast" in events[0]
    assert "minutes" in events[0]
    assert events[1] == PROVING
    assert len([event for event in events if "minutes" in event]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small"])
def test_networks_of_torchvision_take_minutes(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    network = getattr(models, name)(weights=None).eval()
    begun = time.process_time()
    found = svdctl.spectrum(network, (3, 224, 224))
    seconds = time.process_time() - begun
    assert seconds < 600
    for layer in found:
        if layer.values is not None:
            assert layer.bound is not None
            assert layer.bound.lower <= layer.bound.upper
            assert layer.largest is not None
            assert layer.largest <= layer.bound.upper * (1 + 1e-6)


@pytest.mark.slow
def test_the_lipschitz_bound_of_vgg11_ends() -> None:
    """Within 300 s of CPU time and 5 GB; 57 s and 4 GB were measured."""
    code = """
        import math, torch, torchvision
        net = torchvision.models.vgg11(weights=None).eval()
        assert 0 < svdctl.lipschitz_bound(net, (3, 224, 224)).value < math.inf
    """
    within(textwrap.dedent(code), seconds=300, gigabytes=5)


def test_proofs_are_told_of_while_they_end() -> None:
    told: list[tuple[int, int, str]] = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    request = SpectrumRequest(bounds_only=True)
    requested_spectrum(model, (3, 8, 8), request, tell_proofs=lambda *report: told.append(report))
    assert told == [(1, 3, PROVING), (2, 3, PROVING)]


def test_a_gate_weighs_what_its_values_cost_and_not_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide kernels on small images: nearly all of the work is that of the bounds, which a gate needs in any case."""
    monkeypatch.setattr(network_spectrum, "OPERATIONS_PER_SECOND", 1e3)
    network, said = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)), list[str]()
    calls = observed_calls(network, (32, 2, 2), lambda module: isinstance(module, nn.Conv2d))
    values = network_spectrum._seconds_of_values(dict(network.named_children()), calls)
    bounds = network_spectrum._seconds_of_grams(dict(network.named_children()), calls)
    assert bounds > values > 0
    for affordable, has_values in ((values * 1.01, True), (values * 0.99, False)):
        (row,) = requested_spectrum(network, (32, 2, 2), SpectrumRequest(affordable=affordable), log=said.append)
        assert (row.values is not None) is has_values
    assert [("bounds alone are proved" in text) for text in said] == [False, True]
