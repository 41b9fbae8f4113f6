"""From the flags of a training command to its recipe."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from svdctl.config.command_flags import Command
from svdctl.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from svdctl.cli.training_progress import PlainReporter
    from svdctl.train.start import TrainResult


def dispatch(command: Command, parameters: Mapping[str, Any]) -> None:
    """List presets, print a configuration, plan, start or resume, as the command's parameters ask."""
    flags = {key.rstrip("_"): value for key, value in parameters.items()}
    flags.pop("debug")
    resume, allow_changed_data, list_presets, print_config, dry_run = (
        flags.pop(own) for own in ("resume", "allow_changed_data", "list_presets", "print_config", "dry_run")
    )
    if list_presets:
        show_presets(command)
    elif resume is not None:
        # Not shown as new runs are: these two are refused with the flags that cannot change a run.
        shown = {"print_config": print_config or None, "dry_run": dry_run or None}
        go_on(command, resume, {**flags, **shown}, allow_changed_data)
    elif allow_changed_data:
        raise UsageError("--allow-changed-data is about a run that is resumed; add --resume RUN, or leave it out")
    else:
        start(command, flags, print_config=print_config, dry_run=dry_run)


def show_presets(command: Command) -> None:
    """The command's presets, a line each."""
    from svdctl.config.presets import list_presets

    found = list_presets(command)
    width = max(map(len, found))
    for name, description in found.items():
        typer.echo(f"{name:<{width}}  {description}")


def start(command: Command, flags: dict[str, Any], *, print_config: bool, dry_run: bool) -> None:
    """A new run, or a look at what it would be."""
    from svdctl.config.presets import to_toml
    from svdctl.config.train_flags import resolve

    resolved = resolve(flags, command)
    if print_config:
        for notice in resolved.notices:
            typer.echo(f"note: {notice}", err=True)
        typer.echo(to_toml(resolved.config), nl=False)
        return
    # torch takes seconds to import: only now, when the flags are known to be right.
    from svdctl.train import start as recipe

    with _reporter(command) as reporter:
        # Further processes of a node are this command once more.
        if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
            for notice in resolved.notices:
                reporter.notice(notice)
        if dry_run:
            reporter.plan(recipe.plan(resolved.config, resolved.base))
        else:
            _end(recipe.run(resolved.config, base=resolved.base, reporter=reporter))


def go_on(command: Command, path: Path, flags: dict[str, Any], allow_changed_data: bool) -> None:
    """A run that is resumed."""
    from svdctl.config.train_flags import resolve_resume

    changes = resolve_resume(flags, command)
    from svdctl.train import start as recipe

    allowed = {"allow_changed_data": True} if allow_changed_data else {}
    with _reporter(command) as reporter:
        _end(recipe.resume(path, command=command, changes=changes, reporter=reporter, **allowed))


@contextmanager
def _reporter(command: Command) -> "Iterator[PlainReporter]":
    """The reporter that suits stdout; the terminal is given back however the run ends."""
    from svdctl.cli.training_progress import choose_reporter

    reporter = choose_reporter()
    try:
        yield reporter
    except KeyboardInterrupt as error:
        # Typer would end the process without a word.
        raise Interrupted(
            f"interrupted; what the run had saved is intact (svdctl {command.name} --resume RUN)"
        ) from error
    finally:
        reporter.close()


def _end(result: "TrainResult") -> None:
    if not result.completed:
        raise typer.Exit(130)
