"""From a preset and assignments to a configuration."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from svdctl.config.overrides import Overrides, assigned_key
from svdctl.config.presets import faults_with_lines, read_preset
from svdctl.config.train_config import TrainConfig
from svdctl.config.validation_errors import validated
from svdctl.errors import UsageError
from svdctl.plugins import grant_factory, is_factory, load_plugins
from svdctl.registry import ARCHITECTURES


def configuration(preset: str, assignments: Iterable[str] = ()) -> TrainConfig:
    """Return the configuration of a preset, changed by assignments in their order.

    Args:
        preset: the name of a shipped preset, or the path of a TOML file, whose `plugins` are imported,
            and the factory of whose network may be.
        assignments: `key.path=value` with a TOML value, as `control.max_sigma=2`; another `kind` drops the fields of
            the old one, and nothing after `=` gives a field back to its default.

    Raises:
        UsageError: with every fault.
    """
    table = read_preset(preset)
    plugins = load_plugins(table.get("plugins", ()))
    assignments = list(assignments)
    to = Overrides(with_kinds(table | ({"plugins": list(plugins)} if plugins else {})))
    faults = [*to.assign_all(assignments), *fill_normalization(to.table)]
    grant_network(to)
    config, more = validated(TrainConfig, to.table)
    if config is None or faults:
        faults = list(dict.fromkeys([*faults, *more]))
        raise UsageError(faults_with_lines(faults, preset, map(assigned_key, assignments)))
    return config


def with_kinds(table: dict[str, Any]) -> dict[str, Any]:
    """Return the table, with the default kind of each union that it leaves out, so that it can be switched."""
    for name, default in TrainConfig().model_dump(mode="json").items():
        if isinstance(default, dict) and "kind" in default:
            table.setdefault(name, {"kind": default["kind"]})
    return table


def grant_network(to: Overrides) -> None:
    """Allow the factory of a configuration that a user names to be imported; its file gets its absolute path."""
    network = to.section("model").get("network")
    if isinstance(network, str) and is_factory(network):
        to.put("model.network", grant_factory(network))


def fill_normalization(table: dict[str, Any]) -> list[str]:
    """Give a table without a normalisation that of its network, where the network has its own.

    Returns:
        Why there is none, a sentence each, as of a network that is not known.
    """
    model = table.get("model")
    kind = model.get("kind") if isinstance(model, Mapping) else None
    architecture = ARCHITECTURES.find(kind) if isinstance(kind, str) else None
    if architecture is None or "normalize" in table:
        return []
    try:
        found = architecture.normalization(architecture.config.model_validate(model))
    except ValidationError:
        return []  # told of where the whole table is validated
    except UsageError as error:
        return [*error.faults]
    if found is not None:
        table["normalize"] = found
    return []
