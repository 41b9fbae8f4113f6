"""Ctrl-C on a real terminal: answered at once with what is kept, where, and the command that goes on."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svdctl.evaluate.measure_checkpoint import FinishedMetric
from svdctl.evaluate.runner import run
from svdctl.utils import signals
from tests.evaluate.small import Recorder, make
from tests.terminal import run_in_terminal


def test_the_first_ctrl_c_is_answered_and_the_same_command_goes_on(shared: Path, tmp_path: Path) -> None:
    for name in ("data.npz", "linear.pth"):
        shutil.copy(shared / name, tmp_path)
    words = [
        *("eval-robust", "linear.pth", "--model", "tests.evaluate.small:build_slow", "--dataset", "npz:data.npz"),
        *("--metrics", "accuracy", "autoattacks", "--eps", "0.2", "--batch-size", "2"),
    ]
    command = [sys.executable, "-m", "svdctl", *words]
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    # Said of an attack alone, and as soon as its state is kept.
    keys = [("of the batch", "C-c")]
    stopped = run_in_terminal(command, 160, keys=keys, code=130, cwd=tmp_path, env=env, scrollback=True, seconds=300)
    joined = " ".join(stopped.split())
    assert joined.startswith("svdctl eval-robust: accuracy, autoattacks of linear.pth device ")
    assert joined.count("stopping: ") == 1
    assert (
        "stopping: linear: accuracy finished, in eval-linear/results.json; of autoattacks what is done is kept in "
        in (joined)
    )
    (state,) = (tmp_path / "eval-linear/unfinished").iterdir()
    assert f"kept in {state.relative_to(tmp_path)}; to go on: svdctl {' '.join(words)}" in joined
    assert "svdctl: interrupted; finished metrics and batches are kept" in joined


class Stopping(Recorder):
    """Asks what a request to stop is told, as soon as a condition holds, and stops the evaluation there.

    Args:
        is_there: gets the metric at work, and what it reports: a text, or its result.
    """

    def __init__(self, is_there: Callable[[str, object], bool]) -> None:
        super().__init__()
        self.is_there, self.metric, self.told = is_there, "", ""

    def begin(self, work: object) -> None:
        super().begin(work)
        self.metric = str(work)

    def advance(self, done: int, total: int, now: Any) -> None:
        self._stop_at(now)

    def finish(self, result: object) -> None:
        self._stop_at(result)

    def _stop_at(self, reported: object) -> None:
        if self.is_there(self.metric, reported):
            self.told = signals._answers[-1]()
            raise KeyboardInterrupt


def told_at(shared: Path, folder: Path, is_there: Callable[[str, object], bool]) -> str:
    """Return what a request to stop is told at a moment of an evaluation, and stop there."""
    shutil.copy(shared / "linear.pth", folder)
    reporter = Stopping(is_there)
    flags = {"model": "tests.evaluate.small:build", "dataset": f"npz:{shared / 'data.npz'}", "batch_size": 2}
    config = make(folder / "linear.pth", metrics=["accuracy", "autoattacks"], **flags)
    with pytest.raises(KeyboardInterrupt):
        run(config, reporter=reporter)
    return reporter.told


def test_what_is_told_within_the_first_metric(shared: Path, tmp_path: Path) -> None:
    told = told_at(shared, tmp_path, lambda metric, reported: (metric, reported) == ("accuracy", "test images"))
    assert told == "linear: no metric is finished; accuracy begins anew"
    assert '"metric": "accuracy"' not in (tmp_path / "eval-linear/results.json").read_text()


def test_what_is_told_as_a_metric_ends(shared: Path, tmp_path: Path) -> None:
    told = told_at(
        shared,
        tmp_path,
        lambda metric, reported: isinstance(reported, FinishedMetric) and reported.metric == "accuracy",
    )
    results = tmp_path / "eval-linear/results.json"
    assert told == f"linear: accuracy finished, in {results}; autoattacks begins anew"
    assert '"metric": "accuracy"' in results.read_text()


def test_what_is_told_within_an_attack(shared: Path, tmp_path: Path) -> None:
    told = told_at(shared, tmp_path, lambda metric, reported: metric == "autoattacks")
    (state,) = (tmp_path / "eval-linear/unfinished").iterdir()
    results = tmp_path / "eval-linear/results.json"
    assert told == f"linear: accuracy finished, in {results}; of autoattacks what is done is kept in {state}"


def test_ctrl_c_before_anything_is_measured_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-m", "svdctl", "eval-robust"]
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    shown = run_in_terminal(command, 80, keys=[("device", "C-c")], code=130, cwd=tmp_path, env=env, scrollback=True)
    assert "nothing was measured yet; to go on: svdctl eval-robust" in " ".join(shown.split())
