"""A user's control method is trained with, sealed and saved; `gradual_control.py` is all it takes."""

from pathlib import Path

import pytest
import torch
from torch import nn

import svdctl
import tests.extending.gradual_control  # noqa: F401  # registers it
from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.config.configuration import configuration
from svdctl.errors import UsageError
from svdctl.train import start as recipe
from tests.train.test_runs import Recorder, assert_equal, weights

SMALL = (
    "model.depth=10", "model.width=1", "layer.kind=standard", "control.kind=gradual", "control.max_sigma=0.8",
    "control.share=0.25", "control.every_steps=2", "max_steps=8", "batch_size=32", "log.every_steps=1",
)  # fmt: skip


def test_it_is_trained_with_sealed_resumed_and_saved(tmp_path: Path) -> None:
    config = configuration("quickstart", [*SMALL, f"out_dir={tmp_path}"])
    assert any("gradual convolutions to 0.8 every 2 steps" in line for line in recipe.plan(config, "test"))
    whole = recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=5))
    assert not part.completed
    assert recipe.resume(part.folder, reporter=Recorder()).completed
    assert_equal(weights(whole.folder), weights(part.folder))
    layers = [layer for layer in svdctl.load(whole.folder).modules() if isinstance(layer, nn.Conv2d)]
    assert all(svdctl.spectral_norm_bound(layer).upper <= 0.8 for layer in layers)
    states = [read_checkpoint(run.folder / "last.pt").training["controller"] for run in (whole, part)]
    assert all(state["step"] == 8 for state in states)
    assert states[0]["scaled"] == states[1]["scaled"]
    assert len(states[0]["scaled"]) == len(layers)
    assert 1 <= max(states[0]["scaled"].values()) <= 4


def test_it_controls_a_users_own_loop() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    nn.init.constant_(conv.weight, 1.0)
    controller = svdctl.Controller(nn.Sequential(conv), method="gradual", max_sigma=1.0)
    before = svdctl.spectral_norm_bound(conv).upper
    controller.step()
    assert svdctl.spectral_norm_bound(conv).upper == pytest.approx(before**0.5, rel=0.02)
    assert controller.seal()["0"].upper <= 1.0
    assert svdctl.spectral_norm_bound(conv).upper <= 1.0


def test_layers_that_share_memory_are_brought_down_together() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, stride=2)
    second.weight = first.weight
    with torch.no_grad():
        first.weight.mul_(10)
    controller = svdctl.Controller(nn.Sequential(first, second), method="gradual", max_sigma=0.5)
    controller.step()
    controller.seal()
    assert all(svdctl.spectral_norm_bound(layer).upper <= 0.5 for layer in (first, second))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"method": "gradul"}, "there is no control method 'gradul': there are none, clip, .* did you mean gradual"),
        ({"method": "gradual", "every_steps": 0}, "`every_steps`: 0 is not valid; a number above 0 is wanted"),
        ({"method": "none"}, "the control method 'none' takes no max_sigma"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        svdctl.Controller(nn.Conv2d(3, 4, 3), max_sigma=1.0, **settings)


@pytest.mark.parametrize(
    ("assignment", "fault"),
    [("control.kind=gradul", "'clip', 'divide', .*'gradual'"), ("control.share=2", "control.share")],
)
def test_a_wrong_section_is_refused_before_the_run(assignment: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        configuration("quickstart", [*SMALL, assignment])
