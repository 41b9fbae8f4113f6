"""Trained weights that a run starts from: what fits, what is a head, and TT layers by best fit."""

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svdctl.checkpoint.initial_weights import FilledNetwork, InitialTensors, fill_, read_initial
from svdctl.checkpoint.model_factory import load_model
from svdctl.checkpoint.tensors import digest
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.config.configuration import configuration
from svdctl.config.model_config import InitialWeights
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError, DataError, UsageError
from svdctl.layers.tt import TTConv2d
from svdctl.models.build import build_model
from svdctl.plugins import grant_factory

FACTORY = """
from torch import nn


def build(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, (1, 3), padding=(0, 1), stride=2, bias=False),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )
"""
PLAIN = ("layer=", "layer.kind=standard", "control=", "control.kind=none", "batchnorm=")
RANKED = ("layer=", "layer.kind=tt", "layer.rank=4", "control=", "control.kind=none", "batchnorm=")


@pytest.fixture
def network(tmp_path: Path) -> str:
    file = tmp_path / f"initial_{tmp_path.name.replace('-', '_')}.py"
    file.write_text(FACTORY)
    return grant_factory(f"{file}:build")


def config_of(network: str, *sets: str) -> TrainConfig:
    return configuration("quickstart", ("model.kind=external", f"model.network={network}", *(sets or PLAIN)))


def file_of(state: dict[str, Tensor], folder: Path, name: str = "weights.pt") -> InitialWeights:
    torch.save(state, folder / name)
    return InitialWeights(file=str(folder / name))


def trained(network: str, classes: int = 3) -> dict[str, Tensor]:
    model = build_model(config_of(network).model_copy(update={"seed": 7}), classes)
    return dict(model.get_submodule("model").state_dict())


def filled(
    config: TrainConfig, initial: InitialWeights, classes: int = 3, **options: Any
) -> tuple[nn.Module, FilledNetwork]:
    model = build_model(config, classes)
    given = read_initial(initial, config, download=False)
    return model, fill_(model, config, classes, given, lenient=options.get("lenient", False))


def test_every_tensor_finds_its_place_behind_the_normalisation(network: str, tmp_path: Path) -> None:
    state = trained(network)
    model, found = filled(config_of(network), file_of(state, tmp_path))
    assert found == FilledNetwork(len(state))
    assert all(torch.equal(model.state_dict()[f"model.{name}"], tensor) for name, tensor in state.items())
    assert model.get_submodule("normalize").mean.tolist() == [[[0.0]]]


def test_a_checkpoint_of_another_normalisation_leaves_this_runs(network: str, tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in trained(network).items()}
    pixels = {"normalize.mean": torch.full((3, 1, 1), 0.25), "normalize.std": torch.ones(3, 1, 1)}
    model, found = filled(config_of(network), file_of(pixels | state, tmp_path))
    assert found.filled == len(state)
    assert torch.equal(model.state_dict()["model.0.weight"], state["model.0.weight"])
    assert model.get_submodule("normalize").mean.tolist() == [[[0.0]]]


def test_a_head_of_other_classes_is_left_out_and_named(network: str, tmp_path: Path) -> None:
    config = config_of(network)
    before = build_model(config, 3).state_dict()["model.6.weight"]
    model, found = filled(config, file_of(trained(network, classes=5), tmp_path))
    assert found.heads == ("6.bias", "6.weight")
    assert not found.left_out
    assert not found.unfilled
    assert torch.equal(model.state_dict()["model.6.weight"], before)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state | {"0.weight": torch.zeros(8, 1, 3, 3)}, r"'0\.weight' is \(8, 1, 3, 3\) in the file"),
        (lambda state: state | {"9.weight": torch.zeros(3)}, r"the network has no 9\.weight"),
        (lambda state: {name: value for name, value in state.items() if name != "2.weight"}, r"it lacks model\.2\.w"),
        (lambda state: state | {"6.weight": torch.zeros(5, 4)}, r"'6\.weight' is \(5, 4\)"),
    ],
    ids=["another stem", "a further tensor", "a tensor too few", "a wider head"],
)
def test_what_does_not_fit_needs_lenient(network: str, tmp_path: Path, change: Any, sentence: str) -> None:
    initial = file_of(change(trained(network)), tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        filled(config_of(network), initial)
    _, found = filled(config_of(network), initial, lenient=True)
    assert found.left_out or found.unfilled


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        (lambda weight: (100 * weight).to(torch.int8), r"'2\.weight' is \(.*\) of int8 in the file and \("),
        (lambda weight: weight > 0, r"\) of bool in the file"),
        (lambda weight: torch.complex(weight, weight), r"\) of complex64 in the file"),
    ],
    ids=["codes", "signs", "complex"],
)
def test_numbers_of_another_kind_are_not_converted(network: str, tmp_path: Path, numbers: Any, sentence: str) -> None:
    state = trained(network)
    initial = file_of(state | {"2.weight": numbers(state["2.weight"])}, tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        filled(config_of(network), initial)
    _, found = filled(config_of(network), initial, lenient=True)
    assert found.left_out == ("2.weight",)
    with pytest.raises(CheckpointError, match=sentence):
        load_model(network, read_tensors(tmp_path / "weights.pt"))


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e300], ids=["nan", "inf", "beyond float32"])
def test_numbers_that_are_not_finite_are_refused(network: str, tmp_path: Path, factor: float) -> None:
    state = trained(network)
    initial = file_of(state | {"2.weight": state["2.weight"].double() * factor}, tmp_path)
    for lenient in (False, True):
        with pytest.raises(CheckpointError, match=r"not finite in 2\.weight"):
            filled(config_of(network), initial, lenient=lenient)


def test_a_file_of_another_network_is_refused_even_leniently(network: str, tmp_path: Path) -> None:
    initial = file_of({"conv.weight": torch.ones(4, 4, 3, 3)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"begins with 'conv.weight', the network with 'model.0.weight'"):
        filled(config_of(network), initial, lenient=True)


@pytest.mark.parametrize("frames", ["retract", "free", "penalty", "parametrize"])
def test_each_tt_layer_is_the_best_fit_of_its_convolution(network: str, tmp_path: Path, frames: str) -> None:
    state = trained(network)
    config = config_of(network, *RANKED, f"layer.frames.kind={frames}")
    model, found = filled(config, file_of(state, tmp_path))
    assert list(found.errors) == ["model.0", "model.2"]  # the third has groups
    for name, error in found.errors.items():
        layer, kernel = model.get_submodule(name), state[f"{name.removeprefix('model.')}.weight"].double()
        assert isinstance(layer, TTConv2d)
        own = layer.contracted().detach().double()
        assert error == pytest.approx(float((own - kernel).norm() / kernel.norm()), rel=1e-4)
        rank = layer.rank[1]
        largest = torch.linalg.svdvals(kernel.flatten(1))
        # No kernel of this rank is nearer than the truncated SVD of one unfolding.
        assert error >= float(largest[rank:].norm() / largest.norm()) - 1e-6
    assert torch.equal(model.state_dict()["model.3.weight"], state["3.weight"])
    assert torch.equal(model.state_dict()["model.6.bias"], state["6.bias"])


def test_weights_of_the_same_tt_layers_are_taken_as_they_are(network: str, tmp_path: Path) -> None:
    config = config_of(network, *RANKED)
    state = build_model(config.model_copy(update={"seed": 7}), 3).state_dict()
    model, found = filled(config, file_of(dict(state), tmp_path))
    assert not found.errors
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_wide_residual_network_of_tt_layers_starts_from_a_dense_one(tmp_path: Path) -> None:
    small = ("data.kind=digits", "model.width=1")
    dense = configuration("quickstart", (*small, *PLAIN))
    tt = configuration("quickstart", (*small, "layer.rank=8", "batchnorm="))
    state = build_model(dense.model_copy(update={"seed": 7}), 10).state_dict()
    model, found = filled(tt, file_of(dict(state), tmp_path), 10)
    assert len(found.errors) == 7 - sum(not isinstance(layer, TTConv2d) for layer in [model.get_submodule("conv1")])
    assert all(0 <= error < 1 for error in found.errors.values())
    assert torch.equal(model.state_dict()["fc.weight"], state["fc.weight"])
    assert torch.equal(model.state_dict()["layer1.0.bn1.running_var"], state["layer1.0.bn1.running_var"])


def test_another_file_in_its_place_is_refused(network: str, tmp_path: Path) -> None:
    state = trained(network)
    initial = file_of(state, tmp_path).model_copy(update={"sha256": digest(state)})
    assert read_initial(initial, config_of(network), download=False).sha256 == digest(state)
    file_of({**state, "6.bias": state["6.bias"] + 1}, tmp_path)
    with pytest.raises(CheckpointError, match=r"holds other weights .* restore the file, or leave `initial.sha256`"):
        read_initial(initial, config_of(network), download=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Serve weights of torchvision's SqueezeNet from this machine; returns the addresses that were asked for."""
    from torchvision import models

    saved = tmp_path / "published.pth"
    torch.save(models.squeezenet1_1(weights=None).state_dict(), saved)
    begin = hashlib.sha256(saved.read_bytes()).hexdigest()[:8]
    asked: list[str] = []

    def download(url: str, file: str, prefix: str, *, progress: bool) -> None:
        asked.append(url)
        Path(file).write_bytes(saved.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    weights = type("Weights", (), {"url": f"https://download.example/squeezenet1_1-{begin}.pth"})
    monkeypatch.setattr(models, "get_model_weights", lambda name: type("Enum", (), {"DEFAULT": weights}))
    return asked


def test_published_weights_are_downloaded_once_and_only_when_asked(hub: list[str], tmp_path: Path) -> None:
    config = config_of("torchvision:squeezenet1_1", *PLAIN, "normalize.mean=[0.5]", "normalize.std=[0.5]")
    initial = InitialWeights(file="torchvision")
    with pytest.raises(UsageError, match="a file alone downloads nothing"):
        read_initial(initial, config, download=False)
    assert not hub
    given = read_initial(initial, config, download=True)
    assert read_initial(initial, config, download=False).sha256 == given.sha256
    assert len(hub) == 1
    found = fill_(build_model(config, 3), config, 3, given, lenient=False)
    assert found.heads == ("classifier.1.bias", "classifier.1.weight")
    next((tmp_path / "hub" / "checkpoints").iterdir()).write_bytes(b"other")
    with pytest.raises(DataError, match="is not the published file"):
        read_initial(initial, config, download=True)


def test_only_torchvision_publishes(network: str) -> None:
    with pytest.raises(UsageError, match="is for networks of torchvision"):
        read_initial(InitialWeights(file="torchvision"), config_of(network), download=True)


def test_further_heads_of_training_are_left_out(tmp_path: Path) -> None:
    config = config_of("torchvision:googlenet", *PLAIN, "normalize.mean=[0.5]", "normalize.std=[0.5]")
    model = build_model(config, 3)
    state = {name.removeprefix("model."): value for name, value in model.state_dict().items() if name[:5] == "model"}
    state |= {"aux1.fc2.weight": torch.zeros(1000, 1024), "aux2.conv.conv.weight": torch.zeros(128, 512, 1, 1)}
    given = InitialTensors("weights.pt", state, digest(state))
    assert fill_(model, config, 3, given, lenient=False).heads == ("aux1.fc2.weight", "aux2.conv.conv.weight")


@pytest.mark.parametrize(
    ("own", "advice"), [(True, "check that the file is of this network"), (False, "check `model`")]
)
def test_weights_of_another_network_do_not_ask_for_a_model_of_svdctls_own(network: str, own: bool, advice: str) -> None:
    config = configuration("quickstart") if own else config_of(network)
    given = InitialTensors("w.pt", {"conv9.weight": torch.ones(4, 4, 3, 3)}, "")
    with pytest.raises(CheckpointError, match=f"no tensor of the network's names and shapes.*; {advice}$"):
        fill_(build_model(config, 3), config, 3, given, lenient=False)
