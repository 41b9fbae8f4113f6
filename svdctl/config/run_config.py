"""How a run is evaluated, certified, saved, logged, and what it runs on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from svdctl.config.base import Config
from svdctl.config.variants import variant
from svdctl.registry import LOGGERS

if TYPE_CHECKING:
    Logger = Any
else:
    Logger = variant(LOGGERS)


class EvaluationSchedule(Config):
    """What is measured while training, and which epoch is the best one."""

    every_epochs: PositiveInt = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    select: Literal["last", "validation", "test"] = "last"
    """What picks the best epoch. `last`: the whole training set is used and the last epoch counts; `validation`: a part
    of the training set picks `best.pt`; `test`: the test set picks it, as the paper's code did, which every
    output says."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training set kept for validation, drawn class by class from the seed, where the data set has no
    validation part of its own."""


class Certificate(Config):
    """Certified accuracy is measured while training; radii are l2 distances in 255ths of a pixel's range."""

    epsilon: PositiveFloat = 36.0
    """Radius of the certified accuracy that is shown while training, in 255ths of a pixel's range. It chooses the best
    epoch too."""
    radii: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (36.0, 72.0, 108.0, 255.0)
    """The radii of the table at the end."""


class Checkpointing(Config):
    """When the state is written, besides `last.pt` after every epoch and every ten minutes within one."""

    every_epochs: PositiveInt = 1
    """Epochs between two checkpoints whose sealed weights the run goes on with, and which `keep`
    keeps; the last epoch always has one. `last.pt` is written after every epoch whatever this is."""
    every_steps: PositiveInt | None = None
    """Steps between two further such checkpoints; absent: none within an epoch."""
    keep: bool = False
    """Keep those of epochs as `epoch-<n>.pt` too."""


class Log(Config):
    """What is recorded."""

    every_steps: PositiveInt = 50
    """Steps between two records of the training loss."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Log to Weights & Biases, on this machine alone (offline) or on its server (online)."""
    wandb_project: str = "svdctl"
    """Project of Weights & Biases."""
    wandb_group: str | None = None
    """Group of runs in Weights & Biases; absent: none."""
    loggers: tuple[Logger, ...] = ()
    """Further logs, each a table with its `kind`; `metrics.jsonl` is always written."""
    singular_values: bool = False
    """Record bounds of the singular values that are true to 0.5 % at every evaluation, which takes time. Off: true to
    5 %, or the maximum alone."""


class Hardware(Config):
    """Devices and number format, given to lightning-fabric; several devices hold the whole network each (DDP)."""

    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto"
    """What to compute on: auto is a GPU where there is one, gpu is CUDA or MPS."""
    devices: PositiveInt | Literal["auto"] = 1
    """Devices on each machine, with a process for each; auto: all of them."""
    num_nodes: PositiveInt = 1
    """Machines that train together."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Floating point of 32 bits, or autocast to 16: bfloat16 (bf16-mixed) or float16 (16-mixed)."""
    compile: bool = False
    """Compile the network with torch.compile, which takes some 20 s (a WRN-16-10 of ordinary convolutions on one H100,
    captured in CUDA graphs, then took a quarter less time for a step; measured for nothing else). What it gains for TT,
    SOC and SOTT layers is not known."""
    capture: Literal["auto", "off"] = "auto"
    """Replay training steps as CUDA graphs, which saves the time of Python and of kernel launches.
    `auto`: where a step reads nothing back; `off`: never."""
    deterministic: bool | None = None
    """Use only deterministic CUDA kernels, which are slower, so that a run repeats bit for bit on a GPU too.
    Absent: off on CUDA, where cuDNN then picks the fastest kernels by trying them. A CPU is always deterministic."""
    channels_last: bool = True
    """Memory layout of images and kernels: channels innermost, which makes TT layers' 1x1 convolutions products."""

    @model_validator(mode="before")
    @classmethod
    def _whole_networks(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "strategy" in given:
            raise ValueError(
                f"`hardware.strategy = {given['strategy']}`: every process holds the whole network, as under DDP, "
                "since FSDP and the like shard the kernels whose singular values are controlled; set "
                "`hardware.devices` alone"
            )
        return given
