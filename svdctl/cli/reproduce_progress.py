"""What a person sees of `svdctl reproduce`: a live table of runs on a terminal, plain lines elsewhere."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from svdctl.cli.progress_display import ProgressDisplay, duration
from svdctl.utils.escapes import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from svdctl.reproduce.plan import Plan
    from svdctl.reproduce.run_store import Job, Outcome


@dataclass(frozen=True)
class RowState:
    """One run as it is shown."""

    name: str
    state: str
    detail: str
    left: float | None
    """Seconds of training left."""


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
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, work: object) -> None:
        plan = cast("Plan", work)
        self._jobs = {job.id: job for job in plan.jobs()}
        # The clock that all processes share tells whose status is of now; it may be set back, so it measures nothing.
        self._began, self._since = time.time(), time.monotonic()
        titles = ", ".join(table.name for table in plan.tables)
        self.say(f"{titles}: {len(self._jobs)} runs, in {plan.request.out_dir}")
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
        if not self.live:
            took = duration(time.monotonic() - self._since)
            what = f"failed: {outcome.reason}" if outcome.state == "failed" else outcome.state
            name = self._jobs[outcome.id].config.name
            self.say(f"[{len(self._ended)}/{len(self._jobs)}] {name}: {what} (after {took}{self._all_left()})")

    def close(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        super().close()

    def _watch(self) -> None:
        while not self._stopped.wait(self.every):
            for row in self.states():
                if row.state not in ("waiting", "done", "failed"):
                    left = "" if row.left is None else f", {duration(row.left)} left"
                    self.say(f"{row.name}: {row.state} {row.detail}{left}")

    def _all_left(self) -> str:
        """Return the time for all that is left, at the pace so far."""
        done, rest = len(self._ended), len(self._jobs) - len(self._ended)
        seconds = (time.monotonic() - self._since) / max(1, done) * rest
        return f", about {duration(seconds)} left" if done and rest else ""

    def states(self) -> Iterator[RowState]:
        """Yield every run as it stands, other commands' work included."""
        for job in self._jobs.values():
            ended = self._ended.get(job.id)
            if ended is not None:
                yield RowState(job.config.name, ended.state, _figures(job, ended), None)
                continue
            status = job.store.read_status(job.key)
            if status.get("time", 0) < self._began or status.get("state") in ("done", "failed", "interrupted"):
                yield RowState(job.config.name, "waiting", "", None)
            else:
                left = status.get("seconds_left") if status["state"] == "training" else None
                yield RowState(job.config.name, status["state"], _detail(status), left)

    def table(self) -> "Table":
        """Return all runs as they stand."""
        from rich.table import Table
        from rich.text import Text

        took = duration(time.monotonic() - self._since)
        caption = f"{len(self._ended)} of {len(self._jobs)} done, {took} so far{self._all_left()}"
        table = Table(box=None, caption=caption, caption_justify="left", pad_edge=False)
        table.add_column("run", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("left", justify="right", no_wrap=True)
        styles = {"done": "green", "failed": "red", "waiting": "dim"}
        rows = list(self.states())
        # Header, caption and the line of what is folded stay on the screen too.
        shown = most_urgent(rows, self.console.size.height - 5)
        for row in shown:
            left = "" if row.left is None else duration(row.left)
            style = styles.get(row.state, "bold")
            name, state, detail = map(one_line, (row.name, row.state, row.detail))
            table.add_row(Text(name), Text(state, style=style), Text(detail), left)
        folded = Counter(row.state for row in rows) - Counter(row.state for row in shown)
        if folded:
            table.add_row(Text("and " + ", ".join(f"{count} more {state}" for state, count in folded.items()), "dim"))
        return table


def _detail(status: dict[str, Any]) -> str:
    if status["state"] == "evaluating":
        return str(status.get("detail", ""))
    forms = {"epoch": "epoch {epoch:.0f}/{epochs:.0f}", "loss": "loss {loss:.3f}", "val_acc": "held-out {val_acc:.1%}"}
    known = status.keys() if "epochs" in status else status.keys() - {"epoch"}
    return " ".join(form.format(**status) for name, form in forms.items() if name in known)


def _figures(job: "Job", outcome: "Outcome") -> str:
    from svdctl.reproduce.table_files import known_columns

    if outcome.reason is not None:
        return outcome.reason
    known = known_columns()
    shown = {column: value for column, value in outcome.values.items() if column != "train-hours"}
    marks = {column: f" ({kept})" for column, kept in outcome.kept.items() if kept}
    return "  ".join(
        f"{known[column].title(job.evaluate).removesuffix(', %')} {known[column].shown(v)}{marks.get(column, '')}"
        for column, v in shown.items()
    )


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
