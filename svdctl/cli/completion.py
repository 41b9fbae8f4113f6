"""Completion of commands, options and their values in a shell: typer's own scripts, which call svdctl at each Tab."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from svdctl.errors import UsageError, nearest

ASKED = "_SVDCTL_COMPLETE"
"""Variable by which a shell asks what may stand at the cursor."""
SHELLS = ("bash", "zsh", "fish", "powershell")
_READ_AT_START = {"bash": ".bashrc", "zsh": ".zshrc"}
"""Files of a shell in the home folder that typer writes lines to, by which the script is found."""
OPTIONS = ("--install-completion", "--show-completion")


def with_shell(arguments: list[str]) -> list[str]:
    """Return the arguments with the name of the shell that svdctl was called from, where an option leaves it out.

    Raises:
        UsageError: the shell cannot be told, or is another one than those that are supported.
    """
    if not arguments or arguments[0] not in OPTIONS or len(arguments) > 1:
        return arguments
    import shellingham

    try:
        shell = shellingham.detect_shell()[0]
    except (shellingham.ShellDetectionFailure, OSError) as error:
        raise UsageError(f"which shell this is cannot be told; name it, as {arguments[0]} bash") from error
    return [arguments[0], shell]


def answer_shell(app: Callable[..., Any]) -> None:
    """Print what may stand at the cursor, for the shell that asks by `ASKED`; the process ends."""
    from typer.completion import completion_init

    completion_init()
    try:
        app(prog_name="svdctl")
    except (LookupError, ValueError) as error:  # variables that the scripts set are missing, or hold something else
        print(f"svdctl: {ASKED} is for the scripts of --show-completion alone; unset it", file=sys.stderr)
        raise SystemExit(UsageError.exit_code) from error


def install(shell: str | None) -> None:
    """Write the script to where the shell reads it when it starts; the process ends."""
    if shell is not None:
        from typer import completion

        start = Path.home() / _READ_AT_START.get(_known(shell), "")
        before = _size(start)
        _, path = completion.install(shell=shell, prog_name="svdctl")
        typer.echo(f"completion for {shell} is in {path}; it takes effect in new terminals")
        if start.is_file() and _size(start) != before:
            typer.echo(f"changed: {start}, whose last lines now load it")
        raise typer.Exit


def _size(path: Path) -> int:
    """Return the size of a file, which the line that typer appends changes; 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def show(shell: str | None) -> None:
    """Print the script; the process ends."""
    if shell is not None:
        from typer import completion

        typer.echo(completion.get_completion_script(prog_name="svdctl", complete_var=ASKED, shell=_known(shell)))
        raise typer.Exit


def is_asked() -> bool:
    """Return whether a shell asks what may stand at the cursor."""
    return bool(os.environ.get(ASKED))


def _known(shell: str) -> str:
    if shell not in SHELLS:
        raise UsageError(f"there is no completion for the shell {shell}{nearest(shell, SHELLS)} ({', '.join(SHELLS)})")
    return shell
