"""Presets: TOML files that ship with svdctl, or a user's own; the one module that knows where they are."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomli_w

from svdctl.config.migrate import migrate_configuration
from svdctl.config.train_config import TrainConfig
from svdctl.errors import FileError, UsageError, nearest
from svdctl.plugins import network_name, plugin_name
from svdctl.utils import files
from svdctl.utils.escapes import toml_signs
from svdctl.utils.toml_lines import TomlLines


def resource(name: str) -> Path:
    """Return a file or folder that ships with svdctl: inside the installed package, or of the checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_resources" / name
    return installed if installed.exists() else package.parent / name


def preset_folder() -> Path:
    """Return the shipped presets."""
    return resource("presets")


def list_presets(*, lipconv: bool | None = None) -> dict[str, str]:
    """Return name and one-line description (the file's first line) of every shipped preset.

    Args:
        lipconv: those that train a LipConvNet, or those that do not; None: all.
    """
    found = described_files(preset_folder())
    if lipconv is None:
        return found
    return {name: text for name, text in found.items() if lipconv == (read_preset(name)["model"]["kind"] == "lipconv")}


def described_files(folder: Path) -> dict[str, str]:
    """Return name and one-line description (the first line) of every TOML file in a folder that ships with svdctl."""
    found = sorted(folder.glob("*.toml"), key=lambda path: path.stem)
    return {path.stem: files.read_text(path).splitlines()[0].removeprefix("#").strip() for path in found}


def read_toml(path: Path, where: str, what: str = "file") -> dict[str, Any]:
    """Return the contents of a TOML file.

    Raises:
        UsageError: it cannot be read; the sentence begins with `where` and calls it `what`.
    """
    try:
        # pathlib raises for users who do not exist.
        return files.read_toml(os.path.expanduser(path))
    except FileError as error:
        raise UsageError(f"{where}: the {what} {error.reason}; {error.advice}") from error


def own_file(name: str) -> Path | None:
    """Return the file that a user means by the name of a preset; None for one that ships with svdctl."""
    return None if name.replace("_", "-") in list_presets() else Path(os.path.expanduser(name))


def faults_with_lines(faults: Iterable[str], preset: str, elsewhere: Iterable[str]) -> list[str]:
    """Return the faults of a configuration with the lines of a user's file on which the keys stand that are wrong.

    Args:
        faults: sentences that begin with a key, or have one in them.
        preset: the name of a shipped preset, whose lines nobody wants to know, or the path of a file.
        elsewhere: keys that flags or assignments have set, and not the file.
    """
    path = own_file(preset)
    return list(faults) if path is None else TomlLines.of_file(path).located(faults, elsewhere=elsewhere)


def read_preset(name: str) -> dict[str, Any]:
    """Return the nested table of a preset by name, or of a TOML file by path; `name` in it defaults to the file's.

    Raises:
        UsageError: unknown name (with the nearest one), no such file, or a file that is no TOML.
    """
    path = own_file(name) or preset_folder() / f"{name.replace('_', '-')}.toml"
    if path.suffix != ".toml" and not os.path.isfile(path):  # pathlib raises for overlong names
        hint = nearest(name.replace("_", "-"), list_presets())
        raise UsageError(f"`preset = {name}`: there is no such preset or file{hint} (`list_presets` shows all)")
    table = migrate_configuration(read_toml(path, f"`preset = {name}`"))
    plugins = table.get("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(plugin, str) for plugin in plugins):
        fault = "plugins: no list of texts; write plugins = ['package.module', './file.py']"
        raise UsageError(f"{path}: {line}" for line in TomlLines.of_file(path).numbered([fault]))
    if plugins:
        table["plugins"] = [plugin_name(plugin, path.parent) for plugin in plugins]
    model = table.get("model")
    if isinstance(model, dict) and isinstance(model.get("network"), str):
        model["network"] = network_name(model["network"], path.parent)
    table.setdefault("name", run_name(path.stem))
    return table


def run_name(text: str) -> str:
    """Return the text as a name that a run folder may have."""
    return re.sub(r"[^A-Za-z0-9._-]+|^[^A-Za-z0-9]+", "-", text).lstrip("-._")[:100] or "run"


def to_toml(config: TrainConfig) -> str:
    """Return a configuration as TOML, fields that are None left out; read back it gives an equal configuration."""
    return toml_signs(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
