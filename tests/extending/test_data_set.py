"""A user's data set is trained on, resumed with and evaluated on as svdctl's are; `stripes_data.py` is all it takes."""

from pathlib import Path

import pytest

import svdctl
import tests.extending.stripes_data  # noqa: F401  # registers it
from svdctl.cli.evaluation_flags import resolve_evaluation
from svdctl.cli.training_flags import resolve
from svdctl.config.configuration import configuration
from svdctl.config.train_config import TrainConfig
from svdctl.errors import UsageError
from svdctl.evaluate import runner
from svdctl.registry import METRICS
from svdctl.train import start as recipe
from tests.evaluate.small import Recorder as EvaluationRecorder
from tests.train.test_runs import Recorder

SMALL = (
    "data.kind=stripes", "model.depth=10", "model.width=1", "layer.kind=standard", "control.kind=none", "epochs=2",
    "batch_size=16", "augment.flip=false", "augment.crop=0",
)  # fmt: skip


def make(folder: Path, *assignments: str) -> TrainConfig:
    return configuration("quickstart", [*SMALL, f"out_dir={folder}", *assignments])


def test_it_is_trained_on_and_evaluated(tmp_path: Path) -> None:
    plan = recipe.plan(make(tmp_path), "test")
    assert any("stripes" in line for line in plan)
    assert not any("counted with 10 classes" in line for line in plan)
    result = recipe.run(make(tmp_path), base="test", reporter=Recorder())
    assert result.completed
    assert svdctl.load(result.folder).fc.out_features == 2
    flags = {"checkpoints": [result.folder], "metrics": ["accuracy", "cifar-c"], "corruptions": ["fog"]}
    evaluated = runner.run(resolve_evaluation(flags).config, reporter=EvaluationRecorder())
    assert not evaluated.failures
    records = evaluated.evaluations[0].records
    assert records["accuracy"].results["count"] == 32
    assert records["cifar-c"].results["source"] == "drawn"


def test_the_command_line_names_it() -> None:
    config = resolve({"dataset": "stripes", "set": ["data.size=32"]}).config
    assert config.data.model_dump() == {"kind": "stripes", "size": 32, "count": 64}
    assert resolve_evaluation({"dataset": "stripes"}).config.data == config.data.model_copy(update={"size": 16})
    assert METRICS.get("autoattacks").settings(resolve_evaluation({}).config, config.data).examples == 4


@pytest.mark.parametrize(
    ("assignment", "fault"),
    [
        ("data.count=none", "`data.count`"),
        ("data.path=x", "data.path: kind = 'stripes' has no such key"),
        ("data.kind=stripe", "'stripe' is not one of"),
        ("model.kind=vgg", "side of 32 or more"),
    ],
)
def test_a_wrong_section_is_refused_before_the_run(tmp_path: Path, assignment: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        make(tmp_path, assignment)
