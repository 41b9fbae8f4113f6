"""`svdctl inspect-spectrum`: files to tables, JSON, CSV and pictures of their singular values."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdctl.errors import LimitExceeded, UsageError

if TYPE_CHECKING:
    from svdctl.analysis.network_spectrum import NetworkSpectrum
    from svdctl.config.inspect_config import InspectConfig

FLAGS = {"max_sigma": "--max", "every": "--all", "layers": "--layer", "files": "FILES", "excepted": "--except"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("inspect-spectrum")(inspect_spectrum)


def inspect_spectrum(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Checkpoints, state dicts, safetensors, or run folders.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The network of the weights: torchvision:NAME or package.module:factory."),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option("--input-size", help="32, 32x32 or 3x224x224; of bare weights, the size seen by every layer."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option("--layer", help="Pattern of layer names, as 'layer3.*'. Repeatable.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every singular value.")] = False,
    top: Annotated[int | None, typer.Option("--top", help="Show this many values of each layer.")] = None,
    format_: Annotated[str, typer.Option("--format", help="table, json or csv, on stdout.")] = "table",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw values against index, layer by layer, all files overlaid.")
    ] = None,
    max_: Annotated[
        float | None,
        typer.Option("--max", help="A gate: exit 1, naming the layers, unless all are proved to be at most this."),
    ] = None,
    batchnorm_max: Annotated[
        float | None, typer.Option("--batchnorm-max", help="The same gate for BatchNorm, which --max leaves alone.")
    ] = None,
    except_: Annotated[
        list[str] | None,
        typer.Option("--except", help="Pattern of layers that the gate lets pass though not proved. Repeatable."),
    ] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", help="Slack of the proved bounds.")] = 0.02,
    accuracy: Annotated[
        str, typer.Option("--accuracy", help="Of the values: full, or fast (to 1e-3 of the largest).")
    ] = "full",
    key: Annotated[
        str | None, typer.Option("--key", help="Which set of weights of a file that has several, as ema.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Singular values, proved bounds and condition of every layer of any checkpoint; nothing in a file is executed.

    Of svdctl's own checkpoints everything is known. Of other weights the network is told by --model; without it, what
    holds for every stride and input size is shown. Exit code 0 fine, 1 a layer above --max or not proved, 2 wrong
    input.
    """
    config = _config(
        files=files or (),
        model=model,
        input_size=input_size,
        layers=layer or ("*",),
        every=every,
        top=top,
        format=format_,
        plot=plot,
        max_sigma=max_,
        batchnorm_max=batchnorm_max,
        excepted=except_ or (),
        tolerance=tolerance,
        accuracy=accuracy,
        key=key,
    )
    # torch takes seconds to import: only now, when the flags are known to be right.
    from svdctl.analysis import inspect_files as recipe

    with _progress() as tell:
        found = recipe.run(config, tell=tell)
    typer.echo(_rendered(found, config), nl=config.format == "table")
    if config.plot is not None:
        typer.echo(f"drawn: {config.plot}", err=True)
    if config.has_gate:
        typer.echo(recipe.summary(found, config), err=True)
        faults = recipe.faults(found, config)
        if faults:
            raise LimitExceeded("\nsvdctl: ".join(faults))


def _config(**given: Any) -> "InspectConfig":
    from pydantic import ValidationError

    from svdctl.config.inspect_config import InspectConfig

    if not given["files"]:
        raise UsageError("no file is given; name a checkpoint: svdctl inspect-spectrum runs/<run>/last.pt")
    try:
        return InspectConfig.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            if fault["type"] == "value_error":
                faults.append(str(fault["ctx"]["error"]))
                continue
            name = str(fault["loc"][0])
            flag = FLAGS.get(name, "--" + name.replace("_", "-"))
            faults.append(f"{flag} {fault['input']}: {fault['msg'][0].lower()}{fault['msg'][1:]}")
        raise UsageError(faults) from error


def _rendered(found: "list[NetworkSpectrum]", config: "InspectConfig") -> str:
    from svdctl.analysis.spectrum_table import text_table, to_csv, to_json

    if config.format == "json":
        return to_json(found, top=config.top, every=config.every)
    if config.format == "csv":
        return to_csv(found, top=config.top, every=config.every)
    return "\n\n".join(text_table(network, top=config.top, every=config.every) for network in found)


@contextmanager
def _progress() -> "Iterator[Callable[[int, int, str], None]]":
    """Who is told of each layer: a bar on stderr when that is a terminal, a line every ten seconds otherwise."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)
        return
    last = time.monotonic()

    def tell(done: int, total: int, name: str) -> None:
        nonlocal last
        if time.monotonic() - last >= 10:
            last = time.monotonic()
            print(f"layer {done} of {total}: {name}", file=sys.stderr, flush=True)

    yield tell
