"""A nested table of configuration values that flags change one field at a time."""

from collections.abc import Iterable
from typing import Any

from svdctl.errors import MalformedFileError, UsageError
from svdctl.utils.files import parse_toml


def assigned_key(assignment: str) -> str:
    """Return the key of `key.path=value`."""
    return assignment.partition("=")[0].strip()


class Overrides:
    """Values by dotted path; the tags of unions (`control.kind`) decide which fields stay."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.table = table

    def section(self, path: str) -> dict[str, Any]:
        """Return the fields below a path, empty when there are none; reading makes none."""
        found: Any = self.table
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    def kind(self, path: str) -> Any:
        """Return the tag of the union at a path, None when there is none."""
        return self.section(path).get("kind")

    def put(self, path: str, value: Any) -> None:
        """Set one field.

        Raises:
            UsageError: when the path runs through a single value.
        """
        *above, key = path.split(".")
        table = self.table
        for depth, part in enumerate(above, 1):
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{path}: {'.'.join(above[:depth])} is a single value and has no keys below it")
            table = inner
        table[key] = value

    def switch(self, path: str, kind: Any) -> None:
        """Set the tag of a union; another tag drops the old one's fields, the same tag keeps them."""
        if self.kind(path) != kind:
            self.put(path, {"kind": kind})

    def drop(self, path: str) -> None:
        """Give one field back to its default."""
        section, _, key = path.rpartition(".")
        (self.section(section) if section else self.table).pop(key, None)

    def assign_all(self, assignments: Iterable[str]) -> list[str]:
        """Apply assignments in their order; return the faults of those that are malformed."""
        faults: list[str] = []
        for assignment in assignments:
            try:
                self.assign(assignment)
            except UsageError as error:
                faults += error.faults
        return faults

    def assign(self, assignment: str) -> None:
        """Apply `key.path=value` with a TOML value; a bare word is a string, nothing at all means the default.

        Raises:
            UsageError: for another form.
        """
        equals, text = (part.strip() for part in assignment.partition("=")[1:])
        path = assigned_key(assignment)
        if not equals or not all(path.split(".")):
            raise UsageError(f"`set = {assignment}`: write it as key.path=value")
        if not text:
            self.drop(path)
            return
        try:
            value = parse_toml(f"value = {text}", assignment)["value"]
        except MalformedFileError:  # no TOML, or numbers and nestings without end
            value = text
        if path.endswith(".kind"):
            self.switch(path.removesuffix(".kind"), value)
        else:
            self.put(path, value)
