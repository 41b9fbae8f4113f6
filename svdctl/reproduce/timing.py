"""Time work on this machine: rounds of several works in turn, and training steps on random images."""

import math
import time
from collections.abc import Callable, Sequence
from itertools import chain, count

import torch
from lightning_fabric import Fabric

from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.data.data_source import source_of
from svdctl.data.images import ImageData
from svdctl.models.build import build_model
from svdctl.train.trainer import Trainer

SETTLE = 1e-3
"""Seconds below which a measurement is repeated within one timing."""
LONG = 5.0
"""Seconds from which the first run of a work, which warms up, is counted too."""


def image_side(config: TrainConfig) -> int:
    """Return the side of the images in pixels; those of unknown size count as 32."""
    return (source_of(config.data).image_shape(config.data) or (3, 32, 32))[-1]


def classes_of(config: TrainConfig) -> int:
    """Return the number of classes; of a user's own data, which may be elsewhere, 10."""
    return source_of(config.data).classes(config.data) or 10


def trainer_on_noise(config: TrainConfig, fabric: Fabric) -> tuple[Trainer, Callable[[], None]]:
    """Return a trainer without control on random images, and its training step."""
    generator = torch.Generator().manual_seed(0)
    side, classes, images = image_side(config), classes_of(config), 2 * config.batch_size
    pixels = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=generator)
    data = ImageData(pixels, torch.arange(images) % classes, tuple(map(str, range(classes))))
    model = build_model(config, classes)
    once = config.model_copy(update={"epochs": 1, "max_steps": None})
    trainer = Trainer(once, model, fabric, data, data, Controller.from_config(model, None, None, None))
    model.train()
    # No end: how often a step is timed is not known before.
    batches = chain.from_iterable(trainer.batches.epoch(epoch) for epoch in count())
    return trainer, lambda: trainer.train_step(next(batches))


def timed(work: Callable[[], object], device: torch.device, loops: int = 1) -> float:
    """Return the seconds of one run of the work, the mean of several."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(loops):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / loops


def in_rounds(
    works: Sequence[Callable[[], object]], device: torch.device, repeats: int, seconds: float = math.inf
) -> list[tuple[float, ...]]:
    """Return the seconds of each work in each round; a first round warms up, and counts when its works are long.

    Args:
        works: run in turn in every round, so that a machine that slows down slows all of them.
        device: what they run on.
        repeats: number of rounds.
        seconds: no further round after this long, three at least.
    """
    began = time.perf_counter()
    first = [timed(work, device) for work in works]
    loops = [max(1, min(100, math.ceil(SETTLE / max(taken, 1e-6)))) for taken in first]
    rounds = [first] if max(first) > LONG else []
    while len(rounds) < repeats and (len(rounds) < 3 or time.perf_counter() - began < seconds):
        rounds.append([timed(work, device, loop) for work, loop in zip(works, loops, strict=True)])
    return list(zip(*rounds, strict=True))
