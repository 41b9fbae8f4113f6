"""From the flags of a training command to its recipe."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from svdctl.checkpoint.file_format import resolve as resolve_file
from svdctl.cli.messages import print_notices
from svdctl.cli.opening import device_line, is_first_process, may_have_gpu, say_opening
from svdctl.cli.options import listed, spelled, with_options
from svdctl.cli.training_flags import Command, resolve, resolve_resume
from svdctl.cli.training_table import PAPER_BASIS
from svdctl.config import presets
from svdctl.config.model_config import PUBLISHED
from svdctl.config.run_config import Hardware
from svdctl.config.train_config import TrainConfig
from svdctl.data.data_source import source_of
from svdctl.errors import DataError, Interrupted, UsageError
from svdctl.models.external_architecture import is_network
from svdctl.plugins import grant_factory, is_factory
from svdctl.utils.progress import Reporter
from svdctl.utils.run_dir import checkpoint_at, named_path
from svdctl.utils.signals import stops_answered
from svdctl.utils.table import width_of

if TYPE_CHECKING:
    from svdctl.train.start import TrainResult


def training_command(command: Command) -> Callable[..., None]:
    """Return the function of a training command, with its options."""

    def run(flags: dict[str, Any]) -> None:
        try:
            dispatch(command, flags)
        except KeyboardInterrupt as error:
            # Typer would end the process without a word.
            raise Interrupted("interrupted; nothing was begun") from error

    paper = listed(spelled(name) for name in PAPER_BASIS if name in command.flags)
    own = "\n    - else, with --model: optimiser and schedule of the quick start alone, no control;\n"
    own *= "model" in command.flags
    run.__doc__ = f"""Train a {command.trains}; alone, the quick start on embedded images.

    What the options do not say is taken from

    - the preset of --preset, where one is given;
{own}
    - else, with {paper}, the defaults of the paper's code;

    - else the quick start (preset {command.quickstart}), whose values are shown as [quick start: ...].

    The first line that is printed says which of them it is; --print-config shows all values.
    """
    return with_options(command.flags, TrainConfig, base=command.base)(run)


def dispatch(command: Command, flags: dict[str, Any]) -> None:
    """List presets, print a configuration, plan, start or resume, as the command's flags say."""
    own = ("debug", "resume", "allow_changed_data", "list_presets")
    _, resume, allow_changed_data, list_presets = (flags.pop(name, None) for name in own)
    if list_presets:
        print_names(presets.list_presets(lipconv=command.name == "train-lipconv"))
    elif resume is not None:
        go_on(command, resume, flags, allow_changed_data)
    elif allow_changed_data:
        raise UsageError("--allow-changed-data is about a run that is resumed; add --resume RUN, or leave it out")
    else:
        print_config, dry_run = (flags.pop(name, False) for name in ("print_config", "dry_run"))
        start(command, flags, print_config=print_config, dry_run=dry_run)


def print_names(found: dict[str, str]) -> None:
    """Print names and descriptions, a line each; a terminal gets several where one is too narrow."""
    edge, width = max(map(len, found)), width_of(sys.stdout) if sys.stdout.isatty() else None
    for name, description in found.items():
        lines = [description] if width is None else textwrap.wrap(description, max(width - edge - 2, 20))
        typer.echo(f"{name:<{edge}}  " + f"\n{' ' * edge}  ".join(lines))


def start(command: Command, flags: dict[str, Any], *, print_config: bool, dry_run: bool) -> None:
    """Train a new run, or show what it would be."""
    resolved = resolve(flags, command)
    if print_config:
        print_notices(resolved.notices)
        typer.echo(presets.to_toml(resolved.config), nl=False)
        return
    if not dry_run:
        _check_files(resolved.config)
        say_opening(command.name, resolved.base, [opening_device(resolved.config.hardware)], stream="stdout")
    with _reporter(command) as reporter:
        for notice in resolved.notices:
            reporter.notice(notice)
        # torch takes seconds to import: only now, when the flags are known to be right.
        with reporter.part("loading torch"):
            from svdctl.train import start as recipe

        if dry_run:
            for line in recipe.plan(resolved.config, resolved.base):
                reporter.say(line)
        else:
            _end(
                recipe.run(
                    resolved.config,
                    base=resolved.base,
                    reporter=reporter,
                    download_weights=flags.get("init_from") == PUBLISHED,
                    to_resume=partial(command.to_resume, model=getattr(resolved.config.model, "network", None)),
                )
            )


def _check_files(config: TrainConfig) -> None:
    """Raise if images or weights to start from are not there: at once, not after torch is imported.

    Raises:
        DataError, CheckpointError: what is missing.
    """
    if (fault := source_of(config.data).missing(config.data)) is not None:
        raise DataError(fault)
    if config.initial is not None and config.initial.file != PUBLISHED:
        resolve_file(Path(config.initial.file))


def go_on(command: Command, path: Path, flags: dict[str, Any], allow_changed_data: bool | None) -> None:
    """Resume a run."""
    model = flags.pop("model", None)
    if model is not None and is_factory(model):
        grant_factory(model)
    path = named_path(path)
    changes = resolve_resume(flags, command, path)
    if not path.is_dir():  # a folder may hold others than last.pt, which are told of later
        checkpoint_at(path)
    say_opening(command.name, f"resume {path}", stream="stdout")
    with _reporter(command) as reporter:
        with reporter.part("loading torch"):
            from svdctl.train import start as recipe

        _end(
            recipe.resume(
                path,
                reporter=reporter,
                changes=changes,
                refused=command.refused if model is None else _refused_but(command, model),
                allow_changed_data=bool(allow_changed_data),
                to_resume=partial(command.to_resume, model=model),
            )
        )


def opening_device(hardware: Hardware) -> str:
    """Return the line about the device of a training, before torch is there."""
    further = []
    if hardware.devices == "auto":
        further.append("a process for each device")
    else:
        count = hardware.devices * hardware.num_nodes
        further.append(f"{count} process{'es' if count > 1 else ''}")
    if hardware.accelerator != "cpu" and (hardware.accelerator != "auto" or may_have_gpu()):
        further.append("steps as CUDA graphs where they can be" if hardware.capture == "auto" else "no CUDA graphs")
    return device_line(hardware.accelerator, hardware.precision, *further)


def _refused_but(command: Command, model: str) -> Callable[[TrainConfig], str | None]:
    """Return what says why a run is not gone on with: it is the other command's, or of another network than --model."""

    def refused(config: TrainConfig) -> str | None:
        if is_network(config.model, model):
            return command.refused(config)
        trains = getattr(config.model, "network", config.model.kind)
        return command.refused(config) or f"trains {trains}, not {model}; leave --model out"

    return refused


@contextmanager
def _reporter(command: Command) -> Iterator[Reporter]:
    """Yield the reporter that suits stdout; the terminal is given back however the run ends.

    Further processes of a run are this command once more, and show nothing.
    """
    from svdctl.cli.training_progress import TrainingDisplay

    is_first = is_first_process()
    reporter = TrainingDisplay(command.words) if is_first else Reporter()
    try:
        with stops_answered(reporter.notice, "nothing was begun") if is_first else nullcontext():
            yield reporter
    finally:
        reporter.close()


def _end(result: "TrainResult") -> None:
    if not result.completed:
        raise typer.Exit(130)
