"""How long a run would take on this machine: a few steps measured, the rest multiplied; no data are needed."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from lightning_fabric import Fabric

from svdctl.config.control_config import NoControl
from svdctl.config.table_config import Evaluate
from svdctl.config.train_config import TrainConfig
from svdctl.control import Controller
from svdctl.data.images import ImageData
from svdctl.data.sources import load as load_data
from svdctl.errors import DataError
from svdctl.layers.shapes import input_sizes
from svdctl.models.build import build_model
from svdctl.reproduce.job import Job
from svdctl.reproduce.static_figures import classes_of, image_side, layer_cost
from svdctl.reproduce.timing import timed
from svdctl.train.trainer import Trainer

IMAGES = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000), "digits": (1438, 359)}
STEPS = 2
CPU_BATCH = 16
"""Images of a measured step on a CPU, where a whole batch would take too long; a GPU gets the whole batch."""
CONTROL_BUDGET = 5.0
"""Seconds after which layers are no longer timed but reckoned by the model of their cost."""
# Of AutoAttack's standard list on an image that holds out: three attacks of 100 steps, two of them on 9 targets.
ATTACK_GRADIENTS = 100 * (1 + 9 + 9)
ATTACK_QUERIES = 5000
ATTACK_STEPS = {"apgd-ce": 100, "apgd-dlr": 100, "apgd-t": 900, "fab": 100, "fab-t": 900, "square": 0}


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
    """What a run would take; None when the size of the data is not known on this machine."""

    train: float | None
    evaluate: float | None
    """At most: attacks stop early on images that fall."""


class Meter:
    """Measures each network once, whatever its seed, data and control, and each control of it once."""

    def __init__(self) -> None:
        self._speeds: dict[str, Speed] = {}
        self._controls: dict[str, float] = {}

    def hours(self, job: Job) -> Hours:
        """Estimate one run."""
        config = job.config
        counts = _image_counts(config)
        if counts is None:
            return Hours(None, None)
        speed = self.speed(config)
        steps = config.epochs * math.ceil(counts[0] / config.batch_size)
        seconds = min(steps, config.max_steps or steps) * (speed.step + self.control(config))
        seconds += config.epochs / config.evaluation.every_epochs * counts[1] * speed.forward
        evaluate = evaluation_seconds(job.evaluate, job.metrics, counts[1], speed)
        return Hours(seconds / 3600, evaluate / 3600)

    def speed(self, config: TrainConfig) -> Speed:
        """A few steps of the training loop, and forward passes, on random images."""
        key = _network_key(config)
        if key not in self._speeds:
            self._speeds[key] = _measure_network(config)
        return self._speeds[key]

    def control(self, config: TrainConfig) -> float:
        """Mean seconds of control for each step."""
        key = f"{_network_key(config)} {config.control.model_dump(exclude={'max', 'linear_max'})} {config.batchnorm}"
        if key not in self._controls:
            self._controls[key] = _measure_control(config)
        return self._controls[key]


def _network_key(config: TrainConfig) -> str:
    return f"{config.model} {config.layer} {config.batch_size} {config.hardware} {image_side(config)}"


def _trainer(config: TrainConfig) -> tuple[Trainer, dict[str, tuple[int, ...]]]:
    """A trainer on random images without control, and the input sizes of its layers."""
    fabric = Fabric(accelerator=config.hardware.accelerator, devices=1)
    batch = config.batch_size if fabric.device.type != "cpu" else min(config.batch_size, CPU_BATCH)
    small = config.model_copy(update={"batch_size": batch, "epochs": 1, "max_steps": None})
    side = image_side(config)
    data = random_images(batch * (STEPS + 1), side, classes_of(config))
    model = build_model(config, classes_of(config))
    sizes = input_sizes(model, (3, side, side))
    return Trainer(small, model, fabric, data, data, Controller(model, NoControl(), None, sizes=sizes)), sizes


def _measure_network(config: TrainConfig) -> Speed:
    trainer, _ = _trainer(config)
    device, batch = trainer.fabric.device, trainer.config.batch_size
    trainer.model.train()
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    batches = trainer.batches.epoch(0)

    def step() -> None:
        trainer.train_step(*next(batches), totals)

    seconds = _median(step, device, STEPS)
    trainer.model.eval()
    pixels = torch.rand(batch, 3, image_side(config), image_side(config), device=device)
    forward = _median(partial(_forward, trainer.model, pixels), device, STEPS)
    return Speed(step=seconds * config.batch_size / batch, forward=forward / batch, gradient=seconds / batch)


def _forward(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    with torch.no_grad():
        model(pixels)


def _measure_control(config: TrainConfig) -> float:
    """Mean seconds of control for each step.

    Layers are timed one by one, the cheapest first, until the time for it is spent; the others follow by the model.
    """
    if isinstance(config.control, NoControl) and config.batchnorm is None:
        return 0.0
    trainer, sizes = _trainer(config)
    model, optimizer, device = trainer.model, trainer.optimizer, trainer.fabric.device
    seconds = 0.0
    if config.batchnorm is not None:
        limit = Controller(model, NoControl(), config.batchnorm, sizes=sizes)
        every = config.batchnorm.every_steps
        seconds += timed(partial(limit.after_step, every, optimizer), device) / every
    if isinstance(config.control, NoControl):
        return seconds
    controlled = Controller(model, config.control, None, sizes=sizes).controlled()
    cost = {name: max(1.0, layer_cost(layer, sizes[name])) for name, layer in controlled.items()}
    total = pace = 0.0
    for name in sorted(cost, key=cost.__getitem__):
        if total < CONTROL_BUDGET:
            controller = Controller(model, config.control, None, sizes=sizes, only=name)
            taken = timed(partial(controller.after_step, config.control.every_steps, optimizer), device)
            total, pace = total + taken, taken / cost[name]
        else:
            total += pace * cost[name]
    return seconds + total / config.control.every_steps


def _median(work: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Median seconds; the first call warms up and does not count, unless it is so long that one will do."""
    times: list[float] = []
    while len(times) <= repeats and max(times, default=0) < 10:
        times.append(timed(work, device))
    return statistics.median(times[1:] or times)


def evaluation_seconds(evaluate: Evaluate, metrics: tuple[str, ...], test_images: int, speed: Speed) -> float:
    """Seconds of an evaluation by its passes through the network; of attacks at most."""
    forwards = gradients = 0.0
    if {"accuracy", "ece", "certified"} & set(metrics):
        forwards += test_images
    if "cifar-c" in metrics:
        words = evaluate.corruptions or ("all",)
        names = sum({"all": 19, "benchmark": 15}.get(word, 1) for word in words)
        forwards += names * len(evaluate.severities) * min(test_images, evaluate.corruption_examples or test_images)
    if "autoattacks" in metrics:
        attacked = min(test_images, evaluate.examples or test_images)
        single = set(evaluate.attacks) & ATTACK_STEPS.keys()
        gradients += attacked * (sum(ATTACK_STEPS[name] for name in single) if single else ATTACK_GRADIENTS)
        forwards += attacked * ATTACK_QUERIES * (not single or "square" in single)
    return forwards * speed.forward + gradients * speed.gradient


def _image_counts(config: TrainConfig) -> tuple[int, int] | None:
    """Training and test images; None for files that are not on this machine."""
    counts = IMAGES.get(config.data.kind)
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
    """Noise with labels in turn: the time of a step does not depend on what images show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % classes
    return ImageData(pixels, labels, tuple(map(str, range(classes))))
