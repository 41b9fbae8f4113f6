"""What a person sees of an evaluation: progress on stderr, the comparison on stdout."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdctl.cli.evaluation_flags import EVALUATION
from svdctl.cli.messages import explain, with_flags
from svdctl.cli.options import flags_by_key
from svdctl.utils.printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from svdctl.evaluate.evaluation_outcome import Failure
    from svdctl.evaluate.runner import EvaluationResult


def choose_reporter(*, debug: bool = False) -> "PlainEvaluationReporter":
    """The reporter that suits stderr."""
    return LiveEvaluationReporter(debug=debug) if sys.stderr.isatty() else PlainEvaluationReporter(debug=debug)


class PlainEvaluationReporter:
    """Lines without escape codes on stderr; a line of progress every ten seconds."""

    def __init__(self, *, debug: bool = False) -> None:
        self._debug = debug
        self._last = time.monotonic()
        self._metric = ""
        self._alone = False

    def checkpoints(self, names: Sequence[str], metrics: Sequence[str]) -> None:
        plural = "s" * (len(names) != 1)
        self._alone = len(names) == 1
        self._say(f"{len(names)} checkpoint{plural}: {', '.join(metrics)}")

    def checkpoint(self, name: str, results: Path) -> None:
        self._say(f"{name}  ->  {results}")

    def metric(self, metric: str) -> None:
        self._metric, self._last = metric, time.monotonic()

    def progress(self, done: int, total: int, text: str) -> None:
        if time.monotonic() - self._last >= 10:
            self._last = time.monotonic()
            self._say(f"  {self._metric:<12} {amount(done, total)}  {text}")

    def measured(self, metric: str, text: str, *, kept: str) -> None:
        self._say(f"  {metric:<12} {text}{f'  ({kept})' if kept else ''}")

    def notice(self, text: str) -> None:
        self._say(f"note: {with_flags(text, flags_by_key(EVALUATION))}")

    def failed(self, failure: "Failure") -> None:
        if self._debug:
            import traceback

            traceback.print_exception(failure.error)
        if failure.metric is not None or not self._alone:
            # Of a lone checkpoint it is the last line anyway.
            self._say(f"FAILED {failure_line(failure)}")

    def close(self) -> None:
        """Give the terminal back; may be called twice."""

    def _say(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)


class LiveEvaluationReporter(PlainEvaluationReporter):
    """The same lines, with a bar for the metric that is being measured below them."""

    def __init__(self, *, debug: bool = False) -> None:
        from rich.console import Console

        super().__init__(debug=debug)
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None

    def metric(self, metric: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        super().metric(metric)
        self.close()
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[amount]}  {task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(metric, total=None, amount="", text="")

    def progress(self, done: int, total: int, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, amount=amount(done, total), text=printable(text))

    def measured(self, metric: str, text: str, *, kept: str) -> None:
        self.close()
        super().measured(metric, text, kept=kept)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, soft_wrap=True)


def amount(done: int, total: int) -> str:
    """`3/19`, or megabytes when these are bytes."""
    return f"{done:,}/{total:,}" if total < 10**7 else f"{done / 1e6:,.0f}/{total / 1e6:,.0f} MB"


def failure_line(failure: "Failure") -> str:
    """Where, which metric, and why in a sentence."""
    sentences = reasons(failure)
    where = f"{failure.where}, {failure.metric}" if failure.metric else failure.where
    return f"{where}: {'; '.join(sentences)}"


def reasons(failure: "Failure") -> list[str]:
    """Return why something could not be measured, with flags for keys."""
    return [with_flags(sentence, flags_by_key(EVALUATION)) for sentence in explain(failure.error)[0]]


def result_table(result: "EvaluationResult") -> str:
    """Return checkpoints down, metrics across; below, what must be known besides, and files."""
    from svdctl.evaluate.metric import METRICS
    from svdctl.evaluate.report import comparison
    from svdctl.utils.table import terminal

    measured = [evaluation for evaluation in result.evaluations if evaluation.records]
    lines = ["", terminal(comparison(measured), rule=False)]
    notes = [
        f"{evaluation.found.name}, {metric}: {text}"
        for evaluation in measured
        for metric, record in evaluation.records.items()
        for text in METRICS.get(metric).remarks(record)
    ]
    lines += ["", *notes] if notes else []
    lines += ["", "files", *(f"  {evaluation.found.results}/" for evaluation in measured)]
    if result.report is not None:
        lines.append(f"  {result.report}")
    return printable(with_flags("\n".join(lines), flags_by_key(EVALUATION)))


def result_json(result: "EvaluationResult") -> str:
    """Every figure with its protocol, as in the files."""
    contents: dict[str, Any] = {
        "checkpoints": [
            {
                "name": evaluation.found.name,
                "path": str(evaluation.found.path),
                "weights": evaluation.model.weights,
                "data": evaluation.data,
                "results": str(evaluation.found.results),
                "metrics": {
                    # `kept`: empty, measured by this call; else `kept`, or `kept, no checksum`.
                    metric: {**record.model_dump(mode="json"), "kept": record.kept, "other_data": record.other_data}
                    for metric, record in evaluation.records.items()
                },
                "same_images": None if evaluation.order is None else evaluation.order.figures,
                "files": [str(file) for file in evaluation.files],
            }
            for evaluation in result.evaluations
        ],
        "failures": [
            {"where": failure.where, "metric": failure.metric, "reason": "; ".join(reasons(failure))}
            for failure in result.failures
        ],
        "report": None if result.report is None else str(result.report),
    }
    return json.dumps(contents, indent=2, allow_nan=False)
