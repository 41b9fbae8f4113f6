"""The files of a report: one place where every form of it is written."""

from pathlib import Path

from svdctl.evaluate.report import EvaluationReport
from svdctl.evaluate.report_markdown import markdown_report
from svdctl.evaluate.report_page import evaluation_page
from svdctl.utils.atomic_write import remove_unfinished, write_atomically
from svdctl.utils.html_page import render


def write_report(report: EvaluationReport) -> Path:
    """Write all forms of a report into its folder, which exists; return `report.md`."""
    remove_unfinished(report.folder)
    path = report.folder / "report.md"
    write_atomically(path, markdown_report(report))
    write_atomically(path.with_suffix(".html"), render(evaluation_page(report)))
    return path
