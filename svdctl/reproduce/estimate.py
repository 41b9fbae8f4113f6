"""What a run costs: parameters and operations from its configuration, hours and disk; no data are needed.

Networks of figures that follow from a configuration alone are built on the meta device: shapes without numbers, so
that a full-scale table takes seconds. Hours come from a few steps measured on this machine.

Model of the cost of control. A layer with output `n x n`, stride s and kernel `O x I` has n^2 matrices of `O x s^2 I`,
the aliased symbols side by side; one singular value decomposition of `a x b` takes of the order of `a b min(a, b)`
operations. For a TT layer O and I are the ranks of its core (Theorem 1 of the paper). The network's cost is the sum
over its convolutions: WRN-16-10 full against rank 192, 256, 320 is 5.1, 3.2, 2.0.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.data.data_source import load as load_data
from svdctl.data.data_source import source_of
from svdctl.data.images import ImageData
from svdctl.errors import DataError
from svdctl.evaluate.metric import METRICS
from svdctl.evaluate.table_evaluation import Evaluate
from svdctl.layers.layer_ops import find_ops, ops_of
from svdctl.layers.shapes import input_sizes
from svdctl.models.build import build_model, count_parameters
from svdctl.registry import LAYERS
from svdctl.reproduce.job import Job
from svdctl.reproduce.table_config import SpeedScale
from svdctl.train.trainer import Trainer

STEPS = 2
CPU_BATCH = 16
"""Images of a measured step on a CPU, where a whole batch would take too long; a GPU gets the whole batch."""
CONTROL_BUDGET = 5.0
"""Seconds after which layers are no longer timed but reckoned by the model of their cost."""
SETTLE = 1e-3
"""Seconds below which a measurement is repeated within one timing."""
LONG = 5.0
"""Seconds from which the first run of a work, which warms up, is counted too."""


@dataclass(frozen=True)
class Static:
    """Figures of one configuration."""

    parameters: int
    compression: float
    """Parameters of the same network with uncompressed layers, over its own."""
    control_cost: float
    """Modelled operations of one exact control pass; not a number where a user's network does not run without data."""
    control_ratio: float
    """The same of the network with uncompressed layers, over its own: how many times cheaper control is."""

    @property
    def columns(self) -> dict[str, float]:
        """Return the figures that are known, by the columns of tables."""
        figures = {"parameters": float(self.parameters), "compression": self.compression}
        figures["control-cost"] = self.control_ratio
        return {name: value for name, value in figures.items() if math.isfinite(value)}


def image_side(config: TrainConfig) -> int:
    """Return the side of the images in pixels; those of unknown size count as 32."""
    return (source_of(config.data).image_shape(config.data) or (3, 32, 32))[-1]


def classes_of(config: TrainConfig) -> int:
    """Return the number of classes; of a user's own data, which may be elsewhere, 10."""
    return source_of(config.data).classes(config.data) or 10


def shape_model(config: TrainConfig) -> nn.Module:
    """Return the network on the meta device; a user's that cannot be built there, on the CPU."""
    try:
        with torch.device("meta"):
            return build_model(config, classes_of(config))
    except Exception:
        return build_model(config, classes_of(config))


def _attempted(work: Callable[[], float]) -> float:
    """Return a figure of a network; not a number where the code of a user's network does not run on its own."""
    try:
        return work()
    except Exception:
        return math.nan


def _uncompressed(config: TrainConfig) -> TrainConfig:
    """Return the same network with ordinary layers for TT ones and SOC for SOTT ones."""
    kind = LAYERS.get(config.layer.kind).uncompressed(config.layer)
    if kind == config.layer.kind:
        return config
    return TrainConfig.model_validate({**config.model_dump(), "layer": {"kind": kind}})


def static_figures(config: TrainConfig) -> Static:
    """Return the figures that follow from a configuration alone."""
    return _figures(_shape_key(config))


def _shape_key(config: TrainConfig) -> str:
    """Return all that these figures depend on, as a configuration: rows that share it are counted once."""
    same = {"data": config.data, "model": config.model, "layer": config.layer, "batch_size": config.batch_size}
    return TrainConfig().model_copy(update=same).model_dump_json()


@cache
def _figures(text: str) -> Static:
    config = TrainConfig.model_validate_json(text)
    model = shape_model(config)
    whole = _uncompressed(config)
    dense = model if whole is config else shape_model(whole)
    costs = [_attempted(partial(control_cost, net, image_side(config))) for net in (model, dense)]
    return Static(
        parameters=count_parameters(model),
        compression=count_parameters(dense) / count_parameters(model),
        control_cost=costs[0],
        control_ratio=costs[1] / costs[0] if costs[0] else math.nan,
    )


def step_flops(config: TrainConfig) -> float:
    """Return the operations (a multiplication and an addition are two) of a step's forward and backward pass.

    Not a number for a user's network that does not run on the meta device.
    """
    return _attempted(partial(_flops, _shape_key(config)))


@cache
def _flops(text: str) -> float:
    config = TrainConfig.model_validate_json(text)
    model, side = shape_model(config), image_side(config)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(config.batch_size, 3, side, side, device="meta")).sum().backward()
    return float(counter.get_total_flops())


def control_cost(model: nn.Module, side: int) -> float:
    """Return the modelled operations of an exact control pass over the convolutions of a network."""
    sizes = input_sizes(model, (3, side, side), lambda layer: find_ops(layer) is not None)
    layers = [(ops_of(layer := model.get_submodule(name)), layer, size) for name, size in sizes.items()]
    return sum(ops.cost(layer, size) for ops, layer, size in layers if not ops.is_linear)


def run_bytes(config: TrainConfig) -> int:
    """Return the bytes that a run folder takes at its largest.

    A checkpoint while its successor is written beside it, best.pt when there is one, those of the epochs when they are
    kept, pictures, logs and results.
    """
    optimizer = {"sgd": 1, "adam": 2}[config.optimizer.kind] + bool(getattr(config.optimizer, "amsgrad", False))
    copies = 2 * (1 + optimizer) + (config.evaluation.select != "last")
    if config.checkpoint.keep:
        copies += (1 + optimizer) * (config.epochs // config.checkpoint.every_epochs)
    return 4 * copies * static_figures(config).parameters + (4 << 20)


@dataclass(frozen=True)
class Speed:
    """Of a network, measured on this machine."""

    step: float
    """Seconds of one training step at the run's own batch size, without control."""
    forward: float
    """Seconds of a forward pass for each image."""
    gradient: float
    """Seconds of a forward and backward pass for each image."""


@dataclass(frozen=True)
class Hours:
    """What a run would take on this machine."""

    train: float
    evaluate: float
    """At most: attacks stop early on images that fall."""


class Meter:
    """Measures each network once, whatever its seed, data and control, and each control of it once."""

    def __init__(self) -> None:
        self._measured: dict[str, Any] = {}

    def hours(self, job: Job) -> Hours | None:
        """Estimate one run; None when the size of the data is not known on this machine."""
        config = job.config
        counts = _image_counts(config)
        if counts is None:
            return None
        speed = self.speed(config)
        steps = config.epochs * math.ceil(counts[0] / config.batch_size)
        seconds = min(steps, config.max_steps or steps) * (speed.step + self.control(config))
        seconds += config.epochs / config.evaluation.every_epochs * counts[1] * speed.forward
        evaluate = evaluation_seconds(job.evaluate, job.metrics, counts[1], speed)
        return Hours(seconds / 3600, evaluate / 3600)

    def speed(self, config: TrainConfig) -> Speed:
        """Return seconds of the training loop and of forward passes on random images."""
        return self._once(_network_key(config), _measure_network, config)

    def control(self, config: TrainConfig) -> float:
        """Return mean seconds of control for each step."""
        method = config.control.model_dump(exclude={"max_sigma", "linear_max"})
        return self._once(f"{_network_key(config)} {method} {config.batchnorm}", _measure_control, config)

    def _once(self, key: str, measure: Callable[[TrainConfig], Any], config: TrainConfig) -> Any:
        if key not in self._measured:
            self._measured[key] = measure(config)
        return self._measured[key]


def _network_key(config: TrainConfig) -> str:
    return f"{config.model} {config.layer} {config.batch_size} {config.hardware} {image_side(config)}"


def _trainer(config: TrainConfig) -> tuple[Trainer, dict[str, tuple[int, ...]]]:
    """Return a trainer on random images without control, and the input sizes of its layers."""
    fabric = Fabric(accelerator=config.hardware.accelerator, devices=1)
    batch = config.batch_size if fabric.device.type != "cpu" else min(config.batch_size, CPU_BATCH)
    small = config.model_copy(update={"batch_size": batch, "epochs": 1, "max_steps": None})
    side = image_side(config)
    data = random_images(batch * (STEPS + 1), side, classes_of(config))
    model = build_model(config, classes_of(config))
    sizes = input_sizes(model, (3, side, side))
    return Trainer(small, model, fabric, data, data, Controller.from_config(model, None, None, None)), sizes


def _measure_network(config: TrainConfig) -> Speed:
    trainer, _ = _trainer(config)
    device, batch = trainer.fabric.device, trainer.config.batch_size
    trainer.model.train()
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    batches = trainer.batches.epoch(0)
    seconds = _median(lambda: trainer.train_step(*next(batches), totals), device, STEPS)
    trainer.model.eval()
    pixels = torch.rand(batch, 3, image_side(config), image_side(config), device=device)
    forward = _median(torch.no_grad()(partial(trainer.model, pixels)), device, STEPS)
    return Speed(step=seconds * config.batch_size / batch, forward=forward / batch, gradient=seconds / batch)


def _measure_control(config: TrainConfig) -> float:
    """Return mean seconds of control for each step.

    Layers are timed one by one, the cheapest first, until the time for it is spent; the others follow by the model.
    """
    if config.control.kind == "none" and config.batchnorm is None:
        return 0.0
    trainer, sizes = _trainer(config)
    model, optimizer, device = trainer.model, trainer.optimizer, trainer.fabric.device
    seconds = 0.0
    if config.batchnorm is not None:
        limit = Controller.from_config(model, None, None, config.batchnorm)
        every = config.batchnorm.every_steps
        seconds += timed(partial(limit.control_, every), device) / every
    if config.control.kind == "none":
        return seconds
    controlled = Controller.from_config(model, None, config.control, None, sizes=sizes).controlled()
    cost = {name: max(1.0, ops_of(layer).cost(layer, sizes[name])) for name, layer in controlled.items()}
    total = pace = 0.0
    for name in sorted(cost, key=cost.__getitem__):
        if total < CONTROL_BUDGET:
            controller = Controller.from_config(model, optimizer, config.control, None, sizes=sizes, layers=name)
            taken = timed(partial(controller.control_, config.control.every_steps), device)
            total, pace = total + taken, taken / cost[name]
        else:
            total += pace * cost[name]
    return seconds + total / config.control.every_steps


def _median(work: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Return median seconds; the first call warms up and does not count, unless it is so long that one will do."""
    times: list[float] = []
    while len(times) <= repeats and max(times, default=0) < 10:
        times.append(timed(work, device))
    return statistics.median(times[1:] or times)


def evaluation_seconds(evaluate: Evaluate, metrics: tuple[str, ...], test_images: int, speed: Speed) -> float:
    """Return the seconds of an evaluation by its passes through the network; of attacks at most."""
    found = [METRICS.get(metric) for metric in metrics]
    passes = [metric.passes(evaluate, test_images) for metric in found]
    logits = test_images * any(metric.uses_logits for metric in found)
    forwards, gradients = logits + sum(one.forwards for one in passes), sum(one.gradients for one in passes)
    return forwards * speed.forward + gradients * speed.gradient


def _image_counts(config: TrainConfig) -> tuple[int, int] | None:
    """Return the numbers of training and test images; None for files that are not on this machine."""
    counts = source_of(config.data).counts(config.data)
    if counts is None:
        try:
            data = load_data(config.data)
        except DataError:
            return None
        counts = (len(data.train), len(data.test))
        if data.validation is not None:
            return counts
    if config.evaluation.select == "validation":
        return round(counts[0] * (1 - config.evaluation.validation_share)), counts[1]
    return counts


def random_images(count: int, side: int, classes: int) -> ImageData:
    """Return noise with labels in turn: the time of a step does not depend on what images show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % classes
    return ImageData(pixels, labels, tuple(map(str, range(classes))))


def timed(work: Callable[[], None], device: torch.device, loops: int = 1) -> float:
    """Return the seconds of one run of the work, the mean of several."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(loops):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / loops


def in_rounds(works: Sequence[Callable[[], None]], scale: SpeedScale, device: torch.device) -> list[tuple[float, ...]]:
    """Return the seconds of each work in each round; a first round warms up, and counts when its works are long."""
    began = time.perf_counter()
    first = [timed(work, device) for work in works]
    loops = [max(1, min(100, math.ceil(SETTLE / max(taken, 1e-6)))) for taken in first]
    times = [[taken] for taken in first] if max(first) > LONG else [[] for _ in works]
    while len(times[0]) < scale.repeats and (len(times[0]) < 3 or time.perf_counter() - began < scale.seconds):
        for work, loop, found in zip(works, loops, times, strict=True):
            found.append(timed(work, device, loop))
    return [tuple(found) for found in times]
