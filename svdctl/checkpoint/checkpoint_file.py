"""Checkpoints: written whole or not at all, checked on reading, describing themselves, never executing anything."""

import copy
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, overload

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from torch import Tensor, nn

from svdctl.checkpoint.file_format import container_of
from svdctl.checkpoint.library_file import M, describe, load_into_network
from svdctl.checkpoint.paper_checkpoints import open_paper_network
from svdctl.checkpoint.pickled_calls import UnreadTensor
from svdctl.checkpoint.pickles import tensors_in
from svdctl.checkpoint.tensors import check_sizes
from svdctl.checkpoint.torch_archive import FORMAT, VERSION, is_checkpoint, read_torch
from svdctl.checkpoint.weight_file import WeightFile, read_tensors
from svdctl.config.migrate import migrate_configuration, migrate_metrics
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError, TrainingError, UsageError, first_line
from svdctl.layers.layer_ops import require_module
from svdctl.models.architecture import architecture_of
from svdctl.models.build import build_model, count_on_meta
from svdctl.models.external_architecture import External, missing_factory
from svdctl.plugins import is_factory, missing_plugins
from svdctl.utils.atomic_write import write_atomically
from svdctl.utils.files import file_path
from svdctl.utils.run_dir import checkpoint_at

MAX_IMAGE = 2**20
"""Numbers in an image that a network of any size may be for, 3 x 591 x 591; for larger ones it has as many weights. The
analysis of a layer takes time and memory in proportion to them, and a few bytes in a file can name any size."""


@dataclass(frozen=True)
class Checkpoint:
    """Hold the contents of a checkpoint."""

    config: TrainConfig
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    model: dict[str, Any]
    """State of the network, its bounds proved; `training` has the weights as they were before the proof."""
    training: dict[str, Any]
    """State of optimiser, schedule, control and counters."""
    metrics: dict[str, float]
    data: dict[str, str] | None = None
    """Fingerprints of the parts of the data that it was trained on, by name; None: not known."""


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside `path`, flush to the disk, then rename: a reader sees the old file or the new one.

    torch gives every member of the file a CRC32, which `read_checkpoint` compares.

    Raises:
        TrainingError: the folder is no longer there.
        OSError: it cannot be written, as on a full disk; a file that was there before stays as it is.
    """
    contents = {
        "format": FORMAT,
        "version": VERSION,
        **vars(checkpoint),
        "config": checkpoint.config.model_dump_json(),
        "classes": list(checkpoint.classes),
        "image_shape": list(checkpoint.image_shape),
    }
    try:
        write_atomically(path, partial(torch.save, contents))
    except FileNotFoundError as error:
        raise TrainingError(
            f"{path.parent} is gone, removed or renamed while it was trained in; {path.name} of step "
            f"{checkpoint.metrics.get('step', 0):.0f} could not be saved"
        ) from error
    except RuntimeError as error:
        # torch's zip writer reports a full disk as RuntimeError.
        raise OSError(f"{path} could not be written ({first_line(error)})") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint; tensors come to the CPU. Nothing in the file is executed.

    Raises:
        CheckpointError: missing, damaged, foreign, or of a newer format.
    """
    return _checkpoint_of(*_opened(path))


def _opened(path: Path) -> tuple[Path, object]:
    """Return the file of a checkpoint, which is `last.pt` of a run folder, and what is in it."""
    file = checkpoint_at(path)
    return file, read_torch(file)


def _checkpoint_of(path: Path, contents: object) -> Checkpoint:
    """Return the checkpoint in a file with these contents, checked."""
    if not isinstance(contents, dict) or not is_checkpoint(contents, path):
        raise CheckpointError(f"{path} is not a checkpoint of svdctl; give a .pt file that a training wrote")
    try:
        found = _Contents.model_validate(contents)
        if found.version == 1:
            migrated = {"config": _in_todays_keys(found.config), "metrics": migrate_metrics(found.metrics)}
            found = found.model_copy(update=migrated)
        if found.version <= 2:
            found = found.model_copy(update={"model": _with_reflections(found.model)})
        config = TrainConfig.model_validate_json(found.config)
    except ValidationError as error:
        if missing := missing_plugins(_plugins_of(contents)):
            raise CheckpointError(
                f"{path} was trained with plugins, and nothing of them is imported unless you name them; if you trust "
                f"them add {' '.join(f'`plugin = {name}`' for name in missing)}, or import them first in Python"
            ) from error
        fault = error.errors()[0]
        where = " ".join(".".join(map(str, fault["loc"])).split()) or "its configuration"
        raise CheckpointError(
            f"{path} is no sound checkpoint ({where[:100]}: {first_line(ValueError(fault['msg']), 100)}); "
            "use another one"
        ) from error
    held = {f"tensor {place} of the training": tensor for place, tensor in enumerate(tensors_in(found.training))}
    check_sizes({**held, **found.model}, path.stat().st_size, str(path))
    largest = max(MAX_IMAGE, sum(value.numel() for value in found.model.values()))
    side = getattr(config.model, "image_size", None) or 1
    for where, shape in (("image_shape", found.image_shape), ("model.image_size", (3, side, side))):
        if math.prod(shape) > largest:
            raise CheckpointError(
                f"{path} is no sound checkpoint ({where}: images of {' x '.join(map(str, shape))[:40]} for so few "
                "weights); use another one"
            )
    if not _is_plausible(config, len(found.classes), found.model):
        raise CheckpointError(f"{path}: its weights do not fit the configuration beside them; use another one")
    return Checkpoint(config, found.classes, found.image_shape, found.model, found.training, found.metrics, found.data)


def _table_of(text: object) -> dict[str, Any] | None:
    """Return a configuration before it is checked; None: the text is none."""
    try:
        table = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def _plugins_of(contents: dict[str, Any]) -> list[str]:
    """Return the plugins that a checkpoint says it needs."""
    found = (_table_of(contents.get("config")) or {}).get("plugins")
    return [str(name)[:500] for name in found] if isinstance(found, list) else []


def _in_todays_keys(text: str) -> str:
    """Return a configuration of format 1 as JSON; a text that is none stays, and is refused with it."""
    table = _table_of(text)
    return text if table is None else json.dumps(migrate_configuration(table))


def _with_reflections(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state of format 1 or 2 whose square parametrised frames have coordinates of today's map.

    They were `base expm(S)`, S the skew matrix with the lower triangle that is stored. The frame becomes the base of
    torch's Householder map, which minus the identity, the coordinates of a start, maps to it exactly. Momentum stays:
    at that point both maps have the same derivative but for a factor of 2.
    """
    found = dict(model)
    for name, coordinates in model.items():
        place, _, leaf = name.rpartition(".original")
        base = model.get(f"{place}.0.base")
        is_frame = place.endswith(("parametrizations.frame_in", "parametrizations.frame_out")) and not leaf
        if is_frame and base is not None and coordinates.shape == base.shape:
            lower = coordinates.tril()
            found[f"{place}.0.base"] = base @ torch.matrix_exp(lower - lower.mT)
            found[name] = -torch.eye(len(base), dtype=coordinates.dtype)
    return found


class _Contents(BaseModel):
    """Check the types in the file of a checkpoint; nothing is converted."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    version: PositiveInt
    config: str
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    image_shape: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt], Field(strict=False)]
    model: dict[str, Tensor]
    training: dict[str, Any]
    metrics: dict[str, float]
    data: dict[str, str] | None = None


def _is_plausible(config: TrainConfig, classes: int, model: Mapping[str, Tensor]) -> bool:
    """Return whether a network of this configuration is as large as the weights: a few bytes may ask for any size."""
    if architecture_of(config.model).smallest(config.model) > len(model):
        return False
    if any(isinstance(value, UnreadTensor) for value in model.values()):
        return False
    if isinstance(config.model, External) and is_factory(config.model.network):
        return True  # its size is in no configuration, and reading a file is no reason to run a user's code
    try:
        parameters = count_on_meta(config, classes)
    except Exception:  # a user's network that cannot be built without numbers; others fail again when they are built
        return True
    return parameters <= sum(value.numel() for value in model.values())


@overload
def load(
    path: str | os.PathLike[str],
    model: None = None,
    *,
    gouk_transforms: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module: ...
@overload
def load(path: str | os.PathLike[str], model: M) -> M | nn.Sequential: ...
def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    gouk_transforms: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Return the trained network of a checkpoint or run folder, in evaluation mode on the CPU; nothing else is needed.

    Only a file of `svdctl.save`, and a checkpoint of a network that a user's own factory made, need `model`, a network
    of the class that was saved: svdctl's layers are put into the places of its ordinary ones, then the weights; it is
    changed in place and stays where it is.

    The network of a checkpoint takes pixels in [0, 1] of shape `(N, 3, H, W)` and returns logits `(N, classes)`.
    Checkpoints of the paper's public code are read too: names and shapes of their tensors tell the network, and the
    network tells the normalisation with which that code trains it, unless one is given.

    Args:
        path: of a file or run folder.
        model: the network that the file is put into. Of a checkpoint the result is a `Sequential` of the run's
            normalisation of pixels and this network.
        gouk_transforms: a checkpoint of the paper's code was trained with mean and std 0.5, which no file tells.
        mean, std: another normalisation of such a checkpoint, one number for all channels or one for each.

    Raises:
        CheckpointError: missing, damaged, foreign, or of a newer format; or it does not fit `model`, of which then
            nothing was changed.

    >>> import torch
    >>> model = svdctl.load("runs/quickstart")
    >>> model(torch.rand(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    place = file_path(path)
    if model is not None and not _is_checkpoint(place):
        return load_into_network(place, model)
    if place.is_file() and container_of(place) == "safetensors":
        _refuse_library(read_tensors(place))
    file, contents = _opened(place)
    if isinstance(contents, dict) and not is_checkpoint(contents, file):
        weights = read_tensors(file)
        _refuse_library(weights)
        if weights.format == "paper":
            return open_paper_network(
                weights.tensors, where=str(file), gouk_transforms=gouk_transforms, mean=mean, std=std
            ).model
    return network_of(_checkpoint_of(file, contents), file, model)


def _is_checkpoint(path: Path) -> bool:
    """Return whether a path is a run folder or one of its checkpoints."""
    if path.is_dir():
        return (path / "last.pt").is_file()
    if not path.is_file() or container_of(path) != "zip":
        return False
    contents = read_torch(path)
    return isinstance(contents, dict) and is_checkpoint(contents, path)


def network_of(checkpoint: Checkpoint, path: Path, model: nn.Module | None = None) -> nn.Module:
    """Return the network of a checkpoint with its weights, in evaluation mode.

    Args:
        checkpoint: what was read.
        path: where it stands, for messages.
        model: of a network that svdctl does not define, the network that is filled, in place.

    Raises:
        CheckpointError: its weights do not fit; it is of a factory that the user has not named; or a `model` was given
            for a network of svdctl's own. Of `model` nothing was changed then.
    """
    config, classes = checkpoint.config, len(checkpoint.classes)
    if model is None and (missing := missing_factory(config.model)) is not None:
        raise CheckpointError(f"{path}: {missing}")
    if model is None:
        built = build_model(config, classes)
        load_network_(built, checkpoint.model, path)
        return built.eval()
    if not isinstance(config.model, External):
        raise CheckpointError(
            f"{path} is a checkpoint of {architecture_of(config.model).name(config.model)}, which svdctl makes itself; "
            "load it without a network"
        )
    require_module(model)
    with checkpoint_error_on_mismatch(path):
        trial = build_model(config, classes, copy.deepcopy(model))
    load_network_(trial, checkpoint.model, path)
    with checkpoint_error_on_mismatch(path):
        built = build_model(config, classes, model)
        built.load_state_dict(checkpoint.model)
    return built.eval()


def load_network_(network: nn.Module, state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Load the state of a checkpoint into its network.

    Args:
        network: what is filled.
        state: tensors by name.
        path: where the checkpoint stands, for messages.

    Raises:
        CheckpointError: names or shapes are others, as where another factory makes the network.
    """
    try:
        with checkpoint_error_on_mismatch(path):
            network.load_state_dict(state)
    except CheckpointError as error:
        # Only now: layers may read names that they do not write, as those of earlier versions.
        if differing := _differing_tensors(network.state_dict(), state):
            raise CheckpointError(
                f"{path}: its state does not fit the network: {differing}; give the network that was trained, or "
                "another file"
            ) from error
        raise


def _differing_tensors(own: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Return which names and shapes of a network's own state a state in a file does not have; empty: none."""
    shared = [name for name in own if name in state]
    found = {
        "only in the file": [name for name in state if name not in own],
        "only in the network": [name for name in own if name not in state],
        "of other shapes": [name for name in shared if _shape(own[name]) != _shape(state[name])],
    }
    return "; ".join(f"{_shown(names)} {where}" for where, names in found.items() if names)


def _shown(names: Sequence[str]) -> str:
    """Return the first of some names in quotes, and how many more there are."""
    return f"{names[0]!r}{f' and {len(names) - 1:,} more' if len(names) > 1 else ''}"


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _refuse_library(weights: WeightFile) -> None:
    """Raise the CheckpointError of a file of `svdctl.save` that is read without a network."""
    found = describe(weights)
    if found is not None:
        net = found.network if found.network.isidentifier() else "Net"
        raise CheckpointError(
            f"{weights.path} was written by svdctl.save; give the network: svdctl.load(path, model={net}())"
        )


@contextmanager
def checkpoint_error_on_mismatch(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the errors of a body that loads the state in a checkpoint into one that names its file.

    Raises:
        CheckpointError: a part of the state is missing or of another shape.
    """
    try:
        with warnings.catch_warnings():
            # Of a tensor in the place of a table, before the error.
            warnings.filterwarnings("ignore", "Using a non-tuple sequence")
            yield
    except (UsageError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path}: its state does not fit the configuration beside it ({type(error).__name__}: "
            f"{first_line(error, 100)}); use another one"
        ) from error
