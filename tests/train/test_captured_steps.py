"""Steps that are replayed as CUDA graphs: equal to eager ones to the bit, resumed, and never waiting for the host.

Those marked `cuda` need a device; the others run the same code on the CPU, where every step is eager.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.layers.ops import soc_ops
from svdctl.layers.shapes import input_sizes
from svdctl.models.build import build_model
from svdctl.train import start as recipe
from svdctl.train.setup import chosen_kernels, launch, load_parts
from svdctl.train.trainer import EPOCH, Trainer
from tests.distributed.runs import write
from tests.train.small_network import tt_network
from tests.train.test_resume import assert_same, draw_nothing, tensors
from tests.train.test_resume import make as make_small
from tests.train.test_runs import Recorder

if torch.cuda.is_available():
    # cuBLAS reads it once, before its first product, and repeats itself with it alone.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON_CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])
DEVICES = ["cpu", ON_CUDA]

TT = {"kind": "tt", "rank": 6}
DIVIDE = {"kind": "divide", "max_sigma": 1, "linear_max": 1}
KINDS: dict[str, dict[str, Any]] = {
    "none-dense": {"layer": {"kind": "standard"}, "control": {"kind": "none"}, "batchnorm": None},
    "divide-dense": {"layer": {"kind": "standard"}, "control": DIVIDE},
    "divide-penalty": {"layer": {**TT, "frames": {"kind": "penalty", "weight": 10}}, "control": DIVIDE},
    "divide-retract": {"layer": {**TT, "frames": {"kind": "retract"}}, "control": DIVIDE},
    "divide-sometimes": {"layer": {**TT, "frames": {"kind": "retract"}}, "control": {**DIVIDE, "every_steps": 3}},
    "divide-parametrize": {"layer": {**TT, "frames": {"kind": "parametrize"}}, "control": DIVIDE},
    "divide-free": {"layer": {**TT, "frames": {"kind": "free"}}, "control": DIVIDE},
    "divide-qr": {"layer": {**TT, "frames": {"kind": "retract", "method": "qr"}}, "control": DIVIDE},
    "each-free-adam": {
        "layer": {**TT, "frames": {"kind": "free"}}, "control": {"kind": "divide-each", "max_sigma": 1},
        "optimizer": {"kind": "adam", "lr": 2**-8},
    },
    "each-retract": {"layer": {**TT, "frames": {"kind": "retract"}}, "control": {**DIVIDE, "kind": "divide-each"}},
    "exact-dense": {
        "layer": {"kind": "standard"}, "control": {"kind": "divide-exact", "max_sigma": 1, "every_steps": 9},
    },
    "clip-retract": {
        "layer": {**TT, "frames": {"kind": "retract"}}, "control": {"kind": "clip", "max_sigma": 1, "every_steps": 9},
    },
    "assign-dense": {"layer": {"kind": "standard"}, "control": {"kind": "assign", "max_sigma": 1, "every_steps": 9}},
    "vgg-penalty": {
        "model": {"kind": "vgg"}, "layer": {**TT, "frames": {"kind": "penalty", "weight": 10}}, "control": DIVIDE,
        "optimizer": {"kind": "adam", "lr": 2**-10, "amsgrad": True},
    },
    "recipe": {
        "layer": {**TT, "frames": {"kind": "retract"}}, "augment": {"crop": 2, "mixup": 0.4}, "accumulate": 2,
        "control": {**DIVIDE, "max_sigma_start": 4, "max_sigma_epochs": 3}, "ema": {"decay": 0.8},
        "optimizer": {"kind": "adamw", "lr": 2**-8, "clip_norm": 1},
        "loss": {"kind": "cross-entropy", "label_smoothing": 0.1},
    },
    "lipconv-soc": {"layer": {"kind": "soc"}},
    "lipconv-sott-retract": {"layer": {"kind": "sott", "rank": 4, "frames": {"kind": "retract"}}},
    "lipconv-sott-penalty": {"layer": {"kind": "sott", "rank": 4, "frames": {"kind": "penalty", "weight": 10}}},
    "lipconv-tt": {
        "layer": {**TT, "frames": {"kind": "retract"}}, "control": DIVIDE, "optimizer": {"kind": "sgd", "lr": 2**-10},
    },
}  # fmt: skip
EAGER = ("divide-qr",)
"""Kinds none of whose steps can be captured: QR on a GPU may wait for the host."""
RANDOM = ("vgg-penalty",)
"""Kinds for which torch has no deterministic kernels on CUDA: the backward pass of max-pooling."""
STEPS = 20
"""Five epochs of three batches of 16 and one of 3 images; a graph is made of each size, and of each kind of step."""


def make(data: Path, kind: str, **hardware: Any) -> TrainConfig:
    lipconv = kind.startswith("lipconv")
    flags = {"preset": "lipconv-quickstart" if lipconv else "quickstart", "dataset": f"npz:{data}", "batch_size": 16,
             "epochs": 5, "select": "last"}  # fmt: skip
    table = resolve(flags, LIPCONV if lipconv else TRAIN).config.model_dump()
    table["optimizer"]["lr"] = 0.02  # which float32 rounds
    table |= {"schedule": {"kind": "steps", "at": [0.5], "factor": 0.5}, **KINDS[kind], "hardware": hardware}
    if not kind.startswith("vgg"):
        name, value = ("in_channels", 2) if lipconv else ("width", 1)
        table["model"] = {**table["model"], name: value}
    table["augment"]["flip"] = True
    return TrainConfig.model_validate(table)


@contextmanager
def training(config: TrainConfig, network: nn.Module | None = None) -> Iterator[tuple[Trainer, list[str]]]:
    """A network ready to be trained, the configured one if none is given, and the sentences that it says."""
    parts, fabric = load_parts(config), launch(config)
    with chosen_kernels(config.hardware, fabric.device):
        model = network or build_model(config, 3)
        sizes = input_sizes(model, parts.train.image_shape)
        model.to(fabric.device).train()
        controller = Controller.from_config(model, None, config.control, config.batchnorm, sizes=sizes)
        said: list[str] = []
        data = parts.train, parts.held_out
        yield Trainer(config, model, fabric, *data, controller, notice=said.append), said


def trained(
    config: TrainConfig, steps: int = STEPS, network: nn.Module | None = None
) -> tuple[dict[str, torch.Tensor], int, list[str]]:
    """All tensors of a training after some steps, the number of its graphs, and what it said."""
    with training(config, network) as (trainer, said):
        epochs = (trainer.batches.epoch(number) for number in range(trainer.config.epochs))
        for batch in islice(chain.from_iterable(epochs), steps):
            trainer.train_step(batch)
        assert trainer.read(trainer.totals[EPOCH], 0)["loss"] > 0
        state = {"model": trainer.model.state_dict(), "training": trainer.state_dict(), "totals": trainer.totals}
        found = {name: value.cpu().clone() for name, value in tensors(state).items()}
        changes = trainer.controller.changes()
        for kind, one in (("control", changes.control), ("batchnorm", changes.batchnorm)):
            found[f"changes.{kind}"] = torch.tensor([one.applied, *one.changed.values()])
        assert trainer.controller.steps == steps
        return found, 0 if trainer._captured is None else trainer._captured.replayed, said


def different(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def data_of(folder: Path) -> Path:
    return write(folder / "data.npz", 3 * 16 + 3)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_replayed_steps_are_the_eager_ones(
    tmp_path: Path, kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soc_ops, "REFINE_EVERY", 3)
    hardware = {"accelerator": "cuda", "precision": precision, "deterministic": kind not in RANDOM}
    data, steps = data_of(tmp_path), 10 if kind in RANDOM else STEPS
    replayed, graphs, said = trained(make(data, kind, **hardware), steps)
    assert said == []
    assert (graphs > 0) == (kind not in EAGER)
    eager, none, _ = trained(make(data, kind, **hardware, capture="off"), steps)
    assert none == 0
    if kind in RANDOM:
        # Adam makes steps of whole size of what is rounding alone, as the gradients of biases before BatchNorm.
        torch.testing.assert_close(replayed[".totals"][0, :2], eager[".totals"][0, :2], rtol=0.05, atol=0.0)
    else:
        assert different(replayed, eager) == []


@pytest.mark.parametrize("kind", ["divide-retract", "recipe"])
def test_a_rate_in_a_tensor_is_that_of_its_step(tmp_path: Path, kind: str) -> None:
    config = make(data_of(tmp_path), kind, accelerator="cpu")
    # A rate that float32 holds; it halves after 2 of 4 steps.
    optimizer = config.optimizer.model_copy(update={"lr": 2.0**-8})
    config = config.model_copy(update={"epochs": 1, "optimizer": optimizer})
    ends = []
    for in_tensors in (False, True):
        with training(config) as (trainer, _):
            if in_tensors:
                for group in trainer.optimizer.param_groups:
                    group["lr"] = 1.0
                trainer._keep_rates_in_tensors()
                trainer._set_rate()
            for batch in trainer.batches.epoch(0):
                trainer.train_step(batch)
            ends.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    assert different(*ends) == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["divide-retract", "recipe", "lipconv-soc"])
def test_a_repeated_training_is_the_same(tmp_path: Path, kind: str, device: str) -> None:
    config = make(data_of(tmp_path), kind, accelerator=device, deterministic=True)
    (first, graphs, said), (second, _, _) = trained(config, steps=12), trained(config, steps=12)
    assert different(first, second) == []
    assert (graphs > 0) == (device == "cuda")
    assert said == []


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in EAGER])
def test_nothing_waits_for_the_host_between_replays(tmp_path: Path, kind: str) -> None:
    with training(make(data_of(tmp_path), kind, accelerator="cuda", precision="bf16-mixed")) as (trainer, said):
        for epoch in range(4):
            for batch in trainer.batches.epoch(epoch):
                trainer.train_step(batch)
        batches = trainer.batches.epoch(4)
        trainer.train_step(next(batches))  # the order of an epoch is sent to the device
        for batch in _without_waiting(batches):
            if trainer.controller.why_not_captured(trainer.counters.step + 1) is None:
                with _no_waiting():
                    trainer.train_step(batch)
            else:
                trainer.train_step(batch)
        assert said == []
        assert trainer._captured is not None
        assert trainer._captured.replayed > 0
        assert trainer.read(trainer.totals[EPOCH], 0)["loss"] > 0


@contextmanager
def _no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _without_waiting(batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with _no_waiting():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[*ON_CUDA.marks, pytest.mark.long])])
@pytest.mark.parametrize("command", ["train", "train-lipconv"])
def test_a_resumed_run_equals_an_undisturbed_one(
    tmp_path: Path, command: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    sets = ("epochs=6", f"hardware.accelerator={device}", "hardware.deterministic=true", "checkpoint.every_steps=5")
    seldom = ("evaluation.every_epochs=3", "checkpoint.every_epochs=3")
    config = make_small(tmp_path, command, *sets, *seldom)
    whole = recipe.run(config, base="test", reporter=Recorder())
    # In the middle of an epoch: three kinds of steps have their graphs, and begin anew without.
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=13))
    assert not part.completed
    assert_same(recipe.resume(part.folder, reporter=Recorder()), whole, "resumed")


@pytest.mark.cuda
@pytest.mark.long
@needs_cuda
def test_a_compiled_network_is_captured(tmp_path: Path) -> None:
    hardware = {"accelerator": "cuda", "precision": "bf16-mixed"}

    def end(**more: Any) -> tuple[dict[str, torch.Tensor], int, list[str]]:
        return trained(make(data_of(tmp_path), "divide-penalty", **hardware, **more), 8, tt_network("penalty"))

    compiled, graphs, said = end(compile=True)
    assert said == []
    assert graphs > 0
    plain, _, _ = end()
    assert compiled.keys() == plain.keys()
    # Kernels that round otherwise; the sums of losses stay near.
    torch.testing.assert_close(compiled[".totals"][0, 0], plain[".totals"][0, 0], rtol=0.05, atol=0.0)
