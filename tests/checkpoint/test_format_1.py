"""Run folders of checkpoint format 1 are still of use: that of `write_format_1.py`, made by commit 5837a72."""

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import svdctl
from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.checkpoint.torch_archive import FORMAT, VERSION
from svdctl.cli.app import main
from tests.checkpoint.text_arrays import from_text

STEP, LAST_STEP = 16, 24
"""Where the run was stopped, in its third epoch of four."""
METRICS = ("accuracy", "ece", "cifar-c", "autoattacks", "certified")
SETTINGS = (
    "--corruptions",
    "contrast",
    "--severities",
    "1",
    "--corruption-examples",
    "40",
    "--attacks",
    "apgd-ce",
    "--examples",
    "8",
)

Command = Callable[..., str]


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """What the fixture holds: `folder`, `files` and `checkpoints` by path, and the weights at the `end`."""
    found: dict[str, Any] = from_text(Path(__file__).with_name("format_1.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def folder(state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder, written out."""
    monkeypatch.chdir(tmp_path)
    for name, text in state["files"].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for name, contents in state["checkpoints"].items():
        torch.save(contents, tmp_path / state["folder"] / name)
    return tmp_path / state["folder"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `svdctl` with these arguments and return what it wrote to stdout and stderr."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["svdctl", *map(str, arguments)])
        try:
            main()
        except SystemExit as ended:
            assert not ended.code, capsys.readouterr()
        return "".join(capsys.readouterr())

    return run


def epochs(folder: Path) -> list[dict[str, Any]]:
    """Return the lines about epochs of a run's log."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "epoch"]


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare weights; processor and version of torch decide about bits, which training carries further."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=5e-3, msg=name)


def test_the_strings_that_files_are_known_by_never_change(state: dict[str, Any]) -> None:
    assert FORMAT == "svdctl.checkpoint" == state["checkpoints"]["last.pt"]["format"]
    assert (VERSION, state["checkpoints"]["last.pt"]["version"]) == (3, 1)


def test_a_stopped_run_goes_on_to_the_weights_of_one_that_was_not_stopped(
    state: dict[str, Any], folder: Path, command: Command
) -> None:
    before = epochs(folder)
    output = command("train", "--resume", folder)
    assert f"after step {STEP}" in output
    assert "test accuracy" in output
    contents = torch.load(folder / "last.pt", weights_only=True)
    assert contents["version"] == VERSION
    assert json.loads(contents["config"])["control"]["max_sigma"] == 2.5
    assert contents["training"]["counters"]["step"] == LAST_STEP
    assert_close(contents["model"], state["end"])
    after = epochs(folder)
    assert after[: len(before)] == before
    assert [line["step"] for line in after] == [6, 12, 18, LAST_STEP]
    # That version did not save the sums over the steps of the epoch in which it was stopped.
    assert [line["loss"] is None for line in after] == [False, False, True, False]
    assert [line["val_acc"] is None for line in after] == [False] * 4
    assert "of 1 of 4 epochs only a part is known" in output
    # A finished run is refused nothing: it is read as any of today's.
    assert read_checkpoint(folder).training["unsealed"] == {}


def test_the_network_loads(state: dict[str, Any], folder: Path) -> None:
    for path, name in ((folder, "last.pt"), (folder / "best.pt", "best.pt")):
        model = svdctl.load(path)
        for key, value in state["checkpoints"][name]["model"].items():
            assert torch.equal(model.state_dict()[key], value), key
        layers = [module for module in model.modules() if isinstance(module, svdctl.TTConv2d)]
        assert len(layers) == 7
        assert max(svdctl.spectral_norm_bound(layer).upper for layer in layers) <= 2.5 * 1.02


def test_its_configuration_is_a_preset(folder: Path, command: Command) -> None:
    assert "max_sigma" not in (folder / "config.toml").read_text()
    table = tomllib.loads(command("train", "--preset", folder / "config.toml", "--print-config"))
    assert table["control"].items() >= {"kind": "divide", "max_sigma": 2.5, "every_steps": 3, "linear_max": 4.0}.items()
    assert table["batchnorm"] == {"max_gain": 8.0, "every_steps": 2}
    assert table["checkpoint"]["every_epochs"] == 2
    assert table["evaluation"]["every_epochs"] == 1
    assert table["log"]["every_steps"] == 1


def test_results_are_kept_but_for_calibration_and_certificates(folder: Path, command: Command) -> None:
    path = folder / "eval-last" / "results.json"
    before = {record["metric"]: record for record in json.loads(path.read_text())["records"]}
    output = command("eval-robust", folder, "--metrics", *METRICS, *SETTINGS, "--format", "json")
    found = json.loads(output[output.index("{\n") : output.rindex("}") + 1])["checkpoints"][0]["metrics"]
    kept = {name: metric["kept"] for name, metric in found.items()}
    # What ECE is has changed since, and by which bounds of layers images are certified.
    assert kept.pop("certified") == kept.pop("ece") == ""
    assert kept == dict.fromkeys(kept, "kept, no checksum")
    assert {"accuracy", "cifar-c", "autoattacks"} <= kept.keys()
    after = {record["metric"]: record for record in json.loads(path.read_text())["records"]}
    assert after.keys() == before.keys() == set(METRICS)
    for name in ("accuracy", "autoattacks"):
        assert after[name]["results"] == before[name]["results"]
    (report,) = folder.parent.rglob("report.md")
    assert "kept, no checksum" in report.read_text(encoding="utf-8")
