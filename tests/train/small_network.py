"""A network of TT layers in which a compiler has little to translate."""

import torch
from torch import nn

from svdctl.layers.normalize import Normalize
from svdctl.layers.tt import FramesKind, TTConv2d


def tt_network(frames: FramesKind) -> nn.Sequential:
    """Return two TT layers, one with a stride, BatchNorm and a head for three classes; always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = TTConv2d(3, 8, 3, rank=2, stride=2, padding=1, bias=False, frames=frames)
        second = TTConv2d(8, 8, 3, rank=2, padding=1, frames=frames)
        for layer in (first, second):
            layer.penalty_weight = 10
        return nn.Sequential(
            Normalize((0.5,) * 3, (0.25,) * 3),
            first,
            nn.BatchNorm2d(8),
            nn.ReLU(),
            second,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
