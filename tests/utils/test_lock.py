"""Waiting for a lock: said once after a while, with who holds it, and ended by Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedRandom
from pathlib import Path

import pytest

from svdctl.utils import lock
from svdctl.utils.lock import held

HOLD = """
import sys
from pathlib import Path
from svdctl.utils.lock import held
with held(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(file: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds a lock until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process


def test_who_holds_it_is_said_once_and_the_lock_is_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.1)
    file, said = tmp_path / "lock", list[str]()
    with holder(file) as other:
        # Linux lists locks by file, on most file systems.
        locks, state = Path("/proc/locks"), file.stat()
        place = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
        is_known = locks.exists() and place in locks.read_text()

        def on_wait(text: str) -> None:
            said.append(text)
            assert other.stdin is not None
            other.stdin.close()

        with held(file, wait=True, on_wait=on_wait) as mine:
            assert mine
    assert said == [f"process {other.pid}" if is_known else ""]


def test_nothing_is_said_of_a_short_wait(tmp_path: Path) -> None:
    file, said = tmp_path / "lock", list[str]()
    with ExitStack() as first:
        assert first.enter_context(held(file))
        threading.Timer(0.2, first.close).start()
        with held(file, wait=True, on_wait=said.append) as mine:
            assert mine
    assert said == []


def test_without_waiting_it_is_answered_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with held(tmp_path / "lock"), held(tmp_path / "lock") as mine:
        assert not mine
    assert time.monotonic() - began < lock.WAIT_SECONDS


@pytest.mark.parametrize("is_said", [False, True])
def test_ctrl_c_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_said: bool) -> None:
    """Before anything was said of it, and after."""
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.05 if is_said else 60.0)
    file, said, taken = tmp_path / "lock", list[str](), lock._taken

    def ask() -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    def take(handle: BufferedRandom) -> bool:
        if not is_said:
            monkeypatch.setattr(lock, "_taken", taken)
            ask()
        return taken(handle)

    def on_wait(text: str) -> None:
        said.append(text)
        ask()

    with held(file):
        monkeypatch.setattr(lock, "_taken", take)
        with pytest.raises(KeyboardInterrupt), held(file, wait=True, on_wait=on_wait):
            pass
    assert len(said) == is_said
    with held(file) as mine:
        assert mine
