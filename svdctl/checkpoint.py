"""Checkpoints: written whole or not at all, checked on reading, describing themselves, never executing anything."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from svdctl.build import build_model
from svdctl.config.train import TrainConfig
from svdctl.errors import CheckpointError
from svdctl.weights.archive import read_torch

FORMAT = "svdctl.checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    config: TrainConfig
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    model: dict[str, Any]
    """State of the network, sealed: what every reader but a resumed training wants."""
    training: dict[str, Any]
    """State of optimiser, schedule, control and counters."""
    metrics: dict[str, float]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside `path`, flush to the disk, then rename: a reader sees the old file or the new one."""
    contents = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoint.config.model_dump_json(),
        "classes": list(checkpoint.classes),
        "image_shape": list(checkpoint.image_shape),
        "model": checkpoint.model,
        "training": checkpoint.training,
        "metrics": checkpoint.metrics,
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)
    except RuntimeError as error:
        # torch's zip writer reports a full disk as RuntimeError.
        raise OSError(f"{path} could not be written ({str(error).splitlines()[0]})") from error
    finally:
        beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint; tensors come to the CPU. Nothing in the file is executed.

    Raises:
        CheckpointError: missing, damaged, foreign, or of a newer format.
    """
    if path.is_dir():
        path = path / "last.pt"
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give a run folder or one of its .pt files")
    contents = read_torch(path)
    if not isinstance(contents, Mapping) or contents.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of svdctl; give a .pt file that svdctl train wrote")
    if contents["version"] > VERSION:
        raise CheckpointError(
            f"{path} has format {contents['version']}, newer than this svdctl knows ({VERSION}); upgrade svdctl"
        )
    try:
        channels, height, width = contents["image_shape"]
        return Checkpoint(
            config=TrainConfig.model_validate_json(contents["config"]),
            classes=tuple(contents["classes"]),
            image_shape=(channels, height, width),
            model=contents["model"],
            training=contents["training"],
            metrics=contents["metrics"],
        )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{path} lacks a part of a checkpoint ({error!r:.200}); use another one") from error


def load(path: str | os.PathLike[str]) -> nn.Module:
    """The trained network of a checkpoint or run folder, in evaluation mode on the CPU; nothing else is needed.

    It takes pixels in [0, 1] of shape `(N, 3, H, W)` and returns logits `(N, classes)`.

    Raises:
        CheckpointError: missing, damaged, foreign, or of a newer format.
    """
    checkpoint = read_checkpoint(Path(path))
    model = build_model(checkpoint.config, len(checkpoint.classes))
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: the weights do not fit the configuration beside them; use another one"
        ) from error
    return model.eval()
