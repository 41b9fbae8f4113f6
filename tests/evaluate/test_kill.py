"""A process killed in the middle of an attack: the next call goes on, and ends with equal figures."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import torch

from svdctl.evaluate.runner import run
from tests.evaluate.small import Recorder, make
from tests.faults.small import Command, Ended

BATCHES = 3
"""Of each attack at first."""


def start(weights: Path, data: Path) -> Command:
    arguments = [
        "eval-robust", weights, "--model", "tests.evaluate.small:build_slow", "--dataset", f"npz:{data}",
        "--metrics", "autoattacks", "--attacks", "apgd-ce", "apgd-t", "--examples", "24", "--batch-size", "8",
        "--eps", "0.4",
    ]  # fmt: skip
    return Command(arguments, weights.parent.parent / "log")


def finish(weights: Path, data: Path) -> tuple[dict[str, Any], list[str]]:
    """The same command in this process: figures and notices."""
    recorder = Recorder()
    flags: dict[str, Any] = {
        "model": "tests.evaluate.small:build_slow", "dataset": f"npz:{data}", "metrics": ["autoattacks"],
        "attacks": ["apgd-ce", "apgd-t"], "examples": "24", "batch_size": 8, "eps": 0.4,
    }  # fmt: skip
    result = run(make(weights, **flags), reporter=recorder)
    assert not result.failures
    record = result.evaluations[0].records["autoattacks"]
    return {"protocol": record.protocol, "results": record.results}, recorder.notices


def kill_within_attack(weights: Path, data: Path, number: signal.Signals, batches: int) -> Ended:
    """Start, and stop it by a signal once this many batches are kept."""
    command = start(weights, data)

    def enough() -> bool:
        done = 0
        for file in (weights.parent / f"eval-{weights.stem}" / "unfinished").glob("attack-*.pt"):
            state = torch.load(file, weights_only=True)["records"][0]["state"]
            done = state["batches_done"] + BATCHES * state["attack"]
        return done >= batches

    command.wait_for(enough, 90)
    command.signal(number)
    return command.end(60)


def test_resume_after_sigkill_ctrl_c_and_sigterm_ends_with_equal_figures(shared: Path, tmp_path: Path) -> None:
    data = shared / "data.npz"
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        shutil.copy(shared / "linear.pth", tmp_path / name)
    whole, _ = finish(tmp_path / "whole/linear.pth", data)
    cut = tmp_path / "cut/linear.pth"
    assert kill_within_attack(cut, data, signal.SIGKILL, 1).code == -signal.SIGKILL
    assert json.loads((tmp_path / "cut/eval-linear/results.json").read_text())["records"] == []
    for number, batches in ((signal.SIGINT, BATCHES + 1), (signal.SIGTERM, BATCHES + 2)):
        stopped = kill_within_attack(cut, data, number, batches)
        assert stopped.code == 130
        assert "finished metrics and batches are kept" in stopped.err
        assert "Traceback" not in stopped.err
    resumed, notices = finish(cut, data)
    assert any("going on after batch" in notice for notice in notices)
    assert resumed == whole
    assert (tmp_path / "cut/eval-linear/attacks.csv").read_text() == (
        tmp_path / "whole/eval-linear/attacks.csv"
    ).read_text()
    assert whole["results"]["after_attack"]["apgd-ce"] > whole["results"]["robust_accuracy"] - 1e-9
    assert 0 < whole["results"]["robust_accuracy"] < whole["results"]["clean_accuracy"]
