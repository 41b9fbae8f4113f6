"""Networks that svdctl did not make, and files that do or do not fit them."""

import re
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from svdctl.analysis.inspect_config import InspectConfig
from svdctl.analysis.inspect_files import run
from svdctl.checkpoint.model_factory import load_into, load_model, load_model_leniently, make_model
from svdctl.checkpoint.weight_file import WeightFile, read_tensors
from svdctl.config.evaluate_config import EvaluateConfig, NetworkSource
from svdctl.errors import CheckpointError, UsageError
from svdctl.evaluate.evaluated_model import open_evaluated_model
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
        "def late():\n    from beside_late import build\n    return build()\n"
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
    Path("beside_late.py").write_text("from usernets import build\n")
    assert isinstance(make_model(f"{module}:late"), nn.Sequential)
    assert sys.path == path


def test_a_module_beside_the_command_hides_no_installed_one(module: str, tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("raise RuntimeError\n")
    (tmp_path / "beside.py").write_text("import colorsys\nfrom usernets import build\n")
    try:
        assert isinstance(make_model("beside:build"), nn.Sequential)
    finally:
        for name in ("beside", "colorsys"):
            sys.modules.pop(name, None)


def test_what_an_installed_module_does_without_is_not_taken_from_beside_the_command(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/installed_nets.py").write_text(
        "try:\n    import faster_layers\nexcept ImportError:\n    pass\nfrom torch import nn\n"
        "def build(): return nn.Linear(1, 1)\n"
    )
    (tmp_path / "faster_layers.py").write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    try:
        assert isinstance(make_model("installed_nets:build"), nn.Linear)
    finally:
        sys.modules.pop("installed_nets", None)


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


def test_old_names_of_densenet_are_bridged(tmp_path: Path) -> None:
    wanted = make_model("torchvision:densenet121").state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): value for name, value in wanted.items()}
    assert old.keys() != wanted.keys()
    loaded = load_model("torchvision:densenet121", weights_of(old, tmp_path)).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("prefix", ["", "model."])
def test_leniently_what_fits_is_taken_and_the_rest_named(prefix: str, module: str, tmp_path: Path) -> None:
    tensors = {
        "0.weight": torch.ones(3, 2), "0.bias": torch.ones(3), "1.weight": torch.ones(9, 3), "1.bias": torch.ones(4),
        "head.weight": torch.ones(2, 2),
    }  # fmt: skip
    weights = weights_of({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit the network.*`lenient` takes what fits"):
        load_model(f"{module}:build", weights)
    model, misfit = load_model_leniently(f"{module}:build", weights)
    assert misfit.left_out == (f"{prefix}1.weight", f"{prefix}head.weight")
    assert misfit.unfilled == ("1.weight",)
    assert f"{prefix}head.weight" in misfit.told
    assert "not filled, at random: 1.weight" in misfit.told
    state = model.state_dict()
    assert all(torch.equal(state[name], tensors[name]) for name in ("0.weight", "0.bias", "1.bias"))


def test_leniently_something_must_fit(module: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensor of the network's names and shapes"):
        load_model_leniently(f"{module}:build", weights_of({"a.b": torch.ones(2)}, tmp_path))


def test_a_gate_proves_nothing_of_what_does_not_fit(module: str, tmp_path: Path) -> None:
    tensors = {"0.weight": torch.eye(3, 2), "0.bias": torch.ones(3), "head.weight": torch.ones(2, 2)}
    torch.save(tensors, tmp_path / "w.pt")
    config = InspectConfig(
        files=(tmp_path / "w.pt",), model=f"{module}:build", lenient=True, input_size=(1, 1, 2), max_sigma=1e3
    )
    (found,) = run(config)
    assert {row.name: row.gate for row in found} == {"0": "proved", "1": "not proved", "head.weight": "not proved"}
    assert "does not fill" in found["1"].assumption
    assert found.lipschitz is None
    assert "head.weight" in found.name
    assert "1.weight" in found.name


ATTENDING = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 2)
    def forward(self, x):
        return self.last(self.attention(*[x[:, 0]] * 3)[0].mean(1))
"""


def test_a_gate_proves_nothing_of_projections_that_the_file_does_not_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "attending.py").write_text(ATTENDING)
    monkeypatch.chdir(tmp_path)
    tensors = make_model("attending:Net").state_dict()
    del tensors["attention.in_proj_weight"]
    torch.save(tensors, tmp_path / "w.pt")
    config = InspectConfig(
        files=(tmp_path / "w.pt",), model="attending:Net", lenient=True, input_size=(1, 3, 4), max_sigma=1e3
    )
    (found,) = run(config)
    gates = {row.name: row.gate for row in found}
    assert {gates[f"attention.{name}_proj"] for name in "qkv"} == {"not proved"}
    assert gates["last"] == "proved"


def test_evaluation_leaves_out_heads_and_takes_no_random_numbers(module: str, tmp_path: Path) -> None:
    network = make_model(f"{module}:build").state_dict()
    torch.save(network | {"head.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    config = EvaluateConfig(network=NetworkSource(model=f"{module}:build", lenient=True))
    assert "left out of the file: head.weight" in open_evaluated_model(tmp_path / "w.pt", config).notices
    torch.save({"0.weight": torch.ones(3, 2)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="random numbers"):
        open_evaluated_model(tmp_path / "w.pt", config)
