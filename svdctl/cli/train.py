"""`svdctl train`: flags to a configuration, a configuration to the recipe."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdctl.errors import Interrupted

if TYPE_CHECKING:
    from svdctl.cli.render import PlainReporter
    from svdctl.recipes.train import TrainResult

PAPER = "Flags of the paper's code (a dash or an underscore)"
RUN = "Run"
HARDWARE = "Devices"


def _option(name: str, text: str, panel: str, **settings: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=False, **settings)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("train")(train)


def train(
    preset: Annotated[str | None, _option("--preset", "Shipped preset by name, or a TOML file.", RUN)] = None,
    set_: Annotated[
        list[str] | None, _option("--set", "key.path=value: any field of the configuration. Repeatable.", RUN)
    ] = None,
    resume: Annotated[Path | None, _option("--resume", "Run folder or last.pt to go on with.", RUN)] = None,
    out_dir: Annotated[str | None, _option("--out-dir", "Parent of the run folder (runs).", RUN)] = None,
    name: Annotated[str | None, _option("--name", "First part of the run folder's name.", RUN)] = None,
    select: Annotated[
        str | None, _option("--select", "What picks the best epoch: last, validation or test.", RUN)
    ] = None,
    max_steps: Annotated[int | None, _option("--max-steps", "Stop after this many steps.", RUN)] = None,
    wandb: Annotated[str | None, _option("--wandb", "Weights & Biases: off, offline or online.", RUN)] = None,
    list_presets: Annotated[bool, _option("--list-presets", "List the presets and stop.", RUN)] = False,
    print_config: Annotated[
        bool, _option("--print-config", "Print the resolved configuration as TOML and stop.", RUN)
    ] = False,
    dry_run: Annotated[bool, _option("--dry-run", "Print the plan and stop; needs no data.", RUN)] = False,
    debug: Annotated[bool, _option("--debug", "Show tracebacks.", RUN)] = False,
    dataset: Annotated[
        str | None, _option("--dataset", "cifar10, cifar100, digits, folder:PATH or npz:PATH.", PAPER)
    ] = None,
    dataset_root: Annotated[str | None, _option("--dataset-root", "Where CIFAR lies (data).", PAPER)] = None,
    architecture: Annotated[
        str | None, _option("--architecture", "wrn16-10, any wrnDEPTH-WIDTH, or vgg19.", PAPER)
    ] = None,
    new_layer: Annotated[str | None, _option("--new-layer", "Convolutions: standard or tt.", PAPER)] = None,
    dec_rank: Annotated[int | None, _option("--dec-rank", "Rank of TT layers.", PAPER)] = None,
    dec_scale: Annotated[
        float | None, _option("--dec-scale", "Ranks as a share of each layer's widths.", PAPER)
    ] = None,
    no_compress_first: Annotated[
        bool | None, _option("--no-compress-first", "Leave the first convolution as it is.", PAPER)
    ] = None,
    orthogonal_k: Annotated[
        float | None, _option("--orthogonal-k", "Weight k of the penalty that keeps frames orthonormal.", PAPER)
    ] = None,
    frames: Annotated[
        str | None,
        _option("--frames", "How frames are kept: retract, parametrize, penalty or free (svdctl's own).", PAPER),
    ] = None,
    clipping: Annotated[
        str | None,
        _option(
            "--clipping",
            "Control: clip, assign, divide-by-largest, divide-by-exact-largest, divide-each-by-largest or none.",
            PAPER,
        ),
    ] = None,
    clip_to: Annotated[
        float | None, _option("--clip-to", "Largest singular value allowed for convolutions.", PAPER)
    ] = None,
    clip_freq: Annotated[int | None, _option("--clip-freq", "Steps between two applications.", PAPER)] = None,
    clip_linear: Annotated[bool | None, _option("--clip-linear", "Control linear layers too.", PAPER)] = None,
    clip_linear_to: Annotated[
        float | None, _option("--clip-linear-to", "Their maximum; without it, that of --clip-to.", PAPER)
    ] = None,
    procedure: Annotated[
        str | None,
        _option("--procedure", "certified, or paper: no proof, for comparisons only (svdctl's own).", PAPER),
    ] = None,
    lip_bn: Annotated[bool | None, _option("--lip-bn", "Limit the gain of BatchNorm.", PAPER)] = None,
    bn_eps: Annotated[float | None, _option("--bn-eps", "The limit of that gain.", PAPER)] = None,
    freq_bn: Annotated[int | None, _option("--freq-bn", "Steps between two limitings.", PAPER)] = None,
    opt: Annotated[str | None, _option("--opt", "SGD or Adam.", PAPER)] = None,
    init_lr: Annotated[float | None, _option("--init-lr", "Learning rate at the start.", PAPER)] = None,
    weight_dec: Annotated[float | None, _option("--weight-dec", "Weight decay.", PAPER)] = None,
    nesterov: Annotated[bool | None, _option("--nesterov/--no-nesterov", "Nesterov momentum.", PAPER)] = None,
    epochs: Annotated[int | None, _option("--epochs", "Passes over the training set.", PAPER)] = None,
    batch_size: Annotated[int | None, _option("--batch-size", "Images of one step, over all devices.", PAPER)] = None,
    conv_init: Annotated[
        str | None,
        _option("--conv-init", "Start convolutions anew: orthogonal, kaiming_uniform, xavier_normal, ...", PAPER),
    ] = None,
    gouk_transforms: Annotated[
        bool | None, _option("--gouk-transforms", "Symmetric padding; mean and std 0.5.", PAPER)
    ] = None,
    seed: Annotated[int | None, _option("--seed", "Seed of weights, order and augmentation.", PAPER)] = None,
    save_chp_every: Annotated[int | None, _option("--save-chp-every", "Epochs between two checkpoints.", PAPER)] = None,
    checkpoints_path: Annotated[str | None, _option("--checkpoints-path", "The same as --out-dir.", PAPER)] = None,
    collect_sing_vals: Annotated[
        bool | None, _option("--collect-sing-vals", "Log every layer's largest values at each evaluation.", PAPER)
    ] = None,
    multiply_by: Annotated[float | None, _option("--multiply-by", "Accepted; has no effect.", PAPER)] = None,
    accelerator: Annotated[str | None, _option("--accelerator", "auto, cpu, cuda or mps.", HARDWARE)] = None,
    devices: Annotated[
        str | None, _option("--devices", "Processes on each node, one a device: a number or auto.", HARDWARE)
    ] = None,
    num_nodes: Annotated[int | None, _option("--num-nodes", "Nodes.", HARDWARE)] = None,
    precision: Annotated[str | None, _option("--precision", "32, bf16-mixed or 16-mixed.", HARDWARE)] = None,
    compile_: Annotated[bool | None, _option("--compile", "Compile the model.", HARDWARE)] = None,
) -> None:
    """Train a network under singular-value control; alone, the quick start on embedded images.

    The base that flags change is --preset; else, when a flag names data, network or layer, the paper's defaults; else
    the quickstart preset.
    """
    flags = {key.rstrip("_"): value for key, value in locals().items()}
    for own in ("resume", "list_presets", "print_config", "dry_run", "debug"):
        flags.pop(own)
    if list_presets:
        _list_presets()
    elif resume is not None:
        # Not shown as new runs are: these two are refused with the flags that cannot change a run.
        shown = {"print_config": print_config or None, "dry_run": dry_run or None}
        _resume(resume, {**flags, **shown})
    else:
        _start(flags, print_config=print_config, dry_run=dry_run)


def _list_presets() -> None:
    from svdctl.presets import list_presets

    found = list_presets()
    width = max(map(len, found))
    for name, description in found.items():
        typer.echo(f"{name:<{width}}  {description}")


def _start(flags: dict[str, Any], *, print_config: bool, dry_run: bool) -> None:
    from svdctl.config.flags import resolve
    from svdctl.presets import to_toml

    resolved = resolve(flags)
    if print_config:
        for notice in resolved.notices:
            typer.echo(f"note: {notice}", err=True)
        typer.echo(to_toml(resolved.config), nl=False)
        return
    # torch takes seconds to import: only now, when the flags are known to be right.
    from svdctl.recipes import train as recipe

    with _reporter() as reporter:
        for notice in resolved.notices:
            reporter.notice(notice)
        if dry_run:
            reporter.plan(recipe.plan(resolved.config, resolved.base))
        else:
            _end(recipe.run(resolved.config, base=resolved.base, reporter=reporter))


def _resume(path: Path, flags: dict[str, Any]) -> None:
    from svdctl.config.flags import resolve_resume

    hardware, wandb = resolve_resume(flags)
    from svdctl.recipes import train as recipe

    with _reporter() as reporter:
        _end(recipe.resume(path, hardware=hardware, wandb=wandb, reporter=reporter))


@contextmanager
def _reporter() -> "Iterator[PlainReporter]":
    """The reporter that suits stdout; the terminal is given back however the run ends."""
    from svdctl.cli.render import choose_reporter

    reporter = choose_reporter()
    try:
        yield reporter
    except KeyboardInterrupt as error:
        # Typer would end the process without a word.
        raise Interrupted("interrupted; what the run had saved is intact (svdctl train --resume RUN)") from error
    finally:
        reporter.close()


def _end(result: "TrainResult") -> None:
    if not result.completed:
        raise typer.Exit(130)
