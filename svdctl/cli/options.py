"""Options that the training commands share, as annotations of parameters."""

from pathlib import Path
from typing import Annotated, Any

import typer

PAPER = "Flags of the paper's code (a dash or an underscore)"
RUN = "Run"
DEVICES = "Devices"


def option(*names: str, text: str, panel: str, **settings: Any) -> Any:
    """An option whose default is told in its text, because it is the base's."""
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **settings)


Preset = Annotated[str | None, option("--preset", text="Shipped preset by name, or a TOML file.", panel=RUN)]
Set = Annotated[
    list[str] | None, option("--set", text="key.path=value: any field of the configuration. Repeatable.", panel=RUN)
]
Resume = Annotated[Path | None, option("--resume", text="Run folder or last.pt to go on with.", panel=RUN)]
AllowChangedData = Annotated[
    bool, option("--allow-changed-data", text="Go on with --resume though the data have changed.", panel=RUN)
]
OutDir = Annotated[str | None, option("--out-dir", text="Parent of the run folder (runs).", panel=RUN)]
Name = Annotated[str | None, option("--name", text="First part of the run folder's name.", panel=RUN)]
Select = Annotated[
    str | None, option("--select", text="What picks the best epoch: last, validation or test.", panel=RUN)
]
MaxSteps = Annotated[int | None, option("--max-steps", text="Stop after this many steps.", panel=RUN)]
Wandb = Annotated[str | None, option("--wandb", text="Weights & Biases: off, offline or online.", panel=RUN)]
ListPresets = Annotated[bool, option("--list-presets", text="List the presets and stop.", panel=RUN)]
PrintConfig = Annotated[
    bool, option("--print-config", text="Print the resolved configuration as TOML and stop.", panel=RUN)
]
DryRun = Annotated[bool, option("--dry-run", text="Print the plan and stop; needs no data.", panel=RUN)]
Debug = Annotated[bool, option("--debug", text="Show tracebacks.", panel=RUN)]

Dataset = Annotated[
    str | None, option("--dataset", text="cifar10, cifar100, digits, folder:PATH or npz:PATH.", panel=PAPER)
]
OrthogonalK = Annotated[
    float | None,
    option("--orthogonal-k", text="Weight k of the penalty that keeps frames orthonormal.", panel=PAPER),
]
Frames = Annotated[
    str | None,
    option("--frames", text="How frames are kept: retract, parametrize, penalty or free (svdctl's own).", panel=PAPER),
]
ClipTo = Annotated[
    float | None, option("--clip-to", text="Largest singular value allowed for convolutions.", panel=PAPER)
]
Procedure = Annotated[
    str | None,
    option("--procedure", text="certified, or paper: no proof, for comparisons only (svdctl's own).", panel=PAPER),
]
Epochs = Annotated[int | None, option("--epochs", text="Passes over the training set.", panel=PAPER)]
BatchSize = Annotated[int | None, option("--batch-size", text="Images of one step, over all devices.", panel=PAPER)]
Seed = Annotated[int | None, option("--seed", text="Seed of weights, order and augmentation.", panel=PAPER)]

Accelerator = Annotated[str | None, option("--accelerator", text="auto, cpu, cuda or mps.", panel=DEVICES)]
Devices = Annotated[
    str | None, option("--devices", text="Processes on each node, one a device: a number or auto.", panel=DEVICES)
]
NumNodes = Annotated[int | None, option("--num-nodes", text="Nodes.", panel=DEVICES)]
Precision = Annotated[str | None, option("--precision", text="32, bf16-mixed or 16-mixed.", panel=DEVICES)]
Compile = Annotated[bool | None, option("--compile", text="Compile the model.", panel=DEVICES)]
