"""Lines on a stream, and how far the work is: a bar below them on a terminal, else a line every ten seconds."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal, TextIO

from svdctl.cli.messages import with_flags
from svdctl.utils.duration import duration
from svdctl.utils.escapes import one_line
from svdctl.utils.printable import encodable, hanging, print_line
from svdctl.utils.progress import Advance, Pace, Reporter
from svdctl.utils.table import width_of


class ProgressDisplay(Reporter):
    """What a command shows while it works, a line each, names in it escaped; notices go to stderr.

    Args:
        stream: where it is shown; a bar goes when its work ends.
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
        self._last, self._pace = time.monotonic(), Pace()
        # Of lines and the end of a bar: as the bar is wiped off the screen, a line of another thread would be instead.
        self._lines = threading.RLock()
        if self.live:
            from rich.console import Console

            self.console = Console(stderr=stream == "stderr", highlight=False)

    def say(self, text: str, style: str = "") -> None:
        """Show a line; `style`: of rich, for a terminal of colours."""
        with self._lines:
            if self.live:
                shown = encodable(one_line(text), self.console.file)
                self.console.print(shown, style=style or None, markup=False, soft_wrap=True)
            else:
                print_line(one_line(text), getattr(sys, self._stream))

    def notice(self, text: str) -> None:
        text = one_line(f"note: {with_flags(text, self._flags)}")
        with self._lines:
            for line in hanging(text, width_of(sys.stderr), 6):
                if self._stream == "stderr":
                    self.say(line)
                else:
                    print_line(line, sys.stderr)

    def answer(self, text: str, command: str) -> None:
        """Show what is said to a request to stop, and the command that goes on, whole, so that it can be copied."""
        with self._lines:
            self.notice(f"{text}:")
            if self.live:
                self.console.print(encodable(f"  {command}", self.console.file), markup=False, soft_wrap=True)
            else:
                print_line(f"  {command}", sys.stderr)

    def begin(self, work: object) -> None:
        self.close()
        self._work, self._last, self._pace = work, time.monotonic(), Pace()
        if self.live:
            label = str(work) if "{work" in self._form else ""
            self._bar = _new_bar(self.console)
            self._task = self._bar.add_task(label, total=None, shown="")

    def advance(self, done: int, total: int, now: str | Mapping[str, float]) -> None:
        if not isinstance(now, str):
            room = self.console.width - _BAR - _ELAPSED - len(amount(done, total)) - 6 if self.live else None
            text = describe(now, room)
        elif (left := self._pace.left(done, total)) is not None:
            rest = f"{duration(left)} left"
            # Behind a bar the end is cut where the terminal has no room for it.
            text = ", ".join(filter(None, [rest, now] if self.live else [now, rest]))
        else:
            text = now
        text = one_line(text)
        if (bar := self._bar) is not None:  # another thread may close it meanwhile
            bar.update(self._task, completed=done, total=total, shown=f"{amount(done, total)} {text}")
        elif time.monotonic() - self._last >= 10:
            self._last = time.monotonic()
            self.say(self._form.format(done=done, total=total, work=self._work, text=text, amount=amount(done, total)))

    @contextmanager
    def part(self, work: str) -> Iterator[Advance]:
        pace, label, last = Pace(), one_line(work), time.monotonic()
        bar = self._part_bar() if self.live else None
        # One line at a time: side by side in columns, labels and texts of several would be cut.
        outer = [] if bar is None else [other for other in bar.tasks if other.visible]
        if bar is not None:
            for other in outer:
                bar.update(other.id, visible=False)
            task = bar.add_task(label, total=None, shown="")

        def advance(done: int, total: int, now: str) -> None:
            nonlocal last
            left = pace.left(done, total)
            rest = "" if left is None else f"{duration(left)} left"
            shown = one_line("  ".join(filter(None, [amount(done, total), now, rest])))
            if bar is not None:
                bar.update(task, completed=done, total=total, shown=shown)
            elif not self.live and time.monotonic() - last >= 10:
                last = time.monotonic()
                self.say(f"{label}  {shown}")

        try:
            yield advance
        finally:
            if bar is not None:
                bar.remove_task(task)
                there = set(bar.task_ids)  # parts of other threads may have ended meanwhile
                for other in outer:
                    if other.id in there:
                        bar.update(other.id, visible=True)
                if bar is self._bar and not bar.tasks:  # it was made for this part
                    self.close()

    def _part_bar(self) -> Any:
        """Return the bars that a part is shown among: those on the screen, else new ones; None among what is no bar."""
        if self._bar is None:
            self._bar = _new_bar(self.console)
        return self._bar if hasattr(self._bar, "add_task") else None

    def close(self) -> None:
        with self._lines:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None


_BAR = 16
"""Columns of a terminal that a bar takes."""
_ELAPSED = 8
"""Columns that the time since it began takes, with the space beside it: `0:47`, `1:02:05`."""


def _new_bar(console: Any) -> Any:
    """Return started bars of rich, to which tasks are added; their field `shown` is the text behind the bar."""
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    # rich's own columns stand still once all is counted, though the work may go on for a while.
    class Turning(SpinnerColumn):
        def render(self, task: Task) -> Any:
            return self.spinner.render(task.get_time())

    class Elapsed(ProgressColumn):
        def render(self, task: Task) -> Text:
            since = task.get_time() if task.start_time is None else task.start_time
            return Text(duration(task.get_time() - since))

    columns = (
        Turning("line"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=_BAR),
        Elapsed(),
        # What there is no room for is cut here, and bar and time stay.
        TextColumn("{task.fields[shown]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
    )
    progress = Progress(*columns, console=console, transient=True, expand=True)
    progress.start()
    return progress


def amount(done: int, total: int) -> str:
    """Return `3/19`, or megabytes when these are bytes."""
    return f"{done:,}/{total:,}" if total < 10**7 else f"{done / 1e6:,.0f}/{total / 1e6:,.0f} MB"


def describe(metrics: Mapping[str, float], room: int | None = None) -> str:
    """Return epoch, loss, accuracy, speed and time left in a short line, the most needed of them in `room` columns."""
    penalty = f"penalty {metrics['orthogonal_loss']:.3g}" if metrics.get("orthogonal_loss") else ""
    parts = [
        (f"epoch {metrics['epoch']:.0f}/{metrics['epochs']:.0f}", 1),
        (f"loss {metrics['loss']:.4f}", 3),
        (penalty, 5),
        (f"acc {metrics['acc']:.1%}", 2),
        (f"{metrics['images_per_second']:.0f} images/s", 4),
        (f"{duration(metrics['seconds_left'])} left", 0),
    ]
    return fitting(parts, room, " ")


def fitting(parts: Sequence[tuple[str, int]], room: int | None, between: str) -> str:
    """Return texts side by side, without those that there is no room for.

    Args:
        parts: each with its rank: those of the highest go first, those of 0 stay; empty ones are left out.
        room: columns; None: all stay.
        between: what stands between two of them.
    """
    kept = [part for part in parts if part[0]]
    while room is not None and len(between.join(text for text, _ in kept)) > room:
        least = max(kept, key=lambda part: part[1])
        if least[1] == 0:
            break
        kept.remove(least)
    return between.join(text for text, _ in kept)
