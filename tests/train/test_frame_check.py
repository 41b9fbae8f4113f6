"""What a run does when products no longer retract its frames."""

from pathlib import Path

import torch

from svdctl.train.trainer import EPOCH, Trainer
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
) -> None:
    trainer, notices = _trained(write(tmp_path / "data.npz", 38), 1e-2)
    assert notices == []
    assert trainer.frame_deviation() < 1e-5
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
