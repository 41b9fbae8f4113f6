"""Networks that svdctl does not define, from the first step to the evaluation."""

import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import squeezenet1_1

import svdctl
from svdctl import plugins
from svdctl.analysis import inspect_files
from svdctl.analysis.inspect_config import InspectConfig
from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import resolve
from svdctl.cli.training_progress import result_lines
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError, ShapeError, UsageError
from svdctl.evaluate.evaluated_model import open_evaluated_model
from svdctl.models.build import shapes_of
from svdctl.models.made_network import make_network
from svdctl.reproduce.run_store import RunStore
from svdctl.train import plots
from svdctl.train import start as recipe
from svdctl.train.run_hash import run_hash
from tests import several
from tests.train.test_resume import assert_same, draw_nothing, write_data
from tests.train.test_runs import Recorder

DRAW_CURVES, DRAW_SPECTRA = plots.plot_curves, plots.plot_spectra
NET = """
import torch
from torch import nn

print("imported")


class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, stride=2, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv2(torch.relu(self.conv1(x)))))
        return self.fc(self.drop(x.mean((2, 3))))
"""


@pytest.fixture(autouse=True)
def nothing_granted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    draw_nothing(monkeypatch)
    monkeypatch.setattr(plugins, "_factories", [])
    before = set(sys.modules)
    yield
    for name in sys.modules.keys() - before:
        if name.startswith("svdctl_plugin_"):
            del sys.modules[name]


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "own_net.py").write_text(NET)
    return f"{tmp_path / 'own_net.py'}:Net"


def config_of(folder: Path, model: str, side: int = 12, **flags: object) -> TrainConfig:
    data = folder / f"images-{side}.npz"
    if not data.exists():
        write_data(data, side)
    both = {"dataset": f"npz:{data}", "epochs": 2, "batch_size": 8, "select": "last", "out_dir": str(folder / "runs")}
    sets = ["log.every_steps=1", *flags.pop("set", [])]  # type: ignore[misc]
    return resolve({**both, "model": model, "set": sets, **flags}).config


def train(config: TrainConfig, **recorded: int) -> recipe.TrainResult:
    return recipe.run(config, base="test", reporter=Recorder(**recorded))


def stopped_in_every_step(config: TrainConfig) -> recipe.TrainResult:
    """Stop in the first step, resume, stop in the second, and so on; check against an undisturbed run."""
    whole, part, step = train(config), train(config, interrupt_after=1), 1
    while not part.completed:
        step += 1
        part = recipe.resume(part.folder, reporter=Recorder(interrupt_after=step))
    assert step > 3
    assert_same(part, whole, "stopped in every step")
    return part


def test_layers_stay_as_they_are_without_more_flags(tmp_path: Path, net: str) -> None:
    config = config_of(tmp_path, net)
    assert (config.layer.kind, config.control.kind, config.batchnorm) == ("standard", "none", None)
    assert (config.optimizer.kind, config.optimizer.lr, config.schedule.kind) == ("sgd", 0.05, "cosine")
    assert (config.normalize.mean, config.normalize.std) == ((0.0,), (1.0,))
    given = config_of(tmp_path, net, mean=["0.5,0.4", "0.3"], std=["1", "1", "1"]).normalize
    assert (given.mean, given.std) == ((0.5, 0.4, 0.3), (1.0, 1.0, 1.0))


def test_a_factory_with_dropout_is_resumed_to_the_bit_and_gives_its_network(tmp_path: Path, net: str) -> None:
    control = {"clipping": "clip", "clip_to": 0.7, "clip_freq": 2}
    result = stopped_in_every_step(config_of(tmp_path, net, **control))
    model = svdctl.load(result.folder)
    assert model(torch.rand(2, 3, 12, 12)).shape == (2, 3)
    assert type(model[1]).__name__ == "Net"
    assert svdctl.spectral_norm_bound(model[1].conv1).upper <= 0.7
    assert svdctl.spectral_norm_bound(model[1].conv2).upper <= 0.7


@pytest.mark.parametrize("norm", ["torch.nn.utils.parametrizations", "torch.nn.utils", "svdctl.parametrize"])
def test_a_spectral_norm_of_the_network_is_resumed_to_the_bit(tmp_path: Path, net: str, norm: str) -> None:
    """Its vectors move whenever the weight is read in training."""
    text = f"import svdctl{NET}".replace(
        "self.conv1 = nn.Conv2d(3, 6, 3, padding=1)", "self.conv1 = NORM(nn.Conv2d(3, 6, 3))"
    )
    (tmp_path / "own_net.py").write_text(text.replace("NORM", f"{norm}.spectral_norm"))
    stopped_in_every_step(config_of(tmp_path, net, ema=0.8))


def test_nothing_of_a_factory_is_imported_unless_it_is_named(
    tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(config_of(tmp_path, net)).folder
    module = next(name for name in sys.modules if name.startswith("svdctl_plugin_own_net"))
    own = sys.modules.pop(module).Net
    monkeypatch.setattr(plugins, "_factories", [])
    capsys.readouterr()
    assert read_checkpoint(folder).config.model.network == net  # type: ignore[attr-defined]
    for refused in (lambda: svdctl.load(folder), lambda: recipe.resume(folder, reporter=Recorder())):
        with pytest.raises(CheckpointError, match=r"nothing of a user's code is imported .* add `model = .*own_net"):
            refused()
    assert "imported" not in capsys.readouterr().out
    given = own(num_classes=3)
    loaded = svdctl.load(folder, given)
    assert loaded[1] is given
    assert "imported" not in capsys.readouterr().out
    plugins.grant_factory(net)
    pixels = torch.rand(2, 3, 12, 12)
    assert torch.equal(svdctl.load(folder)(pixels), loaded(pixels))
    assert "imported" in capsys.readouterr().out


def test_a_network_that_does_not_fit_a_checkpoint_is_left_alone(tmp_path: Path, net: str) -> None:
    folder = train(config_of(tmp_path, net)).folder
    other = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Linear(6, 3))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="its state does not fit"):
        svdctl.load(folder, other)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    small = resolve({"set": ["model.width=1"], "max_steps": 1, "epochs": 1, "out_dir": str(tmp_path)}).config
    ours = train(small).folder
    with pytest.raises(CheckpointError, match="svdctl makes itself; load it without a network"):
        svdctl.load(ours, other)


def test_a_moved_factory_is_taken_where_it_is_named(tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, net)
    folder = train(config).folder
    monkeypatch.setattr(plugins, "_factories", [])
    sys.modules.pop("svdctl_plugin_own_net")
    moved = tmp_path / "elsewhere" / "own_net.py"
    moved.parent.mkdir()
    Path(net.removesuffix(":Net")).rename(moved)
    assert run_hash(config_of(tmp_path, f"{moved}:Net")) == run_hash(config)
    assert svdctl.load(folder)(torch.rand(1, 3, 12, 12)).shape == (1, 3)


def test_the_configuration_of_a_run_makes_it_again(tmp_path: Path, net: str) -> None:
    first = train(config_of(tmp_path, net, new_layer="tt", dec_rank="2"))
    again = resolve({"preset": str(first.folder / "config.toml"), "out_dir": str(tmp_path / "again")}).config
    assert_same(train(again), first, "config.toml")


def test_a_factory_in_a_file_lies_beside_it(tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[model]\nkind = "external"\nnetwork = "./own_net.py:Net"\n')
    monkeypatch.chdir("/")
    assert resolve({"preset": str(file)}).config.model.network == net  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path)
    sets = ["model.kind=external", "model.network=./own_net.py:Net"]
    assert resolve({"set": sets}).config.model.network == net  # type: ignore[attr-defined]


def test_initial_weights_are_read_once(tmp_path: Path, net: str) -> None:
    file = tmp_path / "trained.pt"
    plugins.grant_factory(net)
    torch.manual_seed(5)
    torch.save(make_network(net, classes=3).state_dict(), file)
    config = config_of(tmp_path, net, init_from=str(file), new_layer="tt", dec_rank="2")
    planned = run_hash(config)
    recorder = Recorder()
    whole = recipe.run(config, base="test", reporter=recorder)
    assert any("TT layer" in line for line in recorder.lines)
    assert any("model.conv1" in line and "%" in line for line in recorder.lines)
    assert (whole.folder / "initial_weights.json").is_file()
    part = train(config, interrupt_after=2)
    file.unlink()  # neither resuming nor loading reads it
    assert svdctl.load(part.folder)(torch.rand(1, 3, 12, 12)).shape == (1, 3)
    assert_same(recipe.resume(part.folder, reporter=Recorder()), whole, "initial weights")
    assert run_hash(read_checkpoint(whole.folder).config) == planned


@pytest.mark.drawn
def test_pictures_of_a_resumed_run_that_began_with_trained_weights(
    tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = train(config_of(tmp_path, net, max_steps=1)).folder
    part = train(config_of(tmp_path, net, init_from=str(before / "last.pt")), interrupt_after=2)
    monkeypatch.setattr(plots, "plot_spectra", DRAW_SPECTRA)
    result = recipe.resume(part.folder, reporter=Recorder())
    assert result.completed
    assert (part.folder / "spectrum.png").stat().st_size > 1000


@pytest.mark.drawn
def test_a_layer_that_nobody_can_read_is_left_alone(tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the report and the log, without a bound, and in no picture of spectra."""
    own = "class Half(nn.Conv2d):\n    def forward(self, x):\n        return super().forward(x) / 2\n\n\nclass Net"
    text = NET.replace("class Net", own).replace("self.conv1 = nn.Conv2d", "self.conv1 = Half")
    (tmp_path / "own_net.py").write_text(text)
    drawn: list[set[str]] = []
    monkeypatch.setattr(
        plots, "plot_spectra", lambda before, after, *given, **named: drawn.extend(map(set, [before, after]))
    )
    monkeypatch.setattr(plots, "plot_curves", DRAW_CURVES)
    result = stopped_in_every_step(config_of(tmp_path, net))
    assert drawn == [{"model.conv2", "model.fc"}] * 4
    assert {row.name: row.bound for row in result.layers}["model.conv1"] == math.inf
    assert (result.folder / "curves.png").stat().st_size > 1000
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(ShapeError, match=r"layer model\.conv1 cannot be changed: its forward"):
        train(config_of(tmp_path, net, clipping="clip", clip_to=0.7))
    assert not (tmp_path / "runs").exists()


def test_nothing_is_written_where_weights_do_not_fit(tmp_path: Path, net: str) -> None:
    file = tmp_path / "other.pt"
    torch.save({"conv9.weight": torch.ones(4, 4, 3, 3)}, file)
    with pytest.raises(CheckpointError, match="has no tensor of the network's names and shapes"):
        train(config_of(tmp_path, net, init_from=str(file)))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return nn.Flatten()", "of shape (1, 432) for 1 images of 3 classes"),
        ("return nn.Linear(7, 3)", "Net on images of 3 x 12 x 12 failed (RuntimeError"),
        ("return nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())", "to have 1 channels"),
        (
            "return nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())",
            "make its first layer for 3 channels, or give it images of 1 (`data.channels = 1`)",
        ),
        (
            "return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(5, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())",
            "two of its layers do not fit together; mend the network",
        ),
        ("return nn.LSTM(12, 3)", "Net on images of 3 x 12 x 12 failed"),
        ("raise OSError('no licence')", "failed: OSError: no licence"),
        ("return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))", "has layers of no width yet, as LazyLinear"),
        ("return 3", "made a int, not a torch.nn.Module"),
        (
            "return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Unflatten(1, (3, 1)), nn.Flatten(0, 1), "
            "nn.BatchNorm1d(1), nn.Unflatten(0, (-1, 3)), nn.AdaptiveMaxPool1d(3, return_indices=True))",
            "returns a tuple, and a classifier returns logits (N, 3) alone",
        ),
    ],
)
def test_a_network_that_is_no_classifier_of_these_images(tmp_path: Path, body: str, sentence: str) -> None:
    (tmp_path / "wrong_net.py").write_text(f"from torch import nn\n\n\ndef Net():\n    {body}\n")
    with pytest.raises(UsageError) as error:
        train(config_of(tmp_path, f"{tmp_path / 'wrong_net.py'}:Net"))
    assert sentence in str(error.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"model": "torchvision:resnet19"}, "torchvision has no network 'resnet19'; the nearest are resnet18"),
        ({"model": "torchvision:fcn_resnet50"}, "torchvision has no network 'fcn_resnet50'"),
        ({"model": "torchvision:resnet18/../x"}, "write it as torchvision:NAME"),
        ({"model": "resnet18"}, "write it as torchvision:NAME"),
        ({"model": "torchvision:resnet18", "architecture": "vgg19"}, "--model and --architecture both name"),
        ({"model": "torchvision:resnet18", "set": ["layer.kind=soc"]}, "svdctl.orthogonalize_ makes the layers"),
        ({"model": "torchvision:resnet18", "mean": ["0.5"]}, "--mean and --std belong together"),
        ({"model": "torchvision:resnet18", "lenient": True}, "add --init-from FILE"),
        ({"model": "torchvision:resnet18", "key": "ema"}, "add --init-from FILE"),
    ],
)
def test_flags_that_are_refused(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        recipe.plan(resolve(flags).config, "test")
    assert sentence in str(error.value)


def test_a_network_of_one_image_size(tmp_path: Path) -> None:
    config = config_of(tmp_path, "torchvision:vit_b_16", side=16, set=["model.image_size=16"])
    assert shapes_of(config, 3).get_submodule("model").seq_length == 2
    wrong = config_of(tmp_path, "torchvision:squeezenet1_1", set=["model.image_size=16"])
    with pytest.raises(UsageError, match=r"`model.image_size = 16`: torchvision:squeezenet1_1 is made for no size"):
        recipe.plan(wrong, "test")


def test_normalisations_are_those_of_the_networks_weights(tmp_path: Path) -> None:
    assert config_of(tmp_path, "torchvision:resnet18").normalize.mean == (0.485, 0.456, 0.406)
    assert config_of(tmp_path, "torchvision:efficientnet_v2_l").normalize.mean == (0.5,) * 3
    assert config_of(tmp_path, "torchvision:inception_v3").normalize.std == (0.5,) * 3


def test_a_plan_makes_no_numbers_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    normal = nn.init.kaiming_normal_

    def watched(tensor: torch.Tensor, *settings: object, **named: object) -> torch.Tensor:
        drawn.append(tensor)
        return normal(tensor, *settings, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.init, "kaiming_normal_", watched)
    lines = recipe.plan(config_of(tmp_path, "torchvision:resnet18", new_layer="tt", dec_rank="16"), "test")
    assert "torchvision's resnet18, TT convolutions, rank 16" in lines[1]
    assert drawn
    assert all(tensor.is_meta for tensor in drawn)  # type: ignore[attr-defined]
    assert not (tmp_path / "runs").exists()


def test_convolutions_without_a_tt_form_are_counted(tmp_path: Path, net: str) -> None:
    (_, line, *_) = recipe.plan(config_of(tmp_path, net, new_layer="tt", dec_rank="2"), "test")
    assert "(1 convolutions stay as they are: grouped" in line


def test_a_network_of_torchvision_needs_nothing_more(tmp_path: Path) -> None:
    config = config_of(tmp_path, "torchvision:squeezenet1_1", side=32, max_steps=2)
    result = train(config)
    model = svdctl.load(result.folder)
    pixels = torch.ones(1, 3, 32, 32)
    assert torch.equal(svdctl.load(result.folder, squeezenet1_1(num_classes=3))(pixels), model(pixels))


@pytest.mark.slow
def test_timms_convnext_under_division(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    flags = {"clipping": "divide", "clip_to": 2.0, "clip_linear": True, "max_steps": 2}
    result = train(config_of(tmp_path, "timm:convnext_atto", side=32, **flags))
    model = svdctl.load(result.folder)
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    bounds = [svdctl.spectral_norm_bound(layer).upper for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert len(bounds) == 40
    assert any(layer.groups > 1 for layer in model.modules() if isinstance(layer, nn.Conv2d))
    assert max(bounds) <= 2


@pytest.mark.parametrize("name", ["timm:resnet18.a1_in1k", "timm:hf-hub:somebody/net", "timm:local-dir:net"])
def test_timms_networks_are_named_exactly(name: str) -> None:
    with pytest.raises(UsageError, match="write it as torchvision:NAME"):
        resolve({"model": name})


def test_a_tag_of_timm_is_left_out_in_a_sentence() -> None:
    with pytest.raises(UsageError, match=r"without the tag of its weights: timm:resnet18$"):
        resolve({"model": "timm:resnet18.a1_in1k"})


def test_without_timm_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="pip install timm"):
        resolve({"model": "timm:convnext_atto"})


@pytest.mark.slow
def test_resnet18_is_killed_and_resumed_to_the_bit(tmp_path: Path) -> None:
    config = config_of(tmp_path, "torchvision:resnet18", side=64)
    result = stopped_in_every_step(config)
    model = svdctl.load(result.folder)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 3)


def test_commands_on_a_run_of_a_factory(tmp_path: Path, net: str) -> None:
    folder = train(config_of(tmp_path, net, max_steps=2)).folder
    commands = ("inspect-spectrum", folder), ("eval-robust", folder, "--metrics", "accuracy")
    named = [(*words, "--model", "./own_net.py:Net") for words in commands]
    found = several.svdctl(tmp_path, *commands, *named)
    for refused, accepted in zip(found[:2], found[2:], strict=True):
        assert "add --model" in refused.stderr
        assert "own_net.py:Net" in refused.stderr
        assert refused.code == 2
        assert "imported" not in refused.stdout
        assert accepted.code == 0, accepted.stderr
    assert "imported" in found[2].stdout


@pytest.mark.parametrize("network", ["os:abort", "antigravity:fly", "/tmp/hostile_net.py:build", "./hostile_net.py:f"])
def test_a_hostile_checkpoint_imports_nothing(
    tmp_path: Path, net: str, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(config_of(tmp_path, net, max_steps=1)).folder
    contents = torch.load(folder / "last.pt", weights_only=False)
    config = json.loads(contents["config"])
    config["model"]["network"] = network
    torch.save({**contents, "config": json.dumps(config)}, folder / "last.pt")
    monkeypatch.setattr(plugins, "_factories", [])

    def imported(*given: object, **named: object) -> None:
        raise AssertionError(given)

    monkeypatch.setattr("svdctl.models.made_network.import_file", imported)
    monkeypatch.setattr("svdctl.models.made_network.importlib.import_module", imported)
    assert read_checkpoint(folder).config.model.network == network  # type: ignore[attr-defined]
    readers = (
        lambda: svdctl.load(folder),
        lambda: recipe.resume(folder, reporter=Recorder()),
        lambda: open_evaluated_model(folder / "last.pt", EvaluateConfig()),
        lambda: inspect_files.run(InspectConfig(files=(folder,))),
    )
    for read in readers:
        with pytest.raises(CheckpointError):
            read()


@pytest.mark.parametrize("side", [2**14, 2**20, 2**40])
def test_a_small_checkpoint_asks_for_no_memory_for_large_images(tmp_path: Path, net: str, side: int) -> None:
    """Positions of a vision transformer are numbers that are made with the network, before its weights are counted."""
    folder = train(config_of(tmp_path, net, max_steps=1)).folder
    contents = torch.load(folder / "last.pt", weights_only=False)
    config = json.loads(contents["config"])
    config["model"] = {"kind": "external", "network": "torchvision:vit_b_16", "image_size": side}
    state = contents["model"] | {f"further.{number}": torch.zeros(1) for number in range(200)}
    torch.save({**contents, "config": json.dumps(config), "model": state}, folder / "last.pt")
    with pytest.raises(CheckpointError, match=rf"is no sound checkpoint \(model\..*image_size: .*({side} x|16384)"):
        svdctl.load(folder)


def test_no_network_is_made_for_images_that_no_memory_holds() -> None:
    flags = {"model": "torchvision:vit_b_16", "dataset": "digits", "set": ["model.image_size=65536"]}
    with pytest.raises(UsageError, match=r"model\.image_size: 65536 is not valid"):
        resolve(flags)


def test_the_hash_of_a_recorded_run_reads_no_file_that_it_names(
    tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*given: object, **named: object) -> None:
        raise AssertionError(given)

    folder = train(config_of(tmp_path, net, max_steps=1)).folder
    with (folder / "config.toml").open("a") as file:
        file.write(f"\n[initial]\nfile = '{tmp_path / 'any'}'\n")
    monkeypatch.setattr("svdctl.checkpoint.initial_weights.read_initial", read)
    assert [folder] in RunStore(folder.parent).index().values()
    with pytest.raises(CheckpointError, match=r"other initial"):
        recipe.resume(folder, reporter=Recorder())


def test_another_factory_than_the_one_that_was_trained_is_named_by_its_tensors(tmp_path: Path, net: str) -> None:
    whole = config_of(tmp_path, net)
    folder = train(whole, interrupt_after=1).folder
    other = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Linear(6, 3))
    with pytest.raises(CheckpointError) as error:
        svdctl.load(folder, other)
    assert "'model.conv1.weight' and 10 more only in the file; 'model.0.weight' and 3 more only in the" in str(
        error.value
    )
    assert "give the network that was trained" in str(error.value)
    file = Path(net.removesuffix(":Net"))
    # Of another length, by which Python knows that its compiled file is old, if both are of one second.
    file.write_text(file.read_text().replace("3, 6, 3, padding=1", "3, 6, 5, padding=2") + "# changed\n")
    sys.modules.pop("svdctl_plugin_own_net", None)
    with pytest.raises(CheckpointError, match=r"does not fit the network: 'model.conv1.weight' of other shapes; give"):
        recipe.resume(folder, reporter=Recorder())


@pytest.mark.parametrize("completed", [True, False])
def test_commands_that_go_on_name_a_factory_where_it_lies_now(tmp_path: Path, net: str, completed: bool) -> None:
    result = train(config_of(tmp_path, net), **({} if completed else {"interrupt_after": 1}))
    lines = result_lines(result)
    commands = [line for line in lines if line.startswith("  svdctl ")]
    assert [f" --model {net}" in line for line in commands] == ([True, True, False] if completed else [True])
    plugins._factories[:] = []
    now = plugins.grant_factory(f"{tmp_path / 'elsewhere' / 'own_net.py'}:Net")
    commands = [line for line in result_lines(result) if line.startswith("  svdctl ")]
    assert commands
    assert all(f" --model {now}" in line for line in commands)
