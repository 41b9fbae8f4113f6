"""Ctrl-C on a real terminal: answered at once with what is kept, where, and the command that goes on."""

import re
import sys
from pathlib import Path

import pytest

from tests.reproduce.conftest import TINY
from tests.terminal import run_in_terminal


@pytest.mark.parametrize("jobs", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_the_first_ctrl_c_is_answered_and_the_same_command_goes_on(tmp_path: Path, jobs: str) -> None:
    # Of workers none may be done before it is told.
    steps, epochs = {"1": (60, 9), "2": (6000, 900)}[jobs]
    table = TINY.replace('"max_steps=6"', f'"max_steps={steps}"').replace('"epochs=2"', f'"epochs={epochs}"')
    (tmp_path / "tiny.toml").write_text(
        table.replace('"compression", "accuracy", "cifar-c", "ece", "autoattack"', '"accuracy"')
    )
    words = ["reproduce", "tiny.toml", "--rows", "none*", "--jobs", jobs]
    command = [sys.executable, "-m", "svdctl", *words]
    stopped = run_in_terminal(
        command,
        160,
        keys=[(" left  epoch ", "C-c")],
        code=130,
        cwd=tmp_path,
        env={"OMP_NUM_THREADS": "1"},
        scrollback=True,
    )
    joined = " ".join(stopped.split())
    assert joined.startswith("svdctl reproduce: tiny-part: 1 run, ")
    assert "kept in runs, tables in runs/tables" in joined
    assert joined.count("stopping: ") == 1
    place = (
        r"saved in runs/tiny-none-full-s3407-[-0-9]+/last\.pt; " if jobs == "1" else "kept in runs, 0 of 1 runs whole; "
    )
    assert re.search(f"stopping: .*{place}", joined)
    # The board as it stays: drawn once those who work have said that they stopped.
    board = stopped[stopped.rindex("\nrun ") : stopped.rindex(" so far")]
    assert re.search(r"^tiny-none-full-s3407 +stopped ", board, re.MULTILINE), board
    # On a line of its own, as it can be copied.
    assert f"\n  svdctl {' '.join(words[:3])} 'none*' --jobs {jobs}\n" in stopped
    assert f"to go on: svdctl {' '.join(words[:3])} 'none*' --jobs {jobs}" in joined
    assert (
        "svdctl: stopped; what is trained and measured is kept in runs, 0 of 1 runs whole; the same command" in joined
    )
    assert list((tmp_path / "runs").glob("*/last.pt"))
    if jobs == "2":
        return
    again = run_in_terminal(command, 160, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, scrollback=True)
    assert "1 of 1 done" in again
    assert len(list((tmp_path / "runs").glob("*/last.pt"))) == 1


def test_ctrl_c_before_anything_begins_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "svdctl", "reproduce", "table2", "--scale", "smoke"]
    shown = run_in_terminal(command, 80, keys=[("12 runs", "C-c")], code=130, cwd=tmp_path)
    assert "stopping: nothing was begun; to go on: svdctl reproduce table2 --scale smoke" in " ".join(shown.split())
