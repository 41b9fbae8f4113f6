"""The paper's point about speed, measured here: time of the spectrum and of one control pass, full against TT.

Every round times full and TT in turn, so that a machine that slows down slows both.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from svdctl.config.table import SpeedFigure, SpeedScale
from svdctl.machine import machine
from svdctl.recipes.reproduction.journal import Journal
from svdctl.recipes.reproduction.speed_layers import layer_points, series_of
from svdctl.recipes.reproduction.speed_networks import Networks
from svdctl.recipes.reproduction.speed_points import Point, SpeedResults, Work

NETWORK_WORKS: tuple[Work, ...] = ("all values", "control pass", "training step")


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
    for series in series_of(scale):
        yield str(series), partial(layer_points, figure, scale, series, device)
    networks = Networks(figure, scale, device)
    ranks = ", ".join(map(str, scale.network.ranks))
    for work in NETWORK_WORKS:
        yield f"whole network: {scale.network.preset}, full and ranks {ranks}, {work}", partial(networks.points, work)
