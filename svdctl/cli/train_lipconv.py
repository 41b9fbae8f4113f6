"""`svdctl train-lipconv`: the flags of LipConvNet; configuration, recipe and loop are those of `svdctl train`."""

from typing import Any

import typer

from svdctl.cli.options import with_options
from svdctl.cli.training_commands import dispatch
from svdctl.cli.training_flags import LIPCONV
from svdctl.config.train_config import TrainConfig


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("train-lipconv")(train_lipconv)


@with_options(LIPCONV.flags, TrainConfig)
def train_lipconv(flags: dict[str, Any]) -> None:
    """Train a LipConvNet whose answers are certified; alone, the quick start on embedded images.

    The base that flags change is --preset; else, when a flag names data, network or layer, the paper's defaults; else
    the lipconv-quickstart preset.
    """
    dispatch(LIPCONV, flags)
