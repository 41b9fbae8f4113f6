"""SIGKILL at any moment of a training: the last checkpoint loads, and resuming ends with the undisturbed weights."""

import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint, write_checkpoint
from svdctl.errors import CheckpointError
from svdctl.train import start as recipe
from svdctl.train.metrics_log import read_log
from svdctl.utils.progress import Reporter
from tests.faults.small import Command, assert_equal, halves, make, only_run, resume, run_folder, state, train

SETS = ("checkpoint.every_steps=3", "optimizer.lr=0.02")
EPOCHS = 9


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train(folder, make(folder, *SETS, epochs=EPOCHS)).end().code == 0
    return state(only_run(folder))


def kill_about(folder: Path, command: Command, step: int, later: float) -> None:
    """Kill a training some seconds after it logged a step."""
    command.wait_for(lambda: has_logged(folder, step))
    time.sleep(later)
    command.signal(signal.SIGKILL)
    assert command.end().code == -signal.SIGKILL


def has_logged(folder: Path, step: int) -> bool:
    """Whether a checkpoint and the line of a step are there."""
    return run_folder(folder)() and f'"step": {step},' in (only_run(folder) / "metrics.jsonl").read_text()


def assert_survived(folder: Path, undisturbed: dict[str, torch.Tensor]) -> int:
    """Check the folder of a killed run, resume it and check again; the step that it stood at."""
    run = only_run(folder)
    step = int(read_checkpoint(run).metrics["step"])
    assert step % 3 == 0 or step % 4 == 0
    ended = resume(folder, run).end()
    assert ended.code == 0, ended.err
    assert f"after step {step}" in ended.out
    assert not halves(run)
    assert_equal(state(run), undisturbed)
    steps = [record["step"] for record in read_log(run / "metrics.jsonl") if record["kind"] == "step"]
    assert steps == list(range(1, 4 * EPOCHS + 1))
    return step


@pytest.mark.parametrize("trial", [pytest.param(n, marks=[] if n < 1 else pytest.mark.slow) for n in range(30)])
def test_at_a_random_moment(trial: int, undisturbed: dict[str, torch.Tensor], tmp_path: Path) -> None:
    drawn = random.Random(trial)
    command = train(tmp_path, make(tmp_path, *SETS, epochs=EPOCHS))
    kill_about(tmp_path, command, drawn.randrange(4, 4 * EPOCHS - 4), drawn.uniform(0, 0.05))
    assert_survived(tmp_path, undisturbed)


@pytest.mark.parametrize("trial", [pytest.param(n, marks=[] if n < 1 else pytest.mark.slow) for n in range(10)])
def test_while_a_checkpoint_is_written(trial: int, undisturbed: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The half-written file is there when the signal comes, and gone after resuming."""
    command = train(tmp_path, make(tmp_path, *SETS, epochs=EPOCHS))
    step = random.Random(trial).randrange(4, 4 * EPOCHS - 8)
    command.wait_for(lambda: has_logged(tmp_path, step))
    run = only_run(tmp_path)
    deadline = time.monotonic() + 60
    while not list(run.glob(".last.pt.*.part")):
        assert time.monotonic() < deadline
    command.signal(signal.SIGKILL)
    assert command.end().code == -signal.SIGKILL
    assert_survived(tmp_path, undisturbed)


def test_again_and_again(undisturbed: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """One run, killed three times on its way."""
    command = train(tmp_path, make(tmp_path, *SETS, epochs=EPOCHS))
    steps = []
    for step in (8, 20, 33):
        kill_about(tmp_path, command, step, 0.01)
        run = only_run(tmp_path)
        steps.append(read_checkpoint(run).metrics["step"])
        command = resume(tmp_path, run)
    command.signal(signal.SIGKILL)
    command.end()
    assert steps == sorted(set(steps))
    assert_survived(tmp_path, undisturbed)


def test_before_the_first_checkpoint(tmp_path: Path) -> None:
    """Nothing to go on from: a sentence."""
    command = train(tmp_path, make(tmp_path, *SETS, epochs=EPOCHS))
    command.wait_for(lambda: any(tmp_path.glob("runs/*/config.toml")))
    command.signal(signal.SIGKILL)
    command.end()
    run = only_run(tmp_path)
    assert not (run / "last.pt").exists()
    ended = resume(tmp_path, run).end()
    assert ended.code == 2
    assert "there is no checkpoint" in ended.sentence


def test_the_advice_for_a_file_without_a_state_of_training_is_never_that_file(tmp_path: Path) -> None:
    """`best.pt` copied over `last.pt`, with and without an epoch that was kept."""
    assert train(tmp_path, make(tmp_path, "checkpoint.keep=true", epochs=1)).end().code == 0
    run = only_run(tmp_path)
    whole = read_checkpoint(run)
    write_checkpoint(run / "best.pt", replace(whole, training={}))

    def told(path: Path) -> str:
        with pytest.raises(CheckpointError, match="holds no state of training") as error:
            recipe.resume(path, reporter=Reporter())
        return str(error.value).partition("; ")[2]

    assert told(run / "best.pt") == f"resume from {run / 'last.pt'}"
    (run / "last.pt").write_bytes((run / "best.pt").read_bytes())
    for path in (run, run / "last.pt", run / "best.pt"):
        assert told(path) == f"resume from {run / 'epoch-1.pt'}, the newest that holds one"
    (run / "epoch-1.pt").unlink()
    for path in (run, run / "best.pt"):
        said = f"restore {run / 'last.pt'} from a copy, or train anew: no file of this run holds one"
        assert told(path) == said
