"""From a preset and assignments to a configuration."""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from svdctl.config.command_flags import LIPCONV, TRAIN
from svdctl.config.overrides import Overrides
from svdctl.config.presets import read_preset
from svdctl.config.train_config import TrainConfig
from svdctl.config.validation_errors import sentences, sentences_of_mixes
from svdctl.errors import UsageError


def configuration(preset: str, assignments: Iterable[str] = ()) -> TrainConfig:
    """Return the configuration of a preset, changed by assignments in their order.

    Args:
        preset: the name of a shipped preset, or the path of a TOML file.
        assignments: `key.path=value` with a TOML value, as `control.max_sigma=2`; another `kind` drops the fields of
            the old one, and nothing after `=` gives a field back to its default.

    Raises:
        UsageError: with every fault.
    """
    to = Overrides(with_kinds(read_preset(preset)))
    faults: list[str] = []
    for assignment in assignments:
        try:
            to.assign(assignment)
        except UsageError as error:
            faults += error.faults
    try:
        config = TrainConfig.model_validate(to.table)
    except ValidationError as error:
        command = LIPCONV if LIPCONV.owns(to.table) else TRAIN
        faults += [*sentences(error, command), *sentences_of_mixes(to.table, error, command)]
    if faults:
        raise UsageError(dict.fromkeys(faults))
    return config


def with_kinds(table: dict[str, Any]) -> dict[str, Any]:
    """Return the table, with the default kind of each union that it leaves out, so that it can be switched."""
    for name, default in TrainConfig().model_dump(mode="json").items():
        if isinstance(default, dict) and "kind" in default:
            table.setdefault(name, {"kind": default["kind"]})
    return table
