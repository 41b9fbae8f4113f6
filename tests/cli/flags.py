"""Command lines as the command line itself parses them."""

from typing import Any
from unittest.mock import patch

from svdctl.cli.main import app, normalised


def flags_of(arguments: list[str]) -> dict[str, Any]:
    """What `svdctl train` makes of its arguments before anything is resolved."""
    with patch("svdctl.cli.train._start") as start:
        app(normalised(["train", *arguments]), standalone_mode=False)
    return start.call_args.args[0]
