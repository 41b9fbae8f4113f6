"""The commands: a sentence on each, and how to import it; only the one that is used is imported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from svdctl.cli.help_page import OptionsCommand, page
from svdctl.cli.variadic import Takes


@dataclass(frozen=True)
class LoadedCommand:
    """A command, imported.

    Attributes:
        run: the function, with its options.
        words: flag of each key of the configuration, for messages.
        examples: a sentence and a command line each, for the end of the help.
        takers: its options that take several values, each with a test of what may be one of them.
    """

    run: Callable[..., None]
    words: Mapping[str, str]
    examples: Sequence[tuple[str, str]]
    takers: Mapping[str, Takes] = field(default_factory=dict)


def _train() -> LoadedCommand:
    from svdctl.cli.training_commands import training_command
    from svdctl.cli.training_flags import TRAIN

    return LoadedCommand(training_command(TRAIN), TRAIN.words, TRAIN.examples)


def _train_lipconv() -> LoadedCommand:
    from svdctl.cli.training_commands import training_command
    from svdctl.cli.training_flags import LIPCONV

    return LoadedCommand(training_command(LIPCONV), LIPCONV.words, LIPCONV.examples)


def _reproduce() -> LoadedCommand:
    from svdctl.cli import reproduce
    from svdctl.cli.options import flags_by_key

    return LoadedCommand(reproduce.reproduce, flags_by_key(reproduce.REQUEST), reproduce.EXAMPLES, reproduce.takers())


def _eval_robust() -> LoadedCommand:
    from svdctl.cli import eval_robust
    from svdctl.cli.evaluation_flags import EVALUATION
    from svdctl.cli.options import flags_by_key

    return LoadedCommand(eval_robust.eval_robust, flags_by_key(EVALUATION), eval_robust.EXAMPLES, eval_robust.takers())


def _inspect_spectrum() -> LoadedCommand:
    from svdctl.cli import inspect_spectrum
    from svdctl.cli.options import flags_by_key

    return LoadedCommand(
        inspect_spectrum.inspect_spectrum, flags_by_key(inspect_spectrum.INSPECT), inspect_spectrum.EXAMPLES
    )


COMMANDS: dict[str, tuple[str, Callable[[], LoadedCommand]]] = {
    "train": ("Train a network under singular-value control; alone, the quick start on embedded images.", _train),
    "train-lipconv": (
        "Train a LipConvNet whose answers are certified; alone, the quick start on embedded images.",
        _train_lipconv,
    ),
    "reproduce": (
        "Train, evaluate and lay out tables of the paper; what is finished is used, what was stopped goes on.",
        _reproduce,
    ),
    "eval-robust": (
        "Accuracy, calibration, corruptions, attacks and certificates of checkpoints; nothing is measured twice.",
        _eval_robust,
    ),
    "inspect-spectrum": (
        "Singular values, proved bounds and condition of every layer of any checkpoint; nothing in a file is executed.",
        _inspect_spectrum,
    ),
}
"""The first sentence of a command's help, and the function that imports it."""


@cache
def load_command(name: str) -> LoadedCommand:
    """Return a command of `COMMANDS`, imported."""
    return COMMANDS[name][1]()


class CommandGroup(TyperGroup):
    """The commands, listed by their sentences; one is imported when it is called."""

    examples = (
        ("A first training, on embedded images, singular values of at most 4:", "svdctl train"),
        ("What is reached and proved of each layer of a run:", "svdctl inspect-spectrum runs/RUN"),
    )

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=sentence) for name, (sentence, _) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return name, command with its options, and the arguments that are left."""
        name, _, rest = super().resolve_command(ctx, args)
        assert name is not None  # an unknown one is an error
        loaded = load_command(name)
        alone = typer.Typer(add_completion=False)
        alone.command(name, cls=OptionsCommand)(loaded.run)
        command = cast(OptionsCommand, get_command(alone))
        command.examples = loaded.examples
        return name, command, rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page of all commands into the formatter."""
        formatter.write(page(self, ctx))
