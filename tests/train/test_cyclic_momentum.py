"""The cyclic schedule's momentum: torch's own, on both optimisers, resumed, and never in a CUDA graph."""

from pathlib import Path

import pytest
import torch
from torch import nn

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.training_flags import LIPCONV, resolve
from svdctl.config.optimizer_config import Cyclic, Steps
from svdctl.config.run_config import Hardware
from svdctl.train import start as recipe
from svdctl.train.captured_step import why_not_captured
from svdctl.train.run_plan import plan
from svdctl.train.trainer import Trainer
from tests.train.test_resume import assert_same, draw_nothing, make
from tests.train.test_runs import Recorder

CYCLIC = ("schedule.kind=cyclic", "schedule.up=0.2", "schedule.down=0.4", "schedule.peak_momentum=0.8")


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_it_is_that_of_torch(kind: type[torch.optim.Optimizer]) -> None:
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(nn.Linear(1, 1).parameters(), lr=0.1, **settings)
    torchs = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=0.01, max_lr=0.1, step_size_up=400 / 20, step_size_down=3 * 400 / 20
    )
    own = Cyclic(lr_min=0.01, peak_momentum=0.8)
    for step in range(200):
        group = optimizer.param_groups[0]
        found = group["betas"][0] if "betas" in group else group["momentum"]
        assert own.momentum(step, 400, 0.9) == pytest.approx(found, abs=1e-12)
        assert 0.1 * own.lr_factor(step, 400, 0.1) == pytest.approx(group["lr"], abs=1e-12)
        optimizer.step()
        torchs.step()


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adam", marks=pytest.mark.slow)])
def test_a_training_uses_it_and_goes_on_with_it(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    used: list[float] = []
    step = Trainer._step_on_device

    def watched(self: Trainer, batch: object) -> None:
        group = self.optimizer.param_groups[0]
        used.append(group["betas"][0] if "betas" in group else group["momentum"])
        step(self, batch)

    monkeypatch.setattr(Trainer, "_step_on_device", watched)
    config = make(tmp_path, "train", *CYCLIC, f"optimizer.kind={optimizer}", "optimizer.lr=0.01")
    whole = recipe.run(config, base="test", reporter=Recorder())
    # Nine steps: up in 1.8 of them, down in 3.6.
    places = [step % 5.4 for step in range(9)]
    heights = [place / 1.8 if place < 1.8 else (5.4 - place) / 3.6 for place in places]
    assert used == pytest.approx([0.9 - 0.1 * height for height in heights])
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=4))
    assert_same(recipe.resume(part.folder, reporter=Recorder()), whole, "stopped")
    constant = make(tmp_path, "train", *CYCLIC[:3], f"optimizer.kind={optimizer}", "optimizer.lr=0.01")
    weights = [
        read_checkpoint(folder).model["fc.weight"]
        for folder in (whole.folder, recipe.run(constant, base="test", reporter=Recorder()).folder)
    ]
    assert not torch.equal(*weights)


def test_steps_that_cycle_it_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware, cuda = Hardware(), torch.device("cuda")
    assert why_not_captured(hardware, cuda, 1, Cyclic()) is None
    assert why_not_captured(hardware, cuda, 1, Steps(at=(0.5,), factor=0.1)) is None
    assert "cycles the momentum" in str(why_not_captured(hardware, cuda, 1, Cyclic(peak_momentum=0.8)))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **named: cuda)
    flags = {"dataset": "digits", "block_size": 1, "conv_type": "skew", "lr_schedule": "cyclic"}
    config = resolve(flags, LIPCONV).config
    assert config.schedule == Cyclic(peak_momentum=0.8)
    [line] = [line for line in plan(config, "test") if line.startswith("device")]
    assert "steps run eagerly: the schedule cycles the momentum" in line
