"""Networks that svdctl did not make, and files that do or do not fit them."""

import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from svdctl.checkpoint.model_factory import load_into, load_model, make_model
from svdctl.checkpoint.weight_file import WeightFile, read_tensors
from svdctl.config.evaluate_config import NetworkSource
from svdctl.errors import CheckpointError, UsageError
from tests.checkpoint.files import small_network, state_dict


def weights_of(tensors: dict[str, Tensor], tmp_path: Path) -> WeightFile:
    torch.save(tensors, tmp_path / "w.pt")
    return read_tensors(tmp_path / "w.pt")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "usernets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build(): return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))\n"
        "class Net(nn.Linear):\n    def __init__(self): super().__init__(2, 2)\n"
        "ready = nn.Linear(1, 1)\n"
        "def number(): return 3\n"
        "def wide(width): return nn.Linear(width, 1)\n"
        "def broken(): raise RuntimeError('no such thing')\n"
        "def script(): raise SystemExit(0)\n"
    )
    (tmp_path / "needy.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "usernets", raising=False)
    return "usernets"


def test_factories_of_the_user(module: str) -> None:
    path = list(sys.path)
    assert isinstance(make_model(f"{module}:build"), nn.Sequential)
    assert isinstance(make_model(f"{module}:Net"), nn.Linear)
    assert isinstance(make_model(f"{module}:ready"), nn.Linear)
    assert sys.path == path


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("resnet18", "is torchvision:NAME"),
        (":build", "is torchvision:NAME"),
        ("usernets:buidl", "no 'buidl' there; it has build"),
        ("usernets:number", "made a int"),
        ("usernets:wide", "failed: TypeError"),
        ("usernets:broken", "failed: RuntimeError: no such thing"),
        ("usernets:script", "failed: SystemExit: 0"),
        ("usernet:build", "no module 'usernet' here"),
        ("needy:build", "imports 'surely_not_installed'"),
        ("torchvision:resnet81", "resnet18"),
    ],
)
def test_wrong_names_in_a_sentence(spec: str, told: str, module: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_model(spec)
    assert told in str(caught.value)
    assert len(caught.value.faults) == 1


def test_torchvision_without_weights_and_without_touching_the_random_stream() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    model = make_model("torchvision:squeezenet1_1")
    assert torch.equal(torch.rand(1), wanted)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_torchvision_gets_the_classes_of_the_file(tmp_path: Path) -> None:
    model = make_model("torchvision:resnet18")
    model.fc = nn.Linear(512, 7)
    weights = weights_of({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path)
    loaded = load_model("torchvision:resnet18", weights, mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(pixels), model.eval()((pixels - 0.5) / 0.25))
    assert not loaded.training


def test_a_normalisation_needs_both_and_fits() -> None:
    for mean, std in (((0.5,), None), ((0.5,), (0.5,) * 3), ((0.5,), (0.0,))):
        with pytest.raises(ValidationError, match="std"):
            NetworkSource(mean=mean, std=std)


@pytest.mark.parametrize("prefix", ["", "model.", "net.backbone."])
def test_one_prefix_is_bridged_on_either_side(prefix: str, tmp_path: Path) -> None:
    wanted = small_network()
    with torch.no_grad():
        wanted[0].weight.fill_(0.7)
    prefixed = {prefix + name: tensor for name, tensor in wanted.state_dict().items()}
    loaded = load_into(small_network(), weights_of(prefixed, tmp_path))
    assert torch.equal(loaded[0].weight, wanted[0].weight)
    outer = nn.ModuleDict({"inner": small_network()})
    load_into(outer, weights_of(dict(wanted.state_dict()), tmp_path))
    assert torch.equal(outer["inner"][0].weight, wanted[0].weight)


def test_counters_that_old_files_lack_are_no_fault(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in state_dict().items() if "num_batches" not in name}
    load_into(small_network(), weights_of(tensors, tmp_path))


def without(name: str) -> dict[str, Tensor]:
    return {known: tensor for known, tensor in state_dict().items() if known != name}


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (without("5.weight"), "it lacks '5.weight'"),
        (without("3.weight") | {"3.weights": torch.ones(2)}, "it lacks '3.weight', the nearest there is '3.weights'"),
        (state_dict() | {"6.weight": torch.ones(2)}, "the network has no '6.weight', the nearest is"),
        (
            state_dict() | {"5.weight": torch.ones(9, 6), "5.bias": torch.ones(9)},
            "'5.weight' is (9, 6) in the file and (4, 6) in the network and 1 more; the file probably has 9 classes",
        ),
        (state_dict() | {"3.weight": torch.ones(6, 9, 3, 3)}, "check the widths"),
        ({"a.b": torch.ones(2)}, "no name is in both; the file begins with 'a.b', the network with '0.weight'"),
    ],
)
def test_what_does_not_fit_is_told_with_its_likely_cause(tensors: dict[str, Tensor], told: str, tmp_path: Path) -> None:
    model = small_network()
    before = model[0].weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_into(model, weights_of(tensors, tmp_path))
    assert told in str(caught.value)
    assert "w.pt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(model[0].weight, before)


def test_another_set_in_the_file_is_pointed_to(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.ones(2)}, "ema": state_dict()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"`key` takes another part \(ema\)"):
        load_into(small_network(), read_tensors(tmp_path / "w.pt"))
    load_into(small_network(), read_tensors(tmp_path / "w.pt", key="ema"))
