"""Time of single layers, full against TT.

Kernels are Gaussian, scaled so that about half of their values exceed the bound of the control pass.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from svdctl.config.table_config import Axis, SpeedFigure, SpeedScale
from svdctl.layers.layer_operator import operator_of, weight_of, write_operator_
from svdctl.layers.tt import TTConv2d
from svdctl.reproduce.speed_points import AxisName, Point, Work
from svdctl.reproduce.static_figures import layer_cost
from svdctl.reproduce.timing import in_rounds
from svdctl.spectral import clip_kernel, singular_values


@dataclass(frozen=True)
class Series:
    """Places of an axis that have the full layer in common."""

    axis: AxisName
    channels: int
    size: int
    ranks: dict[int, int]
    """By place."""

    def __str__(self) -> str:
        ranks = ", ".join(map(str, self.ranks.values()))
        return f"{self.axis}: {self.channels} channels, input {self.size} x {self.size}, rank {ranks}"


def series_of(scale: SpeedScale) -> Iterator[Series]:
    """Everything that is measured of single layers."""
    for channels in scale.width.values:
        yield Series("width", channels, scale.width.size or 16, {channels: _rank(scale.width, channels)})
    channels = scale.rank.channels or 64
    yield Series("rank", channels, scale.rank.size or 16, {rank: rank for rank in scale.rank.values})
    channels = scale.input.channels or 64
    for size in scale.input.values:
        yield Series("input", channels, size, {size: _rank(scale.input, channels)})


def _rank(axis: Axis, channels: int) -> int:
    return axis.rank or max(1, round(axis.rank_share * channels))


@torch.no_grad()
def layer_points(figure: SpeedFigure, scale: SpeedScale, series: Series, device: torch.device) -> list[Point]:
    """The full layer and one of each rank, in turn."""
    channels, size = series.channels, (series.size, series.size)
    full = _gaussian(nn.Conv2d(channels, channels, 3, padding=1, bias=False), figure.max_sigma, device)
    tts = [
        _gaussian(TTConv2d(channels, channels, 3, rank=rank, padding=1, bias=False), figure.max_sigma, device)
        for rank in series.ranks.values()
    ]
    works: dict[Work, Callable[[nn.Module], None]] = {
        "all values": partial(all_values, size=size),
        "control pass": partial(control, max_sigma=figure.max_sigma),
    }
    times = {
        work: in_rounds([partial(apply, layer) for layer in (full, *tts)], scale, device)
        for work, apply in works.items()
    }
    points = []
    for index, ((x, rank), layer) in enumerate(zip(series.ranks.items(), tts, strict=True), 1):
        modelled = layer_cost(full, size) / layer_cost(layer, size)
        points += [
            Point(series.axis, x, channels, rank, series.size, work, taken[0], taken[index], modelled)
            for work, taken in times.items()
        ]
    return points


def _gaussian(layer: nn.Module, max_sigma: float, device: torch.device) -> nn.Module:
    """The layer with a Gaussian kernel whose largest value is near twice `max_sigma`."""
    weight = weight_of(layer.to(device))
    # The largest value of a Gaussian 3x3 kernel of width c is close to 3 * 2 sqrt(c) deviations.
    weight.normal_(0, 2 * max_sigma / (6 * math.sqrt(weight.shape[0])))
    return layer


def all_values(layer: nn.Module, *, size: tuple[int, ...]) -> None:
    """The exact spectrum of a layer, once."""
    singular_values(operator_of(layer), size)


def control(layer: nn.Module, *, max_sigma: float) -> None:
    """One clip of a layer, written back; its weights are given back, so that every round has the same work."""
    before = [parameter.clone() for parameter in layer.parameters()]
    write_operator_(layer, clip_kernel(operator_of(layer), max_sigma).conv)
    for parameter, value in zip(layer.parameters(), before, strict=True):
        parameter.copy_(value)
