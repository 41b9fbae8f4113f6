"""Signals that ask a process to stop, as an event or as an interrupt, so that what is done can be saved."""

import ctypes
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
_LATER = 0.05
"""Seconds until an interrupt that was dropped is raised again."""


Answer = Callable[[], str]
"""Returns what is said to a first request to stop: what is still finished, what is kept, and where."""
_say: Callable[[str], None] | None = None
_answers: list[Answer] = []


@contextmanager
def stops_answered(say: Callable[[str], None], text: str) -> Iterator[None]:
    """Answer the first request to stop at once, in a line, whatever the main thread does meanwhile.

    A command wraps all its work in this, the import of torch too. What is said is `text`, or what the innermost
    `answer_to_stop` below says. Ctrl-C raises KeyboardInterrupt as ever, but within `stop_on_signal`.

    Args:
        say: prints a line; it is called in another thread.
        text: what is kept when nothing below knows better: `nothing was begun`.
    """
    global _say
    before, _say, known = _say, say, len(_answers)
    try:
        with answer_to_stop(lambda: text), requests_noticed(), _interrupts_not_lost():
            yield
    finally:
        _say = before
        del _answers[known:]


@contextmanager
def _interrupts_not_lost() -> Iterator[None]:
    """Raise KeyboardInterrupt again where Python drops it: in `__del__` and callbacks of weak references (imports)."""
    ended, former = threading.Event(), sys.unraisablehook

    def again() -> None:
        if not ended.is_set():
            main = ctypes.c_ulong(threading.main_thread().ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(KeyboardInterrupt))

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            former(unraisable)
            return
        timer = threading.Timer(_LATER, again)  # raised in here it would be dropped too
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        ended.set()
        sys.unraisablehook = former


@contextmanager
def answer_to_stop(answer: Answer) -> Iterator[None]:
    """Let a request to stop be answered by this while the body runs, where a command answers at all.

    Args:
        answer: called in another thread at the first request, so that it reads numbers and paths alone.
    """
    _answers.append(answer)
    is_over = True
    try:
        yield
    except KeyboardInterrupt:
        is_over = _say is None  # the thread that answers may look only after the interrupt has left the body
        raise
    finally:
        if is_over:
            _answers.remove(answer)


def _answer_request() -> None:
    say, answers = _say, list(_answers)
    if say is not None and answers:
        _call_apart(lambda: say(f"stopping: {answers[-1]()}"))


def _call_apart(act: Callable[[], object]) -> None:
    """Call in a thread of its own, and wait `HEED_SECONDS` at most.

    A terminal that is halted or a pipe that is full takes no line, and an answer may fail: neither must keep a second
    request from being heeded.
    """
    thread = threading.Thread(target=act, name="answer", daemon=True)
    thread.start()
    thread.join(HEED_SECONDS)


def end_process(sentence: str, code: int) -> NoReturn:
    """Print a sentence on stderr and end this process, whatever its main thread waits for; empty: print nothing.

    Where stderr takes nothing, the process ends without the sentence.
    """
    if sentence:
        show_cursor = "\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else ""
        _call_apart(lambda: print_line(f"{show_cursor}svdctl: {printable(sentence)}", sys.stderr))
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
        on_request: called in that thread at the first request, after `stops_answered` has answered it.
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
            before, count = count, _requests(numbers, count)
            if before == 0 < count:
                _answer_request()
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


def _requests(numbers: bytes, before: int) -> int:
    """Return how many requests to stop there are with these signals.

    A terminal that is closed sends a hang-up twice, through its shell too: it makes no second request.
    """
    count = before
    for number in numbers:
        count += number in REQUESTS and (count == 0 or number != _HANG_UP)
    return count


@contextmanager
def stop_on_signal(
    on_request: Callable[[], None] = lambda: None, at_once: Callable[[], None] = _end_interrupted
) -> Iterator[threading.Event]:
    """Yield an event that a request to stop sets; a second request, other than a hang-up, ends the process at once.

    A hang-up that is ignored, as under nohup, stays ignored.

    Args:
        on_request, at_once: as in `requests_noticed`.
    """
    event = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if event.is_set() and number != _HANG_UP:
            raise KeyboardInterrupt
        event.set()

    with requests_noticed(on_request, at_once), _handled(REQUESTS, handle):
        yield event


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and the first hang-up, for work that saves as it goes.

    Trainings have `stop_on_signal`. A hang-up that is ignored, as under nohup, stays ignored.
    """
    is_hung_up = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal is_hung_up
        was_hung_up, is_hung_up = is_hung_up, is_hung_up or number == _HANG_UP
        if not (was_hung_up and number == _HANG_UP):
            raise KeyboardInterrupt

    with _interrupts_not_lost(), _handled([number for number in REQUESTS if number != signal.SIGINT], interrupt):
        yield


@contextmanager
def _handled(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals meanwhile, but for a hang-up that is ignored.

    In another thread than the main one, where Python does not allow it, do nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = _HANG_UP is not None and signal.getsignal(_HANG_UP) == signal.SIG_IGN
    heeded = [number for number in numbers if number != _HANG_UP or not ignored]
    before = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
