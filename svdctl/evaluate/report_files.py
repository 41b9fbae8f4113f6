"""The files of a report: one place where every form of it is written."""

from dataclasses import replace
from pathlib import Path

from svdctl.errors import first_line
from svdctl.evaluate.report import EvaluationReport
from svdctl.evaluate.report_markdown import COMPARISON, markdown_report
from svdctl.evaluate.report_page import evaluation_page
from svdctl.utils.atomic_write import remove_unfinished, write_atomically
from svdctl.utils.html_page import render


def write_report(report: EvaluationReport) -> Path:
    """Write all forms of a report into its folder, which exists; return `report.md`."""
    from svdctl.evaluate.comparison_plot import plot_comparison  # matplotlib takes a second to import

    remove_unfinished(report.folder)
    path, picture, figure = report.folder / "report.md", report.folder / COMPARISON, None
    try:
        figure = plot_comparison(report, picture)
    except Exception as error:  # whatever is wrong with a picture, the figures are reported
        report = replace(report, lost=(*report.lost, f"{COMPARISON} cannot be drawn ({first_line(error)})"))
    write_atomically(path, markdown_report(report, has_picture=figure is not None))
    write_atomically(path.with_suffix(".html"), render(evaluation_page(report, figure)))
    if figure is None:  # only now: whatever ends the process before, what a report shows is there
        picture.unlink(missing_ok=True)
    return path
