"""Lines on a stream, and how far the work is: a bar below them on a terminal, else a line every ten seconds."""

import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TextIO

from svdctl.cli.messages import with_flags
from svdctl.utils.escapes import one_line
from svdctl.utils.printable import encodable, print_line
from svdctl.utils.progress import Reporter


class ProgressDisplay(Reporter):
    """What a command shows while it works, a line each, names in it escaped; notices go to stderr.

    Args:
        stream: where it is shown; a bar stays on stdout and goes from stderr.
        form: of the line where there is no bar, with `{work}`, `{amount}`, `{done}`, `{total}` and `{text}`.
        flags: flags by key, for notices.
        live: whether to draw a bar; None: on a terminal.
    """

    def __init__(
        self,
        stream: Literal["stdout", "stderr"],
        form: str = "",
        flags: Mapping[str, str] = MappingProxyType({}),
        *,
        live: bool | None = None,
    ) -> None:
        self._stream, self._form, self._flags = stream, form, flags
        shown_on: TextIO | None = getattr(sys, stream)
        self.live = shown_on is not None and shown_on.isatty() if live is None else live
        self._bar: Any = None
        self._work: object = ""
        self._last = time.monotonic()
        if self.live:
            from rich.console import Console

            self.console = Console(stderr=stream == "stderr", highlight=False)

    def say(self, text: str) -> None:
        if self.live:
            self.console.print(encodable(one_line(text), self.console.file), markup=False, soft_wrap=True)
        else:
            print_line(one_line(text), getattr(sys, self._stream))

    def notice(self, text: str) -> None:
        text = f"note: {with_flags(text, self._flags)}"
        if self._stream == "stderr":
            self.say(text)
        else:
            print_line(one_line(text), sys.stderr)

    def begin(self, work: object) -> None:
        self.close()
        self._work, self._last = work, time.monotonic()
        if self.live:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            bar = BarColumn(bar_width=16), TextColumn("{task.fields[amount]} {task.fields[text]}", markup=False)
            columns = (TextColumn(f"  {work}"), *bar, TimeElapsedColumn()) if "{work" in self._form else bar
            self._bar = progress = Progress(*columns, console=self.console, transient=self._stream == "stderr")
            progress.start()
            self._task = progress.add_task("", total=None, amount="", text="")

    def advance(self, done: int, total: int, now: str | Mapping[str, float]) -> None:
        text = now if isinstance(now, str) else describe(now)
        shown = {"amount": amount(done, total), "text": one_line(text)}
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, **shown)
        elif time.monotonic() - self._last >= 10:
            self._last = time.monotonic()
            self.say(self._form.format(done=done, total=total, work=self._work, **shown))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def amount(done: int, total: int) -> str:
    """Return `3/19`, or megabytes when these are bytes."""
    return f"{done:,}/{total:,}" if total < 10**7 else f"{done / 1e6:,.0f}/{total / 1e6:,.0f} MB"


def describe(metrics: Mapping[str, float]) -> str:
    """Return epoch, loss, accuracy, speed and time left in one short line."""
    penalty = f" penalty {metrics['orthogonal_loss']:.3g}" if metrics.get("orthogonal_loss") else ""
    return (
        f"epoch {metrics['epoch']:.0f}/{metrics['epochs']:.0f} loss {metrics['loss']:.4f}{penalty} "
        f"acc {metrics['acc']:.1%} {metrics['images_per_second']:.0f} images/s {duration(metrics['seconds_left'])} left"
    )


def duration(seconds: float) -> str:
    """Return seconds as `1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
