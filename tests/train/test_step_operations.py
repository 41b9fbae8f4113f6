"""The number of operations of one training step: on a GPU each is a kernel to launch, and small ones cost no less."""

from typing import Any

import pytest
from lightning_fabric import Fabric

from svdctl.cli.training_flags import resolve
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.reproduce.timing import trainer_on_noise
from tests.dispatched_operations import DispatchedOperations

# As in WRN-16-10 with rank 192: the rank lies between the widths of the first and of the second stage, of 32 and 64.
TT = {"kind": "tt", "rank": 38}
STEPS: dict[str, tuple[dict[str, Any], bool, int]] = {
    # layers, whether they are divided and BatchNorm limited, largest number of operations
    "dense": ({"kind": "standard"}, False, 200),
    "penalty": ({**TT, "frames": {"kind": "penalty"}}, False, 300),
    "penalty, divided": ({**TT, "frames": {"kind": "penalty"}}, True, 600),
    "retracted, divided": ({**TT, "frames": {"kind": "retract"}}, True, 680),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_has_few_operations(name: str) -> None:
    layer, is_divided, most = STEPS[name]
    table = resolve({"preset": "wrn-cifar10-divide", "batch_size": 4}).config.model_dump()
    table["model"]["width"] = 2
    table |= {"layer": layer, "hardware": {"accelerator": "cpu"}}
    if not is_divided:
        table |= {"control": {"kind": "none"}, "batchnorm": None}
    config = TrainConfig.model_validate(table)
    trainer, step = trainer_on_noise(config, Fabric(accelerator="cpu", devices=1))
    trainer.controller = Controller.from_config(trainer.model, trainer.optimizer, config.control, config.batchnorm)
    step()  # makes the state of the optimiser
    with DispatchedOperations() as operations:
        step()
    assert operations.total <= most, operations.counts
