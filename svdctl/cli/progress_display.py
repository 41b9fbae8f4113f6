"""Lines on a stream, and how far the work is: a bar below them on a terminal, else a line every ten seconds."""

import sys
import time
from typing import TYPE_CHECKING, Literal

from svdctl.utils.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress


class ProgressDisplay:
    """What a command shows while it works.

    Args:
        stream: where it is shown.
        live: whether to draw a bar; None: on a terminal.
    """

    def __init__(self, stream: Literal["stdout", "stderr"], *, live: bool | None = None) -> None:
        self._stream = stream
        self.live = getattr(sys, stream).isatty() if live is None else live
        self._bar: Progress | None = None
        self._last = time.monotonic()
        if self.live:
            from rich.console import Console

            self.console = Console(stderr=stream == "stderr", highlight=False)

    def say(self, text: str) -> None:
        """Show a text on lines of its own."""
        if self.live:
            self.console.print(printable(text), markup=False, soft_wrap=True)
        else:
            print(printable(text), file=getattr(sys, self._stream), flush=True)

    def start(self, name: str = "", *, transient: bool = True, clock: bool = False) -> None:
        """Begin a piece of work.

        Args:
            name: what stands before the bar.
            transient: whether the bar goes when the work ends.
            clock: whether the time so far is shown.
        """
        self.close()
        self._last = time.monotonic()
        if self.live:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            texts = [TextColumn(name)] * bool(name), [TimeElapsedColumn()] * clock
            text = TextColumn("{task.fields[amount]} {task.fields[text]}", markup=False)
            columns = (*texts[0], BarColumn(bar_width=16), text, *texts[1])
            self._bar = Progress(*columns, console=self.console, transient=transient)
            self._bar.start()
            self._task = self._bar.add_task("", total=None, amount="", text="")

    def advance(self, done: int, total: int, text: str, line: str = "{amount}  {text}") -> None:
        """Show how far the work is.

        Args:
            done, total: pieces.
            text: what is at work.
            line: form of the line where there is no bar, with `{amount}` or `{done}` and `{total}`, and `{text}`.
        """
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, amount=amount(done, total), text=printable(text))
        elif time.monotonic() - self._last >= 10:
            self._last = time.monotonic()
            self.say(line.format(done=done, total=total, amount=amount(done, total), text=text))

    def close(self) -> None:
        """Give the terminal back; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def amount(done: int, total: int) -> str:
    """Return `3/19`, or megabytes when these are bytes."""
    return f"{done:,}/{total:,}" if total < 10**7 else f"{done / 1e6:,.0f}/{total / 1e6:,.0f} MB"
