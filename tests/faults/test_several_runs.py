"""One of several runs has files that nobody can read: it is measured without them or named, and the others go on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svdctl.cli.messages import explain
from svdctl.evaluate.runner import run as evaluate
from svdctl.reproduce.plan import make_plan
from svdctl.reproduce.reproduction import reproduce
from svdctl.reproduce.table_files import Request
from tests.evaluate.small import Recorder, make, write_data, write_run
from tests.reproduce.test_end_to_end import Board, spelled
from tests.reproduce.test_lost_files import TABLE
from tests.train.test_resume import draw_nothing


def _made_of(contents: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(contents)


BROKEN: dict[str, Callable[[Path], object]] = {
    "deep JSON": _made_of(b"[" * 200_000),
    "deep TOML": _made_of(b"a" + b".a" * 5000 + b" = 1\n"),
    "no UTF-8": _made_of(b"\xff\xfe{"),
    "half a surrogate pair": _made_of(b'{"kind": "\\ud800", "records": ["\\ud800"]}\n'),
    "endless number": _made_of(b'{"version": ' + b"9" * 5000 + b"}\n"),
    "another type": _made_of(b"[1, 2]\n"),
    "codes of a terminal": _made_of(b'{"\x1b[31m\x9b": \n'),
    "folder": lambda path: path.mkdir(),
    "FIFO": lambda path: os.mkfifo(path),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
}
FILES = ("results.json", "config.toml", "metrics.jsonl")
QUICK = ("deep JSON", "no UTF-8", "FIFO")


def breaks(path: Path, how: str) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.unlink(missing_ok=True)
    BROKEN[how](path)


def test_eval_robust_measures_the_others(tmp_path: Path) -> None:
    """Files of the log and of the configuration are not needed; results that are no file are a failure of that run."""
    sound = write_run(tmp_path / "runs" / "sound", write_data(tmp_path / "data.npz")).parent
    for file in FILES:
        for how in BROKEN:
            run = Path(shutil.copytree(sound, sound.with_name(f"{file} {how}")))
            breaks(run / "eval-last" / file if file == "results.json" else run / file, how)
    recorder = Recorder()
    result = evaluate(make(sound.parent, metrics=["accuracy"]), reporter=recorder)
    unusable = {f"results.json {how}/last" for how in ("folder", "FIFO", "link to nothing")}
    assert {failure.where for failure in result.failures} == unusable
    for failure in result.failures:
        (sentence,), code = explain(failure.error)
        assert str(sound.parent / failure.where.removesuffix("/last") / "eval-last/results.json") in sentence
        assert "did not expect" not in sentence
        assert code == 2
    measured = [evaluation for evaluation in result.evaluations if evaluation.records]
    assert len(measured) == 1 + len(FILES) * len(BROKEN) - len(unusable)
    assert len({evaluation.records["accuracy"].results["accuracy"] for evaluation in measured}) == 1
    for how in BROKEN:
        name = f"results.json {how}"
        if f"{name}/last" not in unusable:
            assert [notice for notice in recorder.notices if name in notice], name
            assert (sound.parent / name / "eval-last/results.damaged.json").is_file()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished table of two runs."""
    folder = tmp_path_factory.mktemp("made")
    text = TABLE.format(data=write_data(folder / "data.npz")).replace("epochs=3", "epochs=1")
    (folder / "one.toml").write_text(text.replace("[[rows]]", "seeds = [1, 2]\n\n[[rows]]"))
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        made_again(folder)
    return folder


def made_again(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The table, and what failed."""
    request = {"tables": [str(folder / "one.toml")], "out_dir": folder / "runs"}
    failed = reproduce(make_plan(Request.model_validate(request)), Board(), spelled).failed
    return json.loads((folder / "runs/tables/one.json").read_text()), failed


def accuracies(table: dict[str, Any]) -> list[float]:
    return table["rows"][0]["cells"]["accuracy"]["values"]


@pytest.mark.parametrize("how", [pytest.param(how, marks=[pytest.mark.slow] * (how not in QUICK)) for how in BROKEN])
@pytest.mark.parametrize("file", FILES)
def test_reproduce_reports_the_others(
    file: str, how: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    wanted = accuracies(json.loads((made / "runs/tables/one.json").read_text()))
    assert len(wanted) == 2
    first, _ = sorted(path.parent for path in copy.glob("runs/*/last.pt"))
    (where,) = first.rglob(file)
    breaks(where, how)
    table, failed = made_again(copy)
    if failed:
        (sentence,) = failed
        assert str(where) in sentence
        assert "Error" not in sentence
        assert accuracies(table) in ([wanted[0]], [wanted[1]])
    else:
        assert accuracies(table) == wanted
    assert bool(failed) == (how in ("folder", "FIFO", "link to nothing") and file == "results.json")
