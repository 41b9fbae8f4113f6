"""The whole configuration of one training run."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from svdctl.config.base import Config
from svdctl.config.control import BatchNormControl, Control, NoControl
from svdctl.config.data import Augment, Data, Digits, Folder, Normalize
from svdctl.config.model import TT, Layer, Model, Standard, Vgg, Wrn
from svdctl.config.optim import Constant, Optimizer, Schedule, Sgd
from svdctl.config.run import Checkpointing, Evaluation, Hardware, Log


class TrainConfig(Config):
    """Everything that determines a training run; `config.toml` of a run folder holds exactly this."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "run"
    """First part of the run folder's name."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 3407
    epochs: PositiveInt = 200
    max_steps: PositiveInt | None = None
    """Stop after this many steps, wherever in an epoch; the schedule still spans `epochs`."""
    batch_size: PositiveInt = 128
    """Images of one step over all devices together."""
    out_dir: Path = Path("runs")
    """Parent of the run folder."""
    data: Data = Digits()
    augment: Augment = Augment()
    normalize: Normalize = Normalize()
    model: Model = Wrn()
    layer: Layer = Standard()
    control: Control = NoControl()
    batchnorm: BatchNormControl | None = None
    optimizer: Optimizer = Sgd()
    schedule: Schedule = Constant()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpointing = Checkpointing()
    log: Log = Log()
    hardware: Hardware = Hardware()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = list(self._mixes())
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _mixes(self) -> list[str]:
        faults = []
        if self.control.kind == "divide-each" and not isinstance(self.layer, TT):
            faults.append(
                "control.kind = 'divide-each' divides the factors of TT layers; add --new-layer tt --dec-rank R, "
                "or use --clipping divide-by-largest"
            )
        if isinstance(self.model, Vgg) and isinstance(self.data, Folder) and self.data.size < 32:
            faults.append("VGG-19 halves its input five times: images need a side of 32 or more (data.size)")
        return faults
