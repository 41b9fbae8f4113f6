"""A report holds everything known at its folder, and never less than the one before."""

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from svdctl.cli.evaluation_progress import result_table
from svdctl.evaluate import known_checkpoints
from svdctl.evaluate.figures import wilson_interval
from svdctl.evaluate.known_checkpoints import INDEX, KnownCheckpoint
from svdctl.evaluate.report import EvaluationReport, ReportedCheckpoint, ReportedRecord
from svdctl.evaluate.results import Record
from svdctl.evaluate.runner import EvaluationResult
from svdctl.evaluate.runner import run as evaluate
from svdctl.utils.measurement_cache import Kept, MeasurementCache
from tests.evaluate.small import Recorder, make

FACTORY = "tests.evaluate.small:build"


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A folder with two linear networks."""
    place = tmp_path / "nets"
    place.mkdir()
    shutil.copy(shared / "linear.pth", place / "a.pth")
    weights = torch.load(place / "a.pth", weights_only=True)
    torch.save({name: value * 0.5 for name, value in weights.items()}, place / "b.pth")
    return place


def measure(shared: Path, *places: Path, data: str = "data", **flags: Any) -> EvaluationResult:
    result = evaluate(
        make(*places, **{"model": FACTORY, "dataset": f"npz:{shared / f'{data}.npz'}", **flags}), reporter=Recorder()
    )
    assert not result.failures
    return result


def lines_of(result: EvaluationResult) -> list[str]:
    assert result.report is not None
    return result.report.read_text(encoding="utf-8").splitlines()


def row(lines: list[str], name: str) -> str:
    (line,) = (line for line in lines if line.startswith(f"| {name}"))
    return line


def test_fewer_metrics_and_fewer_checkpoints_leave_the_report_as_large(shared: Path, folder: Path) -> None:
    first = lines_of(measure(shared, folder, metrics=["accuracy", "certified"], radii=["36"]))
    header = next(line for line in first if line.startswith("| checkpoint"))
    assert header == "| checkpoint | accuracy | certified 36/255 |"
    # Results in another place than beside the checkpoint are those of the same weights.
    again = lines_of(measure(shared, folder / "a.pth", metrics=["accuracy"], out_dir=folder))
    assert row(again, "a ").split(" | ")[1:] == [row(first, "a ").split(" | ")[1], *row(again, "a ").split(" | ")[2:]]
    assert row(again, "a ").count("(earlier)") == 1
    again = lines_of(measure(shared, folder, metrics=["accuracy"]))
    assert header in again
    for name in ("a ", "b "):
        assert row(again, name).count("(kept)") == row(again, name).count("(earlier)") == 1
    assert "earlier: of an earlier call" in "\n".join(again)
    protocols = [line for line in first if line.startswith(("| Accuracy", "| Certificates"))]
    assert len(protocols) == 2
    assert {*protocols} < {*again}


def test_files_given_one_by_one_stand_in_one_report_of_the_current_folder(shared: Path, folder: Path) -> None:
    measure(shared, folder / "a.pth", metrics=["accuracy"])
    result = measure(shared, folder / "b.pth", metrics=["accuracy"])
    assert result.report == Path("report.md")
    lines = lines_of(result)
    assert "(earlier)" in row(lines, "a ")
    assert "(" not in row(lines, "b ")
    with patch.object(known_checkpoints, "open_evaluated_model", side_effect=AssertionError("opened")):
        lines = lines_of(measure(shared, folder / "b.pth", metrics=["accuracy"]))
    assert "## What is not as it was measured" not in lines


def test_checkpoints_that_were_removed_or_changed_are_named_with_their_last_figures(shared: Path, folder: Path) -> None:
    figure = row(lines_of(measure(shared, folder, metrics=["accuracy"])), "a ").split("|")[2].strip()
    (folder / "a.pth").unlink()
    lines = lines_of(measure(shared, folder, metrics=["accuracy"]))
    assert row(lines, "a (removed)").split("|")[2].strip() == f"{figure} (earlier)"
    assert "(kept)" in row(lines, "b ")
    assert any(line.startswith("- a: removed (") and "a.pth is not there any more" in line for line in lines)

    shutil.copy(folder / "b.pth", folder / "a.pth")
    lines = lines_of(measure(shared, folder / "b.pth", metrics=["accuracy"], out_dir=folder))
    assert "| a (weights changed since) |" in " ".join(lines)
    # A file that was written anew with the same weights is as it was measured.
    os.utime(folder / "b.pth", (1, 1))
    lines = lines_of(measure(shared, folder / "a.pth", metrics=["accuracy"], out_dir=folder))
    assert not any(line.startswith("- b") and "changed" in line for line in lines)


def test_a_damaged_figure_is_named(shared: Path, folder: Path) -> None:
    measure(shared, folder, metrics=["accuracy", "certified"], radii=["36"])
    path = folder / "eval-b/results.json"
    contents = json.loads(path.read_text())
    contents["records"][1]["results"]["lipschitz"] *= 2
    path.write_text(json.dumps(contents))
    (folder / "b.pth").unlink()
    lines = lines_of(measure(shared, folder, metrics=["accuracy"]))
    assert row(lines, "b (removed)").endswith("| - |")
    assert any("record 2 of" in line and "fails its checksum; that figure is not shown" in line for line in lines)


def test_without_its_index_a_report_finds_the_results_below_its_folder(shared: Path, folder: Path) -> None:
    measure(shared, folder, metrics=["accuracy"])
    for spoil in (lambda path: path.unlink(), lambda path: path.write_text("{")):
        (folder / "b.pth").unlink(missing_ok=True)
        spoil(folder / INDEX)
        lines = lines_of(measure(shared, folder, metrics=["accuracy"]))
        assert "(earlier)" in row(lines, "b (removed)")
    assert any(INDEX in line and "damaged" in line for line in lines)


def test_results_that_are_gone_are_told_once(shared: Path, folder: Path) -> None:
    measure(shared, folder, metrics=["accuracy"])
    shutil.rmtree(folder / "eval-b")
    (folder / "b.pth").unlink()
    for told in (True, False):
        lines = lines_of(measure(shared, folder, metrics=["accuracy"]))
        assert any("eval-b cannot be read" in line for line in lines) is told


def test_figures_of_other_conditions_have_a_footnote_and_other_data_a_table(shared: Path, folder: Path) -> None:
    attack = {"metrics": ["autoattacks"], "attacks": ["apgd-ce"]}
    measure(shared, folder / "a.pth", examples="6", **attack)
    measure(shared, folder / "a.pth", examples="4", **attack)
    lines = lines_of(measure(shared, folder / "b.pth", examples="4", **attack))
    assert "[1]" not in row(lines, "a ")
    # Of a the figure on 4 images stands in the column, the one on 6 in its own part.
    assert sum(line.startswith("- **Attacks**") for line in lines) == 3
    lines = lines_of(measure(shared, folder / "b.pth", examples="6", **attack))
    assert (row(lines, "a ") + row(lines, "b ")).count("[1]") == 1
    assert any("[1] Measured otherwise: " in line for line in lines)

    shutil.copy(shared / "data.npz", folder / "less.npz")
    other = make(folder / "b.pth", model=FACTORY, dataset=f"npz:{_less(folder / 'less.npz')}", metrics=["accuracy"])
    result = evaluate(other, reporter=Recorder())
    lines = lines_of(result)
    assert sum(line.startswith("## On npz:") for line in lines) == 2
    assert sum(line.startswith("| b ") for line in lines) == 2


def _less(path: Path) -> Path:
    """The same data with fewer test images."""
    import numpy as np

    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "x_test": arrays["x_test"][:20], "y_test": arrays["y_test"][:20]})
    return path


@pytest.mark.drawn
def test_several_checkpoints_are_one_picture(shared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from svdctl.evaluate import comparison_plot

    drawn: list[Any] = []
    real = comparison_plot.plot_comparison
    monkeypatch.setattr(comparison_plot, "plot_comparison", lambda *given: drawn.append(real(*given)) or drawn[-1])
    flags = {"metrics": ["accuracy", "cifar-c", "certified"], "radii": ["36", "3000"], "corruptions": ["contrast"]}
    result = measure(shared, folder, **flags)
    lines = lines_of(result)
    assert result_table(result).splitlines()[-3:] == [
        f"  {folder / name}" for name in ("report.md", "report.html", "comparison.png")
    ]
    (figure,) = drawn
    panels = [panel for part in figure.subfigs for panel in part.axes]
    titles = [panel.get_title(loc="left") for panel in panels]
    assert titles[:3] == ["accuracy, %", "corrupted, 1 corruption, %", "certified 36/255, %"]
    assert titles[3:] == ["Certified accuracy", "Corrupted images, mean over the corruptions that all have"]
    assert "0 for every checkpoint: certified 3000/255" in figure.get_suptitle()
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["a", "b"]
    for panel in panels[3:]:
        assert len(panel.lines) == 2
    assert "![comparison](comparison.png)" in lines
    assert (folder / "comparison.png").is_file()
    assert "comparison" in (folder / "report.html").read_text(encoding="utf-8")
    # A single checkpoint on its data is compared with nothing, where the report knows of no others.
    (folder / "alone").mkdir()
    monkeypatch.chdir(folder / "alone")
    lines = lines_of(measure(shared, folder / "a.pth", **flags))
    assert drawn[-1] is None
    assert not any(line.startswith("![comparison]") for line in lines)


NAMES = {
    "zero byte": "b%00.pth",
    "too long": "x" * 300,
    "much too long": "x/" * 3000,
    "link to itself": "loop/b.pth",
    "no weights": "/etc/passwd",
    "device": "/dev/zero",
}


@pytest.mark.parametrize("kind", NAMES)
def test_an_index_or_results_that_name_what_cannot_be_opened_lose_no_other_figure(
    kind: str, shared: Path, folder: Path
) -> None:
    first = lines_of(measure(shared, folder, metrics=["accuracy"]))
    (folder / "loop").symlink_to("loop")
    (folder / "b.pth").unlink()
    index = MeasurementCache(folder / INDEX, KnownCheckpoint, {"of": "report.md"})
    key, kept = list(index.kept.items())[-1]
    index.kept[key] = Kept(kept.record.model_copy(update={"path": NAMES[kind]}))
    index.write()
    lines = lines_of(measure(shared, folder, metrics=["accuracy"]))
    assert row(lines, "a ").replace(" (kept)", "") == row(first, "a ")
    assert any("names a checkpoint by what is no path" in line for line in lines) or any(
        word in "\n".join(lines) for word in ("(removed)", "(file not compared)")
    )


@pytest.mark.parametrize("place", ["runs/\0/b.pth", "loop/b.pth"])
def test_results_of_what_is_no_path_are_told(place: str, shared: Path, folder: Path, tmp_path: Path) -> None:
    measure(shared, folder / "a.pth", metrics=["accuracy"], out_dir=folder)
    (results,) = (path.parent for path in folder.glob("*/results.json"))
    stranger = results.rename(folder / "theirs")
    (tmp_path / "loop").symlink_to("loop")
    contents = json.loads((stranger / "results.json").read_text())
    contents["remarks"]["path"] = place
    (stranger / "results.json").write_text(json.dumps(contents))
    lines = lines_of(measure(shared, folder / "b.pth", metrics=["accuracy"], out_dir=folder))
    assert any("theirs are of what is no path" in line for line in lines)


@pytest.mark.parametrize("protocol", [{}, {"precision": None, "data": 5, "names": 3}])
def test_sound_records_that_do_not_say_how_they_were_measured_are_no_figures(
    protocol: dict[str, Any], shared: Path, folder: Path
) -> None:
    metrics, attack = ["accuracy", "ece", "autoattacks"], {"examples": "4", "attacks": ["apgd-ce"]}
    measure(shared, folder, metrics=metrics, **attack)
    path = folder / "eval-b/results.json"
    cache = MeasurementCache(path, Record, {"weights": json.loads(path.read_text())["about"]["weights"]})
    for key, kept in cache.kept.items():
        cache.kept[key] = Kept(kept.record.model_copy(update={"protocol": protocol}))
    cache.write()
    (folder / "b.pth").unlink()
    lines = lines_of(measure(shared, folder, metrics=["accuracy"]))
    assert "(kept)" in row(lines, "a ")
    assert any("does not say how it was measured" in line and "that figure is not shown" in line for line in lines)


def test_means_over_other_corruptions_of_the_same_number_have_a_footnote(shared: Path, folder: Path) -> None:
    asked = {"metrics": ["cifar-c"], "severities": [1], "corruption_examples": 10}
    measure(shared, folder / "a.pth", corruptions=["brightness", "contrast"], out_dir=folder, **asked)
    lines = lines_of(
        measure(shared, folder / "b.pth", corruptions=["gaussian_noise", "contrast"], out_dir=folder, **asked)
    )
    (header,) = [line for line in lines if line.startswith("| checkpoint")]
    assert header.count("2 corruptions, severity 1") == 1
    assert any("Measured otherwise" in line and "2 of 19 corruptions (" in line for line in lines)


def accuracy_record() -> Record:
    """Half of 100 images right."""
    return Record(
        metric="accuracy",
        protocol={"precision": "32"},
        results={"count": 100, "correct": 50, "accuracy": 0.5, "interval": wilson_interval(50, 100)},
        seconds=1.0,
        environment={},
    )


def test_figures_of_one_checkpoint_alone_have_no_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    from svdctl.evaluate import comparison_plot

    dot = comparison_plot._Dot(50.0, 40.0, 60.0, "50.00%")
    here = Path()
    checkpoints = tuple(
        ReportedCheckpoint(name, here, "", here, (ReportedRecord(accuracy_record(), "key", here),)) for name in "ab"
    )
    report = EvaluationReport(here, checkpoints, {"key": "data"}, (), (), "1", "now")
    found: dict[str, Any] = {"accuracy": [dot, dot], "ECE": [dot, None]}
    monkeypatch.setattr(comparison_plot, "_columns", lambda _: dict(found))
    figure = comparison_plot.plot_comparison(report, None)
    assert figure is not None
    assert [panel.get_title(loc="left") for panel in figure.subfigs[0].axes] == ["accuracy, %"]
    assert "of one checkpoint alone, in the table only: ECE" in figure.get_suptitle()
    del found["accuracy"]
    figure = comparison_plot.plot_comparison(report, None)
    assert figure is not None
    assert [panel.get_title(loc="left") for panel in figure.subfigs[0].axes] == ["ECE, %"]


def test_of_more_than_a_hundred_checkpoints_the_first_are_drawn() -> None:
    from svdctl.evaluate.comparison_plot import plot_comparison

    record = accuracy_record()
    here = Path()
    checkpoints = tuple(
        ReportedCheckpoint("a" * 5000 + f"{number}", here, "", here, (ReportedRecord(record, "key", here),))
        for number in range(101)
    )
    report = EvaluationReport(here, checkpoints, {"key": "data"}, (), (), "1", "now")
    figure = plot_comparison(report, None)
    assert figure is not None
    assert len(figure.subfigs[0].axes[0].get_yticklabels()) == 100
    assert "the first 100 of 101" in figure.get_suptitle()
