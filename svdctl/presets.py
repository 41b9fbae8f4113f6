"""Presets: TOML files that ship with svdctl, or a user's own; the one module that knows where they are."""

import difflib
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from svdctl.config.train import TrainConfig
from svdctl.errors import UsageError


def preset_folder() -> Path:
    """The shipped presets: of the checkout, or inside the installed package."""
    package = Path(__file__).parent
    installed = package / "_resources" / "presets"
    return installed if installed.is_dir() else package.parent / "presets"


def list_presets() -> dict[str, str]:
    """Name and one-line description (the file's first line) of every shipped preset."""
    return {
        path.stem: path.read_text().splitlines()[0].removeprefix("#").strip()
        for path in sorted(preset_folder().glob("*.toml"))
    }


def read_preset(name: str) -> dict[str, Any]:
    """The nested table of a shipped preset, by name, or of a TOML file, by path; `name` in it defaults to its own.

    Raises:
        UsageError: unknown name (with the nearest one), no such file, or a file that is no TOML.
    """
    path = Path(name).expanduser()
    if path.suffix != ".toml" and not path.is_file():
        path = preset_folder() / f"{name.replace('_', '-')}.toml"
        if not path.is_file():
            known = list(list_presets())
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"--preset {name}: there is no such preset or file{hint} (svdctl train --list-presets)")
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"--preset {name}: {path} cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--preset {name}: {path} is no TOML ({error})") from error
    table.setdefault("name", path.stem)
    return table


def to_toml(config: TrainConfig) -> str:
    """A configuration as TOML; read back it gives an equal configuration."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
