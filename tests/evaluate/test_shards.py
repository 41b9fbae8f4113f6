"""Shards attack all images once between them, and are joined only when they belong together."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from svdctl.errors import EvaluationError, UsageError
from svdctl.evaluate.attack import attack_metric, attack_progress
from svdctl.evaluate.results import read_rows
from svdctl.evaluate.runner import EvaluationResult
from svdctl.evaluate.runner import run as evaluate
from svdctl.utils.measurement_cache import MeasurementCache
from tests.evaluate.small import Recorder, make

FACTORY = "tests.evaluate.small:build"


@pytest.fixture
def linear(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(shared / "linear.pth", tmp_path))


def attack(shared: Path, linear: Path, recorder: Recorder | None = None, **flags: Any) -> EvaluationResult:
    config = make(
        linear,
        **{"model": FACTORY, "dataset": f"npz:{shared / 'data.npz'}", "metrics": ["autoattacks"], "examples": "20",
           "eps": 0.5, **flags},
    )  # fmt: skip
    return evaluate(config, reporter=recorder or Recorder())


def only_error(result: EvaluationResult) -> Exception:
    (failure,) = result.failures
    assert not any(evaluation.records for evaluation in result.evaluations)
    assert result.report is None
    return failure.error


def test_shards_joined_are_the_whole(shared: Path, linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in (1, 2, 3):
        result = attack(shared, linear, shard=f"{index}/3")
        assert not result.failures
        assert result.report is None
    merged = attack(shared, linear, merge_shards=True)
    assert not merged.failures
    record = merged.evaluations[0].records["autoattacks"]
    assert record.protocol["shards"] == 3
    rows = read_rows(linear.parent / "eval-linear/attacks.csv")
    # A plain call takes the joined figure over ...
    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(attack_metric, "run", lambda *_: pytest.fail("attacked again"))
        again = attack(shared, linear, recorder).evaluations[0].records["autoattacks"]
    assert again.model_dump() == record.model_dump()
    assert recorder.kept == {"autoattacks": "kept"}
    # ... which is that of an attack in one piece: APGD's draws hardly matter for a linear network.
    whole = attack(shared, linear, out_dir=linear.parent / "whole")
    assert whole.evaluations[0].records["autoattacks"].results["count"] == len(rows) == 20
    pieces = read_rows(whole.evaluations[0].found.results / "attacks.csv")
    for key in ("image", "label", "clean_prediction", "outcome"):
        assert [row[key] for row in rows] == [row[key] for row in pieces]


def test_missing_shards_are_named(shared: Path, linear: Path) -> None:
    error = only_error(attack(shared, linear, merge_shards=True))
    assert "holds no shard of this attack" in str(error)
    attack(shared, linear, shard="2/4")
    error = only_error(attack(shared, linear, merge_shards=True))
    assert isinstance(error, EvaluationError)
    assert "lacks the shards 1/4, 3/4, 4/4" in str(error)


def test_shards_of_two_splits_are_refused(shared: Path, linear: Path) -> None:
    for shard in ("1/2", "2/2", "1/3"):
        attack(shared, linear, shard=shard)
    assert "different splits (of 2, 3)" in str(only_error(attack(shared, linear, merge_shards=True)))


def test_shards_of_other_settings_do_not_count(shared: Path, linear: Path) -> None:
    attack(shared, linear, shard="1/2")
    attack(shared, linear, shard="2/2", eps=0.25)
    error = str(only_error(attack(shared, linear, merge_shards=True)))
    assert "lacks the shards 2/2 (1 there belong to other weights, data or settings)" in error


def test_a_shard_under_a_false_name_is_refused(shared: Path, linear: Path) -> None:
    attack(shared, linear, shard="1/2")
    attack(shared, linear, shard="2/2", eps=0.25)
    folder = linear.parent / "eval-linear" / attack_progress.SHARDS
    right, wrong = (next(folder.glob(f"*-{index}-of-2.pt")) for index in (1, 2))
    wrong.rename(folder / right.name.replace("-1-of-", "-2-of-"))
    assert "than its name says" in str(only_error(attack(shared, linear, merge_shards=True)))


def test_a_damaged_shard_is_refused_and_attacked_anew(shared: Path, linear: Path) -> None:
    quick = {"examples": "4", "eps": 9.0}
    for index in (1, 2):
        attack(shared, linear, shard=f"{index}/2", **quick)
    folder = linear.parent / "eval-linear" / attack_progress.SHARDS
    sound = next(folder.glob("*-2-of-2.pt"))
    state = torch.load(sound, weights_only=True)["records"][0]["state"]
    contents = bytearray(sound.read_bytes())
    contents[contents.index(state["distances"].numpy().tobytes())] ^= 1
    sound.write_bytes(contents)
    error = str(only_error(attack(shared, linear, merge_shards=True, **quick)))
    assert "is damaged" in error
    assert "run it again with `shard = 2/2`" in error
    recorder = Recorder()
    attack(shared, linear, recorder, shard="2/2", **quick)
    assert any("measured again" in notice for notice in recorder.notices)
    assert not attack(shared, linear, merge_shards=True, **quick).failures


def test_an_unfinished_shard_is_refused(shared: Path, linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack(shared, linear, shard="1/2")
    real = MeasurementCache.put
    writes = 0

    def stop(*arguments: Any) -> None:
        nonlocal writes
        real(*arguments)
        writes += 1
        if writes == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MeasurementCache, "put", stop)
        with pytest.raises(KeyboardInterrupt):
            attack(shared, linear, shard="2/2", batch_size=3)
    # Batches are part of the settings, so both shards need the same.
    assert "holds" in str(only_error(attack(shared, linear, merge_shards=True, batch_size=2)))
    attack(shared, linear, shard="1/2", batch_size=3)
    assert "shard 2/2 is not finished" in str(only_error(attack(shared, linear, merge_shards=True, batch_size=3)))
    recorder = Recorder()
    attack(shared, linear, recorder, shard="2/2", batch_size=3)
    assert any("going on after batch" in notice for notice in recorder.notices)
    assert not attack(shared, linear, merge_shards=True, batch_size=3).failures


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "-1/2"])
def test_a_shard_that_does_not_exist_is_wrong_usage(shard: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        make(shard=shard)


def test_more_shards_than_images_are_refused(shared: Path, linear: Path) -> None:
    assert "make fewer shards" in str(only_error(attack(shared, linear, shard="21/21")))


@pytest.mark.parametrize("flags", [{"metrics": ["ece"]}, {"metrics": ["ece", "autoattacks"]}])
def test_shards_are_for_attacks(flags: dict[str, Any]) -> None:
    for which in ({"shard": "1/2"}, {"merge_shards": True}):
        with pytest.raises(UsageError, match="shards are for attacks"):
            make(**flags, **which)
    with pytest.raises(UsageError, match="give one of them"):
        make(metrics=["autoattacks"], shard="1/2", merge_shards=True)


def test_a_shard_copied_over_another_is_refused(shared: Path, linear: Path) -> None:
    # 40 images in shards of equal size: the labels of one could be those of the other.
    for shard in ("1/5", "2/5", "3/5", "4/5", "5/5"):
        attack(shared, linear, shard=shard, examples="40", eps=9.0)
    first, *others = sorted((linear.parent / "eval-linear" / attack_progress.SHARDS).glob("*.pt"))
    for other in others:
        shutil.copyfile(first, other)
    error = str(only_error(attack(shared, linear, merge_shards=True, examples="40", eps=9.0)))
    assert "images than its name says; run it again with `shard = 2/5`" in error
