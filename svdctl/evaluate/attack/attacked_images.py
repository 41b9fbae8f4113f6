"""Which images are attacked, and whether they can be."""

import torch
from torch import Tensor

from svdctl.config.attack_settings import AttackSettings
from svdctl.errors import DataError


def choose_examples(count: int, settings: AttackSettings) -> Tensor:
    """Ascending positions of the `settings.examples` images out of `count` that are attacked, drawn from the seed."""
    if settings.examples is None or settings.examples >= count:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randperm(count, generator=generator)[: settings.examples].sort().values


def check_images(images: Tensor, labels: Tensor) -> None:
    """Raise `DataError` unless these are bytes or pixels in [0, 1], `(N, C, H, W)`, with one label `(N,)` each."""
    if images.ndim != 4 or len(images) != len(labels) or len(images) == 0:
        raise DataError(
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)} cannot be attacked; "
            "give (N, C, H, W) and (N,) with N > 0"
        )
    if images.dtype == torch.uint8:
        return
    low, high = float(images.min()), float(images.max())
    if not images.is_floating_point() or not 0 <= low <= high <= 1:
        raise DataError(
            f"images run from {low:g} to {high:g} as {images.dtype}; give bytes or pixels in [0, 1], "
            "and normalise inside of the network"
        )
