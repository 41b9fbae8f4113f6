"""From configuration to objects: the only place that maps tags to classes."""

import math
from functools import partial

import torch
from torch import nn

from svdctl.config.model_config import (
    TT,
    Frames,
    Free,
    Layer,
    Model,
    Penalty,
    Retract,
    Soc,
    Sott,
    Standard,
)
from svdctl.config.optimizer_config import Constant, Cosine, Cyclic, Optimizer, Schedule, Sgd, Steps
from svdctl.config.train_config import TrainConfig
from svdctl.data.batches import derived_seed
from svdctl.layers.normalize import Normalize
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.tt import FramesKind, TTConv2d
from svdctl.models.architecture import architecture_of
from svdctl.models.wrn import ConvFactory, default_conv


def build_model(config: TrainConfig, classes: int) -> nn.Module:
    """The network of a configuration, its weights drawn from the configuration's seed; the global stream is left."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "weights"))
        convs = conv_factories(config)
        conv = convs[0]
        stem = conv if not isinstance(config.layer, TT) or config.layer.compress_first else default_conv
        normalize = Normalize(config.normalize.mean, config.normalize.std)
        model = architecture_of(config.model).build(
            config.model, classes=classes, convs=convs, stem=stem, normalize=normalize
        )
        if isinstance(config.layer, Standard | TT) and config.layer.init is not None:
            _start_anew(model, config.layer.init)
        if isinstance(config.layer, TT | Sott):
            _keep_frames(model, config.layer.frames)
    return model


def conv_factories(config: TrainConfig) -> tuple[ConvFactory, ...]:
    """What makes the convolutions of each group of layers: the stages of LipConvNet, and its last convolution."""
    layer = config.layer
    if isinstance(layer, TT | Sott) and isinstance(layer.rank, tuple):
        return tuple(_conv_factory(layer, config.model, rank) for rank in layer.rank)
    rank = layer.rank if isinstance(layer, TT | Sott) else None
    assert not isinstance(rank, tuple)
    return (_conv_factory(layer, config.model, rank),) * architecture_of(config.model).groups


def _conv_factory(layer: Layer, model: Model, rank: int | None) -> ConvFactory:
    if isinstance(layer, Standard):
        return default_conv
    if isinstance(layer, Soc | Sott):
        return partial(_orthogonal, layer, rank, getattr(model, "checkpoint_activations", False))
    if rank is not None:
        return partial(TTConv2d, rank=rank, frames=layer.frames.kind)
    assert layer.rank_scale is not None
    return partial(_scaled, layer.rank_scale, layer.frames.kind)


def _orthogonal(
    layer: Soc | Sott,
    rank: int | None,
    checkpoint_activations: bool,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int,
    padding: int,
    bias: bool,
) -> nn.Module:
    """A SOC or SOTT layer; its padding is always half of its kernel."""
    assert padding == kernel_size // 2
    if isinstance(layer, Soc):
        return SOC(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            bias=bias,
            checkpoint_activations=checkpoint_activations,
        )
    assert rank is not None
    return SOTT(
        in_channels,
        out_channels,
        kernel_size,
        rank=rank,
        stride=stride,
        bias=bias,
        frames=layer.frames.kind,
        scale=layer.pointwise_scale if kernel_size == 1 else None,
        checkpoint_activations=checkpoint_activations,
    )


def _scaled(
    share: float,
    frames: FramesKind,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int,
    padding: int,
    bias: bool,
) -> nn.Module:
    """A TT layer whose ranks are a share of its widths."""
    rank = (max(1, int(share * in_channels)), max(1, int(share * out_channels)))
    return TTConv2d(
        in_channels, out_channels, kernel_size, rank=rank, stride=stride, padding=padding, bias=bias, frames=frames
    )


def _keep_frames(model: nn.Module, frames: Frames) -> None:
    """Set how the frames of all layers are kept orthonormal."""
    for module in model.modules():
        if isinstance(module, TTConv2d | SOTT) and isinstance(frames, Retract):
            module.retraction = frames.method
        elif isinstance(module, TTConv2d | SOTT) and isinstance(frames, Penalty):
            module.penalty_weight, module.penalty_count = frames.weight, frames.count


@torch.no_grad()
def _start_anew(model: nn.Module, init: str) -> None:
    start = getattr(nn.init, f"{init}_")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            start(module.weight)
        elif isinstance(module, TTConv2d):
            start(module.core)


def build_optimizer(config: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over all parameters; weight decay on all of them but the coordinates of parametrised frames.

    Decay would pull those coordinates to an arbitrary base point, and it breaks torch's Householder map, which reads
    signs from a diagonal that must stay exactly 1.
    """
    coordinates = [value for name, value in model.named_parameters() if "parametrizations." in name]
    weights = [value for name, value in model.named_parameters() if "parametrizations." not in name]
    groups: list[dict[str, object]] = [{"params": weights, "weight_decay": config.weight_decay}]
    if coordinates:
        groups.append({"params": coordinates, "weight_decay": 0.0})
    if isinstance(config, Sgd):
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    return torch.optim.Adam(groups, lr=config.lr, eps=config.eps, amsgrad=config.amsgrad)


def lr_factor(schedule: Schedule, step: int, steps: int, lr: float) -> float:
    """Factor on the learning rate `lr` at a step, counted from 0, of `steps` in all."""
    if isinstance(schedule, Constant):
        return 1.0
    if isinstance(schedule, Steps):
        return schedule.factor ** sum(step >= share * steps for share in schedule.at)
    if isinstance(schedule, Cyclic):
        up, down = schedule.up * steps, schedule.down * steps
        place = step % (up + down)
        height = place / up if place < up else (up + down - place) / down
        lowest = schedule.lr_min / lr
        return lowest + (1 - lowest) * height
    assert isinstance(schedule, Cosine)
    warm = schedule.warmup * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, steps - warm))))


def penalty_of(config: TrainConfig) -> Penalty | None:
    """The penalty on frames, if the configuration has one."""
    if isinstance(config.layer, TT | Sott) and isinstance(config.layer.frames, Penalty):
        return config.layer.frames
    return None


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters; a parametrised frame counts as the matrix that it is."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_on_meta(config: TrainConfig, classes: int) -> int:
    """Return the number of parameters, counted on shapes without numbers.

    torch's parametrization, as large as the frame, would need numbers, so frames are counted as ordinary weights.
    """
    if isinstance(config.layer, TT | Sott):
        config = config.model_copy(update={"layer": config.layer.model_copy(update={"frames": Free()})})
    with torch.device("meta"):
        return count_parameters(build_model(config, classes))
