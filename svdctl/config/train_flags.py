"""Flags of a training command, the paper's among them, to a configuration; every fault is collected before one is told.

A flag changes one field of a base: a preset, the paper's defaults, or the quick start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from svdctl.config import network_sections, sections
from svdctl.config.command_flags import TRAIN, Command, spelled
from svdctl.config.configuration import with_kinds
from svdctl.config.merge import Merge
from svdctl.config.paper_defaults import paper_defaults
from svdctl.config.presets import nearest_preset, read_preset
from svdctl.config.train_config import TrainConfig
from svdctl.config.validation_errors import sentences, sentences_of_mixes
from svdctl.errors import UsageError

HARDWARE = ("accelerator", "devices", "num_nodes", "precision", "compile")
SECTIONS = (
    sections.data,
    network_sections.network,
    sections.layer,
    sections.control,
    network_sections.batchnorm,
    network_sections.optimizer,
    network_sections.schedule,
    sections.direct,
    sections.own,
)


@dataclass(frozen=True)
class Resolved:
    """A configuration, what it was based on, and remarks about the flags."""

    config: TrainConfig
    base: str
    notices: tuple[str, ...]


def resolve(flags: Mapping[str, Any], command: Command = TRAIN) -> Resolved:
    """The configuration that the flags ask for; keys are names of flags with underscores, None is "not given".

    Raises:
        UsageError: with every fault of the flags and of the configuration.
    """
    given = command.by_field(given_flags(flags))
    faults: list[str] = []
    table, base = _base(command, given, faults)
    given = {name: value for name, value in given.items() if not (name in command.minus_one_is_off and value == -1)}
    merge = Merge(
        command, given, with_kinds(table), faults, bare="preset" not in given and bool(given.keys() & command.basis)
    )
    for section in SECTIONS:
        try:
            section(merge)
        except UsageError as error:
            faults += error.faults
    if not command.owns(merge.to.table):
        faults.append(command.foreign(f"--set model.kind={merge.to.kind('model')}"))
    try:
        config = TrainConfig.model_validate(merge.to.table)
    except ValidationError as error:
        faults += [*sentences(error, command), *sentences_of_mixes(merge.to.table, error, command)]
    if faults:
        raise UsageError(dict.fromkeys(faults))
    return Resolved(config, base, tuple(merge.notices))


def resolve_resume(flags: Mapping[str, Any], command: Command = TRAIN) -> dict[str, dict[str, Any]]:
    """What a resumed run takes from its flags, by section: devices, W&B, the place of the data; others are refused.

    Raises:
        UsageError: with every fault.
    """
    given = given_flags(flags)
    faults = [
        f"{spelled(name)} shows a new run; leave it or --resume out"
        if name in ("print_config", "dry_run")
        else f"{spelled(name)} cannot change a run that is resumed; leave it out, or start a new run with "
        "--preset RUN/config.toml"
        for name in given
        if name not in (*HARDWARE, "wandb", "dataset_root")
    ]
    hardware = {name: given[name] for name in HARDWARE if name in given}
    try:
        config = TrainConfig.model_validate(
            {"hardware": hardware, "log": {"wandb": given["wandb"]} if "wandb" in given else {}}
        )
    except ValidationError as error:
        faults += sentences(error, command)
    if faults:
        raise UsageError(faults)
    changes: dict[str, dict[str, Any]] = {
        "hardware": {name: getattr(config.hardware, name) for name in hardware},
        "log": {"wandb": config.log.wandb} if "wandb" in given else {},
        "data": {"root": Path(given["dataset_root"])} if "dataset_root" in given else {},
    }
    return {section: fields for section, fields in changes.items() if fields}


def given_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Without the flags that were not given."""
    return {name: value for name, value in flags.items() if value is not None and value not in ([], ())}


def _base(command: Command, given: Mapping[str, Any], faults: list[str]) -> tuple[dict[str, Any], str]:
    if "preset" in given:
        name = str(given["preset"])
        try:
            table = read_preset(name)
        except UsageError as error:
            faults += error.faults
            # The other flags are judged as if the nearest preset was meant.
            near = nearest_preset(name)
            table = read_preset(near) if near else {}
            return (table if near and command.owns(table) else paper_defaults(command, given)), name
        if command.owns(table):
            return table, f"preset {name}"
        faults.append(command.foreign(f"--preset {name}"))
        return paper_defaults(command, given), name
    if given.keys() & command.basis:
        return paper_defaults(command, given), "the paper's defaults (a flag names data, network or layer)"
    return read_preset(command.quickstart), f"preset {command.quickstart} (no flag names data, network or layer)"
