"""Numbers of processes that a request or a stranger's checkpoint may ask for, and that are not started."""

import pytest
from lightning_fabric import Fabric

from svdctl.config.configuration import configuration
from svdctl.errors import UsageError
from svdctl.train.setup import launch


@pytest.fixture
def _nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(Fabric, "launch", never)
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_nothing_is_started")
def test_far_more_processes_than_cores_are_refused() -> None:
    config = configuration("quickstart", ["hardware.devices=100000", "batch_size=200000", "hardware.accelerator=cpu"])
    with pytest.raises(UsageError, match=r"hardware.devices = 100000. would be as many processes on \d+ CPU cores"):
        launch(config)


@pytest.mark.usefixtures("_nothing_is_started")
def test_nodes_that_cannot_find_each_other_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration("quickstart", ["hardware.num_nodes=2", "hardware.accelerator=cpu"])
    with pytest.raises(UsageError, match="find each other by MASTER_ADDR and MASTER_PORT in the environment"):
        launch(config)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UsageError, match="find each other by MASTER_PORT in the environment"):
        launch(config)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(AssertionError, match="started"):
        launch(config)
