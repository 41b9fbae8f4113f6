"""Tables of runs whose logs are damaged or whose `best.pt` is lost: the right figure, or a dash and the reason."""

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from svdctl.cli.app import main
from svdctl.reproduce.plan import make_plan
from svdctl.reproduce.reproduction import reproduce
from svdctl.reproduce.table_files import Request
from tests.faults.small import write_data
from tests.reproduce.test_end_to_end import Board, spelled
from tests.train.test_resume import draw_nothing
from tests.train.test_resumed_files import made_old

TABLE = """
title = "One run"
columns = ["accuracy", "control-time", "train-hours"]
set = [
    "data.kind=npz", "data.path='{data}'", "augment.flip=false", "model.depth=10", "model.width=1", "batch_size=16",
    "epochs=3", "optimizer.lr=0.05", "evaluation.select=test",
]

[[rows]]
name = "divide-tt8"
label = "divide, TT 8"
group = "divide"
preset = "wrn-cifar10-divide"
set = ["layer.rank=8", "layer.frames.kind=retract"]
"""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished table."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "one.toml").write_text(TABLE.format(data=write_data(folder / "data.npz")))
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        table(folder)
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    shutil.rmtree(folder / "runs" / "tables")
    return folder


def table(folder: Path) -> dict[str, Any]:
    """The table of a folder, made by `svdctl reproduce`'s recipe."""
    request = {"tables": [str(folder / "one.toml")], "out_dir": folder / "runs"}
    assert reproduce(make_plan(Request.model_validate(request)), Board(), spelled).failed == ()
    return json.loads((folder / "runs" / "tables" / "one.json").read_text())


def test_a_run_that_went_on_with_other_data_says_so_in_the_table(copy: Path) -> None:
    (run,) = run_folders(copy)
    contents = torch.load(run / "last.pt", weights_only=True)
    contents["training"]["counters"]["other_data_until"] = 5
    torch.save(contents, run / "last.pt")
    assert [note for note in table(copy)["notes"] if "Trained on other data up to step 5." in note]


def test_a_run_that_an_older_version_began_says_so_in_the_table(copy: Path) -> None:
    (run,) = run_folders(copy)
    contents = torch.load(run / "last.pt", weights_only=True)
    contents["training"]["counters"]["unknown_data_until"] = 5
    torch.save(contents, run / "last.pt")
    assert [note for note in table(copy)["notes"] if "older version up to step 5: not known" in note]


def test_a_finished_run_on_other_data_does_not_count(copy: Path) -> None:
    """Neither to be shown nor to be gone on with; the run on these data is found from then on."""
    text = (copy / "one.toml").read_text()
    (old,) = copy.glob("runs/*/config.toml")
    data = Path(text.split("data.path='")[1].split("'")[0])
    kept, arrays = data.read_bytes(), dict(np.load(data))
    try:
        np.savez(data, **{**arrays, "y_train": np.roll(arrays["y_train"], 1)})
        folders = [table(copy)["rows"][0]["runs"][0]["folder"] for _ in range(2)]
    finally:
        data.write_bytes(kept)
    assert folders[0] == folders[1] != str(old.parent)
    assert len(run_folders(copy)) == 2
    # And the first one, once the data are what they were.
    assert table(copy)["rows"][0]["runs"][0]["folder"] == str(old.parent)


def run_folders(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob("runs/*/config.toml"))


def values(made_table: dict[str, Any]) -> dict[str, list[float]]:
    (row,) = made_table["rows"]
    return {column: cell["values"] for column, cell in row["cells"].items()}


def _half(log: Path) -> None:
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])


def _other_digits(log: Path) -> None:
    drawn = random.Random(0)
    log.write_text("".join(drawn.choice("123456789") if sign.isdigit() else sign for sign in log.read_text()))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half of it": _half,
    "gone": Path.unlink,
    "other digits": _other_digits,
    "noise": lambda log: log.write_bytes(np.random.default_rng(0).bytes(2000)),
    "nothing": lambda log: log.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_times_do_not_depend_on_the_log(made: Path, copy: Path, damage: str) -> None:
    wanted = json.loads((made / "runs" / "tables" / "one.json").read_text())
    (run,) = run_folders(copy)
    DAMAGES[damage](run / "metrics.jsonl")
    assert values(table(copy)) == values(wanted)
    assert all(value > 0 for (value,) in values(wanted).values())
    assert len(run_folders(copy)) == 1


@pytest.mark.parametrize("damage", ["gone", "nothing", "noise"])
def test_a_run_without_its_configuration_is_known_by_its_checkpoint(made: Path, copy: Path, damage: str) -> None:
    wanted = json.loads((made / "runs" / "tables" / "one.json").read_text())
    (run,) = run_folders(copy)
    DAMAGES[damage](run / "config.toml")
    found = table(copy)
    assert found["rows"][0]["runs"][0]["folder"] == str(run)
    assert values(found) == values(wanted)
    assert [file.parent for file in copy.glob("runs/*/last.pt")] == [run]


@pytest.mark.parametrize("damage", ["none", "half of it", "gone"])
def test_an_older_run_whose_log_lacks_lines_gets_a_dash_and_the_reason(made: Path, copy: Path, damage: str) -> None:
    wanted = json.loads((made / "runs" / "tables" / "one.json").read_text())
    (run,) = run_folders(copy)
    for file in run.glob("*.pt"):
        made_old(file)
    if damage != "none":
        DAMAGES[damage](run / "metrics.jsonl")
    found = table(copy)
    right = values(wanted)
    if damage == "none":
        assert [note for note in found["notes"] if "not known whether on the same data" in note]
        assert values(found) == right
        return
    assert values(found) == {"accuracy": right["accuracy"], "control-time": [], "train-hours": []}
    (note,) = [note for note in found["notes"] if "Times of training are not known" in note]
    assert "metrics.jsonl lacks" in note
    assert "Times of training are not known" in (copy / "runs" / "tables" / "one.md").read_text()


@pytest.mark.parametrize(
    ("stage", "jobs"), [("finished", 1), ("stopped", 1), pytest.param("finished", 2, marks=pytest.mark.slow)]
)
def test_a_run_without_its_best_network_is_trained_anew_and_says_why(
    made: Path, copy: Path, stage: str, jobs: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = json.loads((made / "runs" / "tables" / "one.json").read_text())
    (run,) = run_folders(copy)
    shutil.rmtree(run / "eval-best", ignore_errors=True)
    (run / "best.pt").write_bytes(b"lost")
    if stage == "stopped":
        contents = torch.load(run / "last.pt", weights_only=True)
        contents["training"]["epochs"] = contents["training"]["epochs"][:2]
        contents["training"]["counters"]["epoch_finished"] = False
        torch.save(contents, run / "last.pt")
    told: list[str] = []

    def save_and_look(contents: Any, file: Any, *arguments: Any, **options: Any) -> None:
        """The reason stands on stderr before the first checkpoint is written."""
        told.append(capsys.readouterr().err)
        save(contents, file, *arguments, **options)

    save = torch.save
    monkeypatch.setattr(torch, "save", save_and_look)
    flags = ["--jobs", str(jobs)]
    monkeypatch.setattr(
        sys, "argv", ["svdctl", "reproduce", str(copy / "one.toml"), "--out-dir", str(copy / "runs"), *flags]
    )
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    if jobs == 1:
        assert "the run starts anew" in told[0]
    told.append(capsys.readouterr().err)
    (line,) = [line for line in "".join(told).splitlines() if "the run starts anew" in line]
    assert f"{run} cannot be continued" in line
    assert "best.pt" in line
    found = table(copy)
    assert len(run_folders(copy)) == 2
    assert values(found)["accuracy"] == values(wanted)["accuracy"]
    assert found["rows"][0]["runs"][0]["folder"] != str(run)
    # The new run is found from now on.
    assert values(table(copy)) == values(found)
    assert len(run_folders(copy)) == 2
