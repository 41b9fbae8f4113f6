"""`svdctl train-lipconv`: the flags of LipConvNet; configuration, recipe and loop are those of `svdctl train`."""

from typing import Annotated

import typer

from svdctl.cli import options as o
from svdctl.cli.options import PAPER, RUN, option
from svdctl.cli.training_commands import dispatch
from svdctl.config.command_flags import LIPCONV


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("train-lipconv")(train_lipconv)


def train_lipconv(
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
    checkpoint_activations: Annotated[
        bool | None,
        option(
            "--checkpoint-activations",
            text="Compute activations twice instead of keeping them: less memory, more time.",
            panel=RUN,
        ),
    ] = None,
    dataset: o.Dataset = None,
    data_dir: Annotated[
        str | None, option("--data-dir", "--dataset-root", text="Where CIFAR lies (data).", panel=PAPER)
    ] = None,
    block_size: Annotated[
        int | None, option("--block-size", text="Convolutions in each of the five stages: 1, 4, 6, ...", panel=PAPER)
    ] = None,
    in_channels: Annotated[
        int | None, option("--in-channels", text="Width of the first stage (32).", panel=PAPER)
    ] = None,
    conv_type: Annotated[
        str | None, option("--conv-type", text="Convolutions: standard, skew (SOC), tt or sott.", panel=PAPER)
    ] = None,
    dec_rank: Annotated[
        str | None,
        option(
            "--dec-rank",
            text="Rank of SOTT and TT layers, or '64, 64, 64, 128, 128, 128': one for each stage and the last layer.",
            panel=PAPER,
        ),
    ] = None,
    orthogonal_k: o.OrthogonalK = None,
    frames: o.Frames = None,
    clipping: Annotated[
        str | None, option("--clipping", text="Control of standard and tt layers: clip, assign or none.", panel=PAPER)
    ] = None,
    clip_to: o.ClipTo = None,
    assigning_freq: Annotated[
        int | None, option("--assigning-freq", text="Steps between two applications.", panel=PAPER)
    ] = None,
    procedure: o.Procedure = None,
    lr_schedule: Annotated[str | None, option("--lr-schedule", text="multistep or cyclic.", panel=PAPER)] = None,
    lr_min: Annotated[float | None, option("--lr-min", text="Where cyclic rates start (0).", panel=PAPER)] = None,
    lr_max: Annotated[
        float | None, option("--lr-max", text="Learning rate, or its maximum (0.1).", panel=PAPER)
    ] = None,
    weight_decay: Annotated[
        float | None, option("--weight-decay", text="Weight decay (5e-4; SOTT: 0).", panel=PAPER)
    ] = None,
    momentum: Annotated[float | None, option("--momentum", text="Momentum of SGD (0.9).", panel=PAPER)] = None,
    epsilon: Annotated[
        float | None,
        option("--epsilon", text="Radius of certified accuracy while training, in 255ths (36).", panel=PAPER),
    ] = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    seed: o.Seed = None,
    opt_level: Annotated[
        str | None, option("--opt-level", text="Accepted; --precision replaces it.", panel=PAPER)
    ] = None,
    loss_scale: Annotated[
        str | None, option("--loss-scale", text="Accepted; --precision replaces it.", panel=PAPER)
    ] = None,
    accelerator: o.Accelerator = None,
    devices: o.Devices = None,
    num_nodes: o.NumNodes = None,
    precision: o.Precision = None,
    compile_: o.Compile = None,
) -> None:
    """Train a LipConvNet whose answers are certified; alone, the quick start on embedded images.

    The base that flags change is --preset; else, when a flag names data, network or layer, the paper's defaults; else
    the lipconv-quickstart preset.
    """
    dispatch(LIPCONV, locals())
