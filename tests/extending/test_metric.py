"""A user's metric is measured, kept, checked and shown as svdctl's are; `confidence_metric.py` is all it takes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import svdctl
from svdctl.cli.evaluation_progress import result_json, result_table
from svdctl.errors import UsageError
from svdctl.evaluate.runner import EvaluationResult
from svdctl.evaluate.runner import run as evaluate
from svdctl.reproduce.plan import make_plan
from svdctl.reproduce.reproduction import reproduce
from svdctl.reproduce.table_files import Request
from tests.evaluate.conftest import run, shared
from tests.evaluate.small import Recorder, held_part, make
from tests.extending.confidence_metric import MeanConfidence
from tests.reproduce.test_end_to_end import Board, spelled

__all__ = ["run", "shared"]


def measured(run: Path, *metrics: str, **settings: Any) -> tuple[EvaluationResult, Recorder]:
    recorder = Recorder()
    assignments = [f"settings.confidence.{key}={value}" for key, value in settings.items()]
    config = make(run, metrics=metrics or ("confidence",), set=assignments)
    result = evaluate(config, reporter=recorder)
    assert not result.failures
    return result, recorder


def test_it_is_measured_kept_and_shown(shared: Path, run: Path) -> None:
    result, recorder = measured(run, "accuracy", "confidence")
    assert recorder.kept == {"accuracy": "", "confidence": ""}
    found = result.evaluations[0].records["confidence"].results
    images, _ = held_part(shared / "data.npz")
    with torch.no_grad():
        wanted = svdctl.load(run)(images.float() / 255).softmax(1).amax(1).mean()
    assert found["confidence"] == pytest.approx(float(wanted), abs=1e-6)
    again, recorder = measured(run, "accuracy", "confidence")
    assert recorder.kept == {"accuracy": "kept", "confidence": "kept"}
    shown = f"{100 * found['confidence']:.2f} (kept)"
    assert shown in result_table(again)
    text = (again.report or Path()).read_text()
    for part in ("| confidence, % |", f"| {shown} |", "- **Mean confidence**: confidence, %", "temperature 1.0"):
        assert part in text
    (contents,) = json.loads(result_json(again))["checkpoints"]
    assert contents["metrics"]["confidence"]["results"] == found
    assert (run / "eval-last" / "confidence.csv").read_text().startswith("image,confidence,kept\n")
    # Other settings are another figure.
    _, recorder = measured(run, temperature=2.0)
    assert recorder.kept == {"confidence": ""}


@pytest.mark.parametrize("name", ["confidence", "sure"])
def test_a_changed_figure_is_measured_again(run: Path, name: str) -> None:
    first, _ = measured(run)
    path = run / "eval-last" / "results.json"
    contents = json.loads(path.read_text())
    contents["records"][0]["results"][name] = 0.123
    path.write_text(json.dumps(contents))
    again, recorder = measured(run)
    assert recorder.kept == {"confidence": ""}
    assert any("checksum" in notice for notice in recorder.notices)
    assert again.evaluations[0].records["confidence"].results == first.evaluations[0].records["confidence"].results


def test_its_records_stay_where_it_is_not_registered(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from svdctl.registry import METRICS

    measured(run)
    known = {kind: METRICS.get(kind) for kind in METRICS.kinds() if kind != "confidence"}
    with monkeypatch.context() as patch:
        patch.setattr(METRICS, "_variants", known)
        with pytest.raises(UsageError, match="there is no metric 'confidence'"):
            evaluate(
                make(run, metrics=["accuracy"]).model_copy(update={"metrics": ("confidence",)}), reporter=Recorder()
            )
        evaluate(make(run, metrics=["accuracy"]), reporter=Recorder())
    assert measured(run)[1].kept == {"confidence": "kept"}


def test_wrong_settings_are_refused_before_anything_is_measured(run: Path) -> None:
    wrong = {"temperatur": "confidence.temperatur=1", "no metric": "confident.x=1", "bins": "ece.bins=3"}
    for fault, setting in wrong.items():
        with pytest.raises(UsageError, match=fault):
            make(run, metrics=["confidence"], set=[f"settings.{setting}"])


def test_a_second_metric_of_its_name_or_column_is_refused() -> None:
    class Other(MeanConfidence):
        pass

    class Column(MeanConfidence):
        kind = "confidence-2"

    assert svdctl.register_metric(MeanConfidence) is MeanConfidence
    for metric in (Other, Column):
        with pytest.raises(UsageError, match="confidence"):
            svdctl.register_metric(metric)


TABLE = """
title = "Confidence"
columns = ["accuracy", "confidence"]
set = [
    "data.kind=digits", "augment.flip=false", "model.depth=10", "model.width=1", "batch_size=16", "epochs=1",
    "max_steps=2",
]

[evaluate.settings.confidence]
temperature = 2.0

[[rows]]
name = "none-full"
preset = "wrn-cifar10"
"""


def test_it_is_a_column_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TABLE)
    request = Request.model_validate({"tables": [str(tmp_path / "mine.toml")], "out_dir": tmp_path / "runs"})
    result = reproduce(make_plan(request), Board(), spelled)
    assert not result.failed
    text = (tmp_path / "runs/tables/mine.md").read_text()
    assert "| accuracy, % | confidence, % |" in text
    (row,) = json.loads((tmp_path / "runs/tables/mine.json").read_text())["rows"]
    (value,) = row["cells"]["confidence"]["values"]
    (results,) = (tmp_path / "runs").rglob("results.json")
    found = {record["metric"]: record for record in json.loads(results.read_text())["records"]}
    assert found["confidence"]["results"]["confidence"] == value
    assert found["confidence"]["protocol"]["temperature"] == 2.0
    assert f"{100 * value:.2f}" in text
