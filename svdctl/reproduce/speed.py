"""The paper's point about speed, measured here: time of the spectrum and of one control pass, full against TT.

Every round times full and TT in turn, so that a machine that slows down slows both.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from lightning_fabric import Fabric
from pydantic import model_validator

from svdctl.config.table_config import SpeedFigure, SpeedScale
from svdctl.evaluate.measurement_cache import Measurement, MeasurementCache
from svdctl.reproduce.speed_layers import layer_points, series_of
from svdctl.reproduce.speed_networks import Networks
from svdctl.reproduce.speed_points import Point, SpeedResults, Work
from svdctl.utils.machine import machine

NETWORK_WORKS: tuple[Work, ...] = ("all values", "control pass", "training step")


def measure_figure(figure: SpeedFigure, *, smoke: bool, file: Path, say: Callable[[str], None]) -> SpeedResults:
    """Measure everything that the figure asks for on this machine's accelerator, else its CPU.

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
        for what, measure in _measurements(figure, scale, device):
            kept = cache.get(what)
            if kept is not None:
                say(f"{what} (kept)")
                points += [replace(point, kept="kept") for point in kept.record.points]
            else:
                say(what)
                cache.put(_Measured(what=what, points=tuple(measure())))
                points += cache.kept[-1].record.points
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


def _measurements(
    figure: SpeedFigure, scale: SpeedScale, device: torch.device
) -> Iterator[tuple[str, Callable[[], list[Point]]]]:
    """What is measured, in words, and the measurement."""
    for series in series_of(scale):
        yield str(series), partial(layer_points, figure, scale, series, device)
    networks = Networks(figure, scale, device)
    ranks = ", ".join(map(str, scale.network.ranks))
    for work in NETWORK_WORKS:
        yield f"whole network: {scale.network.preset}, full and ranks {ranks}, {work}", partial(networks.points, work)
