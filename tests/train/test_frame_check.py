"""What a run does when products no longer retract its frames."""

from pathlib import Path
from typing import Any

import pytest
import torch

from svdctl.checkpoint.checkpoint_file import Checkpoint, write_checkpoint
from svdctl.train import start
from svdctl.train.trainer import EPOCH, Trainer
from svdctl.utils.progress import Reporter
from tests.distributed.runs import write
from tests.train.test_device_readiness import make, trainer_of


def _trained(data: Path, rate: float) -> tuple[Trainer, list[str]]:
    config = make(data, "divide-retract", accelerator="cpu")
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": rate})})
    trainer, notices = trainer_of(config), list[str]()
    trainer.notice = notices.append
    for batch in trainer.batches.epoch(0):
        trainer.train_step(batch)
    trainer.check_frames()
    return trainer, notices


def test_frames_that_products_do_not_retract_are_retracted_by_qr_for_the_rest_and_it_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, notices = _trained(write(tmp_path / "data.npz", 38), 1e-2)
    assert notices == []
    assert trainer.frame_deviation() < 1e-5
    before = trainer.state_dict()
    frame = next(parameter for name, parameter in trainer.model.named_parameters() if "frame_in" in name)
    with torch.no_grad():
        frame[:, 0] = 1e-3 * frame[:, 0] + 10 * frame[:, 1]
    (batch, *others) = trainer.batches.epoch(1)
    trainer.train_step(batch)
    trainer.check_frames()
    (notice,) = notices
    assert "QR" in notice
    for batch in others:
        trainer.train_step(batch)
        trainer.check_frames()
    assert len(notices) == 1
    assert trainer.frame_deviation() < 1e-5
    assert trainer.read(trainer.totals[EPOCH], 1)["loss"] > 0
    # A run that goes on from there does the same.
    again, _ = _trained(tmp_path / "data.npz", 1e-2)
    again.model.load_state_dict(trainer.model.state_dict())
    again.load_state_dict(trainer.state_dict())
    assert again.controller.retracts_by_qr
    # And says so before it begins.
    monkeypatch.setattr(start, "found_device_line", _say)
    config, data = again.config, again.train_data
    for state, by_qr in ((trainer.state_dict(), True), (before, False)):
        checkpoint = Checkpoint(config, data.classes, data.image_shape, trainer.model.state_dict(), state, {"step": 4})
        write_checkpoint(tmp_path / "last.pt", checkpoint)
        with pytest.raises(_Said) as said:
            start.resume(tmp_path, reporter=Reporter())
        assert said.value.args == (by_qr,)


class _Said(Exception):  # noqa: N818
    """Ends a run at the line about its device."""


def _say(*of: Any, by_qr: bool) -> str:
    raise _Said(by_qr)
