"""Ctrl-C on a real terminal: answered at once with what is kept, where, and the command that goes on."""

import shutil
import sys
from pathlib import Path

from tests.terminal import run_in_terminal


def test_the_first_ctrl_c_is_answered_and_the_same_command_goes_on(shared: Path, tmp_path: Path) -> None:
    for name in ("data.npz", "linear.pth"):
        shutil.copy(shared / name, tmp_path)
    words = [
        *("eval-robust", "linear.pth", "--model", "tests.evaluate.small:build", "--dataset", "npz:data.npz"),
        *("--metrics", "accuracy", "autoattacks", "--eps", "0.2", "--batch-size", "2"),
    ]
    command = [sys.executable, "-m", "svdctl", *words]
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    stopped = run_in_terminal(
        command, 160, keys=[("of 40 images", "C-c")], code=130, cwd=tmp_path, env=env, scrollback=True, seconds=300
    )
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


def test_ctrl_c_before_anything_is_measured_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-m", "svdctl", "eval-robust"]
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    shown = run_in_terminal(command, 80, keys=[("device", "C-c")], code=130, cwd=tmp_path, env=env, scrollback=True)
    assert "nothing was measured yet; to go on: svdctl eval-robust" in " ".join(shown.split())
