"""What a person sees of an evaluation: progress on stderr, the comparison on stdout."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdctl.cli.evaluation_flags import EVALUATION
from svdctl.cli.messages import explain, with_flags
from svdctl.cli.options import flags_by_key
from svdctl.cli.progress_display import ProgressDisplay
from svdctl.utils.printable import printable

if TYPE_CHECKING:
    from svdctl.evaluate.evaluation_outcome import Failure
    from svdctl.evaluate.runner import EvaluationResult


class EvaluationDisplay:
    """The reporter of an evaluation, on stderr.

    Args:
        debug: whether to show tracebacks of what could not be measured.
        live: whether to draw a bar; None: on a terminal.
    """

    def __init__(self, *, debug: bool = False, live: bool | None = None) -> None:
        self._debug = debug
        self._metric = ""
        self._alone = False
        self.display = ProgressDisplay("stderr", live=live)

    def checkpoints(self, names: Sequence[str], metrics: Sequence[str]) -> None:
        plural = "s" * (len(names) != 1)
        self._alone = len(names) == 1
        self.display.say(f"{len(names)} checkpoint{plural}: {', '.join(metrics)}")

    def checkpoint(self, name: str, results: Path) -> None:
        self.display.say(f"{name}  ->  {results}")

    def metric(self, metric: str) -> None:
        self._metric = metric
        self.display.start(f"  {metric}", clock=True)

    def progress(self, done: int, total: int, text: str) -> None:
        self.display.advance(done, total, text, f"  {self._metric:<12} {{amount}}  {{text}}")

    def measured(self, metric: str, text: str, *, kept: str) -> None:
        self.display.close()
        self.display.say(f"  {metric:<12} {text}{f'  ({kept})' if kept else ''}")

    def notice(self, text: str) -> None:
        self.display.say(f"note: {with_flags(text, flags_by_key(EVALUATION))}")

    def failed(self, failure: "Failure") -> None:
        if self._debug:
            import traceback

            traceback.print_exception(failure.error)
        if failure.metric is not None or not self._alone:
            # Of a lone checkpoint it is the last line anyway.
            self.display.say(f"FAILED {failure_line(failure)}")

    def close(self) -> None:
        """Give the terminal back; may be called twice."""
        self.display.close()


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
    """Return every figure with its protocol, as in the files."""
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
