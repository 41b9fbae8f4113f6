"""What follows from a configuration alone: parameters, compression, cost of control, work of a training step.

Networks are built on the meta device: shapes without numbers, so that a full-scale table takes seconds.

Model of the cost of control. A layer with output `n x n`, stride s and kernel `O x I` has n^2 matrices of `O x s^2 I`,
the aliased symbols side by side; one singular value decomposition of `a x b` takes of the order of `a b min(a, b)`
operations. For a TT layer O and I are the ranks of its core (Theorem 1 of the paper). The network's cost is the sum
over its convolutions: WRN-16-10 full against rank 192, 256, 320 is 5.1, 3.2, 2.0.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from svdctl.config.table_config import Column
from svdctl.config.train_config import CLASSES, TrainConfig
from svdctl.layers.shapes import input_sizes
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.models.build import build_model, count_parameters

UNCOMPRESSED = {"tt": "standard", "sott": "soc"}


@dataclass(frozen=True)
class Static:
    """Figures of one configuration."""

    parameters: int
    compression: float
    """Parameters of the same network with uncompressed layers, over its own."""
    control_cost: float
    """Modelled operations of one exact control pass."""
    control_ratio: float
    """The same of the network with uncompressed layers, over its own: how many times cheaper control is."""

    @property
    def columns(self) -> dict[Column, float]:
        """The figures by the columns of tables."""
        return {
            "parameters": float(self.parameters),
            "compression": self.compression,
            "control-cost": self.control_ratio,
        }


def image_side(config: TrainConfig) -> int:
    """Side of the images in pixels; arrays in files count as 32."""
    return int(getattr(config.data, "size", 32))


def classes_of(config: TrainConfig) -> int:
    """Number of classes; of a user's own data, which may be elsewhere, 10."""
    return CLASSES.get(config.data.kind, 10)


def shape_model(config: TrainConfig) -> nn.Module:
    """The network on the meta device."""
    with torch.device("meta"):
        return build_model(config, classes_of(config))


def _uncompressed(config: TrainConfig) -> TrainConfig:
    """The same network with ordinary layers for TT ones and SOC for SOTT ones."""
    kind = UNCOMPRESSED.get(config.layer.kind)
    if kind is None:
        return config
    return TrainConfig.model_validate({**config.model_dump(), "layer": {"kind": kind}})


def static_figures(config: TrainConfig) -> Static:
    """All figures of a configuration."""
    return _figures(_shape_of(config))


def step_flops(config: TrainConfig) -> float:
    """Floating-point operations (a multiplication and an addition are two) of a step's forward and backward pass."""
    return _flops(_shape_of(config))


def _shape_of(config: TrainConfig) -> str:
    """All of a configuration that these figures depend on; rows that share it are counted once."""
    plain = TrainConfig()
    same = {"data": config.data, "model": config.model, "layer": config.layer, "batch_size": config.batch_size}
    return plain.model_copy(update=same).model_dump_json()


@cache
def _figures(text: str) -> Static:
    config = TrainConfig.model_validate_json(text)
    model = shape_model(config)
    whole = _uncompressed(config)
    dense = model if whole is config else shape_model(whole)
    cost, dense_cost = (control_cost(net, image_side(config)) for net in (model, dense))
    parameters = count_parameters(model)
    return Static(
        parameters=parameters,
        compression=count_parameters(dense) / parameters,
        control_cost=cost,
        control_ratio=dense_cost / cost,
    )


def control_cost(model: nn.Module, side: int) -> float:
    """Modelled operations of an exact control pass over the convolutions of a network."""
    sizes = input_sizes(model, (3, side, side), also=(SOC,)).items()
    layers = ((model.get_submodule(name), size) for name, size in sizes)
    # A SOTT layer's work is that of its core, which is seen on its own.
    return sum(layer_cost(layer, size) for layer, size in layers if not isinstance(layer, nn.Linear | SOTT))


def layer_cost(layer: Any, size: tuple[int, ...]) -> float:
    """The same of one layer with an input of this size."""
    stride = getattr(layer, "stride", 1)
    points = folds = 1
    for length, step in zip(size, stride if isinstance(stride, tuple) else (stride,) * len(size), strict=True):
        points *= -(-length // step)
        folds *= step
    if isinstance(layer, SOC):
        rows = columns = layer.width
    else:
        kernel = getattr(layer, "core", None)
        out, channels = (layer.weight if kernel is None else kernel).shape[:2]
        rows, columns = int(out), int(channels) * folds
    return float(points) * rows * columns * min(rows, columns)


def run_bytes(config: TrainConfig) -> int:
    """Disk that a run folder takes at its largest: a checkpoint while its successor is written beside it, best.pt
    when there is one, those of the epochs when they are kept, pictures, logs and results."""
    optimizer = {"sgd": 1, "adam": 2}[config.optimizer.kind] + bool(getattr(config.optimizer, "amsgrad", False))
    copies = 2 * (1 + optimizer) + (config.evaluation.select != "last")
    if config.checkpoint.keep:
        copies += (1 + optimizer) * (config.epochs // config.checkpoint.every_epochs)
    return 4 * copies * static_figures(config).parameters + (4 << 20)


@cache
def _flops(text: str) -> float:
    config = TrainConfig.model_validate_json(text)
    model, side = shape_model(config), image_side(config)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(config.batch_size, 3, side, side, device="meta")).sum().backward()
    return float(counter.get_total_flops())
