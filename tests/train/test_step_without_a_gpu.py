"""The training step of every kind of layer, frames and control on a CUDA device, without one: tensors have no numbers.

What is on another device than what it is used with, and what reads a number, is an error.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.data.augment import augment
from svdctl.data.batches import Batch, Batches, to_pixels
from svdctl.data.images import ImageData
from svdctl.layers import stored_weight
from svdctl.models.build import build_model
from svdctl.train.weight_average import WeightAverage
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


def make(kind: str) -> TrainConfig:
    lipconv = kind.startswith("lipconv")
    flags = {"preset": "lipconv-quickstart" if lipconv else "quickstart",
             "set": ["model.in_channels=2" if lipconv else "model.width=1", "augment.flip=true"]}  # fmt: skip
    table = resolve(flags, LIPCONV if lipconv else TRAIN).config.model_dump()
    return TrainConfig.model_validate({**table, **KINDS[kind]})


def optimizer_of(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the run's optimiser; its fused form has no shapes without a GPU."""
    settings = config.optimizer.model_dump(exclude={"kind", "clip_norm"})
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[config.optimizer.kind](model.parameters(), foreach=True, **settings)


@needs_fakes
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_stays_on_its_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Weights of a class of tensors of its own are refused, and these are.
    shown = lambda value: Tensor if isinstance(value, FakeTensor) else type(value)  # noqa: E731
    monkeypatch.setattr(stored_weight, "type", shown, raising=False)
    config = make(kind)
    model = build_model(config, 10).train().to(memory_format=torch.channels_last)
    controller = Controller.from_config(model, None, config.control, config.batchnorm)
    average = None if config.ema is None else WeightAverage(model, config.ema.decay)
    if is_whole := kind == "recipe":
        controller.scale_maxima(4.0)
    data = ImageData(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), ("a", "b"))
    batches = Batches(data, 4, 0, config.augment)
    with without_numbers(model, controller, average):
        controller.optimizer = optimizer = optimizer_of(config, model)
        before = {name: value.shape for name, value in model.state_dict().items()}
        images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device=CUDA)
        draws, labels = torch.rand(4, 3).to(CUDA), torch.zeros(4, dtype=torch.long, device=CUDA)
        # The last of these has all that is done now and then.
        for step in (1, 2, 1000):
            pixels = to_pixels(augment(images, draws, flip=True, crop=2, pad_mode="symmetric"))
            passes = [(pixels, labels)]
            if is_whole:
                parts = Batch(images, draws, labels, torch.rand((), device=CUDA), (1, 1)).parts()
                passes = [(batches.pixels(part), part.own_labels) for part in parts]
            for pixels, wanted in passes:
                loss = F.cross_entropy(model(pixels.contiguous(memory_format=torch.channels_last)), wanted)
                penalty = controller.penalty()
                total = loss if penalty is None else loss + penalty
                backward(total)
            missing = [name for name, value in model.named_parameters() if value.grad is None]
            assert missing == []
            if is_whole:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            # By QR, a GPU's retraction reads whether its way by products has held.
            reads = controller.why_not_captured(step) is not None
            assert reads == (kind == "retract-qr")
            with pytest.raises(DataDependentOutputException) if reads else nullcontext():
                controller.apply_(step)
            if average is not None:
                controller.scale_maxima(4.0 - step / 1000)
                average.set_step(step)
                average.update_()
        state = model.state_dict()
        assert {name: value.shape for name, value in state.items()} == before
        assert {value.device for value in state.values()} == {CUDA}


@needs_fakes
def test_what_is_on_the_host_is_found() -> None:
    with without_numbers(), pytest.raises(RuntimeError, match=r"(?i)device"):
        torch.zeros(2, 3, 8, 8, device=CUDA) * torch.zeros(3, 1, 1)


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
