"""The folder in which svdctl keeps what it can make again: the user's cache folder, where each system wants it."""

import os
import sys
from pathlib import Path

VARIABLE = "SVDCTL_CACHE"
"""Of the environment: another folder, or `off`."""


def user_cache_folder() -> Path | None:
    """Return the folder, which need not be there; None where the user wants none, or there is no home."""
    given = os.environ.get(VARIABLE, "")
    if given.lower() == "off":
        return None
    try:
        return Path(given).expanduser() if given else _of_the_system() / "svdctl"
    except RuntimeError:  # there is no home, or no such user
        return None


def _of_the_system() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    # A relative path is to be ignored, says the XDG specification.
    named = Path(os.environ.get(variable, ""))
    return named if named.is_absolute() else Path.home() / ".cache"
