"""What a person sees of `svdctl reproduce`: a live table of runs on a terminal, plain lines elsewhere."""

import statistics
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from svdctl.cli.progress_display import ProgressDisplay
from svdctl.errors import SvdctlError
from svdctl.utils.duration import duration
from svdctl.utils.escapes import one_line
from svdctl.utils.printable import columns_of, encodable
from svdctl.utils.table import Cell, Column, Table, terminal

if TYPE_CHECKING:
    from rich.text import Text

    from svdctl.reproduce.plan import Plan
    from svdctl.reproduce.run_store import Job, Outcome

IDLE = ("waiting", "done", "failed", "stopped")
"""States of runs that are not at work."""
WIDEST = len("evaluating")
"""Letters of the longest state."""
STYLES = {"done": "green", "failed": "red", "waiting": "dim"}
"""Of rows, by state; those at work are bold."""


@dataclass(frozen=True)
class RowState:
    """One run as it is shown."""

    name: str
    state: str
    detail: str
    left: float | None
    """Seconds left of the training, or of what is measured."""


class SweepDisplay(ProgressDisplay):
    """What is shown of `svdctl reproduce`, on stdout.

    On a terminal a table of all runs, drawn anew twice a second; else a line when a run changes its state, and every
    half minute for those that go on.
    """

    every = 30.0

    def __init__(self, *, live: bool | None = None) -> None:
        super().__init__("stdout", live=live)
        self._jobs: dict[str, Job] = {}
        self._ended: dict[str, Outcome] = {}
        self._noted: set[str] = set()
        self._began, self._since = time.time(), time.monotonic()
        self._sweep = SweepPace(1)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, work: object) -> None:
        plan = cast("Plan", work)
        self._jobs = {job.id: job for job in plan.jobs()}
        # The clock that all processes share tells whose status is of now; it may be set back, so it measures nothing.
        self._began, self._since = time.time(), time.monotonic()
        self._sweep = SweepPace(plan.request.jobs)
        if self.live:
            from rich.live import Live

            self._bar = Live(
                get_renderable=self.table, console=self.console, refresh_per_second=2, vertical_overflow="ellipsis"
            )
            self._bar.start()
        else:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def notice(self, text: str) -> None:
        """Show a sentence, once; why a run is not used is read again and again."""
        if text not in self._noted:
            self._noted.add(text)
            super().notice(text)

    def finish(self, result: object) -> None:
        outcome = cast("Outcome", result)
        self._ended[outcome.id] = outcome
        self._sweep.ended(is_work=outcome.state == "done" and not outcome.is_reused)
        if not self.live:
            took = duration(time.monotonic() - self._since)
            what = f"failed: {outcome.reason}" if outcome.state == "failed" else outcome.state
            name = self._jobs[outcome.id].config.name
            left = self._all_left(list(self.states()))
            self.say(f"[{len(self._ended)}/{len(self._jobs)}] {name}: {what} (after {took}{left})")

    def close(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        super().close()

    def _watch(self) -> None:
        while not self._stopped.wait(self.every):
            for row in self.states():
                if row.state not in IDLE:
                    left = "" if row.left is None else f", {duration(row.left)} left"
                    self.say(f"{row.name}: {row.state} {row.detail}{left}")

    def states(self) -> Iterator[RowState]:
        """Yield every run as it stands, other commands' work included."""
        for job in self._jobs.values():
            ended = self._ended.get(job.id)
            if ended is not None:
                yield RowState(job.config.name, ended.state, _figures(job, ended), None)
                continue
            status = job.store.read_status(job.key)
            if status.get("time", 0) < self._began or status["state"] in ("done", "failed"):
                yield RowState(job.config.name, "waiting", "", None)
            elif status["state"] == "interrupted" or (self._stopped.is_set() and _is_free(job)):
                # One that was killed before it could write so is worked on by nobody.
                yield RowState(job.config.name, "stopped", _detail(status), None)
            else:
                yield RowState(job.config.name, status["state"], _detail(status), status.get("seconds_left"))

    def table(self) -> "Text":
        """Return all runs as they stand, as many as the screen has room for."""
        from rich.text import Text

        size = self.console.size
        rows = list(self.states())
        text = Text(no_wrap=True, overflow="crop")
        for line, style in board_lines(rows, size.width, size.height - 1, self._caption(rows)):
            text.append(f"{encodable(line, self.console.file)}\n", style)
        text.right_crop()
        return text

    def _caption(self, rows: Sequence[RowState]) -> str:
        """Return how far all of it is."""
        failed = sum(outcome.state == "failed" for outcome in self._ended.values())
        reused = sum(outcome.is_reused for outcome in self._ended.values())
        some = [f"{count} {what}" for count, what in ((failed, "failed"), (reused, "reused")) if count]
        ended = f"{len(self._ended)} of {len(self._jobs)} done" + (f" ({', '.join(some)})" if some else "")
        return f"{ended}, {duration(time.monotonic() - self._since)} so far{self._all_left(rows)}"

    def _all_left(self, rows: Sequence[RowState]) -> str:
        seconds = self._sweep.left(rows)
        return "" if seconds is None else f", about {duration(seconds)} left"


class SweepPace:
    """How long runs take, by those that this call has worked on: a reused one takes no time, and tells nothing.

    Args:
        slots: runs at a time.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._ends = [time.monotonic()] * slots
        """When the work began, once for each slot, then when each run ended."""
        self._lengths: list[float] = []
        """Seconds of runs that were worked on."""

    def ended(self, *, is_work: bool) -> None:
        """Note that a run has ended: trained or measured here, or reused or failed."""
        now = time.monotonic()
        if is_work:
            # Runs end about in the order in which they begin: it has had the slot of the run that ended so many before.
            self._lengths.append(now - self._ends[-self._slots])
        self._ends.append(now)

    def left(self, rows: Sequence[RowState]) -> float | None:
        """Return the seconds for all that is left; None: not known, or nothing is left."""
        rest = [row for row in rows if row.state not in ("done", "failed")]
        since = time.monotonic() - self._ends[-1]
        if rest and self._lengths:
            each = statistics.fmean(self._lengths) / self._slots
            return max(each * len(rest) - since, each * max(len(rest) - self._slots, 0))
        if lefts := [row.left for row in rest if row.left is not None]:
            # The first ones are at work yet; what they take besides what they do now is not known.
            return max(lefts) + (since + max(lefts)) * (len(rest) - len(lefts)) / len(lefts)
        return None


def board_lines(rows: Sequence[RowState], width: int, height: int, caption: str) -> list[tuple[str, str]]:
    """Return the lines of the table of runs with their styles, none wider than a terminal, and no more than it has.

    Args:
        rows: all runs.
        width, height: columns and lines that there are.
        caption: a sentence below it.
    """
    captions = textwrap.wrap(caption, width)
    # Header, caption, the beginning of all names with a blank line, and the line of what is folded stay on the screen.
    shown = most_urgent(rows, height - 4 - len(captions))
    # As wide as the longest state, so that columns stay where they are.
    columns = [Column("run", "run", "left", elastic=True), Column("state", f"{'state':<{WIDEST}}", "left")]
    cells = [[Cell(row.name), Cell(row.state)] for row in shown]
    lines = terminal(Table(columns, cells), width=max(width // 2, 20), rule=False, single=True).split("\n")
    head, body = lines[: -len(shown)], lines[-len(shown) :]
    edge = columns_of(head[-1]) - len("state") + WIDEST
    found = [(line, "bold" if line == head[-1] else "") for line in head]
    for line, row in zip(body, shown, strict=True):
        left = "" if row.left is None else f"{duration(row.left)} left"
        text = "  ".join(filter(None, [left, one_line(row.detail)]))
        whole = f"{line}{' ' * (edge - columns_of(line))}  {text}" if text else line
        found.append((_cut(whole, width), STYLES.get(row.state, "bold")))
    if folded := Counter(row.state for row in rows) - Counter(row.state for row in shown):
        found.append(("and " + ", ".join(f"{count} more {state}" for state, count in folded.items()), "dim"))
    return [*found, *((line, "") for line in captions)]


def _cut(line: str, width: int) -> str:
    """Return a line without its end where it is wider than a terminal."""
    if columns_of(line) <= width:
        return line
    while columns_of(line) >= width:
        line = line[:-1]
    return f"{line}…"


def _is_free(job: "Job") -> bool:
    """Return whether it is known that no process works on a run."""
    try:
        return job.store.is_free(job.key)
    except (OSError, SvdctlError):
        return False


def _detail(status: dict[str, Any]) -> str:
    # A stopped run has both: a detail only once it was trained.
    if status["state"] == "evaluating" or (status["state"] == "interrupted" and "detail" in status):
        return "  ".join(str(status[name]) for name in ("detail", "part") if name in status)
    forms = {"epoch": "epoch {epoch:.0f}/{epochs:.0f}", "loss": "loss {loss:.3f}", "val_acc": "held-out {val_acc:.1%}"}
    known = status.keys() if "epochs" in status else status.keys() - {"epoch"}
    figures = " ".join(form.format(**status) for name, form in forms.items() if name in known)
    return "  ".join(filter(None, [figures, status.get("part")]))


def _figures(job: "Job", outcome: "Outcome") -> str:
    from svdctl.reproduce.table_files import known_columns

    if outcome.reason is not None:
        return outcome.reason
    known = known_columns()
    shown = {name: outcome.values[name] for name in known if name in outcome.values and name != "train-hours"}
    marks = {} if outcome.is_reused else {column: f" ({kept})" for column, kept in outcome.kept.items() if kept}
    figures = [f"{column} {known[column].shown(value)}{marks.get(column, '')}" for column, value in shown.items()]
    return "  ".join(["reused"] * outcome.is_reused + figures)


def most_urgent(rows: Sequence[RowState], room: int) -> list[RowState]:
    """Return as many rows as there is room for, in order: those at work, failures, what is next, what ended last."""
    waiting = [place for place, row in enumerate(rows) if row.state == "waiting"]

    def urgency(place: int) -> tuple[int, int]:
        match rows[place].state:
            case "failed":
                return 1, place
            case "waiting":
                return (2 if place in waiting[:2] else 4), place
            case "done":
                return 3, -place
        return 0, place

    kept = sorted(range(len(rows)), key=urgency)[: max(room, 1)]
    return [rows[place] for place in sorted(kept)]
