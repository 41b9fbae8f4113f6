"""Plugins and factories of networks: code of users, imported only when a user has named it.

A plugin is named on the command line, in a user's own TOML file, or by an installed entry point of the group
`svdctl.plugins`; a factory on the command line or in a user's own TOML file. What a checkpoint says about either is
what it needs, never a reason to import anything.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from svdctl.errors import UsageError, first_line

GROUP = "svdctl.plugins"
_loaded: dict[str, ModuleType] = {}
_factories: list[str] = []
LIBRARIES = ("torchvision", "timm")
"""Libraries whose networks are named as `LIBRARY:NAME`; any other network is made by a user's factory."""


def load_plugins(granted: Iterable[str]) -> tuple[str, ...]:
    """Import plugins, each once, and return their names: of files the absolute path.

    Args:
        granted: `package.module`, or the path of a Python file, that a user has named.

    Raises:
        UsageError: for each of which there is no such module or file, or which cannot be imported.
    """
    names = tuple(dict.fromkeys(plugin_name(plugin) for plugin in granted))
    faults: list[str] = []
    for name in names:
        try:
            if name not in _loaded:
                _loaded[name] = _imported(name)
        except UsageError as error:
            faults += error.faults
    if faults:
        raise UsageError(faults)
    return names


def loaded_plugins() -> tuple[str, ...]:
    """Return the names of the plugins that this process has loaded, for processes that it starts."""
    return tuple(_loaded)


def plugin_name(plugin: str, folder: Path | None = None) -> str:
    """Return the name of a plugin: a module's as it is, of a file the absolute path.

    Args:
        plugin: as a user wrote it.
        folder: where a relative path begins; None: the current folder.
    """
    if not _is_file(plugin):
        return plugin
    path = Path(plugin).expanduser()
    return str((path if folder is None else folder / path).resolve())


def missing_plugins(needed: Iterable[str]) -> list[str]:
    """Return those of the plugins that a checkpoint needs that this process has not loaded."""
    return [name for name in needed if name not in _loaded and name not in sys.modules]


def network_name(network: str, folder: Path | None = None) -> str:
    """Return the name of a network, `LIBRARY:NAME` or `module:factory`: of a file the absolute path before the colon.

    Args:
        network: as a user wrote it.
        folder: where a relative path begins; None: the current folder.
    """
    module, colon, name = network.rpartition(":")
    return f"{plugin_name(module, folder)}:{name}" if colon else network


def without_folder(network: str) -> str:
    """Return the name of a network without the folder of its factory's file, which is another one elsewhere."""
    module, colon, name = network.rpartition(":")
    return f"{Path(module).name if _is_file(module) else module}{colon}{name}"


def is_factory(network: str) -> bool:
    """Return whether a network's name is that of a user's factory, whose code makes it."""
    return network.partition(":")[0] not in LIBRARIES


def grant_factory(network: str) -> str:
    """Allow a user's factory to be imported where a configuration names it; return its name.

    Args:
        network: as a user has named it, `package.module:factory` or `./file.py:factory`.
    """
    name = network_name(network)
    if name not in _factories:
        _factories.append(name)
    return name


def granted_factory(network: str) -> str | None:
    """Return the factory that makes a network which a configuration names; None: the user has named none for it.

    It is the one of this name. Where it has moved, its name is another one: then the only one that the user has named.
    """
    if network in _factories:
        return network
    return _factories[0] if len(_factories) == 1 else None


def load_installed() -> None:
    """Import the plugins that installed packages name.

    Raises:
        UsageError: importing one of them fails.
    """
    for entry in entry_points(group=GROUP):
        with _as_sentence(f"{entry.name} = {entry.value}"):
            entry.load()


def import_file(path: Path) -> ModuleType:
    """Import one Python file under a name of its own; its folder is not searched for modules.

    Raises:
        UsageError: it is not there, its code fails, or another file has its name.
    """
    path = path.expanduser().resolve()
    name = f"svdctl_plugin_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}"
    if (known := sys.modules.get(name)) is not None:
        if known.__file__ != str(path):
            raise UsageError(f"{known.__file__} and {path} have one name; rename one of them")
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"there is no Python file {path}; check its path")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up while it runs.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_file(plugin: str) -> bool:
    return plugin.endswith(".py") or "/" in plugin


def _imported(name: str) -> ModuleType:
    if not _is_file(name) and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise UsageError(f"`plugin = {name}`: write it as package.module or ./file.py")
    with _as_sentence(name):
        if _is_file(name):
            return import_file(Path(name))
        with current_folder_searched(name):
            return importlib.import_module(name)


@contextmanager
def current_folder_searched(module: str) -> Iterator[None]:
    """Look for modules in the current folder too, if the one that a user has named is not installed.

    It comes last, so that nothing in it hides an installed module. What an installed one tries to import, and does
    without, is not taken from there.
    """
    # Not by sys.modules: one of the current folder may have been imported before, and import more when it is called.
    if PathFinder.find_spec(module.partition(".")[0]) is not None:
        yield
        return
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        if here in sys.path:
            del sys.path[-1 - sys.path[::-1].index(here)]


@contextmanager
def _as_sentence(name: str) -> Iterator[None]:
    """Turn whatever a plugin's own code raises into a sentence."""
    try:
        yield
    except UsageError as error:
        raise UsageError([f"`plugin = {name}`: {fault}" for fault in error.faults]) from error
    except ModuleNotFoundError as error:
        raise UsageError(f"`plugin = {name}`: there is no module {error.name!r} here; install it") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"`plugin = {name}` failed: {type(error).__name__}: {first_line(error)}") from error
