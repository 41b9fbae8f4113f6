"""A user's data set: stripes of two directions, made when they are loaded."""

from typing import Literal

import torch
from pydantic import PositiveInt

import svdctl
from svdctl.config.data_config import DataConfig
from svdctl.data.data_source import DataSource
from svdctl.data.images import ImageData
from svdctl.data.train_test import TrainTest


class Stripes(DataConfig):
    """Horizontal and vertical stripes with noise."""

    kind: Literal["stripes"] = "stripes"
    size: PositiveInt = 16
    """Side of the images in pixels."""
    count: PositiveInt = 64
    """Training images; half as many are tested."""


@svdctl.register_data
class StripesSource(DataSource):
    """Draws the same images for the same configuration."""

    kind = "stripes"
    config = Stripes
    attacked_by_default = 4

    def load(self, config: Stripes) -> TrainTest:
        """Return the images as bytes `(N, 3, size, size)`, with their labels and the names of the classes."""
        return TrainTest(self._part(config, config.count, 0), self._part(config, config.count // 2, 1))

    def _part(self, config: Stripes, count: int, seed: int) -> ImageData:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 2
        stripes = 180 * (torch.arange(config.size) // 2 % 2)[None, :].expand(config.size, -1)
        images = torch.stack([stripes if label else stripes.T for label in labels.tolist()])[:, None]
        noise = torch.randint(0, 60, (count, 3, config.size, config.size), generator=generator)
        return ImageData((images + noise).to(torch.uint8), labels, ("across", "down"))

    def classes(self, config: Stripes) -> int:
        """Return what is known without loading; plans and dry runs use it."""
        return 2

    def image_shape(self, config: Stripes) -> tuple[int, int, int]:
        """Return channels, height and width."""
        return 3, config.size, config.size
