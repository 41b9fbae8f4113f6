"""`svdctl inspect-spectrum`: files to tables, JSON, CSV and pictures of their singular values."""

from typing import TYPE_CHECKING, Any

import typer

from svdctl.analysis.inspect_config import InspectConfig
from svdctl.cli.messages import with_flags
from svdctl.cli.options import Flag, Flags, Merge, flags_by_key, with_options
from svdctl.cli.progress_display import ProgressDisplay
from svdctl.cli.training_flags import DEBUG, PLUGIN
from svdctl.errors import LimitExceeded, UsageError
from svdctl.utils.escapes import one_line
from svdctl.utils.printable import printable

if TYPE_CHECKING:
    from svdctl.analysis.network_spectrum import NetworkSpectrum

NETWORK = "The network of the weights"
SHOWN = "What is shown"
GATE = "A gate"

INSPECT: Flags = {
    "model": Flag("model", NETWORK, "torchvision:NAME or package.module:factory, for weights not by svdctl."),
    "lenient": Flag("lenient", NETWORK, "With --model: take what fits of the file, and name what does not.", bool),
    "input_size": Flag(
        "input_size", NETWORK, "32, 32x32 or 3x224x224; of bare weights, the size seen by every layer.", str
    ),
    "gouk_transforms": Flag("gouk_transforms", NETWORK),
    "key": Flag("key", NETWORK, "Which set of weights of a file that has several, as ema."),
    "layer": Flag("layers", SHOWN, "Pattern of layer names, as 'layer3.*'. Repeatable."),
    "all": Flag("every", SHOWN),
    "top": Flag("top", SHOWN),
    "format": Flag("format", SHOWN, "table, json or csv, on stdout (table)."),
    "plot": Flag("plot", SHOWN, "Draw values against index, layer by layer, all files overlaid."),
    "tolerance": Flag("tolerance", SHOWN, "Slack of the proved bounds (0.02)."),
    "accuracy": Flag("accuracy", SHOWN, "Of the singular values: full, or fast, to 1e-3 of the largest (full)."),
    "max": Flag("max_sigma", GATE, "Exit with 1, naming the layers, unless all are proved to be at most this."),
    "batchnorm_max": Flag("batchnorm_max", GATE, "The same for BatchNorm, which --max leaves alone."),
    "except": Flag("excepted", GATE, "Pattern of layers that the gate lets pass though not proved. Repeatable."),
    "plugin": PLUGIN,
    "debug": DEBUG,
}


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
    # torch takes seconds to import: only now, when the flags are known to be right.
    from svdctl.analysis import inspect_files as recipe

    display = ProgressDisplay("stderr", "layer {done} of {total}: {text}", flags_by_key(INSPECT))
    display.begin("spectra")
    try:
        found = recipe.run(config, tell=display.advance, log=display.notice)
    finally:
        display.close()
    typer.echo(_rendered(found, config), nl=config.format == "table")
    if config.plot is not None:
        typer.echo(f"drawn: {one_line(config.plot)}", err=True)
    if config.has_gate:
        typer.echo(printable(with_flags(recipe.summary(found, config), flags_by_key(INSPECT))), err=True)
        faults = recipe.faults(found, config)
        if faults:
            raise LimitExceeded("\nsvdctl: ".join(faults))


def _config(flags: dict[str, Any]) -> InspectConfig:
    if "files" not in flags:
        raise UsageError("no file is given; name a checkpoint: svdctl inspect-spectrum runs/<run>/last.pt")
    merge = Merge(INSPECT, flags, {"files": flags["files"]})
    merge.load_plugins()
    merge.apply()
    return merge.result(InspectConfig)


def _rendered(found: "list[NetworkSpectrum]", config: InspectConfig) -> str:
    from svdctl.analysis.spectrum_table import text_table, to_csv, to_json

    if config.format == "json":
        return to_json(found, top=config.top, every=config.every)
    if config.format == "csv":
        return to_csv(found, top=config.top, every=config.every)
    table = "\n\n".join(text_table(network, top=config.top, every=config.every) for network in found)
    return printable(with_flags(table, flags_by_key(INSPECT)))
