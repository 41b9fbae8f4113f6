"""Results are found again under the same protocol and weights, and under no other."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from svdctl.errors import BusyFolderError, EvaluationError
from svdctl.evaluate.results import ResultStore, fingerprint, held
from svdctl.registry import METRICS

PROTOCOL = {"weights": "w", "eps": 0.5, "seed": 3}
RESULTS = {
    "lipschitz": 2.0,
    "accuracy": {"36": 0.5, "108": 0.0},
    "count": 2,
    "clean": 1.0,
    "mean_radius": 0.225,
    "largest_radius": 0.25,
    "vacuous": False,
    "largest_factors": (),
}


def store(folder: Path, weights: str = "w") -> ResultStore:
    return ResultStore(folder, weights, {"path": "x"})


def put(target: ResultStore, **changes: object) -> None:
    rows = [{"image": 0, "correct": 1, "radius": 0.1}, {"image": 1, "correct": 1, "radius": 0.25}]
    target.put("certified", {**PROTOCOL, **changes}, RESULTS, seconds=1, device="cpu", rows=rows)


def test_a_record_is_found_by_its_protocol_alone(tmp_path: Path) -> None:
    put(store(tmp_path))
    again = store(tmp_path)
    record = again.find("certified", dict(reversed(PROTOCOL.items())))
    assert record is not None
    assert record.results == {**RESULTS, "largest_factors": []}
    assert record.kept == "kept"
    assert record.environment["seed"] == 3
    assert record.environment["versions"]["torch"]
    assert again.rows(record) == [
        {"image": "0", "correct": "1", "radius": "0.1"},
        {"image": "1", "correct": "1", "radius": "0.25"},
    ]
    for other in ({"eps": 0.25}, {"weights": "v"}, {"more": 1}):
        assert again.find("certified", {**PROTOCOL, **other}) is None
    assert again.find("accuracy", PROTOCOL) is None


def test_two_protocols_are_kept_side_by_side(tmp_path: Path) -> None:
    target = store(tmp_path)
    put(target)
    put(target, eps=0.25)
    put(target)
    again = store(tmp_path)
    assert len(again.records) == 2
    assert again.find("certified", PROTOCOL) is not None
    assert again.find("certified", {**PROTOCOL, "eps": 0.25}) is not None


def test_a_record_without_its_rows_is_measured_anew(tmp_path: Path) -> None:
    put(store(tmp_path))
    next((tmp_path / "details").iterdir()).unlink()
    assert store(tmp_path).find("certified", PROTOCOL) is None


def test_other_weights_start_anew_and_say_so(tmp_path: Path) -> None:
    first = store(tmp_path)
    put(first)
    first.unfinished.mkdir()
    (first.unfinished / "attack.pt").write_bytes(b"state")
    other = store(tmp_path, "v")
    assert other.records == []
    assert "other weights" in other.notices[0]
    assert not first.unfinished.exists()
    assert not store(tmp_path, "v").notices


def test_weights_are_known_before_anything_is_finished(tmp_path: Path) -> None:
    store(tmp_path)
    assert store(tmp_path, "v").notices


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    put(store(tmp_path))
    path = tmp_path / "results.json"
    before = path.read_text()[:-20]
    path.write_text(before)
    again = store(tmp_path)
    assert again.records == []
    assert "damaged" in again.notices[0]
    assert (tmp_path / "results.damaged.json").read_text() == before
    assert (tmp_path / "results.damaged.json").exists()


@pytest.mark.parametrize(
    "contents", [{"format": "other", "records": []}, {"format": "svdctl.evaluation", "version": 99, "records": []}]
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, contents: dict[str, object]) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(contents))
    before = path.read_text()
    with pytest.raises(EvaluationError, match="newer svdctl"):
        store(tmp_path)
    assert path.read_text() == before


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def test_a_folder_is_held_by_one_process_and_a_shard_by_one(tmp_path: Path) -> None:
    with held(tmp_path):
        with pytest.raises(BusyFolderError, match="another process"), held(tmp_path):
            raise AssertionError("the lock was given twice")
        with held(tmp_path, "shard-1-of-2"), held(tmp_path, "shard-2-of-2"):
            pass


def test_unfinished_work_is_bound_to_its_protocol(tmp_path: Path) -> None:
    metric, context = METRICS.get("cifar-c"), cast("Any", SimpleNamespace(folder=tmp_path))
    first, second = (
        metric.unfinished_file(context, None, fingerprint(protocol)) for protocol in (PROTOCOL, {**PROTOCOL, "eps": 1})
    )
    assert first != second
    assert first.parent == store(tmp_path).unfinished


def test_rows_survive_commas_and_quotes(tmp_path: Path) -> None:
    target = store(tmp_path)
    record = target.put("certified", {}, RESULTS, seconds=0, device="cpu", rows=[{"a": 'one, "two"', "b": ""}])
    assert target.rows(record) == [{"a": 'one, "two"', "b": ""}]
