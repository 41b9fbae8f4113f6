"""`svdctl train`: flags to a configuration, a configuration to the recipe."""

from typing import Any

import typer

from svdctl.cli.options import with_options
from svdctl.cli.training_commands import dispatch
from svdctl.cli.training_flags import TRAIN
from svdctl.config.train_config import TrainConfig


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("train")(train)


@with_options(TRAIN.flags, TrainConfig)
def train(flags: dict[str, Any]) -> None:
    """Train a network under singular-value control; alone, the quick start on embedded images.

    The base that flags change is --preset; else, when a flag names data, network or layer, the paper's defaults; else
    the quickstart preset.
    """
    dispatch(TRAIN, flags)
