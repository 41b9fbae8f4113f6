"""What to change in a configuration whose training diverged: each hint with the condition under which it helps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from svdctl.config.train_config import TrainConfig

USUAL_RATE = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
"""The highest learning rate of the presets by kind of optimiser; beyond it the rate is the likely cause."""
_SELDOM = 100
"""Steps between two applications of a control beyond which weights can run away in between."""
_LARGE_MAXIMUM = 10.0


@dataclass(frozen=True)
class Hint:
    """One way out, and when it is one."""

    helps: Callable[[TrainConfig], bool]
    text: Callable[[TrainConfig], str]
    """The rest of a sentence, keys of the configuration in backticks."""


def _frames(config: TrainConfig) -> Any:
    """Return the settings of the layers' frames; None: they have none."""
    return getattr(config.layer, "frames", None)


def _has_penalty(config: TrainConfig) -> bool:
    return getattr(_frames(config), "kind", None) == "penalty"


def _is_rate_high(config: TrainConfig) -> bool:
    return config.optimizer.lr > USUAL_RATE.get(config.optimizer.kind, 0.1)


def _is_controlled(config: TrainConfig) -> bool:
    return config.control.kind != "none"


HINTS = (
    Hint(
        _has_penalty,
        lambda config: f"lower the penalty on frames (`layer.frames.weight`, now {_frames(config).weight:g})",
    ),
    Hint(
        lambda config: getattr(_frames(config), "kind", None) == "free" and not _is_controlled(config),
        lambda config: "keep frames orthonormal (`layer.frames.kind = retract`)",
    ),
    Hint(
        lambda config: config.hardware.precision == "16-mixed",
        lambda config: "use a format of a wider range than float16 (`hardware.precision = bf16-mixed`)",
    ),
    Hint(
        _is_rate_high,
        lambda config: (
            f"lower the learning rate (`optimizer.lr`, now {config.optimizer.lr:g}; the presets have at most "
            f"{USUAL_RATE.get(config.optimizer.kind, 0.1):g} with {config.optimizer.kind})"
        ),
    ),
    Hint(
        lambda config: not _is_rate_high(config),
        lambda config: f"lower the learning rate (`optimizer.lr`, now {config.optimizer.lr:g})",
    ),
    Hint(
        lambda config: not _is_controlled(config) and not config.layer.is_orthogonal and not _has_penalty(config),
        lambda config: "control the singular values (`control.kind = clip`)",
    ),
    Hint(
        lambda config: _is_controlled(config) and config.control.every_steps > _SELDOM,
        lambda config: f"control more often (`control.every_steps`, now {config.control.every_steps})",
    ),
    Hint(
        lambda config: _is_controlled(config) and config.control.max_sigma > _LARGE_MAXIMUM,
        lambda config: f"lower the largest singular value (`control.max_sigma`, now {config.control.max_sigma:g})",
    ),
    Hint(
        lambda config: _is_controlled(config) and config.control.linear_max is None and not _has_penalty(config),
        lambda config: "control linear layers too (`control.linear_max`)",
    ),
    Hint(
        lambda config: _is_controlled(config) and config.optimizer.clip_norm is None and not _has_penalty(config),
        lambda config: "clip the gradients (`optimizer.clip_norm`)",
    ),
    Hint(
        lambda config: config.initial is not None and not _has_penalty(config),
        lambda config: "check that the trained weights fit these data and their normalisation (`initial.file`)",
    ),
)
"""Those that help most first."""
MOST = 3
"""Hints of one sentence."""


def ways_out(config: TrainConfig) -> str:
    """Return what to change in a run whose loss or weights were not finite, the likeliest of at most `MOST` first."""
    found = [hint.text(config) for hint in HINTS if hint.helps(config)][:MOST]
    return ", or ".join(filter(None, [", ".join(found[:-1]), found[-1]]))
