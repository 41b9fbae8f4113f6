"""The entry point: arguments to a command, exceptions to sentences."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from svdctl.cli import completion
from svdctl.cli.command_table import COMMANDS, CommandGroup, load_command
from svdctl.cli.messages import report, wants_debug
from svdctl.cli.standard_streams import flush_output, guard_output, settle_output
from svdctl.cli.variadic import spread
from svdctl.errors import UsageError
from svdctl.utils.address_space import require_address_space

app = typer.Typer(
    name="svdctl",
    cls=CommandGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

LASTING = ("train", "train-lipconv", "reproduce", "eval-robust")
"""Commands whose work does not end with whoever reads their output."""
PRINTING = {"--print-config", "--list", "--list-presets", "--dry-run", "--help", "-h"}
"""Options by which they print, and do nothing else."""


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"svdctl {version('svdctl')}")
        raise typer.Exit


@app.callback()
def _root(
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    _install: Annotated[
        str | None,
        typer.Option(
            "--install-completion",
            callback=completion.install,
            is_eager=True,
            metavar=f"[{'|'.join(completion.SHELLS)}]",
            help="Complete commands, options and values by the Tab key in this shell, or in the one named.",
            show_default=False,
        ),
    ] = None,
    _script: Annotated[
        str | None,
        typer.Option(
            "--show-completion",
            callback=completion.show,
            is_eager=True,
            metavar=f"[{'|'.join(completion.SHELLS)}]",
            help="Print the script that does so, to put it where you want.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train, certify and inspect convolutional networks whose singular values are under control."""


def normalised(arguments: list[str]) -> list[str]:
    """Return `--clip_to=2` as `--clip-to=2`: dashes and underscores are one in the names of options, not in values."""
    found = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        found.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return found


def on_one_line(arguments: list[str]) -> list[str]:
    """Return the arguments, which messages and files repeat: line breaks and bytes that are no text are refused."""
    for argument in arguments:
        if not argument.isprintable() and any("\ud800" <= sign <= "\udfff" for sign in argument):
            raise UsageError(f"the argument {argument!a} has bytes that are no UTF-8; rename the file or folder")
        if "\n" in argument or "\r" in argument:
            raise UsageError(f"the argument {argument!r} has a line break in it; leave it out")
    return arguments


def keep_folder_from_children() -> None:
    """Keep modules of the current folder, as anybody's torch.py, out of the processes that this one starts.

    Those are the processes of `--devices`, of `--jobs`, of Ray and of torch's compiler.
    """
    home = str(Path(__file__).parents[2])
    if not sys.flags.safe_path and sys.path[0] == home:
        # A checkout that is run where it lies is found by that folder alone.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONSAFEPATH"] = "1"


def main() -> None:
    """Run the command line; the process ends with its exit code."""
    if completion.is_asked():
        completion.answer_shell(app)
    arguments = normalised(sys.argv[1:])
    command = arguments[0] if arguments and arguments[0] in COMMANDS else None
    keep_folder_from_children()
    try:
        works = command is not None and PRINTING.isdisjoint(arguments)
        guard_output(lasting=works and command in LASTING)
        if works and command in LASTING:
            from svdctl.utils.lock import require_locks  # the list of commands needs none of what it imports

            require_locks()
        if works:
            require_address_space()
        if command is not None:
            arguments = spread(arguments, load_command(command).takers)
        arguments = completion.with_shell(arguments)
        code = app(on_one_line(arguments) or ["--help"], prog_name="svdctl", standalone_mode=False)
        flush_output()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        code = report(error, {} if command is None else load_command(command).words, debug=wants_debug(arguments))
        settle_output()
    sys.exit(code or 0)
