"""Layers of every kind that a spectral norm is for, by name."""

from collections.abc import Callable

import torch
from torch import nn

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 5, padding=2), (4, 24)),
    "conv1d stride": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 24)),
    "conv2d": (lambda: nn.Conv2d(3, 5, 3, padding=1), (3, 12, 12)),
    "conv2d stride": (lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 12, 12)),
    "conv2d dilation": (lambda: nn.Conv2d(3, 5, 3, dilation=2, padding=2), (3, 12, 12)),
    "conv2d groups": (lambda: nn.Conv2d(4, 8, 3, groups=2, padding=1), (4, 12, 12)),
    "conv2d oblong": (lambda: nn.Conv2d(3, 4, (1, 4), stride=(1, 2)), (3, 8, 16)),
    "conv2d circular": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (3, 12, 12)),
    "conv2d reflect": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (3, 12, 12)),
    "conv2d replicate": (lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="replicate"), (3, 12, 12)),
    "conv1d reflect": (lambda: nn.Conv1d(4, 6, 5, padding=2, padding_mode="reflect"), (4, 24)),
    "conv2d reflect stride": (
        lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1, padding_mode="reflect"),
        (3, 12, 12),
    ),
    "conv2d same": (lambda: nn.Conv2d(3, 5, (3, 5), padding="same"), (3, 12, 12)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3, padding=1), (2, 6, 6, 6)),
    "conv3d stride": (lambda: nn.Conv3d(2, 3, 3, stride=2, padding=1), (2, 6, 6, 6)),
    "conv3d dilation": (lambda: nn.Conv3d(2, 3, 2, dilation=2, padding=1), (2, 6, 6, 6)),
    "conv3d groups": (lambda: nn.Conv3d(4, 4, 3, groups=2, padding=1), (4, 6, 6, 6)),
    "conv3d replicate": (lambda: nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate"), (2, 6, 6, 6)),
    "conv2d 1x1": (lambda: nn.Conv2d(6, 4, 1), (6, 4, 4)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 3, 4, stride=2), (4, 16)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1), (4, 8, 8)),
    "transposed groups": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2), (4, 8, 8)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 2, 2, stride=2), (2, 4, 4, 4)),
    "linear": (lambda: nn.Linear(20, 12), (20,)),
}
"""What makes the layer, and a shape of its input."""


def layer(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return LAYERS[name][0]()
