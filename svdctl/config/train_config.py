"""The whole configuration of one training run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from svdctl.config.base import Config
from svdctl.config.control_config import BatchNormControl, ControlConfig
from svdctl.config.data_config import Augment, Data, Normalization
from svdctl.config.model_config import InitialWeights, Layer, Model
from svdctl.config.optimizer_config import Constant, Cyclic, Ema, Optimizer, Schedule, Sgd
from svdctl.config.run_config import Certificate, Checkpointing, EvaluationSchedule, Hardware, Log
from svdctl.config.variants import variant
from svdctl.registry import ARCHITECTURES, CONTROLS, DATA, LAYERS, LOSSES

if TYPE_CHECKING:
    Loss = Any
    Control = ControlConfig
else:
    Control = variant(CONTROLS)
    Loss = variant(LOSSES)

CROSS_ENTROPY = "cross-entropy"
"""Kind of the loss of a run that names none."""


class TrainConfig(Config):
    """Everything that determines a training run; `config.toml` of a run folder holds exactly this."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "run"
    """Beginning of the name of the run folder."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 3407
    """Seed of the first weights, of the order of the images and of their augmentation."""
    epochs: PositiveInt = 200
    """Passes over the training images."""
    max_steps: PositiveInt | None = None
    """Stop after this many steps, wherever in an epoch; the schedule still spans `epochs`."""
    batch_size: PositiveInt = 128
    """Images in each step, over all devices together."""
    accumulate: PositiveInt | None = None
    """Parts of each batch, computed one after another to save memory. Absent: one."""
    out_dir: Path = Path("runs")
    """Folder in which each run makes its own folder."""
    plugins: tuple[str, ...] = ()
    """Modules and files that register what is used here and does not ship with svdctl."""
    data: Data = Field(default_factory=lambda: DATA.get("digits").config())
    augment: Augment = Augment()
    normalize: Normalization = Normalization()
    init: Literal["svdctl", "paper"] = "svdctl"
    """How weights start: in svdctl's own way, or as in the paper's public code. See docs/differences.md."""
    model: Model = Field(default_factory=lambda: ARCHITECTURES.get("wrn").config())
    layer: Layer = Field(default_factory=lambda: LAYERS.get("standard").config())
    initial: InitialWeights | None = None
    """Absent: weights start at random."""
    control: Control = Field(default_factory=lambda: CONTROLS.get("none").config())
    batchnorm: BatchNormControl | None = None
    certificate: Certificate | None = None
    """Absent: no certificates are computed."""
    loss: Loss = Field(default_factory=lambda: LOSSES.get(CROSS_ENTROPY).config())
    optimizer: Optimizer = Sgd()
    schedule: Schedule = Constant()
    ema: Ema | None = None
    """Absent: the weights of the last step are what is evaluated and saved."""
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

    def faults_of_batch(self, processes: int) -> list[str]:
        """Return why a batch cannot be divided among so many processes and its parts, a sentence; none if it can."""
        if self.batch_size < processes:
            return [
                f"a batch of {self.batch_size} leaves nothing for some of {processes} processes; change `batch_size`"
            ]
        if self.batch_size < processes * (self.accumulate or 1):
            return [
                f"`accumulate = {self.accumulate}`: a batch of {self.batch_size} has fewer images than parts on "
                f"{processes} process{'es' * (processes > 1)}; lower it, or raise `batch_size`"
            ]
        return []

    def _mixes(self) -> list[str]:
        """Return what does not go together, a sentence each."""
        devices = 1 if self.hardware.devices == "auto" else self.hardware.devices
        faults = self.faults_of_batch(devices * self.hardware.num_nodes)
        architecture = ARCHITECTURES.get(self.model.kind)
        if self.layer.is_orthogonal:
            if not architecture.orthogonal:
                faults.append(architecture.why_not_orthogonal(self.layer.kind))
            if self.ema is not None:
                faults.append(
                    f"`ema` averages weights, and those of {self.layer.kind.upper()} layers are coordinates of other "
                    "kernels; leave it out, or use `layer.kind = tt` or standard"
                )
            if self.control.kind != "none":
                faults.append(
                    f"`control.kind` has nothing to do in {self.layer.kind.upper()} layers, whose singular values are "
                    "1 already; leave it out, or use `layer.kind = tt` or standard"
                )
        else:
            faults += CONTROLS.get(self.control.kind).faults(self.control, self.layer)
        faults += LAYERS.get(self.layer.kind).faults(self.layer, groups=architecture.groups)
        moved = getattr(self.control, "max_sigma_epochs", None)
        if moved is not None and moved > self.epochs:
            faults.append(
                f"`control.max_sigma_epochs = {moved}` is more than the {self.epochs} epochs of the run, which would "
                "end before `control.max_sigma` is reached; lower it, or raise `epochs`"
            )
        if isinstance(self.schedule, Cyclic) and self.schedule.lr_min >= self.optimizer.lr:
            faults.append(
                f"`schedule.lr_min = {self.schedule.lr_min:g}` must be below `optimizer.lr = {self.optimizer.lr:g}`: "
                "cyclic rates rise from one to the other"
            )
        source = DATA.get(self.data.kind)
        known = {"image_shape": source.image_shape(self.data), "classes": source.classes(self.data)}
        return faults + list(architecture.faults(self.model, **known, layer=self.layer))
