"""`last.pt` is written after every epoch and every ten minutes, whatever the schedule, and no run is changed by it."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import resolve
from svdctl.train import loop
from svdctl.train import start as recipe
from svdctl.train.loggers.jsonl_logger import _JsonlWriter
from tests.train.test_resume import assert_same, draw_nothing, make, tensors
from tests.train.test_runs import Recorder

SELDOM = ("checkpoint.every_epochs=200", "checkpoint.keep=false", "evaluation.every_epochs=3", "evaluation.select=last")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


def copies_of_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the run folders as they are each time that `last.pt` gets its name, filled while a run goes on."""
    found: list[Path] = []
    replace = os.replace

    def watched(source: Any, target: Any, **named: Any) -> None:
        replace(source, target, **named)
        if Path(target).name == "last.pt":
            found.append(folder / f"copy-{len(found)}")
            shutil.copytree(Path(target).parent, found[-1])

    monkeypatch.setattr(os, "replace", watched)
    return found


@pytest.mark.parametrize("command", ["train", pytest.param("train-lipconv", marks=pytest.mark.slow)])
def test_a_rare_schedule_loses_no_epoch_and_saving_changes_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(tmp_path, command, *SELDOM, "control.max_sigma=0.3" if command == "train" else "seed=2")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_save", lambda self, kind: self.save(kind) if kind == "last" else None)
        scheduled = copies_of_last(tmp_path / "scheduled", patch)
        whole = recipe.run(config, base="test", reporter=Recorder())
    assert len(scheduled) == 1
    with monkeypatch.context() as patch:
        found = copies_of_last(tmp_path / "epochs", patch)
        assert_same(recipe.run(config, base="test", reporter=Recorder()), whole, "saved after every epoch")
    assert [int(read_checkpoint(folder).metrics["step"]) for folder in found] == [3, 6, 9]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_EVERY", 0.0)
        found = copies_of_last(tmp_path / "steps", patch)
        assert_same(recipe.run(config, base="test", reporter=Recorder()), whole, "saved after every step")
    assert [int(read_checkpoint(folder).metrics["step"]) for folder in found] == list(range(1, 10))
    if command == "train":
        # The seal of the first epoch's end changed weights, which the file holds as they were too.
        assert read_checkpoint(found[2]).training["unsealed"]
    for folder in found:
        assert_same(recipe.resume(folder, reporter=Recorder()), whole, folder.name)


def test_a_log_that_was_removed_has_the_run_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the step whose line finds it gone; the run ends with the weights of an undisturbed one."""
    config = make(tmp_path, "train", *SELDOM)
    whole = recipe.run(config, base="test", reporter=Recorder())
    write = _JsonlWriter.write

    def write_and_remove(self: Any, line: Any) -> None:
        write(self, line)
        if line["step"] == 4:
            self._path.unlink()

    monkeypatch.setattr(_JsonlWriter, "write", write_and_remove)
    found = copies_of_last(tmp_path / "steps", monkeypatch)
    ended = recipe.run(config, base="test", reporter=Recorder())
    wanted, saved = (tensors(read_checkpoint(result.folder).model) for result in (whole, ended))
    assert all(torch.equal(value, saved[name]) for name, value in wanted.items())
    assert [int(read_checkpoint(folder).metrics["step"]) for folder in found] == [3, 5, 6, 9]


def test_what_is_written_besides_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(tmp_path, "train", *SELDOM, "control.max_sigma=0.3")
    found = copies_of_last(tmp_path / "epochs", monkeypatch)
    recipe.run(config, base="test", reporter=Recorder())
    kept = read_checkpoint(found[0])
    unsealed = kept.training["unsealed"]
    assert all(float(kept.model[name].norm()) < float(value.norm()) for name, value in unsealed.items())
    assert all(torch.isfinite(value).all() for value in tensors(kept.model).values())


def test_the_papers_flag_keeps_checkpoints_besides() -> None:
    flags = {"dataset": "digits", "architecture": "wrn10-1", "save_chp_every": 5}
    checkpoint = resolve(flags).config.checkpoint
    assert (checkpoint.every_epochs, checkpoint.keep) == (5, True)
    assert not resolve({"dataset": "digits", "architecture": "wrn10-1"}).config.checkpoint.keep


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_first_ones_clock_decides(rank: int) -> None:
    other = torch.zeros(3, dtype=torch.float64)

    class TwoProcesses:
        """What another process adds to a sum is `other`."""

        alone, device = False, torch.device("cpu")

        def __init__(self) -> None:
            self.rank = rank

        def summed_(self, values: torch.Tensor) -> torch.Tensor:
            return values.add_(other)

    schedule = loop._SyncSchedule(TwoProcesses(), 0)  # type: ignore[arg-type]
    assert schedule.agreed(1, False, True, True) == (False, False)  # nothing is exchanged between two reads
    assert schedule.agreed(2, True, False, True) == (False, rank == 0)
    other[1] = 1.0
    assert schedule.agreed(3, True, False, False) == (False, True)
    other[0] = 1.0
    assert schedule.agreed(4, True, False, False) == (True, True)
