"""The paper's point about speed, measured here: time of the spectrum and of one control pass, full against TT.

Every round times full and TT in turn, so that a machine that slows down slows both. Kernels are Gaussian, scaled so
that about half of their values exceed the bound of the control pass.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import nn

from svdctl.build import build_model
from svdctl.config.control import NoControl
from svdctl.config.flags import resolve
from svdctl.config.table import Axis, SpeedFigure, SpeedScale
from svdctl.config.train import TrainConfig
from svdctl.control import Controller
from svdctl.layers.operator import operator_of, write_operator_
from svdctl.layers.shapes import input_sizes
from svdctl.layers.tt import TTConv2d
from svdctl.machine import machine
from svdctl.recipes.reproduction.estimate import random_images
from svdctl.recipes.reproduction.journal import Journal
from svdctl.recipes.reproduction.static import control_cost, layer_cost
from svdctl.spectral import clip_kernel, singular_values
from svdctl.training import Trainer

AxisName = Literal["width", "rank", "input", "network"]
Work = Literal["all values", "control pass", "training step"]
NETWORK_WORKS: tuple[Work, ...] = ("all values", "control pass", "training step")
SETTLE = 1e-3
"""Seconds below which a measurement is repeated within one timing."""
LONG = 5.0
"""Seconds from which the first run of a work, which warms up, is counted too."""


@dataclass(frozen=True)
class Point:
    """Full against TT at one place of an axis."""

    axis: AxisName
    x: int
    """Width, rank, or side of the input; of the network the rank."""
    channels: int | None
    rank: int
    size: int
    work: Work
    full: tuple[float, ...]
    """Seconds of each round."""
    tt: tuple[float, ...]
    modelled: float | None
    """How many times cheaper TT is by the model of the cost; None for the training step, which it is not about."""

    @property
    def measured(self) -> float:
        """How many times faster TT is: the median of the rounds' ratios."""
        return statistics.median(a / b for a, b in zip(self.full, self.tt, strict=True))


@dataclass(frozen=True)
class SpeedResults:
    """All points, and what they were measured on."""

    title: str
    smoke: bool
    points: tuple[Point, ...]
    machine: str


def measure_figure(figure: SpeedFigure, *, smoke: bool, journal: Path, say: Callable[[str], None]) -> SpeedResults:
    """Measure everything that the figure asks for on this machine's accelerator, else its CPU.

    Args:
        figure: what to measure.
        smoke: at the small scale.
        journal: keeps each measurement until all are done; one that was cut off goes on.
        say: called before each.
    """
    scale = figure.smoke if smoke else figure.full
    device = Fabric(accelerator="auto", devices=1).device
    kept = Journal(journal, {"figure": figure.model_dump(mode="json"), "smoke": smoke, "machine": machine(device)})
    points: list[Point] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for what, measure in _measurements(figure, scale, device):
            say(f"{what} (measured before)" if what in kept else what)
            points += map(_point, kept.once(what, partial(_tables, measure)))
    mark = "SMOKE SCALE, not the paper's experiment: " if smoke else ""
    return SpeedResults(mark + figure.title, smoke, tuple(points), machine(device))


def _tables(measure: Callable[[], list[Point]]) -> list[dict[str, Any]]:
    return [asdict(point) for point in measure()]


def _point(table: dict[str, Any]) -> Point:
    return Point(**{**table, "full": tuple(table["full"]), "tt": tuple(table["tt"])})


def _measurements(
    figure: SpeedFigure, scale: SpeedScale, device: torch.device
) -> Iterator[tuple[str, Callable[[], list[Point]]]]:
    """What is measured, in words, and the measurement."""
    for axis, x, channels, rank, size in _places(scale):
        yield (
            f"{axis} {x}: {channels} channels, rank {rank}, input {size} x {size}",
            partial(_layer_points, figure, scale, axis, x, channels, rank, size, device),
        )
    networks = _Networks(figure, scale, device)
    ranks = ", ".join(map(str, scale.network.ranks))
    for work in NETWORK_WORKS:
        yield f"whole network: {scale.network.preset}, full and ranks {ranks}, {work}", partial(networks.points, work)


def _places(scale: SpeedScale) -> Iterator[tuple[AxisName, int, int, int, int]]:
    """(axis, x, channels, rank, size) of every point."""

    def filled(axis: Axis, x: int, name: str) -> tuple[int, int, int]:
        channels = x if name == "width" else axis.channels or 64
        size = x if name == "input" else axis.size or 16
        rank = x if name == "rank" else axis.rank or max(1, round(axis.rank_share * channels))
        return channels, rank, size

    names: tuple[tuple[AxisName, Axis], ...] = (("width", scale.width), ("rank", scale.rank), ("input", scale.input))
    for name, axis in names:
        for x in axis.values:
            yield name, x, *filled(axis, x, name)


@torch.no_grad()
def _layer_points(
    figure: SpeedFigure,
    scale: SpeedScale,
    axis: AxisName,
    x: int,
    channels: int,
    rank: int,
    size: int,
    device: torch.device,
) -> list[Point]:
    full: nn.Module = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(device)
    tt = TTConv2d(channels, channels, 3, rank=rank, padding=1, bias=False).to(device)
    for weight in (full.weight, tt.core):
        assert isinstance(weight, torch.Tensor)
        # The largest value of a Gaussian 3x3 kernel of width c is close to 3 * 2 sqrt(c) deviations.
        weight.normal_(0, 2 * figure.max / (6 * math.sqrt(weight.shape[0])))
    modelled = layer_cost(full, (size, size)) / layer_cost(tt, (size, size))
    points = []
    works: dict[Work, Callable[[nn.Module], None]] = {
        "all values": partial(_all_values, size=(size, size)),
        "control pass": partial(_control, max=figure.max),
    }
    for work, apply in works.items():
        times = _rounds([partial(apply, full), partial(apply, tt)], scale, device)
        points.append(Point(axis, x, channels, rank, size, work, times[0], times[1], modelled))
    return points


def _all_values(layer: nn.Module, *, size: tuple[int, ...]) -> None:
    singular_values(operator_of(layer), size)


def _control(layer: nn.Module, *, max: float) -> None:
    """One clip of a layer, written back; its weights are given back, so that every round has the same work."""
    before = [parameter.clone() for parameter in layer.parameters()]
    write_operator_(layer, clip_kernel(operator_of(layer), max).conv)
    for parameter, value in zip(layer.parameters(), before, strict=True):
        parameter.copy_(value)


class _Networks:
    """Whole networks, full and of each rank; built when they are first measured."""

    def __init__(self, figure: SpeedFigure, scale: SpeedScale, device: torch.device) -> None:
        self.figure, self.scale, self.device = figure, scale, device

    @cached_property
    def nets(self) -> dict[int, "_Network"]:
        """By rank, the full one as 0."""
        network = self.scale.network
        words = {0: ["layer.kind=standard"]} | {
            rank: ["layer.kind=tt", f"layer.rank={rank}", "layer.frames.kind=retract"] for rank in network.ranks
        }
        return {
            rank: _Network(
                resolve({"preset": network.preset, "set": [*network.set, *sets]}).config,
                network.batch,
                self.device,
                self.figure.max,
            )
            for rank, sets in words.items()
        }

    def points(self, work: Work) -> list[Point]:
        """One kind of work on all of them, in turn."""
        times = _rounds([partial(net.do, work) for net in self.nets.values()], self.scale, self.device)
        full, *others = zip(self.nets, times, strict=True)
        cost = self.nets[0].cost
        return [
            Point("network", rank, None, rank, 32, work, full[1], taken,
                  None if work == "training step" else cost / self.nets[rank].cost)
            for rank, taken in others
        ]  # fmt: skip


class _Network:
    """One whole network, ready for each kind of work."""

    def __init__(self, config: TrainConfig, batch: int, device: torch.device, max: float) -> None:
        config = config.model_copy(update={"batch_size": batch, "epochs": 1})
        fabric = Fabric(accelerator=device.type, devices=1)
        data = random_images(batch * 4, 32, 10)
        model = build_model(config, 10)
        self.cost = control_cost(model, 32)
        sizes = input_sizes(model, (3, 32, 32))
        self.layers = {
            name: size for name, size in sizes.items() if not isinstance(model.get_submodule(name), nn.Linear)
        }
        self.trainer = Trainer(config, model, fabric, data, data, Controller(model, NoControl(), None, sizes=sizes))
        self.model, self.max = model.train(), max
        self.totals = torch.zeros(5, dtype=torch.float64, device=device)
        # No end: how often a step is timed is not known before.
        self.batches = chain.from_iterable(self.trainer.batches.epoch(epoch) for epoch in count())

    def do(self, work: Work) -> None:
        """All values, one control pass over all convolutions, or one step."""
        if work == "training step":
            self.trainer.train_step(*next(self.batches), self.totals)
            return
        with torch.no_grad():
            for name, size in self.layers.items():
                layer = self.model.get_submodule(name)
                if work == "all values":
                    _all_values(layer, size=size)
                else:
                    _control(layer, max=self.max)


def _rounds(works: list[Callable[[], None]], scale: SpeedScale, device: torch.device) -> list[tuple[float, ...]]:
    """Seconds of each work in each round; a first round warms up, and counts when its works are long."""
    began = time.perf_counter()
    first = [_timed(work, 1, device) for work in works]
    loops = [max(1, min(100, math.ceil(SETTLE / max(taken, 1e-6)))) for taken in first]
    times = [[taken] for taken in first] if max(first) > LONG else [[] for _ in works]
    while len(times[0]) < scale.repeats and (len(times[0]) < 3 or time.perf_counter() - began < scale.seconds):
        for work, loop, found in zip(works, loops, times, strict=True):
            found.append(_timed(work, loop, device))
    return [tuple(found) for found in times]


def _timed(work: Callable[[], None], loops: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(loops):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / loops
