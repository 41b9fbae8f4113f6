"""When two configurations are one run: equal once everything that cannot change its results is left out."""

from pathlib import Path
from typing import Any

from svdctl.config.control_config import PROVE_EVERY_STEPS_ON_CUDA
from svdctl.config.migrate import migrate_configuration
from svdctl.config.model_config import PUBLISHED, InitialWeights
from svdctl.config.train_config import CROSS_ENTROPY, TrainConfig
from svdctl.data.data_source import source_of
from svdctl.errors import FileError, SvdctlError
from svdctl.plugins import without_folder
from svdctl.utils.content_hash import json_digest
from svdctl.utils.files import read_toml

# Precision stays. Numbers of devices and nodes change the order of sums alone.
WITHOUT_EFFECT = (
    "name",
    "out_dir",
    "plugins",
    "log",
    "hardware.accelerator",
    "hardware.compile",
    "hardware.channels_last",
    "hardware.capture",
    "hardware.deterministic",
    "checkpoint.keep",
)

NEWER: dict[str, Any] = {
    "loss": {"kind": CROSS_ENTROPY},
    "init": "svdctl",
}
"""Keys that configurations have got since runs were first named by hashes, with what older runs did.

A key that is absent by default needs no entry."""


def run_hash(config: TrainConfig, *, recorded: bool = False) -> str:
    """Return twelve hexadecimal digits, equal for configurations of equal results.

    Names, places, logs and kinds of devices are left out, and what `control.prove_every_steps = "auto"` becomes on any
    of these. `checkpoint.every_epochs` is left out too when every epoch is
    evaluated: an evaluation seals the bounds already, so that writing a checkpoint after it changes nothing.

    Args:
        config: of the run.
        recorded: it stands in a run folder: nothing that it names is read, as it holds the hash of its weights.
    """
    return json_digest(_deciding(config, recorded=recorded))[:12]


def starting_hash(config: TrainConfig, classes: int, image_shape: tuple[int, ...]) -> str:
    """Return the SHA-256 of all that decides the network of a run before its first step.

    Args:
        config: of the run, with the hash of its initial weights.
        classes: their number.
        image_shape: `(C, H, W)` of the images that it is for.
    """
    deciding = _deciding(config, recorded=True)
    kept = {name: deciding.get(name) for name in ("seed", "init", "initial", "model", "layer", "normalize")}
    return json_digest({**kept, "classes": classes, "image_shape": list(image_shape)})


def differing(first: TrainConfig, second: TrainConfig) -> list[str]:
    """Return names of the sections by which two recorded configurations are not one run; none where they are.

    Where data lie does not count: what they are is known by their fingerprints.
    """
    one, other = _deciding(first, recorded=True), _deciding(second, recorded=True)
    for table in (one, other):
        table["data"].pop("path", None)
    return [name for name in one | other if one.get(name) != other.get(name)]


def config_in(folder: Path) -> TrainConfig | None:
    """Read `config.toml` of a run folder; None where there is none that can be read, or where it is empty."""
    try:
        table = migrate_configuration(read_toml(folder / "config.toml"))
        return TrainConfig.model_validate(table) if table else None
    except (FileError, ValueError):  # of the file, of the configuration
        return None


def _deciding(config: TrainConfig, *, recorded: bool) -> dict[str, Any]:
    """Return what decides the results."""
    table: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    dropped = [
        *WITHOUT_EFFECT,
        *(f"data.{key}" for key in (source_of(config.data).place, *source_of(config.data).without_effect)),
        *(["checkpoint.every_epochs"] if config.evaluation.every_epochs == 1 else []),
    ]
    model = table["model"]
    if "network" in model:
        model["network"] = without_folder(model["network"])
    if config.initial is not None:
        table["initial"] = _weights(config.initial, config, recorded)
    for path in dropped:
        section, _, key = path.rpartition(".")
        (table[section] if section else table).pop(key, None)
    table["hardware"].update(devices=1, num_nodes=1)
    if table["control"].get("prove_every_steps") in ("auto", 0, PROVE_EVERY_STEPS_ON_CUDA):
        del table["control"]["prove_every_steps"]
    for path, former in NEWER.items():
        section, _, key = path.rpartition(".")
        place = table.get(section, {}) if section else table
        if place.get(key) == former:
            del place[key]
    return table


def _weights(initial: InitialWeights, config: TrainConfig, recorded: bool) -> str:
    """Return what tells initial weights from others: the hash of their contents, wherever the file lies."""
    if initial.file == PUBLISHED or initial.sha256 is not None:
        return PUBLISHED if initial.file == PUBLISHED else str(initial.sha256)
    if recorded:
        return initial.file
    from svdctl.checkpoint.initial_weights import read_initial  # imports torch

    try:
        return read_initial(initial, config, download=False).sha256
    except (SvdctlError, OSError):  # the run itself says what is wrong with it
        return initial.file
