"""A report never holds less than before: ended at every change of a file, damaged, and on disks that do not answer."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from svdctl.evaluate import known_checkpoints, report_files
from svdctl.evaluate.known_checkpoints import INDEX
from svdctl.evaluate.results import read_results
from svdctl.evaluate.runner import run as evaluate
from svdctl.utils import signals
from tests.evaluate.small import Recorder, make
from tests.evaluate.test_report import FACTORY, folder, lines_of, measure, row

__all__ = ["folder"]


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


@contextmanager
def killed_at(number: int) -> Iterator[Callable[[], int]]:
    """Let the change of a file with this number, and every one after it, not happen; what is yielded counts them."""
    count = 0

    def gone(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count >= number:
                raise Killed
            return real(*given, **named)

        return act

    names = ("replace", "unlink", "rmdir")
    with patch.multiple(Path, **{name: gone(getattr(Path, name)) for name in names}):
        yield lambda: count


@pytest.fixture
def pictures_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **given: file.write(b"picture"))
    monkeypatch.setattr("svdctl.utils.inline_svg.svg_text", lambda *given: "<svg></svg>")


def figures(lines: list[str], name: str) -> dict[str, str]:
    """The figures of a checkpoint by the header of their column, without what stands behind them."""
    header = next(line for line in lines if line.startswith("| checkpoint"))
    titles, cells = ([cell.strip() for cell in line.split("|")[2:-1]] for line in (header, row(lines, name)))
    return {title: cell.split(" (")[0] for title, cell in zip(titles, cells, strict=True)}


@pytest.mark.usefixtures("pictures_cost_nothing")
@pytest.mark.parametrize("apart", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_ended_at_any_change_of_a_file_it_holds_no_less(shared: Path, folder: Path, tmp_path: Path, apart: int) -> None:
    """The next evaluation measures one more metric, of a checkpoint that changed, one that is new and one that went."""
    asked: dict[str, Any] = {"metrics": ["accuracy", "certified"], "radii": ["36"]}
    before = lines_of(measure(shared, folder, **asked))
    weights = torch.load(folder / "b.pth", weights_only=True)
    torch.save({name: value * 0.25 for name, value in weights.items()}, folder / "c.pth")
    torch.save({name: value * 0.5 for name, value in weights.items()}, folder / "b.pth")
    (folder / "a.pth").rename(tmp_path / "a.pth")
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    flags: dict[str, Any] = {"metrics": ["accuracy", "ece"]}
    after = lines_of(measure(shared, whole, **flags))
    assert "comparison.png" in "".join(after)
    number, count = 4, 4
    while count >= number - apart:
        place = tmp_path / f"killed-{number}"
        shutil.copytree(folder, place)
        config = make(place, model=FACTORY, dataset=f"npz:{shared / 'data.npz'}", **flags)
        with killed_at(number) as changes:
            with suppress(Killed):
                evaluate(config, reporter=Recorder())
            count = changes()
        lines = (place / "report.md").read_text(encoding="utf-8").splitlines()
        assert figures(before, "a ").items() <= figures(lines, "a ").items()
        assert row(lines, "b ")
        assert "![comparison](comparison.png)" in lines
        assert (place / "comparison.png").read_bytes() == b"picture"
        assert (place / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
        assert {record.metric for record in read_results(place / "eval-a").records} == {"accuracy", "certified"}
        lines = lines_of(measure(shared, place, **flags))
        for name in ("a ", "b ", "c "):
            assert figures(lines, name) == figures(after, name), number
        shutil.rmtree(place)
        number += apart
    assert number > 12


def test_results_on_a_disk_that_does_not_answer_come_back(shared: Path, folder: Path) -> None:
    before = lines_of(measure(shared, folder, metrics=["accuracy"]))
    (folder / "b.pth").unlink()
    real = read_results

    def fails(place: Path) -> Any:
        if place.name == "eval-b":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(place))
        return real(place)

    with patch.object(known_checkpoints, "read_results", fails):
        for _ in range(2):
            lines = lines_of(measure(shared, folder, metrics=["accuracy"]))
            assert any("eval-b cannot be read" in line for line in lines)
    lines = lines_of(measure(shared, folder / "a.pth", metrics=["accuracy"], out_dir=folder))
    assert figures(lines, "b ") == figures(before, "b ")


def test_a_folder_that_cannot_be_looked_into_keeps_no_report_from_being_written(shared: Path, folder: Path) -> None:
    (folder / "closed").mkdir()
    (folder / "gone").mkdir()
    real = Path.iterdir

    def refused(place: Path) -> Any:
        if place.name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        if place.name == "gone":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
        return real(place)

    with patch.object(Path, "iterdir", refused):
        lines = lines_of(measure(shared, folder / "a.pth", metrics=["accuracy"], out_dir=folder))
    assert any("closed cannot be searched for results" in line for line in lines)
    assert not any("gone" in line for line in lines)


def test_a_damaged_index_is_kept_aside(shared: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files that were given one by one it alone says where their results are."""
    monkeypatch.chdir(folder)
    for name in ("a.pth", "b.pth"):
        measure(shared, folder / name, metrics=["accuracy"])
    damaged = Path(INDEX).read_bytes()[:-40]
    Path(INDEX).write_bytes(damaged)
    lines = lines_of(measure(shared, folder / "a.pth", metrics=["accuracy"]))
    aside = Path(INDEX).with_suffix(".damaged.json")
    assert aside.read_bytes() == damaged
    assert any(f"as it was found is kept as {aside}" in line for line in lines)


def test_while_the_report_is_written_a_request_to_stop_names_what_was_measured(shared: Path, folder: Path) -> None:
    said: list[str] = []

    def asked(*given: Any) -> Any:
        said.append(signals._answers[-1]())
        raise KeyboardInterrupt

    with patch.object(report_files, "evaluation_page", asked), pytest.raises(KeyboardInterrupt):
        measure(shared, folder, metrics=["accuracy"])
    assert said == [f"2 of 2 evaluated, with results in {folder / 'eval-a'}, {folder / 'eval-b'}"]
