"""Requests to stop that come while the main thread waits where nothing of Python runs."""

import os
import signal
import subprocess
import sys
import threading

from svdctl.utils.signals import stop_on_signal

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
