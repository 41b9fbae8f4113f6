"""The figure of speed: time of the spectrum and of one control pass on this machine, full layers against TT ones.

Every round times full and TT in turn, so that a machine that slows down slows both. Kernels of single layers are
Gaussian, scaled so that about half of their singular values exceed the bound of the control pass.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from lightning_fabric import Fabric
from pydantic import Field, PositiveFloat
from torch import nn

from svdctl.config.train_config import TrainConfig
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.layer_ops import ops_of
from svdctl.layers.shapes import input_sizes
from svdctl.layers.tt import TTConv2d
from svdctl.reproduce.plan import network_configs
from svdctl.reproduce.run_store import RunStore
from svdctl.reproduce.table_files import SMOKE, Axis, Request, SpeedFigure, SpeedScale
from svdctl.reproduce.table_results import write_formats
from svdctl.reproduce.timing import image_side, in_rounds, trainer_on_noise
from svdctl.spectral import clip_kernel, singular_values
from svdctl.utils import table as formats
from svdctl.utils.machine import machine
from svdctl.utils.measurement_cache import Measurement, MeasurementCache

AxisName = Literal["width", "rank", "input", "network"]
Work = Literal["all values", "control pass", "training step"]
Times = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
NOTES = (
    "Medians, smallest and largest time in brackets; full and TT in turn in every round, ratios round by round.",
    "The model counts one exact decomposition at every output frequency of the layer. svdctl's control pass works on a "
    "small grid instead, whose size does not depend on the input, so its ratio may differ from the model's.",
)


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
    full: Times
    """Seconds of each round."""
    tt: Times
    modelled: float | None
    """How many times cheaper TT is by the model of the cost; None for the training step, which it is not about."""
    kept: str = ""
    """`kept` where an earlier call that was cut off had measured it."""

    @property
    def measured(self) -> float:
        """Return how many times faster TT is: the median of the rounds' ratios."""
        return statistics.median(a / b for a, b in zip(self.full, self.tt, strict=True))


@dataclass(frozen=True)
class SpeedResults:
    """All points, and what they were measured on."""

    title: str
    smoke: bool
    points: tuple[Point, ...]
    machine: str

    @property
    def table(self) -> formats.Table:
        """Return the table for reading, the whole network first."""
        headers = ("what", "work", "full, s", "TT, s", "TT faster", "by the model")
        bases: dict[str, formats.Basis] = {**dict.fromkeys(headers[2:5], "measured"), headers[5]: "estimated"}
        columns = [
            formats.Column(name, name, "right" if name in bases else "left", basis=bases.get(name, ""))
            for name in headers
        ]
        points = sorted(self.points, key=lambda point: point.axis != "network")
        return formats.Table(columns, [*map(_cells, points)], self.title, f"Measured on {self.machine}.", NOTES)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Return a row of CSV for each point and each of full and TT."""
        return [
            {
                "figure": self.title,
                "machine": self.machine,
                **{name: getattr(point, name) for name in ("axis", "x", "channels", "rank", "size", "work")},
                "layer": layer,
                "median": statistics.median(times),
                "min": min(times),
                "max": max(times),
                "n": len(times),
                "measured_ratio": point.measured,
                "modelled_ratio": point.modelled,
                "kept": point.kept,
            }
            for point in self.points
            for layer, times in (("full", point.full), ("tt", point.tt))
        ]

    @property
    def contents(self) -> dict[str, Any]:
        """Return every round's time, for JSON."""
        points = [{**asdict(point), "measured": point.measured} for point in self.points]
        scale = "smoke" if self.smoke else "full"
        return {"title": self.title, "scale": scale, "machine": self.machine, "points": points}


def _cells(point: Point) -> list[formats.Cell]:
    what = (
        f"whole network, rank {point.rank}"
        if point.axis == "network"
        else f"{point.channels} channels, rank {point.rank}, {point.size} x {point.size}"
    )
    times = [
        formats.Cell(f"{statistics.median(t):.3g} ({min(t):.3g} to {max(t):.3g})", statistics.median(t))
        for t in (point.full, point.tt)
    ]
    measured = formats.Cell(f"{point.measured:.2f}x", point.measured)
    modelled = formats.Cell("-" if point.modelled is None else f"{point.modelled:.1f}x", point.modelled)
    return [formats.Cell(what), formats.Cell(point.work, mark=point.kept), *times, measured, modelled]


def write_figure(
    request: Request, name: str, figure: SpeedFigure, store: RunStore, say: Callable[[str], None]
) -> list[Path]:
    """Measure and write a figure of speed; one that was cut off goes on where it was.

    Another command that measures at the same time would disturb: it is waited for.
    """
    waiting = False
    while True:
        with store.lock(f"figure-{name}") as mine:
            if mine:
                return _written(request, name, figure, say)
        if not waiting:
            say(f"another command measures {name}: waiting for it")
        waiting = True
        time.sleep(1)


def _written(request: Request, name: str, figure: SpeedFigure, say: Callable[[str], None]) -> list[Path]:
    from svdctl.reproduce.speed_plot import draw_speed  # matplotlib takes a second to import
    from svdctl.reproduce.table_page import speed_page

    smoke = request.scale == "smoke"
    stem = request.out_dir.expanduser() / "tables" / (f"{name}-smoke" if smoke else name)
    unfinished = stem.with_name(f".{stem.name}.measured.json")
    results = measure_figure(figure, smoke=smoke, file=unfinished, say=say)
    page = partial(speed_page, results)
    files = write_formats(stem, results.table, results.records, results.contents, page, draw_speed(results))
    unfinished.unlink(missing_ok=True)
    return files


def measure_figure(figure: SpeedFigure, *, smoke: bool, file: Path, say: Callable[[str], None]) -> SpeedResults:
    """Measure a figure on this machine's accelerator, else its CPU.

    Args:
        figure: what to measure.
        smoke: at the small scale.
        file: keeps each measurement until all are done; one that was cut off goes on.
        say: called before each.
    """
    fabric = Fabric(accelerator="auto", devices=1)
    on = machine(fabric.device)
    cache = MeasurementCache(
        file, TimedPoints, {"figure": figure.model_dump(mode="json"), "smoke": smoke, "machine": on}
    )
    for notice in cache.notices:
        say(notice)
    points: list[Point] = []
    scale = figure.smoke if smoke else figure.full
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for one in series(scale, figure.max_sigma, fabric):
            kept = one.what in cache.kept
            say(one.what + " (kept)" * kept)
            found = cache.once(one.what, partial(one.measure, scale, figure.max_sigma, fabric.device))
            points += [replace(point, kept="kept" * kept) for point in found.points]
    return SpeedResults(SMOKE * smoke + figure.title, smoke, tuple(points), on)


class TimedPoints(Measurement):
    """The points of one measurement."""

    what: str
    points: tuple[Point, ...]

    @property
    def key(self) -> str:
        return self.what


@dataclass(frozen=True)
class _Layers:
    """Layers that are timed together, with the sizes of their inputs: one layer, or the convolutions of a network."""

    layers: Sequence[tuple[nn.Module, tuple[int, ...]]]
    step: Callable[[], None] | None = None
    """A training step of the network."""

    @property
    def cost(self) -> float:
        """Return the modelled operations of an exact control pass."""
        return sum(ops_of(layer).cost(layer, size) for layer, size in self.layers)

    def do(self, work: Work, max_sigma: float) -> None:
        """Do one kind of work once."""
        if work == "training step" and self.step is not None:
            self.step()
            return
        with torch.no_grad():
            for layer, size in self.layers:
                if work == "all values":
                    singular_values(operator_of(layer), size)
                else:
                    control(layer, max_sigma=max_sigma)


@dataclass(frozen=True)
class Series:
    """Points that are measured together: a full layer or network, and one of each rank."""

    what: str
    """In words."""
    axis: AxisName
    channels: int | None
    size: int
    ranks: Mapping[int, int]
    """By the place on the axis."""
    works: Sequence[Work]
    layers: Callable[[], Sequence[_Layers]]
    """Makes what is timed, the full one first."""

    def measure(self, scale: SpeedScale, max_sigma: float, device: torch.device) -> TimedPoints:
        """Time each kind of work on all of them, in turn."""
        points: list[Point] = []
        whole, *others = self.layers()
        for work in self.works:
            todo = [partial(one.do, work, max_sigma) for one in (whole, *others)]
            full, *times = in_rounds(todo, device, scale.repeats, scale.seconds)
            for (x, rank), one, tt in zip(self.ranks.items(), others, times, strict=True):
                modelled = None if work == "training step" else whole.cost / one.cost
                points.append(Point(self.axis, x, self.channels, rank, self.size, work, full, tt, modelled))
        return TimedPoints(what=self.what, points=tuple(sorted(points, key=lambda point: [*self.ranks].index(point.x))))


def series(scale: SpeedScale, max_sigma: float, fabric: Fabric) -> Iterator[Series]:
    """Yield what is measured of single layers along each axis, and of the whole network."""
    width, by_rank, side = scale.width, scale.rank, scale.input
    axes: list[tuple[AxisName, int, int, dict[int, int]]] = [
        *(("width", channels, width.size or 16, {channels: _rank(width, channels)}) for channels in width.values),
        ("rank", by_rank.channels or 64, by_rank.size or 16, {rank: rank for rank in by_rank.values}),
        *(("input", side.channels or 64, size, {size: _rank(side, side.channels or 64)}) for size in side.values),
    ]
    all_works = get_args(Work)
    for axis, channels, size, ranks in axes:
        what = f"{axis}: {channels} channels, input {size} x {size}, rank {', '.join(map(str, ranks.values()))}"
        layers = partial(_single_layers, channels, size, tuple(ranks.values()), max_sigma, fabric.device)
        yield Series(what, axis, channels, size, ranks, all_works[:2], layers)
    configs = network_configs(scale.network)
    networks = cache(lambda: [_network(config, scale.network.batch, fabric) for config in configs.values()])
    ranks = {rank: rank for rank in scale.network.ranks}
    for work in all_works:
        what = f"whole network: {scale.network.preset}, full and ranks {', '.join(map(str, ranks))}, {work}"
        yield Series(what, "network", None, image_side(configs[0]), ranks, (work,), networks)


def _single_layers(
    channels: int, size: int, ranks: Sequence[int], max_sigma: float, device: torch.device
) -> list[_Layers]:
    """Return a full layer and one of each rank."""
    shape = (channels, channels, 3)
    layers: list[nn.Module] = [nn.Conv2d(*shape, padding=1, bias=False)]
    layers += [TTConv2d(*shape, rank=rank, padding=1, bias=False) for rank in ranks]
    for layer in layers:
        weight = ops_of(layer).tensors(layer.to(device))[0]
        # The largest value of a Gaussian 3x3 kernel of width c is close to 3 * 2 sqrt(c) deviations.
        with torch.no_grad():
            weight.normal_(0, 2 * max_sigma / (6 * math.sqrt(weight.shape[0])))
    return [_Layers([(layer, (size, size))]) for layer in layers]


def _network(config: TrainConfig, batch: int, fabric: Fabric) -> _Layers:
    """Return the convolutions of a whole network and its training step."""
    trainer, step = trainer_on_noise(config.model_copy(update={"batch_size": batch}), fabric)
    sizes = input_sizes(trainer.model, (3, image_side(config), image_side(config)))
    layers = [(trainer.model.get_submodule(name), size) for name, size in sizes.items()]
    return _Layers([(layer, size) for layer, size in layers if not isinstance(layer, nn.Linear)], step)


def _rank(axis: Axis, channels: int) -> int:
    return axis.rank or max(1, round(axis.rank_share * channels))


def control(layer: nn.Module, *, max_sigma: float) -> None:
    """Clip a layer once and write it back; its weights are given back, so that every round has the same work."""
    before = [parameter.clone() for parameter in layer.parameters()]
    with torch.no_grad():
        ops_of(layer).write_([layer], [clip_kernel(operator_of(layer), max_sigma)])
    for parameter, value in zip(layer.parameters(), before, strict=True):
        parameter.copy_(value)
