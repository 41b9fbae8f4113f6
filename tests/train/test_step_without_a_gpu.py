"""The training step of every kind of layer, frames and control on a CUDA device, without one: tensors have no numbers.

What is on another device than what it is used with, and what reads a number, is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.data.images import ImageData
from svdctl.layers import stored_weight
from svdctl.models.build import build_model
from svdctl.train.setup import launch
from svdctl.train.trainer import Trainer
from tests import fake_cuda
from tests.fake_cuda import CUDA, backward, without_numbers

needs_fakes = pytest.mark.skipif(not fake_cuda.is_possible(), reason="this torch asks the driver for fake tensors")

TT = {"kind": "tt", "rank": 6}
CONTROL = {"max_sigma": 1, "linear_max": 1}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {"layer": {"kind": "standard"}, "control": {"kind": "divide", **CONTROL}},
    "dense-alone": {"layer": {"kind": "standard"}, "control": {"kind": "none"}},
    "dense-adam": {
        "layer": {"kind": "standard"}, "control": {"kind": "none"}, "optimizer": {"kind": "adam", "lr": 0.001},
    },
    "retract": {"layer": {**TT, "frames": {"kind": "retract"}}, "control": {"kind": "divide", **CONTROL}},
    "retract-qr": {
        "layer": {**TT, "frames": {"kind": "retract", "method": "qr"}}, "control": {"kind": "divide", **CONTROL},
    },
    "retract-each": {"layer": {**TT, "frames": {"kind": "retract"}}, "control": {"kind": "divide-each", **CONTROL}},
    "penalty": {"layer": {**TT, "frames": {"kind": "penalty"}}, "control": {"kind": "divide", **CONTROL}},
    "free": {"layer": {**TT, "frames": {"kind": "free"}}, "control": {"kind": "divide", **CONTROL}},
    "free-each": {"layer": {**TT, "frames": {"kind": "free"}}, "control": {"kind": "divide-each", **CONTROL}},
    "parametrize": {"layer": {**TT, "frames": {"kind": "parametrize"}}, "control": {"kind": "none"}},
    "recipe": {
        "layer": {**TT, "frames": {"kind": "retract"}},
        "control": {"kind": "divide", **CONTROL, "max_sigma_start": 4, "max_sigma_epochs": 1},
        "optimizer": {"kind": "adamw", "clip_norm": 1}, "ema": {"decay": 0.9},
        "augment": {"flip": True, "crop": 2, "mixup": 0.3}, "accumulate": 2,
    },
    "lipconv-soc": {"layer": {"kind": "soc"}},
    "lipconv-sott-retract": {"layer": {"kind": "sott", "rank": 4, "frames": {"kind": "retract"}}},
    "lipconv-sott-penalty": {"layer": {"kind": "sott", "rank": 4, "frames": {"kind": "penalty"}}},
    "lipconv-tt": {"layer": {**TT, "frames": {"kind": "retract"}}},
}  # fmt: skip
ALSO = ("dense-adam", "retract-qr", "retract-each", "free-each", "lipconv-sott-retract", "lipconv-tt")
"""Of which the others have each part too."""


def make(kind: str) -> TrainConfig:
    lipconv = kind.startswith("lipconv")
    flags = {"preset": "lipconv-quickstart" if lipconv else "quickstart", "batch_size": 4, "accelerator": "cpu",
             "set": ["model.in_channels=2" if lipconv else "model.width=1", "augment.flip=true"]}  # fmt: skip
    table = resolve(flags, LIPCONV if lipconv else TRAIN).config.model_dump()
    return TrainConfig.model_validate({**table, **KINDS[kind]})


def optimizer_of(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the run's optimiser; its fused form, as a captured step has it, has no shapes without a GPU."""
    settings = config.optimizer.model_dump(exclude={"kind", "clip_norm"})
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    found = kinds[config.optimizer.kind](model.parameters(), foreach=True, **settings)
    for group in found.param_groups:
        if "capturable" in group:  # SGD takes the rate from a tensor in its fused form alone
            group |= {"lr": torch.ones((), device=CUDA), "capturable": True}
    return found


def trainer_of(config: TrainConfig) -> Trainer:
    model = build_model(config, 10).train()
    controller = Controller.from_config(model, None, config.control, config.batchnorm)
    data = ImageData(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.zeros(8, dtype=torch.long), ("a", "b"))
    return Trainer(config, model, launch(config), data, data, controller)


@contextmanager
def on_the_device(trainer: Trainer, *more: object) -> Iterator[None]:
    """Let the trainer's own steps be made on the device, by tensors without numbers."""
    without_gradient: list[str] = []

    def backward_of_all(loss: Tensor) -> None:
        backward(loss)
        without_gradient.extend(name for name, value in trainer.model.named_parameters() if value.grad is None)

    with without_numbers(trainer, *more):
        trainer.optimizer = trainer.stepper = trainer.controller.optimizer = optimizer_of(trainer.config, trainer.model)
        trainer.fabric = SimpleNamespace(world_size=1, backward=backward_of_all, strategy=trainer.fabric.strategy)
        yield
        assert without_gradient == []


@pytest.fixture(autouse=True)
def shown_as_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    # Weights of a class of tensors of its own are refused, and these are.
    shown = lambda value: Tensor if isinstance(value, FakeTensor) else type(value)  # noqa: E731
    monkeypatch.setattr(stored_weight, "type", shown, raising=False)


@needs_fakes
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ALSO)) for kind in KINDS])
def test_a_step_stays_on_its_device(kind: str) -> None:
    trainer = trainer_of(make(kind))
    batch = next(trainer.batches.epoch(0))
    before = {name: value.shape for name, value in trainer.model.state_dict().items()}
    with on_the_device(trainer, batch):
        # The first makes the optimiser's state, the other has all that is done now and then.
        for step in (1, 1000):
            trainer.counters.step = step - 1
            # By QR, a GPU's retraction sends to the host whether its way by products has held.
            reads = trainer.controller.why_not_captured(step) is not None
            assert reads == (kind == "retract-qr")
            with pytest.raises(RuntimeError, match="more than one device: cpu, cuda") if reads else nullcontext():
                trainer.train_step(batch)
        state = trainer.model.state_dict()
        assert {name: value.shape for name, value in state.items()} == before
        assert {value.device for value in (*state.values(), trainer.totals)} == {CUDA}


@needs_fakes
def test_a_constant_in_the_step_that_comes_from_the_host_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(make("dense-alone"))
    batch = next(trainer.batches.epoch(0))
    whole = trainer.batches.pixels
    with on_the_device(trainer, batch):
        for constant in (lambda: torch.ones(()), lambda: torch.tensor(1.0, device=CUDA)):
            pixels = lambda part, constant=constant: whole(part) * constant()  # noqa: E731
            monkeypatch.setattr(type(trainer.batches), "pixels", lambda self, part, pixels=pixels: pixels(part))
            with pytest.raises(RuntimeError, match="more than one device"):
                trainer.train_step(batch)


@needs_fakes
def test_what_is_on_the_host_is_found() -> None:
    # A fake tensor alone lets a number on the host through.
    for shape in ((3, 1, 1), ()):
        with without_numbers(), pytest.raises(RuntimeError, match=r"(?i)device"):
            torch.zeros(2, 3, 8, 8, device=CUDA) * torch.zeros(shape)


@needs_fakes
def test_a_number_that_is_read_is_found() -> None:
    with without_numbers(), pytest.raises(Exception, match=r"item|data-dependent|_local_scalar_dense"):
        float(torch.zeros(3, device=CUDA).sum())


def test_gradients_node_by_node_are_those_of_the_engine() -> None:
    for preset, command in (("quickstart", TRAIN), ("lipconv-quickstart", LIPCONV)):
        config = resolve({"preset": preset, "set": []}, command).config
        model = build_model(config, 10).double().train()
        loss = model(torch.rand(2, 3, 32, 32, dtype=torch.float64)).square().mean()
        wanted = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        backward(loss)
        for parameter, gradient in zip(model.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
