"""Signals that ask a process to stop, as an event or as an interrupt, so that what is done can be saved."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler that ends a job, a terminal that is closed."""


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that a request to stop sets; a second request ends the process at once.

    A hang-up that is ignored, as under nohup, stays ignored.
    """
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    with _handled([number for number in REQUESTS if number != signal.SIGHUP or not ignored], handle):
        yield event


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, for work that saves as it goes; trainings have `stop_on_signal`."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled([signal.SIGTERM], interrupt):
        yield


@contextmanager
def _handled(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals meanwhile; in another thread than the main one, where Python does not allow it, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
