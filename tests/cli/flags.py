"""Command lines as the command line itself parses them."""

from typing import Any
from unittest.mock import patch

from svdctl.cli import training_commands
from svdctl.cli.app import app, normalised


def flags_of(arguments: list[str], command: str = "train") -> dict[str, Any]:
    """What a training command makes of its arguments before anything is resolved."""
    with patch.object(training_commands, "start") as start:
        app(normalised([command, *arguments]), standalone_mode=False)
    return start.call_args.args[1]
