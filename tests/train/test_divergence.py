"""What a run that diverged is told: each hint where its condition holds, and nowhere else."""

from typing import Any

import pytest

from svdctl.cli.messages import with_flags
from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.config.train_config import TrainConfig
from svdctl.train.divergence import HINTS, MOST, ways_out

PENALTY = ("layer.frames.kind=penalty", "layer.frames.weight=1e5")
NONE = ("control.kind=none",)
CLIP = ("control.kind=clip", "control.max_sigma=1")


def config_of(*sets: str, command: Any = TRAIN, **flags: Any) -> TrainConfig:
    return resolve({**flags, "set": [*flags.pop("set", ()), *sets]}, command).config


def plain(**flags: Any) -> TrainConfig:
    return resolve({"new_layer": "standard", "dataset": "digits", **flags}).config


CASES: list[tuple[str, TrainConfig, TrainConfig]] = [
    ("lower the penalty on frames (`layer.frames.weight`, now 100000)", config_of(*PENALTY), config_of()),
    ("`layer.frames.kind = retract`", config_of("layer.frames.kind=free", *NONE), config_of("layer.frames.kind=free")),
    ("`hardware.precision = bf16-mixed`", config_of(precision="16-mixed"), config_of(precision="bf16-mixed")),
    ("now 10; the presets have at most 0.1 with sgd", config_of("optimizer.lr=10"), config_of("optimizer.lr=0.1")),
    ("(`optimizer.lr`, now 0.1)", config_of("optimizer.lr=0.1"), config_of("optimizer.lr=0.2")),
    ("`control.kind = clip`", config_of(*NONE), config_of(*CLIP)),
    ("`control.every_steps`, now 500", config_of(*CLIP, "control.every_steps=500"), config_of(*CLIP)),
    ("`control.max_sigma`, now 50", config_of("control.kind=clip", "control.max_sigma=50"), config_of(*CLIP)),
    ("`control.linear_max`", plain(clipping="clip"), plain(clipping="clip", clip_linear=True)),
    ("`optimizer.clip_norm`", config_of(*CLIP), config_of(*CLIP, "optimizer.clip_norm=1")),
    ("`initial.file`", config_of(init_from="weights.pt"), config_of()),
]


@pytest.mark.parametrize(("text", "fits", "other"), CASES, ids=[text for text, *_ in CASES])
def test_each_hint_has_its_condition(text: str, fits: TrainConfig, other: TrainConfig) -> None:
    def said(config: TrainConfig) -> list[str]:
        return [hint.text(config) for hint in HINTS if hint.helps(config)]

    assert sum(text in one for one in said(fits)) == 1
    assert not any(text in one for one in said(other))


def test_every_hint_is_tried() -> None:
    assert len(CASES) == len(HINTS)


def test_a_large_penalty_is_named_first_and_no_control_instead() -> None:
    for config in (config_of(*PENALTY), config_of(*PENALTY, *NONE)):
        said = with_flags(ways_out(config), TRAIN.words)
        assert said.startswith("lower the penalty on frames (--orthogonal-k, now 100000), or lower the learning rate")
        assert "--clipping" not in said


def test_orthogonal_layers_are_not_told_to_be_controlled() -> None:
    config = config_of(command=LIPCONV)
    assert config.layer.is_orthogonal
    assert "control" not in ways_out(config)


@pytest.mark.parametrize("preset", ["quickstart", "wrn-cifar10", "wrn-cifar10-divide", "vgg-cifar100"])
def test_there_is_always_something_to_do_and_never_too_much(preset: str) -> None:
    found = ways_out(resolve({"preset": preset}).config)
    assert 1 <= found.count("`") // 2 <= MOST
