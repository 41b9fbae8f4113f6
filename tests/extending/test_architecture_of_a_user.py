"""A user's architecture is trained, controlled, saved and loaded as svdctl's are; `pooled_net.py` is all it takes."""

from pathlib import Path

import pytest
import torch

import svdctl
import tests.extending.pooled_net  # noqa: F401  # registers it
from svdctl.config.configuration import configuration
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError, UsageError
from svdctl.train import start as recipe
from tests.train.test_runs import Recorder, assert_equal, weights

SMALL = (
    "model.kind=pooled", "model.width=4", "layer.kind=tt", "layer.rank=2", "control.kind=clip",
    "control.max_sigma=0.5", "control.every_steps=5", "max_steps=12", "batch_size=64", "log.every_steps=1",
)  # fmt: skip


def make(folder: Path, *assignments: str) -> TrainConfig:
    return configuration("quickstart", [*SMALL, f"out_dir={folder}", *assignments])


def test_it_is_trained_under_control_resumed_and_loaded(tmp_path: Path) -> None:
    assert any("PooledNet-4" in line for line in recipe.plan(make(tmp_path), "test"))
    whole = recipe.run(make(tmp_path), base="test", reporter=Recorder())
    part = recipe.run(make(tmp_path), base="test", reporter=Recorder(interrupt_after=4))
    assert not part.completed
    assert recipe.resume(part.folder, reporter=Recorder()).completed
    assert_equal(weights(whole.folder), weights(part.folder))
    model = svdctl.load(whole.folder)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    convolutions = [module for module in model.modules() if isinstance(module, svdctl.TTConv2d)]
    assert len(convolutions) == 3
    assert all(svdctl.spectral_norm_bound(layer).upper <= 0.5 for layer in convolutions)


def test_a_checkpoint_that_asks_for_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    result = recipe.run(make(tmp_path, "layer.kind=standard", "control.kind=none"), base="test", reporter=Recorder())
    contents = torch.load(result.folder / "last.pt", weights_only=True)
    assert '"width":4}' in contents["config"]
    contents["config"] = contents["config"].replace('"width":4}', '"width":40000}')
    torch.save(contents, tmp_path / "huge.pt")
    with pytest.raises(CheckpointError):
        svdctl.load(tmp_path / "huge.pt")


@pytest.mark.parametrize(
    ("assignment", "fault"),
    [
        ("model.width=0", "`model.width`"),
        ("model.depth=16", "model.depth: kind = 'pooled' has no such key"),
        ("model.kind=poold", "'poold' is not one of 'wrn', 'vgg', 'lipconv'"),
        ("layer.kind=soc", "belongs to LipConvNet"),
        ("layer.rank=[1, 2]", "give one rank"),
    ],
)
def test_a_wrong_section_is_refused_before_the_run(tmp_path: Path, assignment: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        make(tmp_path, assignment)
