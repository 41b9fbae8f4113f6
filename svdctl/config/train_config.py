"""The whole configuration of one training run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from svdctl.config.base import Config
from svdctl.config.certificate_config import Certificate
from svdctl.config.control_config import BatchNormControl, Control, NoControl
from svdctl.config.data_config import Augment, Data, Normalization
from svdctl.config.model_config import GROUPS, STRIDE, TT, Layer, LipConv, Model, Soc, Sott, Standard, Vgg, Wrn
from svdctl.config.optimizer_config import Constant, Cyclic, Optimizer, Schedule, Sgd
from svdctl.config.run_config import Checkpointing, EvaluationSchedule, Hardware, Log
from svdctl.config.variants import variant
from svdctl.registry import DATA, LOSSES

if TYPE_CHECKING:
    Loss = Any
else:
    Loss = variant(LOSSES)

CROSS_ENTROPY = "cross-entropy"
"""Kind of the loss of a run that names none."""


class TrainConfig(Config):
    """Everything that determines a training run; `config.toml` of a run folder holds exactly this."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "run"
    """First part of the run folder's name."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 3407
    """Seed of weights, order and augmentation."""
    epochs: PositiveInt = 200
    """Passes over the training set."""
    max_steps: PositiveInt | None = None
    """Stop after this many steps, wherever in an epoch; the schedule still spans `epochs`."""
    batch_size: PositiveInt = 128
    """Images of one step over all devices together."""
    out_dir: Path = Path("runs")
    """Parent of the run folder."""
    data: Data = Field(default_factory=lambda: DATA.get("digits").config())
    augment: Augment = Augment()
    normalize: Normalization = Normalization()
    model: Model = Wrn()
    layer: Layer = Standard()
    control: Control = NoControl()
    batchnorm: BatchNormControl | None = None
    certificate: Certificate | None = None
    """Absent: no certificates are computed."""
    loss: Loss = Field(default_factory=lambda: LOSSES.get(CROSS_ENTROPY).config())
    optimizer: Optimizer = Sgd()
    schedule: Schedule = Constant()
    evaluation: EvaluationSchedule = EvaluationSchedule()
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
        """What does not go together, a sentence each."""
        faults = []
        if isinstance(self.layer, Soc | Sott):
            if not isinstance(self.model, LipConv):
                faults.append(
                    f"layer.kind = {self.layer.kind!r} belongs to LipConvNet; use `model.kind = lipconv`, or another "
                    "kind"
                )
            if not isinstance(self.control, NoControl):
                faults.append(
                    f"`control.kind` has nothing to do in {self.layer.kind.upper()} layers, whose singular values are "
                    "1 already; leave it out, or use `layer.kind = tt` or standard"
                )
        elif self.control.kind == "divide-each" and not isinstance(self.layer, TT):
            faults.append(
                "`control.kind = divide-each` divides the factors of TT layers; add `layer.kind = tt` and "
                "`layer.rank = R`, or use `control.kind = divide`"
            )
        if isinstance(self.layer, TT | Sott) and isinstance(self.layer.rank, tuple):
            count = len(self.layer.rank)
            if not isinstance(self.model, LipConv):
                faults.append("`layer.rank`: a rank for each group of layers belongs to LipConvNet; give one rank")
            elif count != GROUPS:
                faults.append(
                    f"`layer.rank`: {GROUPS} ranks are needed, one for each stage and one for the last convolution, "
                    f"not {count}; or give one rank for all"
                )
        if isinstance(self.schedule, Cyclic) and self.schedule.lr_min >= self.optimizer.lr:
            faults.append(
                f"`schedule.lr_min = {self.schedule.lr_min:g}` must be below `optimizer.lr = {self.optimizer.lr:g}`: "
                "cyclic rates rise from one to the other"
            )
        return faults + self._sizes()

    def _sizes(self) -> list[str]:
        """What the data, as far as they are known, are too small or too many for."""
        faults = []
        source = DATA.get(self.data.kind)
        shape = source.image_shape(self.data)
        side = None if shape is None else min(shape[1:])
        if isinstance(self.model, Vgg) and side is not None and side < 32:
            faults.append("VGG-19 halves its input five times: images need a side of 32 or more (data.size)")
        if isinstance(self.model, LipConv):
            if side is not None and side % STRIDE:
                faults.append(
                    f"LipConvNet halves its input five times: a side of {side} is no multiple of {STRIDE} (data.size)"
                )
            if self.model.in_channels % 2:
                faults.append(
                    f"`model.in_channels = {self.model.in_channels}`: MinMax pairs channels; use an even number"
                )
            if self.model.checkpoint_activations and not isinstance(self.layer, Soc | Sott):
                faults.append(
                    "`model.checkpoint_activations` is for the series of SOC and SOTT layers; leave it out, or use "
                    "`layer.kind = sott`"
                )
            classes = source.classes(self.data)
            if classes is not None and classes > self.model.channels:
                faults.append(too_many_classes(classes, self.model))
        return faults


def too_many_classes(classes: int, model: LipConv) -> str:
    """That the last convolution cannot widen."""
    return (
        f"{classes} classes are more than the {model.channels} channels before LipConvNet's last convolution; widen it "
        f"to `model.in_channels = {2 * -(-classes // (2 * STRIDE))}` or more"
    )
