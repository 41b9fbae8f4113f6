"""A terminal that is closed: what runs in it saves its state and ends, its worker processes too."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from tests.reproduce.conftest import TINY
from tests.terminal import terminal

ENV = {"OMP_NUM_THREADS": "1"}


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def runs(pid: int) -> bool:
    """Whether a process is there; one that has ended, and that nobody has asked for, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which processes there are")
@pytest.mark.parametrize("jobs", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_table_whose_terminal_is_closed_is_saved_and_leaves_no_process(tmp_path: Path, jobs: str) -> None:
    (tmp_path / "tiny.toml").write_text(
        TINY.replace('"max_steps=6"', '"max_steps=6000"').replace("epochs=2", "epochs=900")
    )
    words = f"reproduce tiny.toml --rows 'none*' --jobs {jobs}"
    command = ["sh", "-c", f"echo $$ > pid; exec {sys.executable} -m svdctl {words}"]
    status = tmp_path / "runs/.reproduce"

    def statuses() -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in status.glob("*.json")]

    with terminal(command, 120, cwd=tmp_path, env=ENV) as shown:
        shown.wait_for(" left  epoch ", 120)
        pids = {int((tmp_path / "pid").read_text()), *(int(found["pid"]) for found in statuses())}
        assert len(pids) == int(jobs)
        shown.tmux("kill-session")
        until(lambda: not any(map(runs, pids)))
    (found,) = statuses()
    assert found["state"] == "interrupted"
    (last,) = (tmp_path / "runs").glob("*/last.pt")
    assert read_checkpoint(last).metrics["step"] > 0
