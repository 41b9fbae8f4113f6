"""Two evaluations at once, of two checkpoints: one report has both."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from svdctl.evaluate.known_checkpoints import INDEX, KnownCheckpoint, KnownCheckpoints
from svdctl.evaluate.results import read_results
from svdctl.utils.lock import held
from svdctl.utils.measurement_cache import MeasurementCache

WAITING = "waiting for another evaluation"


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start an evaluation of a linear network, whose stderr goes to a file named like its first argument."""
    command = [
        *(sys.executable, "-m", "svdctl", "eval-robust", *arguments),
        *("--model", "tests.evaluate.small:build", "--dataset", "npz:data.npz", "--batch-size", "4"),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with (folder / f"{arguments[0]}.log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=log, text=True)


def wait_for(folder: Path, name: str, text: str, process: "subprocess.Popen[str]") -> str:
    """Return what a process has said, once a text is in it."""
    until = time.monotonic() + 120
    while text not in (said := (folder / f"{name}.log").read_text()):
        assert process.poll() is None, said
        assert time.monotonic() < until, said
        time.sleep(0.05)
    return said


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """Data, and two networks of the same weights but one."""
    shutil.copy(shared / "data.npz", tmp_path)
    weights = torch.load(shared / "linear.pth", weights_only=True)
    for number, name in enumerate(("one.pth", "two.pth")):
        weights["linear.bias"][0] += number
        torch.save(weights, tmp_path / name)
    return tmp_path


def test_two_checkpoints_with_one_report_are_both_in_it(folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    names = ("one.pth", "two.pth")
    with held(out / ".lock-report"):
        processes = {name: start(folder, name, "--metrics", "accuracy", "ece", "--out-dir", "out") for name in names}
        for name, process in processes.items():
            said = wait_for(folder, name, WAITING, process)
            assert said.count(WAITING) == 1
            # Not every file system tells who holds a lock.
            words = rf"{WAITING}( \(process {os.getpid()}\))? that writes the report in {re.escape(str(out))}"
            assert re.search(words, " ".join(said.split()))
    for name, process in processes.items():
        assert process.wait(120) == 0, (folder / f"{name}.log").read_text()
    index = MeasurementCache(out / INDEX, KnownCheckpoint, {"of": "report.md"})
    assert not index.damaged
    assert index.notices == []
    known = KnownCheckpoints(out, search=True)
    assert known.notices == []
    assert sorted(kept.path for kept in known.known.values()) == [f"{folder}/one.pth", f"{folder}/two.pth"]
    for kept in known.known.values():
        stored = read_results(out / kept.results)
        assert stored.damage == ()
        assert {record.metric for record in stored.records} == {"accuracy", "ece"}
        assert stored.weights == kept.weights
    for report in ("report.md", "report.html"):
        text = (out / report).read_text()
        assert {"one", "two"} <= set(re.findall(r"\b(?:one|two)\b", text)), report
    assert (out / "report.html").read_text().rstrip().endswith("</html>")


def test_ctrl_c_ends_the_wait_for_a_report_with_the_figures_kept(folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    with held(out / ".lock-report"):
        process = start(folder, "one.pth", "--metrics", "accuracy", "--out-dir", "out")
        wait_for(folder, "one.pth", WAITING, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    said = " ".join((folder / "one.pth.log").read_text().split())
    (results,) = out.glob("*/results.json")
    assert f"stopping: 1 of 1 evaluated, with results in {results.parent.relative_to(folder)}; to go on: svdctl" in said
    assert json.loads(results.read_text())["records"][0]["metric"] == "accuracy"
    assert not (out / "report.md").exists()
