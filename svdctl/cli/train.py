"""`svdctl train`: flags to a configuration, a configuration to the recipe."""

from typing import Annotated

import typer

from svdctl.cli import options as o
from svdctl.cli.options import PAPER, option
from svdctl.cli.training_commands import dispatch
from svdctl.config.command_flags import TRAIN


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("train")(train)


def train(
    preset: o.Preset = None,
    set_: o.Set = None,
    resume: o.Resume = None,
    allow_changed_data: o.AllowChangedData = False,
    out_dir: o.OutDir = None,
    name: o.Name = None,
    select: o.Select = None,
    max_steps: o.MaxSteps = None,
    wandb: o.Wandb = None,
    list_presets: o.ListPresets = False,
    print_config: o.PrintConfig = False,
    dry_run: o.DryRun = False,
    debug: o.Debug = False,
    dataset: o.Dataset = None,
    dataset_root: Annotated[str | None, option("--dataset-root", text="Where CIFAR lies (data).", panel=PAPER)] = None,
    architecture: Annotated[
        str | None, option("--architecture", text="wrn16-10, any wrnDEPTH-WIDTH, or vgg19.", panel=PAPER)
    ] = None,
    new_layer: Annotated[str | None, option("--new-layer", text="Convolutions: standard or tt.", panel=PAPER)] = None,
    dec_rank: Annotated[int | None, option("--dec-rank", text="Rank of TT layers.", panel=PAPER)] = None,
    dec_scale: Annotated[
        float | None, option("--dec-scale", text="Ranks as a share of each layer's widths.", panel=PAPER)
    ] = None,
    no_compress_first: Annotated[
        bool | None, option("--no-compress-first", text="Leave the first convolution as it is.", panel=PAPER)
    ] = None,
    orthogonal_k: o.OrthogonalK = None,
    frames: o.Frames = None,
    clipping: Annotated[
        str | None,
        option(
            "--clipping",
            text="Control: clip, assign, divide-by-largest, divide-by-exact-largest, divide-each-by-largest or none.",
            panel=PAPER,
        ),
    ] = None,
    clip_to: o.ClipTo = None,
    clip_freq: Annotated[int | None, option("--clip-freq", text="Steps between two applications.", panel=PAPER)] = None,
    clip_linear: Annotated[bool | None, option("--clip-linear", text="Control linear layers too.", panel=PAPER)] = None,
    clip_linear_to: Annotated[
        float | None, option("--clip-linear-to", text="Their maximum; without it, that of --clip-to.", panel=PAPER)
    ] = None,
    procedure: o.Procedure = None,
    lip_bn: Annotated[bool | None, option("--lip-bn", text="Limit the gain of BatchNorm.", panel=PAPER)] = None,
    bn_eps: Annotated[float | None, option("--bn-eps", text="The limit of that gain.", panel=PAPER)] = None,
    freq_bn: Annotated[int | None, option("--freq-bn", text="Steps between two limitings.", panel=PAPER)] = None,
    opt: Annotated[str | None, option("--opt", text="SGD or Adam.", panel=PAPER)] = None,
    init_lr: Annotated[float | None, option("--init-lr", text="Learning rate at the start.", panel=PAPER)] = None,
    weight_dec: Annotated[float | None, option("--weight-dec", text="Weight decay.", panel=PAPER)] = None,
    nesterov: Annotated[bool | None, option("--nesterov/--no-nesterov", text="Nesterov momentum.", panel=PAPER)] = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    conv_init: Annotated[
        str | None,
        option(
            "--conv-init",
            text="Start convolutions anew: orthogonal, kaiming_uniform, xavier_normal, ...",
            panel=PAPER,
        ),
    ] = None,
    gouk_transforms: Annotated[
        bool | None, option("--gouk-transforms", text="Symmetric padding; mean and std 0.5.", panel=PAPER)
    ] = None,
    seed: o.Seed = None,
    save_chp_every: Annotated[
        int | None, option("--save-chp-every", text="Epochs between two checkpoints.", panel=PAPER)
    ] = None,
    checkpoints_path: Annotated[
        str | None, option("--checkpoints-path", text="The same as --out-dir.", panel=PAPER)
    ] = None,
    collect_sing_vals: Annotated[
        bool | None,
        option("--collect-sing-vals", text="Log every layer's largest values at each evaluation.", panel=PAPER),
    ] = None,
    multiply_by: Annotated[float | None, option("--multiply-by", text="Accepted; has no effect.", panel=PAPER)] = None,
    accelerator: o.Accelerator = None,
    devices: o.Devices = None,
    num_nodes: o.NumNodes = None,
    precision: o.Precision = None,
    compile_: o.Compile = None,
) -> None:
    """Train a network under singular-value control; alone, the quick start on embedded images.

    The base that flags change is --preset; else, when a flag names data, network or layer, the paper's defaults; else
    the quickstart preset.
    """
    dispatch(TRAIN, locals())
