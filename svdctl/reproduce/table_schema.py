"""Table files: those that ship with svdctl, by name, and a user's own, by path."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from svdctl.config.presets import preset_folder
from svdctl.config.validation_errors import validated
from svdctl.errors import UsageError
from svdctl.plugins import load_plugins, plugin_name
from svdctl.reproduce.columns import known_columns
from svdctl.reproduce.table_config import Collection, ResultTable, SpeedFigure, TableFile

KINDS: dict[str, type[TableFile]] = {"table": ResultTable, "speed": SpeedFigure, "collection": Collection}


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


def find_table(name: str, folder: Path | None = None) -> Path:
    """Return the file of a table: of this name in a folder, if one is given; one that ships with svdctl; by its path.

    Raises:
        UsageError: for an unknown name, with the nearest one.
    """
    shipped = table_folder() / f"{name.lower().replace('_', '-')}.toml"
    own = Path(name).expanduser()
    places = [
        *([folder / f"{name}.toml"] if folder else []),
        *([shipped] if shipped.stem in list_tables() else []),
        own,
    ]
    for path in places:
        if path.is_file():
            return path
    if own.suffix == ".toml" or len(own.parts) > 1:
        raise UsageError(f"{name}: there is no such table file; check its path")
    raise UsageError(f"{name}: there is no such table{nearest(name, list_tables())} (svdctl reproduce --list)")


def read_toml(path: Path, where: str) -> dict[str, Any]:
    """Return the contents of a TOML file.

    Raises:
        UsageError: it cannot be read; the sentence begins with `where`.
    """
    try:
        return tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{where}: the file cannot be read ({reason}); check its path") from error
    except ValueError as error:
        raise UsageError(f"{where}: the file is no TOML ({error}); mend it there") from error


def read_table(path: Path) -> TableFile:
    """Read and check one table file.

    Raises:
        UsageError: with every fault, each naming file, row and key.
    """
    contents = read_toml(path, str(path))
    kind = str(contents.get("kind", "table"))
    if kind not in KINDS:
        raise UsageError(f"{path}: kind is one of {', '.join(map(repr, KINDS))}, not {kind!r:.40}")
    table, faults = validated(KINDS[kind], contents)
    if table is not None:
        load_plugins(plugin_name(plugin, path.parent) for plugin in table.plugins)
        known = known_columns()
        columns = getattr(table, "columns", ())
        faults = [f"there is no column {name!r}{nearest(name, known)}" for name in columns if name not in known]
    if table is None or faults:
        raise UsageError([f"{path}: {fault}" for fault in faults])
    return table


def gather(names: Iterable[str]) -> dict[str, tuple[Path, ResultTable | SpeedFigure]]:
    """Return the tables of these names in order, collections opened, each once; keys name their outputs.

    Raises:
        UsageError: with the faults of all names.
    """
    found: dict[str, tuple[Path, ResultTable | SpeedFigure]] = {}
    faults: list[str] = []
    waiting: list[tuple[str, Path | None]] = [(name, None) for name in names]
    seen: set[Path] = set()
    while waiting:
        try:
            path = find_table(*waiting.pop(0))
            table = None if path.resolve() in seen else read_table(path)
        except UsageError as error:
            faults += error.faults
            continue
        seen.add(path.resolve())
        if isinstance(table, Collection):
            waiting[:0] = [(name, path.parent) for name in table.tables]
        elif isinstance(table, ResultTable | SpeedFigure):
            if path.stem in found:
                faults.append(
                    f"{path}: another table is called {path.stem} too, and they share outputs; rename the file"
                )
            found[path.stem] = (path, table)
    if not found and not faults:
        faults.append(f"{', '.join(names)}: the collection names no table but itself; name others in tables")
    if faults:
        raise UsageError(faults)
    return found
