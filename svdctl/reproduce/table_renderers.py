"""A table as Markdown, CSV, LaTeX and JSON; the mark of smoke scale is in the title of each."""

import csv
import io
import json
import platform
import re
import unicodedata
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from svdctl.config.table_config import STATIC, Column
from svdctl.reproduce.columns import LOOKS
from svdctl.reproduce.job import Job
from svdctl.reproduce.table_results import Cell, ResultRow, Results

TEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    # After the end of a line, TeX takes a bracket for an option.
    "[": "{[}",
    "]": "{]}",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "≈": r"$\approx$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "∞": r"$\infty$",
    "→": r"$\to$",
    "−": r"$-$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "°": r"$^\circ$",
    "²": r"$^2$",
    "³": r"$^3$",
}
GREEK_CAPITALS = ("GAMMA", "DELTA", "THETA", "LAMDA", "XI", "PI", "SIGMA", "UPSILON", "PHI", "PSI", "OMEGA")
"""Those that do not look like Latin ones."""


def cell_text(column: Column, cell: Cell, row: ResultRow) -> str:
    """`97.12 ± 0.30`, with the paper's number and the difference behind it; `failed` or a dash without a figure."""
    look = LOOKS[column]
    paper = f" (paper {cell.paper:,.{look.decimals}f}" if cell.paper is not None else ""
    if cell.mean is None:
        return ("failed" if row.reasons else "-") + (f"{paper})" if paper else "")
    text = look.shown(cell.mean)
    if cell.spread is not None:
        text = f"{look.shown(cell.mean).removesuffix(look.suffix)} ± {look.shown(cell.spread)}"
    if column not in STATIC and len(cell.values) < row.measured:
        text += f" ({len(cell.values)} of {len(row.outcomes)} seeds)"
    if cell.kept:
        text += f" ({cell.kept})"
    if cell.paper is not None:
        text += f"{paper}, {look.difference(cell.mean, cell.paper)})"
    return text


def failures(results: Results) -> Iterator[str]:
    """One line for each run that failed."""
    for row in results.rows:
        for reason in row.reasons:
            yield f"{row.row.row.name}, {reason}"


def markdown(results: Results) -> str:
    """For reading."""
    columns = results.plan.columns
    lines = [f"# {results.plan.title}", "", results.caption, ""]
    lines.append("| | " + " | ".join(results.header(column) for column in columns) + " |")
    lines.append("|---|" + "---:|" * len(columns))
    for row in results.rows:
        cells = [cell_text(column, row.cells[column], row) for column in columns]
        lines.append(f"| {row.marked.replace('|', '/')} | " + " | ".join(cells) + " |")
    lines += _notes(results)
    return "\n".join(lines) + "\n"


def _notes(results: Results) -> list[str]:
    lines = []
    if results.notes:
        lines += ["", *(f"- {text}" for text in numbered_notes(results))]
    failed = list(failures(results))
    if failed:
        lines += ["", "Failed; tried again by the next call:", "", *(f"- {line}" for line in failed)]
    return lines


def numbered_notes(results: Results) -> list[str]:
    """Footnotes; those that rows refer to come first, with their numbers."""
    referred = {number for row in results.rows for number in row.notes}
    return [f"[{n}] {text}" if n in referred else text for n, text in enumerate(results.notes, 1)]


def comma_separated(results: Results) -> str:
    """Full precision, one line a row; stored units (shares, not per cent), the paper's numbers as they were given."""
    columns = results.plan.columns
    with_paper = [c for c in columns if any(row.cells[c].paper is not None for row in results.rows)]
    header = ["table", "row", "label", "group", "preset", "seeds"]
    for column in columns:
        header += [column, f"{column}_spread", f"{column}_count", f"{column}_kept"]
        header += [f"{column}_paper_shown", f"{column}_difference_shown"] * (column in with_paper)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*header, "notes", "failures"])
    for row in results.rows:
        own = row.row.row
        seeds = " ".join(map(str, results.plan.seeds))
        line: list[Any] = [results.plan.title, own.name, own.shown, own.group, own.preset, seeds]
        for column in columns:
            cell = row.cells[column]
            line += [cell.mean, cell.spread, len(cell.values), cell.kept]
            if column in with_paper:
                line += [cell.paper, difference(column, cell)]
        notes = " ".join(results.notes_of(row))
        writer.writerow([*line, notes, "; ".join(row.reasons)])
    return file.getvalue()


def difference(column: Column, cell: Cell) -> float | None:
    """Ours minus the paper's, in the unit that is shown."""
    if cell.mean is None or cell.paper is None:
        return None
    return cell.mean * LOOKS[column].factor - cell.paper


def latex(results: Results) -> str:
    """A whole document with booktabs; the table environment in it can be copied into another."""
    columns = results.plan.columns
    title = results.plan.title
    lines = [
        f"% {title}",
        r"\documentclass{article}",
        r"\usepackage[margin=15mm]{geometry}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage{booktabs}",
        r"\begin{document}",
        r"\begin{table}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{tex(title)}. {tex(results.caption)}}}",
        r"\begin{tabular}{l" + "r" * len(columns) + "}",
        r"\toprule",
        " & ".join(["", *(tex(results.header(column)) for column in columns)]) + r" \\",
        r"\midrule",
    ]
    group = results.rows[0].row.row.group
    for row in results.rows:
        if row.row.row.group != group:
            group = row.row.row.group
            lines.append(r"\midrule")
        marks = rf"\textsuperscript{{{','.join(map(str, row.notes))}}}" if row.notes else ""
        cells = [tex(cell_text(column, row.cells[column], row)) for column in columns]
        lines.append(" & ".join([tex(row.shown) + marks, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    said = [*numbered_notes(results), *(f"Failed: {line}." for line in failures(results))]
    if said:
        notes = r" \\ ".join(tex(text) for text in said)
        lines += ["", r"\smallskip", rf"\parbox{{0.9\linewidth}}{{\scriptsize {notes}}}"]
    return "\n".join([*lines, r"\end{table}", r"\end{document}"]) + "\n"


def tex(text: str) -> str:
    """Text with TeX's special characters escaped; signs that pdflatex's T1 fonts lack as symbols or by their code."""
    return "".join(map(_tex_sign, text))


def _tex_sign(sign: str) -> str:
    if sign in TEX_ESCAPES:
        return TEX_ESCAPES[sign]
    if sign.isascii():
        return sign
    name = unicodedata.name(sign, "")
    match = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)", name)
    if match and (match[1] == "SMALL" or match[2] in GREEK_CAPITALS):
        letter = match[2].replace("LAMDA", "LAMBDA").lower()
        return rf"$\{letter if match[1] == 'SMALL' else letter.capitalize()}$" if letter != "omicron" else "o"
    return sign if name.startswith("LATIN ") and ord(sign) < 0x180 else rf"\texttt{{U+{ord(sign):04X}}}"


def as_json(results: Results, command: Callable[[Job], str]) -> str:
    """Return everything: each run with its configuration, folder, figures and the command that trains it."""
    plan = results.plan
    rows = []
    for row in results.rows:
        cells = {
            column: {
                "mean": cell.mean,
                "spread": cell.spread,
                "values": list(cell.values),
                "kept": cell.kept,
                "paper_shown": cell.paper,
                "difference_shown": difference(column, cell),
            }
            for column, cell in row.cells.items()
        }
        runs = [
            {
                "seed": job.config.seed,
                "hash": job.key,
                "preset": job.preset,
                "set": list(job.assignments),
                "command": command(job),
                "folder": outcome.folder,
                "figures": dict(outcome.values),
                "kept": dict(outcome.kept),
                "deviations": list(outcome.deviations),
                "failed": outcome.reason,
            }
            for job, outcome in zip(row.row.jobs, row.outcomes, strict=True)
        ]
        own = row.row.row
        rows.append({"row": own.name, "label": own.shown, "group": own.group, "cells": cells, "runs": runs})
    table = {
        "title": plan.title,
        "name": plan.name,
        "scale": "smoke" if plan.smoke else "full",
        "caption": results.caption,
        "complete": results.complete,
        "seeds": list(plan.seeds),
        "columns": {
            column: {"header": results.header(column), "shown_factor": LOOKS[column].factor} for column in plan.columns
        },
        "evaluation": plan.evaluate.model_dump(mode="json"),
        "rows": rows,
        "notes": list(results.notes),
        "versions": {"svdctl": version("svdctl"), "python": platform.python_version()},
    }
    return json.dumps(table, indent=2, ensure_ascii=False) + "\n"
