"""Table files: those that ship with svdctl, by name, and a user's own, by path."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from svdctl.config.base import Config
from svdctl.config.presets import preset_folder
from svdctl.config.validation_errors import worth_reporting
from svdctl.errors import UsageError
from svdctl.plugins import load_plugins, plugin_name
from svdctl.reproduce.columns import known_columns
from svdctl.reproduce.table_config import TABLE_FILE, Collection, ResultTable, SpeedFigure, TableFile


def table_folder() -> Path:
    """Return the folder of the shipped table files."""
    return preset_folder() / "tables"


def list_tables() -> dict[str, str]:
    """Return name and one-line description (the file's first line) of every shipped table."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
        for path in sorted(table_folder().glob("*.toml"))
    }


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean X?`, or nothing when no name resembles this one."""
    near = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def find_table(name: str) -> Path:
    """Return the file of a table.

    Raises:
        UsageError: for an unknown name, with the nearest one.
    """
    names = list_tables()
    shipped = name.lower().replace("_", "-")
    if shipped in names:
        return table_folder() / f"{shipped}.toml"
    own = Path(name).expanduser()
    if own.is_file():
        return own
    if own.suffix == ".toml" or len(own.parts) > 1:
        raise UsageError(f"{name}: there is no such table file; check its path")
    raise UsageError(f"{name}: there is no such table{nearest(name, names)} (svdctl reproduce --list)")


def read_table(path: Path) -> TableFile:
    """Read and check one table file.

    Raises:
        UsageError: with every fault, each naming file, row and key.
    """
    try:
        contents = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the table file cannot be read ({error.strerror}); check its path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the table file is no TOML ({error}); mend it there") from error
    contents.setdefault("kind", "table")
    plugins = contents.pop("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(plugin, str) for plugin in plugins):
        raise UsageError(f"{path}: plugins is no list of texts; write plugins = ['package.module', './file.py']")
    load_plugins(plugin_name(plugin, path.parent) for plugin in plugins)
    try:
        table = TABLE_FILE.validate_python(contents)
    except ValidationError as error:
        raise UsageError(dict.fromkeys(_sentence(path, contents, fault) for fault in worth_reporting(error))) from error
    known = known_columns()
    unknown = [name for name in getattr(table, "columns", ()) if name not in known]
    if unknown:
        raise UsageError([f"{path}: there is no column {name!r}{nearest(name, known)}" for name in unknown])
    return table


def gather(names: Iterable[str]) -> dict[str, tuple[Path, ResultTable | SpeedFigure]]:
    """Return the tables of these names in order, collections opened, each once; keys name their outputs.

    Raises:
        UsageError: with the faults of all names.
    """
    found: dict[str, tuple[Path, ResultTable | SpeedFigure]] = {}
    faults: list[str] = []
    waiting = list(names)
    seen: set[Path] = set()
    while waiting:
        try:
            path = find_table(waiting.pop(0))
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            table = read_table(path)
        except UsageError as error:
            faults += error.faults
            continue
        if isinstance(table, Collection):
            beside = [path.parent / f"{name}.toml" for name in table.tables]
            waiting = [
                str(file) if file.is_file() else name for name, file in zip(table.tables, beside, strict=True)
            ] + waiting
        elif path.stem in found:
            faults.append(f"{path}: another table is called {path.stem} too, and they share outputs; rename the file")
        else:
            found[path.stem] = (path, table)
    if faults:
        raise UsageError(faults)
    if not found:
        raise UsageError(f"{', '.join(names)}: the collection names no table but itself; name others in tables")
    return found


_WANTED = {
    "tuple_type": "write a list, in [ ]",
    "string_type": "write a text, in quotation marks",
    "model_type": "write a section with its keys, as [name], or [[rows]] for a row",
    "model_attributes_type": "write a section with its keys, as [name], or [[rows]] for a row",
    "too_short": "one at least is needed",
}
"""What to write instead, by pydantic's kind of fault."""


def _sentence(path: Path, contents: dict[str, Any], fault: Any) -> str:
    """Return a sentence with file, row, key and way out of one fault."""
    location = list(fault["loc"][1:])  # the first names the kind of file
    where = str(path)
    inside: list[Any] = location
    if len(location) >= 2 and location[0] == "rows" and isinstance(location[1], int):
        row = contents["rows"][location[1]]
        name = row.get("name") if isinstance(row, dict) else None
        where += f": row {name!r}" if name else f": row {location[1] + 1}"
        inside = location[2:]
    key = ".".join(str(part) for part in inside if not isinstance(part, int))
    if fault["type"] == "extra_forbidden":
        known = _keys_at(fault["loc"][0], location[:-1])
        return f"{where}: there is no key {key}{nearest(str(location[-1]), known)} (known: {', '.join(known)})"
    if fault["type"] == "missing":
        return f"{where}: the key {key} is missing; add it"
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{where}: kind is one of {fault['ctx'].get('expected_tags', 'table, speed and collection')}"
    if fault["type"] == "value_error":
        return f"{where}: {f'{key}: ' if key else ''}{fault['ctx']['error']}"
    message = _WANTED.get(fault["type"], fault["msg"][0].lower() + fault["msg"][1:])
    if not key:
        return f"{where}: {fault['input']!r:.60} does not do here: {message}"
    return f"{where}: {key} = {fault['input']!r:.60} does not do: {message}"


def _keys_at(kind: str, location: list[Any]) -> list[str]:
    """Return the keys that a table of this kind may have at a place."""
    kinds: dict[str, type[Config]] = {"table": ResultTable, "speed": SpeedFigure, "collection": Collection}
    schema = kinds[kind].model_json_schema()
    node = schema
    for part in location:
        node = node["items"] if isinstance(part, int) else node["properties"][part]
        for option in (node, *node.get("anyOf", ())):
            if "$ref" in option:
                node = schema["$defs"][option["$ref"].rpartition("/")[2]]
    return list(node["properties"])
