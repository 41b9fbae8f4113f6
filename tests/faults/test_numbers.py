"""Numbers that go wrong in a training: gradients that are not finite, losses that explode, a layer of zeros.

Either it stops in a sentence and its last checkpoint is finite and bounded, or it goes on and the bounds hold. Layers
alone: `test_degenerate_layers.py`.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import svdctl
from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.config.train_config import TrainConfig
from svdctl.control.actions import is_layer_bounded
from svdctl.errors import TrainingError
from svdctl.layers.layer_ops import is_controllable
from svdctl.models.build import build_model
from svdctl.registry import CONTROLS
from svdctl.train import start as recipe
from svdctl.train import starting_network as training
from svdctl.utils.progress import Reporter
from tests.faults.small import make, only_run

STEPS = 16


def control_of(kind: str) -> tuple[str, ...]:
    return () if kind == "none" else (f"control.kind={kind}", "control.max_sigma=1.5", "control.every_steps=1")


def assert_last_is_good(folder: Path, config: TrainConfig) -> int:
    """The run's `last.pt`: finite throughout, and its layers proved to be within the bound; its step."""
    run = only_run(folder)
    checkpoint = read_checkpoint(run)
    for name, value in checkpoint.model.items():
        assert bool(torch.isfinite(value).all()), name
    for name, layer in svdctl.load(run).named_modules():
        if is_controllable(layer) and config.control.kind != "none":
            linear = isinstance(layer, nn.Linear)
            allowed = config.control.linear_max if linear else config.control.max_sigma
            assert allowed is None or is_layer_bounded(layer, allowed), name
    return int(checkpoint.metrics["step"])


def poisoned(step: int, parameters: Callable[[str], bool], factor: float) -> Callable[..., nn.Module]:
    """`build_model` with gradients that one backward pass, counted from 1, multiplies by a factor."""

    def build(config: TrainConfig, classes: int) -> nn.Module:
        model = build_model(config, classes)
        for name, parameter in model.named_parameters():
            if parameters(name):
                counter = itertools.count(1)

                def hook(gradient: torch.Tensor, counter: Iterator[int] = counter) -> torch.Tensor:
                    return gradient * factor if next(counter) == step else gradient

                parameter.register_hook(hook)
        return model

    return build


CASES = [
    ("none", "standard"),
    ("none", "retract"),
    ("clip", "standard"),
    ("clip", "retract"),
    ("divide", "free"),
    ("divide", "retract"),
    ("divide-each", "retract"),
    ("divide-each", "free"),
    ("divide-exact", "standard"),
    ("divide-exact", "penalty"),
    ("assign", "parametrize"),
]

QUICK = [("none", "standard"), ("clip", "retract"), ("divide-each", "free")]
"""The others are as many slow tests."""
each_case = pytest.mark.parametrize(
    ("kind", "layer"),
    [pytest.param(*case, id="-".join(case), marks=[] if case in QUICK else pytest.mark.slow) for case in CASES],
)


def config_of(folder: Path, kind: str, layer: str, *sets: str) -> TrainConfig:
    frames = () if layer == "standard" else (f"layer.frames.kind={layer}",)
    if layer == "penalty":
        frames += ("layer.frames.weight=10",)
    config = make(folder, "checkpoint.every_steps=5", *control_of(kind), *sets, *frames)
    if kind == "none":
        config = config.model_copy(update={"control": CONTROLS.get("none").config()})
    if layer == "standard":
        config = TrainConfig.model_validate({**config.model_dump(), "layer": {"kind": "standard"}})
    return config


@each_case
@pytest.mark.parametrize("step", [7, STEPS], ids=["in the middle", "in the last step"])
def test_a_gradient_that_is_not_a_number(
    kind: str, layer: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at this step or the next; in the last step no loss tells of it, and the weights are looked at."""
    config = config_of(tmp_path, kind, layer)
    monkeypatch.setattr(training, "build_model", poisoned(step, lambda name: "layer2" in name, float("nan")))
    with pytest.raises(TrainingError, match=rf"not finite.* step ({step}|{step + 1});"):
        recipe.run(config, base="test", reporter=Reporter())
    assert assert_last_is_good(tmp_path, config) == 5 * ((step - 1) // 5)


def test_no_state_that_is_not_finite_is_saved_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the very step: the checkpoint before it stays."""
    config = make(tmp_path, "checkpoint.every_steps=5", "log.every_steps=1000")
    build = poisoned(8, lambda name: name == "fc.weight", float("nan"))

    def build_and_interrupt(config: TrainConfig, classes: int) -> nn.Module:
        model = build(config, classes)
        counter = itertools.count(1)

        def hook(gradient: torch.Tensor) -> None:
            if next(counter) == 8:
                os.kill(os.getpid(), signal.SIGINT)

        dict(model.named_parameters())["fc.bias"].register_hook(hook)
        return model

    monkeypatch.setattr(training, "build_model", build_and_interrupt)
    with pytest.raises(TrainingError, match=r"weights were not finite in or just before step 8"):
        recipe.run(config, base="test", reporter=Reporter())
    assert assert_last_is_good(tmp_path, config) == 5


@each_case
@pytest.mark.parametrize("factor", [1e8, 1e25])
def test_a_gradient_that_explodes(
    kind: str, layer: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without control, or where float32 ends, the run stops; else it goes on, and what it saves is bounded."""
    config = config_of(tmp_path, kind, layer)
    monkeypatch.setattr(training, "build_model", poisoned(7, lambda name: "layer2" in name, factor))
    try:
        assert recipe.run(config, base="test", reporter=Reporter()).completed
        assert assert_last_is_good(tmp_path, config) == STEPS
    except TrainingError as error:
        assert "lower the learning rate" in str(error)
        assert assert_last_is_good(tmp_path, config) >= 5


@pytest.mark.parametrize("rate", [1e3, 1e10])
@pytest.mark.parametrize("kind", ["none", "divide", "clip"])
def test_a_learning_rate_far_too_large(kind: str, rate: float, tmp_path: Path) -> None:
    sets = (f"optimizer.lr={rate:g}", "schedule.kind=constant", "optimizer.weight_decay=0")
    config = config_of(tmp_path, kind, "retract", *sets)
    try:
        assert recipe.run(config, base="test", reporter=Reporter()).completed
    except TrainingError as error:
        assert "lower the learning rate (`optimizer.lr`, now" in str(error)
    if list(only_run(tmp_path).glob("last.pt")):
        assert_last_is_good(tmp_path, config)


@each_case
def test_a_network_with_a_layer_of_zeros_trains_and_stays_bounded(
    kind: str, layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, kind, layer).model_copy(update={"max_steps": 6})

    def with_zeros(config: TrainConfig, classes: int) -> nn.Module:
        model = build_model(config, classes)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name.startswith("layer2.0.conv1") and "parametrizations" not in name:
                    value.zero_()
        return model

    monkeypatch.setattr(training, "build_model", with_zeros)
    assert recipe.run(config, base="test", reporter=Reporter()).completed
    assert assert_last_is_good(tmp_path, config) == 6
