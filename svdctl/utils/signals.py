"""Signals that ask a process to stop, as an event or as an interrupt, so that what is done can be saved."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from svdctl.utils.printable import print_line, printable

_HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # not on Windows
REQUESTS = (signal.SIGINT, signal.SIGTERM, *filter(None, [_HANG_UP]))
"""Ctrl-C, a scheduler that ends a job, a terminal that is closed."""
HEED_SECONDS = 1.0
"""Seconds that the main thread has to end by itself after a second request."""


def end_process(sentence: str, code: int) -> NoReturn:
    """Print a sentence on stderr and end this process, whatever its main thread waits for; empty: print nothing."""
    if sentence:
        show_cursor = "\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else ""
        print_line(f"{show_cursor}svdctl: {printable(sentence)}", sys.stderr)
    os._exit(code)


def _end_interrupted() -> None:
    end_process("interrupted at once by a second signal; what was saved before is intact", 130)


@contextmanager
def requests_noticed(
    on_request: Callable[[], None] = lambda: None, at_once: Callable[[], None] = _end_interrupted
) -> Iterator[None]:
    """Notice requests to stop that have a handler in Python, also while the main thread waits in an operation.

    Python calls a signal's handler between two instructions of the main thread, which may be long in coming: a
    collective operation waits for all processes. A thread learns of the signal when it arrives. Outside the main thread
    nothing is noticed.

    Args:
        on_request: called in that thread at the first request.
        at_once: called there `HEED_SECONDS` after the second request, unless the body has ended; ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        count = 0
        while numbers := os.read(reading, 64):
            before, count = count, count + sum(number in REQUESTS for number in numbers)
            if before == 0 < count:
                on_request()
            if before < 2 <= count and not left.wait(HEED_SECONDS):
                at_once()

    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(former)
        os.close(writing)
        watcher.join()
        os.close(reading)


@contextmanager
def stop_on_signal(
    on_request: Callable[[], None] = lambda: None, at_once: Callable[[], None] = _end_interrupted
) -> Iterator[threading.Event]:
    """Yield an event that a request to stop sets; a second request ends the process at once.

    A hang-up that is ignored, as under nohup, stays ignored.

    Args:
        on_request, at_once: as in `requests_noticed`.
    """
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    ignored = _HANG_UP is not None and signal.getsignal(_HANG_UP) == signal.SIG_IGN
    handled = [number for number in REQUESTS if number != _HANG_UP or not ignored]
    with requests_noticed(on_request, at_once), _handled(handled, handle):
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
