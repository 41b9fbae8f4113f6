"""Configurations of checkpoint format 1 in today's keys; the one place that knows the old ones."""

from collections.abc import Mapping
from typing import Any

RENAMED: Mapping[str, Mapping[str, str]] = {
    "control": {"max": "max_sigma", "every": "every_steps"},
    "batchnorm": {"max": "max_gain", "every": "every_steps"},
    "checkpoint": {"every": "every_epochs"},
    "evaluation": {"every": "every_epochs"},
    "log": {"every": "every_steps"},
}
"""New key by old key, by section."""


def migrate_configuration(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training configuration as a nested table with today's keys; one that has them already stays as it is."""
    return {name: _migrated(section, RENAMED.get(name, {})) for name, section in table.items()}


def _migrated(section: Any, renamed: Mapping[str, str]) -> Any:
    if not isinstance(section, Mapping):
        return section
    kept = {key: value for key, value in section.items() if key not in renamed}
    # What stands under both keys stays, and is refused as any unknown key is.
    return {renamed[key] if key in renamed and renamed[key] not in kept else key: section[key] for key in section}
