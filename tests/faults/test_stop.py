"""Asked to stop, by a scheduler or a terminal, and clocks that run backwards.

Ctrl-C: `tests/train/test_runs.py`; stopped sweeps: `tests/reproduce/test_end_to_end.py`.
"""

import os
import shutil
import signal
import time
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.reproduce_progress import SweepDisplay
from svdctl.config.presets import to_toml
from svdctl.config.train_config import TrainConfig
from svdctl.errors import Interrupted
from svdctl.reproduce.run_store import RunStore
from svdctl.train import start as recipe
from svdctl.train.metrics_log import read_log
from svdctl.train.run import TrainingRun
from svdctl.train.run_hash import run_hash
from svdctl.utils.progress import Reporter
from svdctl.utils.run_dir import create_run_folder
from tests.faults.small import Command, assert_equal, make, only_run, resume, run_folder, state, train


def _nohup() -> None:
    """For `Command`: as nohup starts a program."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _block_nothing() -> None:
    """For `Command`: signals as a program gets them from a scheduler."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_the_step_is_finished_and_saved(number: int, tmp_path: Path) -> None:
    """Exit code 130, the command that goes on, and the weights of a run that nobody stopped."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    assert train(whole, make(whole, epochs=8)).end().code == 0
    command = train(part, make(part, epochs=8), _block_nothing)
    # Nothing is saved yet: the signal alone makes it be.
    command.wait_for(lambda: any(part.glob("runs/*/metrics.jsonl")) and b'"step": 2,' in _log(part))
    assert not run_folder(part)()
    command.signal(number)
    ended = command.end(30)
    run = only_run(part)
    assert ended.code == 130
    answer = f"note: stopping: the step is finished and saved in {run}/last.pt; a second request ends the run at once, "
    assert ended.err == f"{answer}with nothing saved\n"
    step = int(read_checkpoint(run).metrics["step"])
    assert f"interrupted after step {step}; the state is saved" in ended.out
    assert f"svdctl train --resume {run}" in ended.out
    assert step == max(record["step"] for record in read_log(run / "metrics.jsonl"))
    assert resume(part, run).end().code == 0
    assert_equal(state(run), state(only_run(whole)))


def _log(folder: Path) -> bytes:
    return (only_run(folder) / "metrics.jsonl").read_bytes()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    command = train(tmp_path, make(tmp_path, "checkpoint.every_steps=3", epochs=4000), _block_nothing)
    command.wait_for(run_folder(tmp_path))
    for _ in range(2):
        command.signal(signal.SIGTERM)
    ended = command.end(10)
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert read_checkpoint(only_run(tmp_path))


@pytest.mark.slow
def test_a_hang_up_under_nohup_stops_nothing(tmp_path: Path) -> None:
    command = train(tmp_path, make(tmp_path, "checkpoint.every_steps=3", epochs=8), _nohup)
    command.wait_for(run_folder(tmp_path))
    command.signal(signal.SIGHUP)
    assert command.end().code == 0


@pytest.mark.slow
def test_a_run_whose_signal_came_in_its_last_step_is_finished(tmp_path: Path) -> None:
    """Evaluations and the last step are not cut short: the run ends as if nobody had asked."""
    command = train(tmp_path, make(tmp_path, epochs=8), _block_nothing)
    command.wait_for(lambda: any(tmp_path.glob("runs/*/metrics.jsonl")) and b'"step": 32,' in _log(tmp_path))
    if command.running:
        command.signal(signal.SIGTERM)
    ended = command.end()
    # Drawing is after the last checkpoint: there the signal is the system's again.
    assert ended.code in (0, -signal.SIGTERM)
    run = only_run(tmp_path)
    if (run / "last.pt").exists() and read_checkpoint(run).metrics["step"] == 32:
        assert resume(tmp_path, run).end().code == 0
        assert (run / "spectrum.png").exists()


def test_what_is_said_to_be_saved_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while data are loaded, before the first step, and after a checkpoint."""
    config = make(tmp_path, epochs=1)

    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    for module, name, saved in (
        (recipe, "load_parts", False),
        (TrainingRun, "execute", False),
        (recipe, "load_parts", True),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, interrupted)
            begin = partial(recipe.resume, only_run(tmp_path)) if saved else partial(recipe.run, config, base="")
            with pytest.raises(Interrupted) as told:
                begin(reporter=Reporter())
        if saved:
            assert str(told.value) == f"interrupted; go on from what was saved with resume {only_run(tmp_path)}"
        else:
            assert str(told.value) == "interrupted; nothing had been saved yet, run the command again"
            shutil.rmtree(tmp_path / "runs", ignore_errors=True)
            if name == "execute":
                assert train(tmp_path, config).end().code == 0
    assert told.value.exit_code == 130


# Clocks.


def _backwards(seconds: float) -> None:
    """For `Command`: a clock that runs backwards, this many seconds whenever it is asked."""
    moment = 2e9

    def earlier() -> float:
        nonlocal moment
        moment -= seconds
        return moment

    forms, local = time.strftime, time.localtime
    time.time = earlier
    time.localtime = lambda at=None: local(earlier() if at is None else at)
    time.strftime = lambda form, at=None: forms(form, time.localtime() if at is None else at)


def test_a_training_while_the_clock_runs_backwards(tmp_path: Path) -> None:
    forwards, backwards = tmp_path / "forwards", tmp_path / "backwards"
    for folder in (forwards, backwards):
        folder.mkdir()
    assert train(forwards, make(forwards)).end().code == 0
    ended = train(backwards, make(backwards), _backwards, 3600.0).end()
    assert ended.code == 0, ended.err
    run = only_run(backwards)
    assert datetime.strptime(run.name.removeprefix("quickstart-"), "%Y%m%d-%H%M%S").year == 2033
    assert_equal(state(run), state(only_run(forwards)))
    records = read_log(run / "metrics.jsonl")
    assert [record["step"] for record in records] == sorted(record["step"] for record in records)
    epochs = [record for record in records if record["kind"] == "epoch"]
    assert all(min(epoch["train_time"], epoch["val_time"], epoch["clipping_time"]) >= 0 for epoch in epochs)


@pytest.mark.slow
def test_a_run_that_goes_on_before_it_began(tmp_path: Path) -> None:
    """Killed, the clock set back a year, resumed: what counts are the steps."""
    command = train(tmp_path, make(tmp_path, "checkpoint.every_steps=3", epochs=8))
    command.wait_for(run_folder(tmp_path))
    command.signal(signal.SIGKILL)
    command.end()
    run = only_run(tmp_path)
    for file in run.iterdir():
        os.utime(file, (2**31, 2**31))
    assert resume(tmp_path, run, _backwards, 60.0).end().code == 0
    assert read_checkpoint(run).metrics["step"] == 32
    steps = [record["step"] for record in read_log(run / "metrics.jsonl") if record["kind"] == "step"]
    assert steps == list(range(1, 33))


def test_an_hour_that_comes_twice_gives_new_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of the same second never meet; the later one has a number."""
    names = []
    for second in (5, 6, 5, 4, 5):
        monkeypatch.setattr(time, "strftime", lambda form, second=second: f"20261025-02000{second}")
        names.append(create_run_folder(tmp_path, "run").name)
    stamps = ["run-20261025-020005", "run-20261025-020006", "run-20261025-020005-2", "run-20261025-020004"]
    assert names == [*stamps, "run-20261025-020005-3"]


def test_of_two_folders_the_one_with_more_steps_is_gone_on_with(tmp_path: Path) -> None:
    """Neither the name nor the time of its files tells which folder of a run got further."""
    command = train(tmp_path, make(tmp_path, "checkpoint.every_steps=3", epochs=8))
    command.wait_for(lambda: run_folder(tmp_path)() and b'"epoch"' in _log(tmp_path) and b"val_acc" in _log(tmp_path))
    command.signal(signal.SIGTERM)
    command.end()
    further = only_run(tmp_path)
    config = TrainConfig.model_validate(read_checkpoint(further).config)
    behind = further.with_name("quickstart-20990101-000000")
    shutil.copytree(further, behind)
    lines = (further / "metrics.jsonl").read_text().splitlines(keepends=True)
    first = next(place for place, line in enumerate(lines) if "val_acc" in line)
    (behind / "metrics.jsonl").write_text("".join(lines[: first + 1]))
    assert resume(tmp_path, further).end().code == 0
    for file in behind.iterdir():
        os.utime(file, (2**31, 2**31))
    assert (behind / "config.toml").read_text() == to_toml(config)
    found = RunStore(tmp_path / "runs").best(run_hash(config))
    assert found is not None
    assert found.folder == further


def test_what_a_sweep_tells_of_time_is_never_negative(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unittest.mock import Mock

    board = SweepDisplay(live=False)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 7200)
    run = Mock(id="a")
    run.config.name = "row"
    waiting = Mock(id="b")
    waiting.store.read_status.return_value = {"state": "waiting"}
    board._jobs = {"a": run, "b": waiting}
    board.finish(Mock(id="a", state="done"))
    told = capsys.readouterr().out
    assert "done (after 0:00" in told
    assert "-" not in told


def test_a_command_line_that_is_stopped_before_it_trains(tmp_path: Path) -> None:
    """While the plan is made nothing is there to be saved, and the system ends the process."""
    command = Command(
        ["train", "--preset", "quickstart", "--out-dir", tmp_path / "runs"], tmp_path / "log", _block_nothing
    )
    command.signal(signal.SIGTERM)
    assert command.end().code in (-signal.SIGTERM, 130)
