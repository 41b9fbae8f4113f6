"""`svdctl inspect-spectrum`: files to tables, JSON, CSV and pictures of their singular values."""

import sys
from typing import TYPE_CHECKING, Any

import typer

from svdctl.analysis.inspect_config import InspectConfig
from svdctl.checkpoint.file_format import require_existing
from svdctl.cli.help_page import Panel
from svdctl.cli.messages import with_flags
from svdctl.cli.opening import say_opening
from svdctl.cli.options import Flag, Flags, Merge, flags_by_key, with_options
from svdctl.cli.progress_display import ProgressDisplay
from svdctl.cli.training_table import DEBUG, PLUGIN
from svdctl.errors import Interrupted, LimitExceeded, UsageError
from svdctl.utils.escapes import one_line
from svdctl.utils.freed_memory import return_freed_tensors
from svdctl.utils.printable import printable
from svdctl.utils.signals import stops_answered
from svdctl.utils.table import width_of

if TYPE_CHECKING:
    from svdctl.analysis.network_spectrum import NetworkSpectrum

INSPECT: Flags = {
    "model": Flag(
        "model",
        Panel.MODEL,
        "Network of weights that svdctl did not train: one of torchvision, or made by a function of yours, which is "
        "imported and called.",
        choices=("torchvision:NAME", "timm:NAME", "MODULE:FUNCTION", "FILE.py:FUNCTION"),
        default="svdctl's own as in the file, else layers alone",
    ),
    "lenient": Flag("lenient", Panel.MODEL, "With --model: take the weights that fit, and list the others.", bool),
    "input_size": Flag(
        "input_size",
        Panel.MODEL,
        "Size of the input, as 3x224x224 or 32; --model needs it, unless svdctl wrote the file. Of weights without a "
        "network: the size that every layer is given.",
        str,
        value="SIZE",
        default="as in the checkpoint, else any size",
    ),
    "gouk_transforms": Flag("gouk_transforms", Panel.PAPER),
    "key": Flag("key", Panel.MODEL, value="NAME", default=""),
    "layer": Flag(
        "layers",
        Panel.WHAT,
        "Only layers whose names match this pattern, as 'layer3.*'. Repeatable.",
        value="PATTERN",
        default="all",
    ),
    "all": Flag("every", Panel.OUTPUT, "Show all singular values of each layer."),
    "top": Flag("top", Panel.OUTPUT, "Show this many singular values of each layer.", default=""),
    "sort": Flag("sort", Panel.OUTPUT),
    "format": Flag("format", Panel.OUTPUT, "What is printed on stdout."),
    "plot": Flag(
        "plot",
        Panel.OUTPUT,
        "Draw the singular values of each layer, in descending order, into this picture; several files in one.",
        value="FILE",
        default="",
    ),
    "html": Flag(
        "html",
        Panel.OUTPUT,
        "Write one page with the table, the picture and the origin of the weights into this file; it loads nothing.",
        value="FILE",
        default="",
    ),
    "tolerance": Flag(
        "tolerance",
        Panel.WHAT,
        "How far a proved bound may lie above the norm, as a share of it: 0.02 is 2 %; less takes longer.",
        default="0.02; of a checkpoint of svdctl 0.001 up to 128 channels, 0.005 above",
    ),
    "bounds_only": Flag("bounds_only", Panel.WHAT),
    "accuracy": Flag("accuracy", Panel.WHAT, "Compute singular values in full, or to 1e-3 of the largest (fast)."),
    "max": Flag(
        "max_sigma",
        Panel.GATE,
        "End with exit code 1, and name the layers, unless all are proved to have a norm of at most this.",
        default="no gate",
    ),
    "batchnorm_max": Flag(
        "batchnorm_max",
        Panel.GATE,
        "The same for the gain of BatchNorm, which --max leaves alone.",
        default="no gate",
    ),
    "except": Flag(
        "excepted",
        Panel.GATE,
        "Layers whose names match this pattern pass the gate though nothing is proved of them. Repeatable.",
        value="PATTERN",
        default="",
    ),
    "plugin": PLUGIN,
    "debug": DEBUG,
}
EXAMPLES = (
    ("The layers of a run that was trained with svdctl:", "svdctl inspect-spectrum runs/RUN"),
    ("Fail in CI unless every layer of these weights is proved to have a norm of at most 4:",
     "svdctl inspect-spectrum weights.pt --model torchvision:resnet18 --input-size 3x224x224 --max 4"),
)  # fmt: skip
"""For the end of the help."""


@with_options(
    INSPECT,
    InspectConfig,
    ("files", "Checkpoints, state dicts, safetensors, run folders or folders of shards."),
)
def inspect_spectrum(flags: dict[str, Any]) -> None:
    """Singular values, proved bounds and condition of every layer of any checkpoint; nothing in a file is executed.

    Of svdctl's own checkpoints everything is known. Of other weights the network is told by --model; without it, what
    holds for every stride and input size is shown. Exit code 0 fine, 1 a layer above --max or not proved, 2 wrong
    input.
    """
    config = _config(flags)
    require_existing(config.files)
    say_opening("inspect-spectrum", _opening(config))
    return_freed_tensors()
    display = ProgressDisplay("stderr", "layer {done} of {total}: {text}", flags_by_key(INSPECT))
    try:
        with stops_answered(display.say, "nothing is written; a second Ctrl-C ends at once"):
            # torch takes seconds to import: only now, when the flags are known to be right.
            with display.part("loading torch"):
                from svdctl.analysis import inspect_files as recipe
            display.begin("spectra")
            found = recipe.run(config, display)
    except KeyboardInterrupt as error:
        # Typer would end the process without a word.
        raise Interrupted("stopped; nothing was written") from error
    finally:
        display.close()
    typer.echo(_rendered(found, config), nl=config.format == "table")
    if config.plot is not None:
        typer.echo(f"drawn: {one_line(config.plot)}", err=True)
    if config.html is not None:
        typer.echo(f"written: {one_line(config.html)}", err=True)
    if config.has_gate:
        typer.echo(printable(with_flags(recipe.summary(found, config), flags_by_key(INSPECT))), err=True)
        faults = recipe.faults(found, config)
        if faults:
            raise LimitExceeded("\nsvdctl: ".join(faults))


def _opening(config: InspectConfig) -> str:
    """Return what is computed, and of which files."""
    what = "proved bounds" if config.bounds_only else "singular values and proved bounds"
    shown = ", ".join(map(str, config.files[:3])) + f" and {len(config.files) - 3} more" * (len(config.files) > 3)
    limits = [f"{limit:g}" for limit in (config.max_sigma, config.batchnorm_max) if limit is not None]
    return f"{what} of {shown}" + f", held against {' and '.join(limits)}" * bool(limits)


def _config(flags: dict[str, Any]) -> InspectConfig:
    if "files" not in flags:
        raise UsageError("no file is given; name a checkpoint: svdctl inspect-spectrum runs/<run>/last.pt")
    merge = Merge(INSPECT, flags, {"files": flags["files"]})
    merge.load_plugins()
    merge.apply()
    return merge.result(InspectConfig)


def _rendered(found: "list[NetworkSpectrum]", config: InspectConfig) -> str:
    from svdctl.analysis.spectrum_comparison import text_tables
    from svdctl.analysis.spectrum_table import to_csv, to_json

    if config.format == "json":
        return to_json(found, top=config.top, every=config.every)
    if config.format == "csv":
        return to_csv(found, top=config.top, every=config.every)
    table = text_tables(found, top=config.top, every=config.every, width=width_of(sys.stdout))
    return printable(with_flags(table, flags_by_key(INSPECT)))
