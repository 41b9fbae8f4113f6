"""What a training leaves."""

from dataclasses import dataclass
from pathlib import Path

from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import LayerReport


@dataclass(frozen=True)
class CertifiedEpoch:
    """What is proved of one epoch's network on the test set."""

    name: str
    """`last` or `best`."""
    epoch: int
    accuracy: float
    certified: dict[float, float]
    """Share of images that are right and certified, by radius in 255ths."""
    mean_radius: float
    """Wrong answers counted as 0, in pixels of [0, 1]."""
    lipschitz: float
    """The network's proved constant L."""
    slack: dict[str, float]
    """The factors of L by kind: norms of operators, frames, truncated series, normalisation, ..."""


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves."""

    folder: Path
    metrics: dict[str, float]
    summary: list[str]
    layers: list[LayerReport]
    files: list[Path]
    config: TrainConfig
    completed: bool
    certified: tuple[CertifiedEpoch, ...] = ()
    """The last epoch and, where one was picked, the best; for runs with certificates."""
