"""What a training says of itself, in which order; the bar of each phase, and the answer to Ctrl-C in it."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import LIPCONV, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.errors import Interrupted, TrainingError
from svdctl.train import start as recipe
from svdctl.utils import signals
from svdctl.utils.progress import Advance, Reporter


class Phases(Reporter):
    """Keeps what is said, which parts there are and how far they came, and what Ctrl-C would be answered in each."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.works: list[str] = []
        self.answers: dict[str, str] = {}
        self.reached: dict[str, tuple[int, int]] = {}
        self.count = 0

    def say(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def part(self, work: str) -> Iterator[Advance]:
        self.works.append(work)
        self.answers[work] = signals._answers[-1]()

        def advance(done: int, total: int, now: str) -> None:
            assert 0 <= done <= total
            self.reached[work] = done, total

        yield advance


def write(tmp_path: Path, side: int) -> Path:
    generator = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", 40), ("test", 12)):
        labels = np.arange(count) % 3
        parts[f"x_{part}"] = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        parts[f"y_{part}"] = labels
    np.savez(tmp_path / "data.npz", **parts)
    return tmp_path / "data.npz"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path, 12)


def make(data: Path, *sets: str, **flags: object) -> TrainConfig:
    given = {"preset": "quickstart", "dataset": f"npz:{data}", "epochs": 2, "batch_size": 16, **flags}
    sets = ("model.width=1", "layer.rank=6", *sets)
    return resolve({**given, "out_dir": str(data.parent / "runs"), "set": list(sets)}).config


def labels(told: Phases) -> list[str]:
    return [line[:8].strip() for line in told.lines]


def test_what_is_said_and_shown_of_a_run_and_of_its_resumption(data: Path) -> None:
    told = Phases()
    result = recipe.run(make(data), base="test", reporter=told)
    assert labels(told) == ["runs on", "data", "model", "control", "training", "run"]
    counts = r"\d+ training \+ \d+ validation \+ 12 test images"
    assert re.search(rf"{counts}, 12 x 12 colour; 3 classes \(0, 1, 2\); augmentation: ", told.lines[1])
    assert "counted with" not in told.lines[2]
    assert told.lines[-1].startswith(f"run      {result.folder}, ")
    for work in (
        "reading npz",
        "computing the fingerprint of the data",
        "making the network",
        "singular values at the start",
        "proving bounds",
        "finding the largest singular values",
        "evaluating",
        "drawing pictures",
        "singular values at the end",
    ):
        assert work in told.works
    assert told.reached["evaluating"] == (12, 12)
    assert told.reached["proving bounds"] == (8, 8)
    assert told.answers["reading npz"] == "nothing has been saved yet"
    assert told.answers["singular values at the start"] == "nothing has been saved yet"
    last = result.folder / "last.pt"
    assert told.answers["drawing pictures"] == f"all steps are saved in {last}; what is made of them now is not"
    again = Phases()
    recipe.resume(result.folder, reporter=again)
    assert labels(again)[:3] == ["resume", "runs on", "data"]
    assert {"model", "control", "training"} <= set(labels(again))
    assert again.answers["reading npz"] == f"{last} stays as it is"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_request_while_pictures_are_drawn_ends_in_a_sentence(data: Path, number: signal.Signals) -> None:
    class Stopped(Phases):
        @contextmanager
        def part(self, work: str) -> Iterator[Advance]:
            if work == "drawing pictures":
                os.kill(os.getpid(), number)
            with super().part(work) as advance:
                yield advance

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with pytest.raises(Interrupted, match="interrupted; go on from what was saved with resume"):
            recipe.run(make(data, "epochs=1", "max_steps=2"), base="test", reporter=Stopped())
    finally:
        signal.signal(signal.SIGHUP, before)
    (last,) = data.parent.glob("runs/*/last.pt")
    assert read_checkpoint(last).metrics["step"] == 2


def test_an_evaluation_within_a_training_is_answered_with_what_is_saved(data: Path) -> None:
    answers: list[str] = []

    class Evaluations(Phases):
        @contextmanager
        def part(self, work: str) -> Iterator[Advance]:
            with super().part(work) as advance:
                answers.extend([self.answers[work]] * (work == "evaluating"))
                yield advance

    result = recipe.run(make(data), base="test", reporter=Evaluations())
    last = result.folder / "last.pt"
    first, second, *_ = answers
    end = "a second request ends the run at once, with"
    assert first == f"epoch 1 is evaluated, another step made and saved in {last}; {end} nothing saved"
    assert second == f"the last epoch is evaluated and saved in {last}; {end} step 3 saved there"


def test_certificates_have_bars(tmp_path: Path) -> None:
    told = Phases()
    flags = {"preset": "lipconv-quickstart", "dataset": f"npz:{write(tmp_path, 32)}", "epochs": 1, "batch_size": 16}
    sets = ["model.in_channels=2", "layer.rank=2", "augment.crop=0"]
    config = resolve({**flags, "out_dir": str(tmp_path / "runs"), "set": sets}, LIPCONV).config
    recipe.run(config, base="test", reporter=told)
    assert "proving the network's Lipschitz constant" in told.works
    assert told.reached["certifying"] == (12, 12)


def test_a_control_that_takes_its_time_has_a_bar(data: Path) -> None:
    told = Phases()
    config = make(data, clipping="clip", clip_to=1.0, clip_freq=2)
    recipe.run(config.model_copy(update={"epochs": 1}), base="test", reporter=told)
    done, total = told.reached["controlling singular values"]
    assert done == total > 1


def test_a_run_that_diverged_says_what_is_saved(data: Path) -> None:
    config = make(data, "optimizer.lr=1e30", "control.kind=none", "layer.kind=standard")
    with pytest.raises(TrainingError, match=r"not finite in or just before step \d.*`optimizer.lr`, now 1e\+30.*saved"):
        recipe.run(config, base="test", reporter=Reporter())
