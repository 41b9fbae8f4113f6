"""Which steps run eagerly, are recorded or replayed; the device is played by Python objects."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from svdctl.config.run_config import Hardware
from svdctl.data.batches import Batch
from svdctl.train.captured_step import WARM_UP, CapturedSteps, why_not_captured

CUDA = torch.device("cuda")


class Device:
    """Records what is asked of the device; a graph replays what was done while it was recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recording: list[Batch] | None = None
        self.eager: list[float] = []
        self.replayed: list[float] = []
        self.fails = self.waits = False
        self.sync_mode: int | str = 0
        device = self

        class Stream:
            def wait_stream(self, other: Any) -> None: ...

        class Graph:
            def replay(self) -> None:
                device.replayed.append(float(self.batch.draws[0, 0]))

        @contextmanager
        def graph(made: Any, **settings: Any) -> Iterator[None]:
            device.recording = []
            try:
                yield
                (made.batch,) = device.recording
            finally:
                device.recording = None

        for name, fake in {
            "Stream": lambda device: Stream(),
            "current_stream": Stream,
            "stream": lambda stream: nullcontext(),
            "graph_pool_handle": lambda: (0, 0),
            "CUDAGraph": Graph,
            "graph": graph,
            "get_sync_debug_mode": lambda: 0,
            "set_sync_debug_mode": lambda mode: setattr(device, "sync_mode", mode),
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def step(self, batch: Batch) -> None:
        if self.recording is not None:
            if self.fails:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            self.recording.append(batch)
            return
        self.eager.append(float(batch.draws[0, 0]))
        if self.waits and self.sync_mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)


def batch(number: float, size: int = 4) -> Batch:
    return Batch(
        torch.zeros(size, 3, 2, 2, dtype=torch.uint8),
        torch.full((size, 3), number),
        torch.zeros(size, dtype=torch.long),
    )


def test_steps_are_eager_at_first_then_recorded_once_and_replayed_with_each_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, notices = Device(monkeypatch), list[str]()
    steps = CapturedSteps(device.step, CUDA, notices.append)
    for number in range(WARM_UP + 3):
        steps.run(batch(number), (), capture=True)
    assert device.eager == list(range(WARM_UP))
    assert device.replayed == list(range(WARM_UP, WARM_UP + 3))
    assert (steps.replayed, notices) == (1, [])


def test_a_smaller_batch_and_a_step_that_may_not_be_captured_are_eager_between_replays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, notices = Device(monkeypatch), list[str]()
    steps = CapturedSteps(device.step, CUDA, notices.append)
    for number in range(WARM_UP + 1):
        steps.run(batch(number), (), capture=True)
    steps.run(batch(10, size=2), (), capture=True)
    steps.run(batch(11), ("control",), capture=False)
    steps.run(batch(12), ("batchnorm",), capture=True)
    steps.run(batch(13), (), capture=True)
    assert device.eager[WARM_UP:] == [10, 11, 12]
    assert device.replayed == [WARM_UP, 13]


def test_a_replay_gets_every_tensor_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    steps = CapturedSteps(device.step, CUDA, lambda text: None)
    mixed = [replace(batch(number), mix=torch.tensor(number), sizes=(3,)) for number in (0.0, 1.0, 2.0, 3.0, 4.0)]
    for one in mixed:
        steps.run(one, "kind", capture=True)
    ((_, kept),) = steps._graphs.values()
    assert {name: float(value.flatten()[-1]) for name, value in kept.tensors().items()} == {
        "images": 0.0, "draws": 4.0, "labels": 0.0, "mix": 4.0,
    }  # fmt: skip
    # The same shapes in other parts are another kind.
    steps.run(replace(mixed[0], sizes=(2,)), "kind", capture=True)
    assert len(device.eager) == WARM_UP + 1


@pytest.mark.parametrize("how", ["waits", "fails"])
def test_a_step_that_waits_for_the_host_or_cannot_be_recorded_stays_eager_and_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    device, notices = Device(monkeypatch), list[str]()
    setattr(device, how, True)
    steps = CapturedSteps(device.step, CUDA, notices.append)
    for number in range(WARM_UP + 3):
        steps.run(batch(number), (), capture=True)
    assert device.eager == list(range(WARM_UP + 3))
    assert steps.replayed == 0
    (notice,) = notices
    assert "runs eagerly" in notice
    assert {"waits": "waits for the device", "fails": "stream is capturing"}[how] in notice


@pytest.mark.parametrize(
    ("hardware", "device", "processes", "word"),
    [
        (Hardware(capture="off"), "cuda", 1, "off"),
        (Hardware(), "cpu", 1, "CUDA device"),
        (Hardware(), "cuda", 2, "processes"),
        (Hardware(precision="16-mixed"), "cuda", 1, "16-mixed"),
        (Hardware(precision="bf16-mixed"), "cuda", 1, None),
    ],
)
def test_the_reason_names_what_stands_in_the_way(
    hardware: Hardware, device: str, processes: int, word: str | None
) -> None:
    reason = why_not_captured(hardware, torch.device(device), processes)
    assert (reason is None) if word is None else (reason is not None and word in reason)
