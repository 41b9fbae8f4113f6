"""What a person sees of an evaluation: progress on stderr, the comparison on stdout."""

import json
import traceback
from typing import TYPE_CHECKING, Any

from svdctl.cli.evaluation_flags import EVALUATION
from svdctl.cli.messages import explain, with_flags
from svdctl.cli.options import flags_by_key
from svdctl.cli.progress_display import ProgressDisplay
from svdctl.utils.escapes import one_line
from svdctl.utils.printable import printable

if TYPE_CHECKING:
    from svdctl.evaluate.measure_checkpoint import Failure
    from svdctl.evaluate.runner import EvaluationResult


class EvaluationDisplay(ProgressDisplay):
    """What is shown of an evaluation, on stderr.

    Args:
        debug: whether to show tracebacks of what could not be measured.
        live: whether to draw a bar; None: on a terminal.
    """

    def __init__(self, *, debug: bool = False, live: bool | None = None) -> None:
        super().__init__("stderr", "  {work:<12} {amount}  {text}", flags_by_key(EVALUATION), live=live)
        self._debug = debug

    def finish(self, result: object) -> None:
        from svdctl.evaluate.measure_checkpoint import Failure, FinishedMetric

        if isinstance(result, FinishedMetric):
            self.close()
            self.say(f"  {result.metric:<12} {result.text}{f'  ({result.kept})' if result.kept else ''}")
        elif isinstance(result, Failure):
            if self._debug:
                traceback.print_exception(result.error)
            self.say(f"FAILED {failure_line(result)}")


def failure_line(failure: "Failure") -> str:
    """Return where, which metric, and why in a sentence."""
    return f"{one_line(failure.place)}: {'; '.join(reasons(failure))}"


def reasons(failure: "Failure") -> list[str]:
    """Return why something could not be measured, with flags for keys."""
    return [with_flags(sentence, flags_by_key(EVALUATION)) for sentence in explain(failure.error)[0]]


def result_table(result: "EvaluationResult") -> str:
    """Return checkpoints down, metrics across; below, what must be known besides, and files."""
    from svdctl.registry import METRICS
    from svdctl.utils.table import terminal

    measured = [evaluation for evaluation in result.evaluations if evaluation.records]
    lines = ["", terminal(result.table(), rule=False)]
    notes = [
        f"{one_line(evaluation.found.name)}, {metric}: {one_line(text)}"
        for evaluation in measured
        for metric, record in evaluation.records.items()
        for text in METRICS.get(metric).remarks(record)
    ]
    lines += ["", *notes] if notes else []
    lines += ["", "files", *(f"  {one_line(evaluation.found.results)}/" for evaluation in measured)]
    if result.report is not None:
        lines += [f"  {one_line(result.report)}", f"  {one_line(result.report.with_suffix('.html'))}"]
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
