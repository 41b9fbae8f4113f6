"""The figure of speed: time of the spectrum and of one control pass on this machine, full layers against TT ones.

Every round times full and TT in turn, so that a machine that slows down slows both. Kernels of single layers are
Gaussian, scaled so that about half of their singular values exceed the bound of the control pass.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, Self

import torch
from lightning_fabric import Fabric
from pydantic import model_validator
from torch import nn

from svdctl.config.train_config import TrainConfig
from svdctl.control.controller import Controller
from svdctl.evaluate.measurement_cache import Measurement, MeasurementCache
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.layer_ops import ops_of
from svdctl.layers.shapes import input_sizes
from svdctl.layers.tt import TTConv2d
from svdctl.models.build import build_model
from svdctl.reproduce.estimate import in_rounds, random_images
from svdctl.reproduce.plan import network_configs
from svdctl.reproduce.run_store import RunStore
from svdctl.reproduce.table_config import Axis, Request, SpeedFigure, SpeedScale
from svdctl.reproduce.table_results import table_folder, write_texts
from svdctl.spectral import clip_kernel, singular_values
from svdctl.train.trainer import Trainer
from svdctl.utils import table as formats
from svdctl.utils.machine import machine

AxisName = Literal["width", "rank", "input", "network"]
Work = Literal["all values", "control pass", "training step"]
NOTES = (
    "Medians, smallest and largest time in brackets; full and TT in turn in every round, ratios round by round.",
    "The model counts one exact decomposition at every output frequency of the layer. svdctl's control pass works on a "
    "small grid instead, whose size does not depend on the input, so its ratio may differ from the model's.",
)
SIDE = 32
"""Side of the images of whole networks."""


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
        columns = [formats.Column(name, name, "left" if name in headers[:2] else "right") for name in headers]
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
    times = [f"{statistics.median(t):.3g} ({min(t):.3g} to {max(t):.3g})" for t in (point.full, point.tt)]
    ratios = [f"{point.measured:.2f}x", "-" if point.modelled is None else f"{point.modelled:.1f}x"]
    return [formats.Cell(what), formats.Cell(point.work, mark=point.kept), *map(formats.Cell, times + ratios)]


def write_figure(
    request: Request, name: str, figure: SpeedFigure, store: RunStore, say: Callable[[str], None]
) -> list[Path]:
    """Measure and write a figure of speed; one that was cut off goes on where it was.

    Another command that measures at the same time would disturb: it is waited for.
    """
    for attempt in count():
        with store.lock(f"figure-{name}") as mine:
            if mine:
                return _written(request, name, figure, say)
        if attempt == 0:
            say(f"another command measures {name}: waiting for it")
        time.sleep(1)
    raise AssertionError


def _written(request: Request, name: str, figure: SpeedFigure, say: Callable[[str], None]) -> list[Path]:
    from svdctl.reproduce.speed_plot import plot_speed  # matplotlib takes a second to import

    smoke = request.scale == "smoke"
    stem = table_folder(request.out_dir) / (f"{name}-smoke" if smoke else name)
    unfinished = stem.with_name(f".{stem.name}.measured.json")
    results = measure_figure(figure, smoke=smoke, file=unfinished, say=say)
    texts = {
        "md": formats.markdown(results.table),
        "csv": formats.csv_text(results.records),
        "tex": formats.latex(results.table),
        "json": formats.json_text(results.contents),
    }
    files = [*write_texts(stem, texts), stem.with_name(f"{stem.name}.png")]
    plot_speed(results, files[-1])
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
    scale = figure.smoke if smoke else figure.full
    device = Fabric(accelerator="auto", devices=1).device
    about = {"figure": figure.model_dump(mode="json"), "smoke": smoke, "machine": machine(device)}
    cache = MeasurementCache(file, _Measured, about)
    for notice in cache.notices:
        say(notice)
    points: list[Point] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for what, measure in _Bench(figure, scale, device).measurements():
            kept = cache.get(what) is not None
            say(what + " (kept)" * kept)
            record = cache.once(what, partial(_measured, what, measure))
            points += [replace(point, kept="kept" * kept) for point in record.points]
    mark = "SMOKE SCALE, not the paper's experiment: " if smoke else ""
    return SpeedResults(mark + figure.title, smoke, tuple(points), machine(device))


class _Measured(Measurement):
    """The points of one measurement."""

    what: str
    points: tuple[Point, ...]

    @property
    def key(self) -> str:
        return self.what

    @model_validator(mode="after")
    def _times_are_times(self) -> Self:
        for point in self.points:
            times = (*point.full, *point.tt)
            if len(point.full) != len(point.tt) or not point.full or not all(0 < time < math.inf for time in times):
                raise ValueError("times are positive, and as many of the full layer as of TT")
        return self


def _measured(what: str, measure: Callable[[], list[Point]]) -> _Measured:
    return _Measured(what=what, points=tuple(measure()))


@dataclass(frozen=True)
class _Subject:
    """Layers that are timed together, with the sizes of their inputs: one layer, or the convolutions of a network."""

    layers: Sequence[tuple[nn.Module, tuple[int, ...]]]
    step: Callable[[], None] | None = None
    """A training step of the network."""


class _Bench:
    """Times full and TT in turn, on one device."""

    def __init__(self, figure: SpeedFigure, scale: SpeedScale, device: torch.device) -> None:
        self.max_sigma, self.scale, self.device = figure.max_sigma, scale, device

    def measurements(self) -> Iterator[tuple[str, Callable[[], list[Point]]]]:
        """Yield what is measured, in words, and the measurement."""
        width, by_rank, side = self.scale.width, self.scale.rank, self.scale.input
        series: list[tuple[AxisName, int, int, dict[int, int]]] = [
            *(("width", channels, width.size or 16, {channels: _rank(width, channels)}) for channels in width.values),
            ("rank", by_rank.channels or 64, by_rank.size or 16, {rank: rank for rank in by_rank.values}),
            *(("input", side.channels or 64, size, {size: _rank(side, side.channels or 64)}) for size in side.values),
        ]
        for axis, channels, size, ranks in series:
            what = f"{axis}: {channels} channels, input {size} x {size}, rank {', '.join(map(str, ranks.values()))}"
            yield what, partial(self.layers, axis, channels, size, ranks)
        named = ", ".join(map(str, self.scale.network.ranks))
        for work in ("all values", "control pass", "training step"):
            what = f"whole network: {self.scale.network.preset}, full and ranks {named}, {work}"
            yield what, partial(self.whole_networks, work)

    def layers(self, axis: AxisName, channels: int, size: int, ranks: Mapping[int, int]) -> list[Point]:
        """Time the full layer and one of each rank."""
        shape = (channels, channels, 3)
        layers: list[nn.Module] = [nn.Conv2d(*shape, padding=1, bias=False)]
        layers += [TTConv2d(*shape, rank=rank, padding=1, bias=False) for rank in ranks.values()]
        for layer in layers:
            weight = ops_of(layer).tensors(layer.to(self.device))[0]
            # The largest value of a Gaussian 3x3 kernel of width c is close to 3 * 2 sqrt(c) deviations.
            with torch.no_grad():
                weight.normal_(0, 2 * self.max_sigma / (6 * math.sqrt(weight.shape[0])))
        subjects = [_Subject([(layer, (size, size))]) for layer in layers]
        works: tuple[Work, ...] = ("all values", "control pass")
        points = [point for work in works for point in self.points(axis, channels, size, ranks, subjects, work)]
        return sorted(points, key=lambda point: list(ranks).index(point.x))

    def whole_networks(self, work: Work) -> list[Point]:
        """Time one kind of work on the whole network, full and of each rank."""
        return self.points("network", None, SIDE, {r: r for r in self.scale.network.ranks}, self.networks, work)

    @cached_property
    def networks(self) -> list[_Subject]:
        """Return the whole network, full and of each rank; built when it is first measured."""
        return [self._network(config) for config in network_configs(self.scale.network).values()]

    def _network(self, config: TrainConfig) -> _Subject:
        batch = self.scale.network.batch
        config = config.model_copy(update={"batch_size": batch, "epochs": 1})
        data = random_images(batch * 4, SIDE, 10)
        model = build_model(config, 10)
        sizes = input_sizes(model, (3, SIDE, SIDE))
        fabric = Fabric(accelerator=self.device.type, devices=1)
        trainer = Trainer(config, model, fabric, data, data, Controller.from_config(model, None, None, None))
        model.train()
        totals = torch.zeros(5, dtype=torch.float64, device=self.device)
        # No end: how often a step is timed is not known before.
        batches = chain.from_iterable(trainer.batches.epoch(epoch) for epoch in count())
        layers = [(model.get_submodule(name), size) for name, size in sizes.items()]
        convolutions = [(layer, size) for layer, size in layers if not isinstance(layer, nn.Linear)]
        return _Subject(convolutions, lambda: trainer.train_step(*next(batches), totals))

    def points(
        self,
        axis: AxisName,
        channels: int | None,
        size: int,
        ranks: Mapping[int, int],
        subjects: Sequence[_Subject],
        work: Work,
    ) -> list[Point]:
        """Time one kind of work on the full subject, the first one, and on those of each rank, in turn."""
        works = [partial(self.run, subject, work) for subject in subjects]
        full, *others = in_rounds(works, self.scale, self.device)
        dense, *costs = (sum(ops_of(layer).cost(layer, size) for layer, size in subject.layers) for subject in subjects)
        return [
            Point(axis, x, channels, rank, size, work, full, taken, None if work == "training step" else dense / cost)
            for (x, rank), taken, cost in zip(ranks.items(), others, costs, strict=True)
        ]

    def run(self, subject: _Subject, work: Work) -> None:
        """Do one kind of work once."""
        if work == "training step" and subject.step is not None:
            subject.step()
            return
        with torch.no_grad():
            for layer, size in subject.layers:
                if work == "all values":
                    singular_values(operator_of(layer), size)
                else:
                    control(layer, max_sigma=self.max_sigma)


def _rank(axis: Axis, channels: int) -> int:
    return axis.rank or max(1, round(axis.rank_share * channels))


def control(layer: nn.Module, *, max_sigma: float) -> None:
    """Clip a layer once and write it back; its weights are given back, so that every round has the same work."""
    before = [parameter.clone() for parameter in layer.parameters()]
    with torch.no_grad():
        ops_of(layer).write_(layer, clip_kernel(operator_of(layer), max_sigma))
    for parameter, value in zip(layer.parameters(), before, strict=True):
        parameter.copy_(value)
