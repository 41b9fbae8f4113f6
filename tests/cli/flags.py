"""Command lines as the command line itself parses them, and what commands say behind their first line."""

from typing import Any
from unittest.mock import patch

from svdctl.cli import training_commands
from svdctl.cli.app import app, normalised


def flags_of(arguments: list[str], command: str = "train") -> dict[str, Any]:
    """What a training command makes of its arguments before anything is resolved."""
    with patch.object(training_commands, "start") as start:
        app(normalised([command, *arguments]), standalone_mode=False)
    return start.call_args.args[1]


def after_opening(err: str) -> str:
    """What stands on stderr behind the line by which a command says what it does."""
    first, _, rest = err.partition("\n")
    return rest if first.startswith("svdctl inspect-spectrum: ") else err
