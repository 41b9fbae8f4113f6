"""Requests to stop as an event, so that a step can be finished and saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler that ends a job, a terminal that is closed."""


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that a request to stop sets; a second one ends the process at once.

    A hang-up that is ignored, as under nohup, stays ignored.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    before = {number: signal.signal(number, handle) for number in REQUESTS if number != signal.SIGHUP or not ignored}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM as Ctrl-C, for work that saves as it goes; trainings in this process have `stop_on_signal`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
