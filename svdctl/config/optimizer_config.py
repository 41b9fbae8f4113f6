"""Optimiser and learning-rate schedule."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from svdctl.config.base import Config

Share = Annotated[float, Field(gt=0, lt=1)]


class OptimizerConfig(Config):
    """Base of the optimisers; `kind` is a literal of each."""

    clip_norm: PositiveFloat | None = None
    """Scale the gradient down where its l2 norm, over all parameters, is above this. Absent: never."""


class Sgd(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = 0.1
    """Learning rate, where the schedule has it at its highest."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay."""

    @model_validator(mode="after")
    def _nesterov(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("Nesterov needs a momentum above 0; set `optimizer.momentum` or drop `optimizer.nesterov`")
        return self


class Adam(OptimizerConfig):
    """Adam, with weight decay as an L2 term of the loss."""

    kind: Literal["adam"] = "adam"
    lr: PositiveFloat = 1e-3
    """Learning rate at the start."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    amsgrad: bool = False
    """The largest second moment so far counts, not the latest (Reddi et al. 2018)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight of half the squared l2 norm of the weights, added to the loss."""


class AdamW(OptimizerConfig):
    """Adam with weight decay apart from the gradient (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 1e-3
    """Learning rate at the start."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    amsgrad: bool = False
    """The largest second moment so far counts, not the latest (Reddi et al. 2018)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Share of the weights that is taken off at each step, times the learning rate."""


Optimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="kind")]


class ScheduleConfig(Config):
    """Base of the schedules; `kind` is a literal of each."""

    @property
    def cycles_momentum(self) -> bool:
        """Return whether the momentum changes from step to step."""
        return False

    def lr_factor(self, step: int, steps: int, lr: float) -> float:
        """Return the factor on the learning rate `lr` at a step, counted from 0, of `steps` in all."""
        return 1.0

    def momentum(self, step: int, steps: int, momentum: float) -> float:
        """Return the momentum at a step, counted from 0, of `steps` in all, of an optimiser with this momentum."""
        return momentum


class Constant(ScheduleConfig):
    """The learning rate stays."""

    kind: Literal["constant"] = "constant"


class Steps(ScheduleConfig):
    """The learning rate is multiplied by `factor` at each share of all steps."""

    kind: Literal["steps"] = "steps"
    at: tuple[Share, ...]
    """Shares of all steps, rising."""
    factor: PositiveFloat
    """What the rate is multiplied by at each."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.at) != sorted(set(self.at)):
            raise ValueError("schedule.at must rise: shares of all steps, each once, in order")
        return self

    def lr_factor(self, step: int, steps: int, lr: float) -> float:
        return self.factor ** sum(step >= share * steps for share in self.at)


class Cosine(ScheduleConfig):
    """Half a cosine from the full learning rate to nothing."""

    kind: Literal["cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps in which the learning rate first rises from nearly 0, linearly."""

    def lr_factor(self, step: int, steps: int, lr: float) -> float:
        warm = self.warmup * steps
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, steps - warm))))


class Cyclic(ScheduleConfig):
    """The learning rate rises from `lr_min` to the optimiser's and falls back, over and over."""

    kind: Literal["cyclic"] = "cyclic"
    lr_min: Annotated[float, Field(ge=0)] = 0.0
    """Lowest learning rate, where each cycle begins and ends."""
    up: Share = 1 / 20
    """Share of all steps in which it rises."""
    down: Share = 3 / 20
    """Share of all steps in which it falls."""
    peak_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Momentum (Adam: the first beta) where the rate is highest; it is the optimiser's where the rate is lowest, and
    falls and rises between them. Absent: it stays."""

    @property
    def cycles_momentum(self) -> bool:
        return self.peak_momentum is not None

    def lr_factor(self, step: int, steps: int, lr: float) -> float:
        lowest = self.lr_min / lr
        return lowest + (1 - lowest) * self._height(step, steps)

    def momentum(self, step: int, steps: int, momentum: float) -> float:
        if self.peak_momentum is None:
            return momentum
        return momentum - (momentum - self.peak_momentum) * self._height(step, steps)

    def _height(self, step: int, steps: int) -> float:
        """Return where the rate stands between its lowest (0) and its highest value (1)."""
        up, down = self.up * steps, self.down * steps
        place = step % (up + down)
        return place / up if place < up else (up + down - place) / down


Schedule = Annotated[Constant | Steps | Cosine | Cyclic, Field(discriminator="kind")]


class Ema(Config):
    """An exponential average of the weights is what is sealed, evaluated and saved; the weights themselves train on."""

    decay: Share = 0.999
    """Weight of the past at each step, less at first: at most (1 + n) / (10 + n) after n steps."""
