"""The flags of one command line on their way into the configuration that they change."""

from collections.abc import Iterable
from typing import Any

from svdctl.config.command_flags import Command, spelled
from svdctl.config.overrides import Overrides


class Merge:
    """A base, the flags given, and what is found wrong with them.

    Attributes:
        given: values by the field that they set (`layer.rank`), or by the flag's name when it sets none by itself.
        to: the base, changed as the sections of the configuration are gone through.
        faults, notices: sentences.
        bare: whether no preset was asked for, so that a run is named by its flags.
    """

    def __init__(
        self, command: Command, given: dict[str, Any], table: dict[str, Any], faults: list[str], *, bare: bool
    ) -> None:
        self.command, self.given, self.to, self.faults = command, given, Overrides(table), faults
        self.notices: list[str] = []
        self.bare = bare

    def flag(self, path: str) -> str:
        """The flag of a field, or the way to set a field that has none."""
        return self.command.flag(path) or f"--set {path}="

    def take(self, *paths: str) -> None:
        """Set the fields that were given, as they were given."""
        for path in paths:
            if path in self.given:
                self.to.put(path, self.given[path])

    def refuse(self, why: str, fields: Iterable[str]) -> None:
        """A fault for each of these fields that was given."""
        self.faults += [
            f"{self.command.flag(path) or spelled(path)} {why}"
            for path in fields
            if self.given.get(path) not in (None, False)
        ]
