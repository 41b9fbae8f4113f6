"""What a person sees of an evaluation: progress on stderr, the comparison on stdout."""

import json
import textwrap
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from svdctl.cli.evaluation_flags import EVALUATION
from svdctl.cli.messages import explain, with_flags
from svdctl.cli.options import flags_by_key
from svdctl.cli.progress_display import ProgressDisplay
from svdctl.utils.escapes import one_line
from svdctl.utils.printable import columns_of, hanging, printable

if TYPE_CHECKING:
    from svdctl.evaluate.measure_checkpoint import Evaluation, Failure
    from svdctl.evaluate.runner import EvaluationResult
    from svdctl.utils.table import Table


_NAME = 24
"""Columns of a terminal that the name of a checkpoint needs at most."""


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
            text = f"  {result.metric:<12} {result.text}{f'  ({result.kept})' if result.kept else ''}"
            for line in hanging(one_line(text), self.console.width if self.live else None, 15):
                self.say(line)
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


def result_table(result: "EvaluationResult", width: int | None = None) -> str:
    """Return checkpoints down, metrics across; below, what must be known besides, and files.

    Args:
        result: of a call.
        width: columns of the terminal, on which one or two checkpoints stand across and figures down; a wider table
            goes on below, with the checkpoints again. None: any.
    """
    measured = [evaluation for evaluation in result.evaluations if evaluation.records]
    lines: list[str] = []
    for table in result.tables():
        lines += ["", *_in_parts(table, width)]
    notes = _remarks(measured)
    lines += ["", *(_filled(note, width) for note in notes)] if notes else []
    lines += ["", "files", *(f"  {one_line(evaluation.found.results)}/" for evaluation in measured)]
    if result.report is not None:
        from svdctl.evaluate.report_markdown import COMPARISON  # imports torch

        picture = result.report.with_name(COMPARISON)
        files = [result.report, result.report.with_suffix(".html"), *[picture] * picture.is_file()]
        lines += [f"  {one_line(file)}" for file in files]
    return printable(with_flags("\n".join(lines), flags_by_key(EVALUATION)))


def _in_parts(table: "Table", width: int | None) -> list[str]:
    """Return the lines of a table, columns that have no room below the others, each part with the first column."""
    from svdctl.utils.table import terminal

    def part(places: Sequence[int], width: int | None) -> str:
        columns = [table.columns[place] for place in (0, *places)]
        cells = [[row[place] for place in (0, *places)] for row in table.rows]
        return terminal(replace(table, columns=columns, rows=cells, title="", notes=()), width=width, rule=False)

    marks = {cell.mark for row in table.rows for cell in row[1:] if not cell.is_empty}
    said = []
    if width is not None and len(marks) == 1 and marks != {""}:  # once in place of behind every figure
        said = ["", f"all figures: {next(iter(marks))}"]
        table = replace(table, rows=[[replace(cell, mark="") for cell in row] for row in table.rows])
    title = [one_line(table.title)] if table.title else []
    numbered = [_filled(f"[{number}] {one_line(note)}", width) for number, note in enumerate(table.notes, 1)]
    after = [*said, *([""] if numbered else []), *numbered]
    if width is not None and len(table.rows) < 3:
        return [*title, *_figures_down(table, width), *after]
    names = max(columns_of(row[0].text) for row in table.rows)
    parts: list[list[int]] = [[]]
    for place in range(1, len(table.columns)):
        needed = max(map(columns_of, part([*parts[-1], place], None).splitlines())) - max(names - _NAME, 0)
        if parts[-1] and width is not None and needed > width:
            parts.append([])
        parts[-1].append(place)
    shown = [line for places in parts for line in (*part(places, width).splitlines(), "")]
    return [*title, *shown[:-1], *after]


def _figures_down(table: "Table", width: int) -> list[str]:
    """Return a line for each figure, the checkpoints side by side; names that have no room there stand above."""
    from svdctl.utils.table import Cell, Column, Table, terminal

    def lines(names: Sequence[str]) -> list[str]:
        columns = [Column("figure", "", "left"), *(Column(name, name) for name in names)]
        rows = [
            [Cell(column.header or ""), *(row[place] for row in table.rows)]
            for place, column in enumerate(table.columns)
        ]
        return terminal(Table(columns, rows[1:]), rule=False).splitlines()

    names = [row[0].text for row in table.rows]
    found = lines(names)
    if max(map(columns_of, found)) <= width:
        return found
    if len(names) == 1:
        return [_filled(one_line(names[0]), width), *lines([""])[1:]]
    short = [f"checkpoint {number}" for number in range(1, len(names) + 1)]
    above = (f"{number}: {one_line(name)}" for number, name in zip(short, names, strict=True))
    return [*(_filled(line, width) for line in above), "", *lines(short)]


def _remarks(measured: "Sequence[Evaluation]") -> list[str]:
    """Return what must be known of figures, once where it is the same for all checkpoints that have them."""
    from svdctl.registry import METRICS

    names: dict[tuple[str, str], list[str]] = {}
    for evaluation in measured:
        for metric, record in evaluation.records.items():
            for text in METRICS.get(metric).remarks(record):
                names.setdefault((metric, one_line(text)), []).append(one_line(evaluation.found.name))
    count = {metric: sum(metric in evaluation.records for evaluation in measured) for metric, _ in names}
    return [
        f"{metric}: {text}"
        if len(found) == count[metric] and (count[metric] > 1 or len(measured) == 1)
        else f"{', '.join(found)}, {metric}: {text}"
        for (metric, text), found in names.items()
    ]


def _filled(text: str, width: int | None) -> str:
    """Return a line on as many as the terminal needs."""
    if width is None:
        return text
    return textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


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
