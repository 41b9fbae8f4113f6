"""Flags of `svdctl train`, the paper's among them, to a configuration; every fault is collected before one is reported.

A flag changes one field of a base: a preset, the paper's defaults, or the quick start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from svdctl.config.faults import sentences
from svdctl.config.paper import paper_defaults
from svdctl.config.sections import Sections, flag_name
from svdctl.config.train import TrainConfig
from svdctl.errors import UsageError
from svdctl.presets import nearest_preset, read_preset

HARDWARE = ("accelerator", "devices", "num_nodes", "precision", "compile")
MINUS_ONE_IS_OFF = ("dec_rank", "dec_scale", "orthogonal_k", "clip_linear_to")


@dataclass(frozen=True)
class Resolved:
    """A configuration, what it was based on, and remarks about the flags."""

    config: TrainConfig
    base: str
    notices: tuple[str, ...]


def resolve(flags: Mapping[str, Any]) -> Resolved:
    """The configuration that the flags ask for; keys are names of flags with underscores, None is "not given".

    Raises:
        UsageError: with every fault of the flags and of the configuration.
    """
    given = given_flags(flags)
    faults: list[str] = []
    table, base = _base(given, faults)
    given = {name: value for name, value in given.items() if not (name in MINUS_ONE_IS_OFF and value == -1)}
    sections = Sections(given, table, faults)
    try:
        config = sections.config()
    except ValidationError as error:
        faults += sentences(error)
    if faults:
        raise UsageError(dict.fromkeys(faults))
    return Resolved(config, base, tuple(sections.notices))


def resolve_resume(flags: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The fields of `hardware` and the `log.wandb` that a resumed run takes from its flags; others are refused.

    Raises:
        UsageError: with every fault.
    """
    given = given_flags(flags)
    faults = [
        f"{flag_name(name)} shows a new run; leave it or --resume out"
        if name in ("print_config", "dry_run")
        else f"{flag_name(name)} cannot change a run that is resumed; leave it out, or start a new run with "
        "--preset RUN/config.toml"
        for name in given
        if name not in (*HARDWARE, "wandb")
    ]
    hardware = {name: given[name] for name in HARDWARE if name in given}
    try:
        config = TrainConfig.model_validate(
            {"hardware": hardware, "log": {"wandb": given["wandb"]} if "wandb" in given else {}}
        )
    except ValidationError as error:
        faults += sentences(error)
    if faults:
        raise UsageError(faults)
    return (
        {name: getattr(config.hardware, name) for name in hardware},
        config.log.wandb if "wandb" in given else None,
    )


def given_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Without the flags that were not given."""
    return {name: value for name, value in flags.items() if value is not None and value not in ([], ())}


def _base(given: Mapping[str, Any], faults: list[str]) -> tuple[dict[str, Any], str]:
    if "preset" in given:
        name = str(given["preset"])
        try:
            return read_preset(name), f"preset {name}"
        except UsageError as error:
            faults += error.faults
            # The other flags are judged as if the nearest preset was meant.
            near = nearest_preset(name)
            return (read_preset(near) if near else paper_defaults(given)), name
    if given.keys() & {"dataset", "architecture", "new_layer"}:
        return paper_defaults(given), "the paper's defaults (a flag names data, network or layer)"
    return read_preset("quickstart"), "preset quickstart (no flag names data, network or layer)"
