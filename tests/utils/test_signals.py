"""Requests to stop that come while the main thread waits where nothing of Python runs."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from svdctl.utils import signals
from svdctl.utils.signals import answer_to_stop, stop_on_signal, stops_answered

BLOCKED = """
import os, signal, sys, threading
from svdctl.utils.signals import stop_on_signal
blocked = threading.Event()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # signals go to another thread
def take_signals():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    blocked.wait()
threading.Thread(target=take_signals, daemon=True).start()
with stop_on_signal(lambda: print("requested", flush=True)):
    for later in range(2):
        threading.Timer(0.2 + later / 5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    blocked.wait()  # the main thread runs nothing of Python: the signal does not interrupt its wait
"""


def test_a_second_request_ends_a_process_whose_main_thread_is_blocked() -> None:
    ended = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout) == (130, "requested\n")
    assert ended.stderr == "svdctl: interrupted at once by a second signal; what was saved before is intact\n"


def test_the_event_is_set_and_the_request_noticed_in_a_thread() -> None:
    noticed = threading.Event()
    with stop_on_signal(noticed.set) as event:
        os.kill(os.getpid(), signal.SIGTERM)
        assert noticed.wait(5)
        assert event.is_set()
    assert signal.set_wakeup_fd(-1) == -1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


BUSY = """
import os, signal, sys, threading, time
from svdctl.utils.signals import answer_to_stop, stop_on_signal, stops_answered
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the main thread is as busy as in one long operation
def take_signals():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    time.sleep(60)
threading.Thread(target=take_signals, daemon=True).start()
def say(text):
    print(text, flush=True)
    os._exit(0)
with stops_answered(say, "nothing was begun"):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    BODY
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("threading.Event().wait()", "stopping: nothing was begun\n"),
        (
            "\n    with answer_to_stop(lambda: 'step 3 is saved'): threading.Event().wait()",
            "stopping: step 3 is saved\n",
        ),
        (
            "\n    with answer_to_stop(lambda: 'step 3 is saved'), stop_on_signal(): threading.Event().wait()",
            "stopping: step 3 is saved\n",
        ),
        ("\n    with answer_to_stop(lambda: 'x'): pass\n    threading.Event().wait()", "stopping: nothing was begun\n"),
    ],
)
def test_a_first_request_is_answered_at_once_by_what_runs(body: str, said: str) -> None:
    code = BUSY.replace("BODY", body)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.stdout, ended.stderr) == (said, "")


def test_what_ran_answers_also_where_the_interrupt_leaves_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    left, counted, said = threading.Event(), signals._requests, list[str]()

    def count_late(numbers: bytes, before: int) -> int:
        assert left.wait(5)
        return counted(numbers, before)

    monkeypatch.setattr(signals, "_requests", count_late)
    with stops_answered(said.append, "nothing was begun"):
        with pytest.raises(KeyboardInterrupt), answer_to_stop(lambda: "step 3 is saved"):
            signal.raise_signal(signal.SIGINT)
        left.set()
    assert said == ["stopping: step 3 is saved"]
    assert not signals._answers


def test_nobody_answers_where_no_command_does() -> None:
    with answer_to_stop(lambda: "x"), stop_on_signal() as event:
        os.kill(os.getpid(), signal.SIGTERM)
        assert event.wait(5)


FULL = """
import fcntl, os, signal, sys, threading
from svdctl.utils.printable import print_line
from svdctl.utils.signals import stop_on_signal, stops_answered
reading, writing = os.pipe()
os.set_blocking(writing, False)
try:
    while True:
        os.write(writing, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(writing, True)
os.dup2(writing, 2)  # nobody reads: every line on stderr waits for ever
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the main thread is as busy as in one long operation
def take_signals():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Event().wait()
threading.Thread(target=take_signals, daemon=True).start()
with stops_answered(lambda text: print_line(text, sys.stderr), "nothing was begun"), stop_on_signal():
    for later in (0.2, 0.6):
        threading.Timer(later, os.kill, (os.getpid(), signal.SIGTERM)).start()
    threading.Event().wait()
"""


def test_a_second_request_is_heeded_where_the_first_cannot_be_answered() -> None:
    """Stderr is a full pipe, as of a terminal that was halted."""
    ended = subprocess.run([sys.executable, "-c", FULL], capture_output=True, timeout=20, check=False)
    assert ended.returncode == 130


def test_a_second_request_is_heeded_where_the_answer_fails() -> None:
    code = BUSY.replace("BODY", "threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT)).start()")
    code = code.replace("    os._exit(0)", "    raise RuntimeError(text)") + "    threading.Event().wait()\n"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout) == (130, "stopping: nothing was begun\n")


TWICE = """
import os, signal, sys, time
from svdctl.utils.signals import stop_on_signal, stops_answered, terminated_as_interrupt
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
with stops_answered(lambda text: print(text, file=sys.stderr, flush=True), "nothing was begun"):
    try:
        with BODY as stop:
            for _ in range(2):  # as of a terminal that is closed: its shell sends one, the system another
                try:
                    os.kill(os.getpid(), signal.SIGHUP)
                    time.sleep(0.1)
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
            time.sleep(1.5)
            print("saved", stop and stop.is_set(), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    except KeyboardInterrupt:
        print("stopped", flush=True)
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("stop_on_signal()", ["saved True", "stopped"]),
        ("terminated_as_interrupt()", ["interrupted", "saved None", "stopped"]),
    ],
)
def test_a_hang_up_that_comes_twice_is_one_request(body: str, said: list[str]) -> None:
    code = TWICE.replace("BODY", body)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stderr) == (0, "stopping: nothing was begun\n")
    assert ended.stdout.splitlines() == said


class Interrupted:
    """An object in whose `__del__` Ctrl-C comes, where Python drops the exception."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)


def test_an_interrupt_that_python_drops_is_raised_again() -> None:
    said: list[str] = []

    def work() -> None:
        with stops_answered(said.append, "nothing was begun"):
            Interrupted()
            for _ in range(100):
                time.sleep(0.02)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert said == ["stopping: nothing was begun"]
    time.sleep(0.2)
