"""Every entry point of svdctl proves a layer with a spectral norm to be at most its maximum, in either mode."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import svdctl
from svdctl.checkpoint.stored_layers import stored_layers
from svdctl.cli.app import app
from svdctl.errors import ShapeError
from svdctl.layers.norms import stated_maximum
from svdctl.parametrize import spectral_norm
from tests.parametrize.layers import LAYERS, layer

MAXIMUM = 0.3


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), max_sigma=MAXIMUM),
        nn.ReLU(),
        spectral_norm(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2), max_sigma=MAXIMUM),
        nn.Flatten(),
        spectral_norm(nn.Linear(128, 4), max_sigma=MAXIMUM),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_functions(name, training):
    module = spectral_norm(layer(name), max_sigma=MAXIMUM).train(training)
    shape = LAYERS[name][1]
    assert stated_maximum(module) == MAXIMUM
    assert svdctl.spectral_norm_bound(module).upper <= MAXIMUM
    assert svdctl.lipschitz_bound(module, shape).value <= MAXIMUM
    if len(shape) == 3 or len(shape) == 1:
        size = shape[1:] or 1
        if "reflect" not in name and "replicate" not in name:
            assert float(svdctl.singular_values(module, size)[0]) <= MAXIMUM
    assert module.training is training


@pytest.mark.parametrize("training", [True, False])
def test_networks(training):
    model = small_network().train(training)
    rows = svdctl.spectrum(model, (3, 8, 8))
    assert [row.bound.upper <= MAXIMUM for row in rows] == [True] * 3
    assert svdctl.lipschitz_bound(model, (3, 8, 8)).value <= MAXIMUM**3
    plain = nn.Conv2d(3, 3, 3)
    both = nn.ModuleDict({"controlled": plain, "normed": model})
    controller = svdctl.Controller(both, method="clip", max_sigma=10.0, layers="controlled")
    bounds = {row.name: row.bound for row in controller.report()}
    assert all(bounds[f"normed.{place}"] <= MAXIMUM for place in (0, 2, 4))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("function", "unchanged"), [(svdctl.clip_, 0.0), (svdctl.divide_, 1.0)])
def test_layers_that_keep_themselves_are_proved_and_left(function, unchanged, training):
    torch.manual_seed(0)
    model = nn.Sequential(small_network(), nn.Conv2d(3, 3, 3)).train(training)
    nn.init.constant_(model[1].weight, 1.0)
    weights = {name: tensor.clone() for name, tensor in model[0].state_dict().items()}
    found = function(model, max_sigma=0.6, linear=True)
    assert list(found) == ["0.0", "0.2", "0.4", "1"]
    assert [found[name] for name in ("0.0", "0.2", "0.4")] == [unchanged] * 3
    assert found["1"] != unchanged
    assert svdctl.spectral_norm_bound(model[1]).upper <= 0.6
    assert all(torch.equal(model[0].state_dict()[name], tensor) for name, tensor in weights.items())
    assert function(model[0], max_sigma=MAXIMUM) == {"0": unchanged, "2": unchanged}
    before = model[1].weight.detach().clone()
    with pytest.raises(ShapeError, match=r"layer 0\.0 has a spectral norm with a maximum of 0\.3, above 0\.2"):
        function(model, max_sigma=0.2)
    assert torch.equal(model[1].weight, before)


def test_layers_that_state_too_little_are_refused(monkeypatch):
    model = small_network()
    monkeypatch.setattr("svdctl.layers.spectral_norm.SpectralNorm.maximum", 0.01)
    with pytest.raises(ShapeError, match=r"layer 0 has a spectral norm of its own, and is at 0\.\d+ above 0\.02"):
        svdctl.clip_(model, max_sigma=0.02)


CHOICES = {
    "a type": (nn.Conv2d, ["0.0", "1"]),
    "a predicate": (lambda name, layer: layer.out_channels == 5 and name != "2", ["0.0"]),
    "several": ([nn.ConvTranspose2d, "1"], ["1", "2"]),
    "a set": ({"0.*", "1"}, ["0.0", "1"]),
}


@pytest.mark.parametrize("function", [svdctl.clip_, svdctl.divide_])
def test_layers_are_chosen_as_by_the_controller(function):
    def network():
        return nn.Sequential(nn.Sequential(nn.Conv2d(3, 5, 3)), nn.Conv2d(5, 4, 3), nn.ConvTranspose2d(4, 5, 3))

    for choice, names in CHOICES.values():
        assert list(function(network(), max_sigma=0.1, layers=choice)) == names
        assert list(svdctl.Controller(network(), max_sigma=0.1, layers=choice).controlled()) == names
    assert list(function(network(), max_sigma=0.1, layers=iter(["1"]))) == ["1"]
    assert list(svdctl.Controller(network(), max_sigma=0.1, layers=iter(["1"])).controlled()) == ["1"]
    for wrong in (3, None, ["*", 3]):
        with pytest.raises(ShapeError, match=r"chosen by patterns of names, types and predicates .* not by (3|None)$"):
            function(network(), max_sigma=0.1, layers=wrong)
    for none in (nn.Conv3d, [], lambda name, layer: False):
        with pytest.raises(ShapeError, match="`layers` chooses no convolution of the network"):
            function(network(), max_sigma=0.1, layers=none)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), "weight"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "weight"),
        (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), "weight"),
        (lambda: svdctl.TTConv2d(4, 4, 3, rank=2, frames="free"), "core"),
    ],
)
def test_the_advice_for_parametrised_weights_can_be_followed(make, name, training):
    layer_ = make().train(training)
    if name == "core":
        nn.utils.parametrize.register_parametrization(layer_, name, nn.Identity())
    with pytest.raises(ShapeError, match=r"make it plain first, .* svdctl\.parametrize\.remove_parametrizations"):
        svdctl.clip_(layer_, max_sigma=0.1, linear=True)
    svdctl.clip_(svdctl.parametrize.remove_parametrizations(layer_, name), max_sigma=0.1, linear=True)
    assert svdctl.spectral_norm_bound(layer_).upper <= 0.1


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_files(tmp_path, suffix):
    model = small_network()
    for _ in range(2):
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad, alpha=0.01)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    for layer_ in stored_layers(model.state_dict()):
        own = model[int(layer_.name)].eval().weight.detach()
        torch.testing.assert_close(layer_.norm.weight, own, rtol=1e-5, atol=1e-7)
    for maximum, code in ((MAXIMUM, 0), (MAXIMUM * 0.99, 1)):
        result = CliRunner().invoke(app, ["inspect-spectrum", str(path), "--max", str(maximum)])
        assert result.exit_code == code, result.output
    upper = math.inf
    for row in svdctl.spectrum(model, (3, 8, 8)):
        upper = min(upper, row.bound.upper)
    assert upper <= MAXIMUM


def test_other_weights_of_the_layers_in_half_precision_files(tmp_path):
    model = small_network().bfloat16()
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    result = CliRunner().invoke(app, ["inspect-spectrum", str(path), "--max", str(MAXIMUM)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("maximum", [None, "NaN", "Infinity", "-1.0", "0.0"])
def test_broken_state_is_no_norm(maximum):
    state = small_network().state_dict()
    key = next(name for name in state if name.endswith("_extra_state"))
    text = bytes(state[key].tolist()).decode()
    broken_text = "\0" if maximum is None else text.replace(f'"max_sigma": {MAXIMUM}', f'"max_sigma": {maximum}')
    assert broken_text != text
    state[key] = torch.tensor(list(broken_text.encode()), dtype=torch.uint8)
    broken = next(layer_ for layer_ in stored_layers(state) if layer_.name == "0")
    assert broken.norm is None
    assert broken.reason
