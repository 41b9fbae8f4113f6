"""The whole command on tiny real runs: trained, evaluated, laid out, used again, shared, killed and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.errors import DataError
from svdctl.reproduce.plan import Plan, make_plan
from svdctl.reproduce.reproduction import reproduce
from svdctl.reproduce.run_store import Job, Outcome
from svdctl.reproduce.table_files import Request
from svdctl.utils.progress import Reporter


class Board(Reporter):
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.outcomes: list[tuple[str, str]] = []
        self.names: dict[str, str] = {}

    def begin(self, work: object) -> None:
        assert isinstance(work, Plan)
        self.names = {job.id: job.config.name for job in work.jobs()}
        self.said.append(f"{len(self.names)} runs")

    def finish(self, result: object) -> None:
        assert isinstance(result, Outcome)
        self.outcomes.append((self.names[result.id], result.state))

    def say(self, text: str) -> None:
        self.said.append(text)

    notice = say


def spelled(run: Job) -> str:
    """Return what stands for the command line of a run."""
    return f"{run.preset} {run.assignments}"


def request(tiny: Path, out_dir: Path, **fields: Any) -> Request:
    return Request.model_validate({"tables": [str(tiny)], "out_dir": out_dir, **fields})


def cells(out_dir: Path, name: str = "tiny") -> dict[str, Any]:
    """The figures of a table, times left out."""
    table = json.loads((out_dir / "tables" / f"{name}.json").read_text())
    assert table["complete"]
    return {
        row["row"]: {column: cell["values"] for column, cell in row["cells"].items() if column != "control-time"}
        for row in table["rows"]
    }


def runs_of(out_dir: Path) -> list[Path]:
    return sorted(folder.parent for folder in out_dir.glob("*/config.toml"))


def test_a_table_from_nothing_and_again(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    board = Board()
    result = reproduce(make_plan(request(tiny, out)), board, spelled)
    assert result.failed == ()
    assert board.outcomes == [("tiny-none-full-s3407", "done"), ("tiny-divide-tt8-s3407", "done")]
    kinds = ("md", "csv", "tex", "json", "png", "html")
    assert [file.name for file in result.files] == [f"tiny.{kind}" for kind in kinds]
    first = cells(out)
    assert set(first) == {"none-full", "divide-tt8"}
    assert all(len(values) == 1 for row in first.values() for values in row.values())
    table = json.loads((out / "tables" / "tiny.json").read_text())
    folder = Path(table["rows"][0]["runs"][0]["folder"])
    # Ordinary run folders, measured by eval-robust.
    assert {"config.toml", "last.pt", "metrics.jsonl", "curves.png", "spectrum.png"} <= set(os.listdir(folder))
    records = {r["metric"]: r for r in json.loads((folder / "eval-last" / "results.json").read_text())["records"]}
    assert first["none-full"]["accuracy"] == [records["accuracy"]["results"]["accuracy"]]
    assert first["none-full"]["autoattack"] == [records["autoattacks"]["results"]["robust_accuracy"]]
    notes = "\n".join(table["notes"])
    for words in (
        "Attacked: 3 of 359",
        "svdctl's own",
        "20 of 359 test images",
        "apgd-ce in place of",
        "after 6 steps",
    ):
        assert words in notes
    weights = {path: (path / "last.pt").stat().st_mtime_ns for path in runs_of(out)}
    assert len(weights) == 2
    assert "(kept" not in (out / "tables" / "tiny.md").read_text()
    reproduce(make_plan(request(tiny, out)), Board(), spelled)
    assert cells(out) == first
    # Columns that are measured: five of eval-robust, one of the training.
    rows = [line for line in (out / "tables" / "tiny.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert [line.count("(kept)") for line in rows] == [5, 5]
    assert {path: (path / "last.pt").stat().st_mtime_ns for path in runs_of(out)} == weights
    # Finished runs of another folder are used where they lie.
    reproduce(make_plan(request(tiny, tmp_path / "new", reuse=(out,), rows=("none*",))), Board(), spelled)
    assert runs_of(tmp_path / "new") == []
    assert cells(tmp_path / "new", "tiny-part")["none-full"] == first["none-full"]


def test_a_metric_of_a_user_is_a_column(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(
        tiny.read_text()
        .replace('columns = ["compression", "accuracy", "cifar-c", "ece", "autoattack", ', 'columns = ["confidence", ')
        .replace("[smoke]", "[evaluate.settings.confidence]\ntemperature = 2.0\n\n[smoke]")
    )
    __import__("tests.extending.confidence_metric")
    assert reproduce(make_plan(request(tiny, tmp_path / "runs", rows=("none*",))), Board(), spelled).failed == ()
    table = json.loads((tmp_path / "runs" / "tables" / "tiny-part.json").read_text())
    (row,) = table["rows"]
    folder = Path(row["runs"][0]["folder"])
    (record,) = json.loads((folder / "eval-last" / "results.json").read_text())["records"]
    assert record["protocol"]["temperature"] == 2.0
    assert row["cells"]["confidence"]["values"] == [record["results"]["confidence"]]
    assert "| confidence, % |" in (tmp_path / "runs" / "tables" / "tiny-part.md").read_text()


def test_a_row_that_fails_is_listed_and_tried_again(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    good = tiny.read_text()
    tiny.write_text(good.replace('preset = "wrn-cifar10"\n', 'preset = "wrn-cifar10"\nset = ["optimizer.lr=1e30"]\n'))
    board = Board()
    result = reproduce(make_plan(request(tiny, out, rows=("none*",))), board, spelled)
    assert board.outcomes == [("tiny-part-none-full-s3407", "failed")] or board.outcomes[0][1] == "failed"
    (line,) = result.failed
    assert "none-full, seed 3407: the loss was not finite" in line
    assert "not finite" in (out / "tables" / "tiny-part.md").read_text()
    tiny.write_text(good)
    assert reproduce(make_plan(request(tiny, out, rows=("none*",))), Board(), spelled).failed == ()


def test_data_that_cannot_be_had_stop_the_plan_before_training(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    def refuse(self: CIFAR10) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(CIFAR10, "download", refuse)
    words = ("data.kind=cifar10",)
    plan = make_plan(request(tiny, tmp_path / "runs", set=words, dataset_root=tmp_path / "data"))
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz.*data\.root"):
        reproduce(plan, Board(), spelled)
    assert runs_of(tmp_path / "runs") == []


def start(tiny: Path, out: Path, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "svdctl", "reproduce", str(tiny), "--out-dir", str(out), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


LONGER = ("--set", "max_steps=60", "--set", "epochs=3")


def undisturbed(tiny: Path, out: Path) -> dict[str, Any]:
    process = start(tiny, out, *LONGER)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    return cells(out)


def same_weights(first: Path, second: Path) -> None:
    for one, other in zip(runs_of(first), runs_of(second), strict=True):
        left, right = read_checkpoint(one).model, read_checkpoint(other).model
        assert all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.slow
def test_a_plugin_reaches_the_workers(tiny: Path, tmp_path: Path) -> None:
    text = tiny.read_text().replace('columns = ["compression", ', 'columns = ["confidence"] #')
    tiny.write_text(text)
    plugin = Path(__file__).parents[1] / "extending" / "confidence_metric.py"
    process = start(tiny, tmp_path / "runs", "--jobs", "2", "--rows", "none*", "--plugin", str(plugin))
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    table = json.loads((tmp_path / "runs" / "tables" / "tiny-part.json").read_text())
    assert table["complete"]
    (run,) = table["rows"][0]["runs"]
    assert f"--plugin {plugin}" in run["command"]
    assert f'plugins = [\n    "{plugin}",\n]' in (Path(run["folder"]) / "config.toml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_in_the_middle_and_called_again_the_table_is_the_same(
    tiny: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    expected = undisturbed(tiny, tmp_path / "whole")
    out = tmp_path / "broken"
    process = start(tiny, out, *LONGER)
    until(lambda: list(out.glob("*divide*/last.pt")))
    process.send_signal(stop)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if stop != signal.SIGKILL else -9), said
    if stop != signal.SIGKILL:
        assert "the same command goes on where it was" in said
        assert "Traceback" not in said
    process = start(tiny, out, *LONGER)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert cells(out) == expected
    assert len(runs_of(out)) == 2
    same_weights(tmp_path / "whole", out)


def worker_that_trains(out: Path, *commands: "subprocess.Popen[str]") -> int | None:
    """The process that trains and is none of the commands."""
    for file in (out / ".reproduce").glob("*.json"):
        status = json.loads(file.read_text())
        if status["state"] == "training" and status.get("step", 0) >= 2:
            pid = int(status["pid"])
            if pid not in [command.pid for command in commands]:
                return pid
    return None


def killed_and_shared(tiny: Path, tmp_path: Path, *commands: tuple[str, ...]) -> None:
    """Start commands on one folder, kill a worker, and compare with an undisturbed table."""
    expected = undisturbed(tiny, tmp_path / "whole")
    out = tmp_path / "shared"
    processes = [start(tiny, out, *LONGER, *flags) for flags in commands]
    os.kill(until(lambda: worker_that_trains(out, *processes)), signal.SIGKILL)
    for process in processes:
        said, _ = process.communicate(timeout=280)
        assert process.returncode == 0, said
    assert cells(out) == expected
    # No row was trained twice.
    assert len(runs_of(out)) == 2
    same_weights(tmp_path / "whole", out)


@pytest.mark.slow
def test_a_killed_worker_goes_on_and_two_commands_share_the_work(tiny: Path, tmp_path: Path) -> None:
    killed_and_shared(tiny, tmp_path, ("--jobs", "2"), ())


@pytest.mark.slow
def test_a_killed_worker_of_ray_goes_on_elsewhere(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    killed_and_shared(tiny, tmp_path, ("--engine", "ray"))
