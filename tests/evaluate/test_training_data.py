"""Figures on data that a network may have been trained on say so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint, write_checkpoint
from svdctl.data.data_source import load
from svdctl.data.fingerprint import fingerprint
from svdctl.data.npz import Npz
from svdctl.evaluate.runner import EvaluationResult
from svdctl.evaluate.runner import run as evaluate
from tests.evaluate.small import Recorder, make, write_data, write_run

MARK = "other data than in training"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint that says on which data it was trained, beside them."""
    data = write_data(tmp_path / "data.npz")
    path = write_run(tmp_path / "run", data, steps=1)
    seen = {name: fingerprint(part) for name, part in load(Npz(path=data)).parts().items()}
    return rewritten(path, data=seen)


def rewritten(path: Path, **changes: Any) -> Path:
    checkpoint = read_checkpoint(path)
    for name, value in changes.items():
        object.__setattr__(checkpoint, name, value)
    write_checkpoint(path, checkpoint)
    return path


def change_data(trained: Path, **parts: str) -> None:
    """Write parts of the data anew: those named, from the parts that they are named after."""
    path = trained.parent.parent / "data.npz"
    arrays = dict(np.load(path))
    new = {f"{axis}_{part}": arrays[f"{axis}_{source}"][:40] for part, source in parts.items() for axis in "xy"}
    np.savez(path, **{**arrays, **new})


def measured(trained: Path, *metrics: str) -> tuple[EvaluationResult, Recorder]:
    recorder = Recorder()
    result = evaluate(make(trained, metrics=list(metrics)), reporter=recorder)
    assert not result.failures
    return result, recorder


def test_training_images_among_the_test_images_are_told_at_every_figure(trained: Path) -> None:
    result, recorder = measured(trained, "accuracy", "ece")
    assert recorder.kept == {"accuracy": "", "ece": ""}
    assert (
        "training images that the run kept" in result.evaluations[0].records["ece"].results["temperature"]["fitted_on"]
    )
    change_data(trained, test="train", train="test")
    for kept in ("", "kept, "):
        result, recorder = measured(trained, "accuracy", "ece")
        assert recorder.kept == {"accuracy": kept + MARK, "ece": kept + MARK}
        assert any("test images may be among those" in notice for notice in recorder.notices)
        report = (result.report or Path()).read_text()
        assert "test images may be among those that it was trained on" in report
        assert report.count(f"({kept}{MARK})") >= 4
        temperature = result.evaluations[0].records["ece"].results["temperature"]
        assert "test images drawn from the seed" in temperature["fitted_on"]


def test_other_training_images_leave_the_test_images_alone_and_change_what_is_held_out(trained: Path) -> None:
    change_data(trained, train="test")
    result, recorder = measured(trained, "accuracy", "ece")
    assert recorder.kept == {"accuracy": "", "ece": ""}
    assert "test images drawn" in result.evaluations[0].records["ece"].results["temperature"]["fitted_on"]


@pytest.mark.parametrize("field", ["training", "metrics"])
def test_a_run_that_began_on_other_data(trained: Path, field: str) -> None:
    # `best.pt` has metrics alone.
    until: dict[str, Any] = {"other_data_until": 3}
    rewritten(trained, **{field: {"counters": until} if field == "training" else until})
    assert measured(trained, "accuracy")[1].kept == {"accuracy": MARK}


def test_where_the_data_of_the_training_are_not_known_nothing_is_said(trained: Path) -> None:
    rewritten(trained, data=None)
    change_data(trained, test="train")
    _, recorder = measured(trained, "accuracy")
    assert recorder.kept == {"accuracy": ""}


def test_a_key_into_a_checkpoint_of_svdctl_is_refused(trained: Path) -> None:
    contents = torch.load(trained, weights_only=True)
    torch.save({**contents, "ema": {name: value * 0 for name, value in contents["model"].items()}}, trained)
    result = evaluate(make(trained, metrics=["accuracy"], key="ema"), reporter=Recorder())
    (failure,) = result.failures
    assert "leave out `network.key = ema`" in str(failure.error)
    measured(trained, "accuracy")
