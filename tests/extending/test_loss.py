"""A user's loss is trained with, logged, resumed and told apart as svdctl's is; `smoothed_loss.py` is all it takes."""

from pathlib import Path

import pytest
import torch

import svdctl
import tests.extending.smoothed_loss  # noqa: F401  # registers it
from svdctl.errors import UsageError
from svdctl.train import start as recipe
from svdctl.train.metrics_log import read_log
from svdctl.train.run_hash import run_hash
from tests.train.test_resume import draw_nothing
from tests.train.test_runs import Recorder, assert_equal, data, make, weights

__all__ = ["data"]

SMOOTHED = ("loss.kind=smoothed", "loss.share=0.4")


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder / "metrics.jsonl") if line["kind"] == "step"]


def test_it_is_trained_with_and_resumed_to_the_same_bits(data: Path) -> None:
    config = make(data, *SMOOTHED, epochs=2)
    whole = recipe.run(config, base="test", reporter=Recorder())
    recorder = Recorder(interrupt_after=3)
    part = recipe.run(config, base="test", reporter=recorder)
    assert any("loss smoothed" in line for line in recorder.lines)
    assert not part.completed
    assert recipe.resume(part.folder, reporter=Recorder()).completed
    assert_equal(weights(whole.folder), weights(part.folder))
    plain = recipe.run(make(data, epochs=2), base="test", reporter=Recorder())
    assert losses(whole.folder) == losses(part.folder) != losses(plain.folder)
    assert not torch.equal(weights(whole.folder)["fc.weight"], weights(plain.folder)["fc.weight"])
    svdctl.load(whole.folder)


def test_without_smoothing_it_is_the_cross_entropy_to_the_bit(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    one, other = (
        recipe.run(make(data, *sets, epochs=1), base="test", reporter=Recorder())
        for sets in ((), ("loss.kind=smoothed", "loss.share=0"))
    )
    assert losses(one.folder) == losses(other.folder)
    assert_equal(weights(one.folder), weights(other.folder))


def test_a_run_with_another_loss_is_another_run(data: Path) -> None:
    plain = make(data)
    assert run_hash(plain) == run_hash(make(data, "loss.kind=cross-entropy"))
    assert len({run_hash(plain), run_hash(make(data, *SMOOTHED)), run_hash(make(data, "loss.kind=smoothed"))}) == 3


@pytest.mark.parametrize(
    ("setting", "fault"),
    [("loss.kind=smooth", "cross-entropy"), ("loss.share=0.1", "loss.share"), ("loss.kind=3", "loss.kind")],
)
def test_a_wrong_section_is_refused_before_the_run(data: Path, setting: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        make(data, setting)
