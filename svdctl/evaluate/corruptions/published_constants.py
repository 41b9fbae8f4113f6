"""The constants of the published generators of CIFAR-C, Tiny-ImageNet-C and ImageNet-C, by corruption and severity.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
ICLR 2019; the numbers are those of their generators (github.com/hendrycks/robustness, `make_cifar_c.py`,
`make_tinyimagenet_c.py`, `make_imagenet_c.py`). All corruptions are defined alike there, and have other strengths.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedGenerator:
    """A published generator, for images of one size."""

    name: str
    """Of the data set that it made."""
    side: int
    """Height and width of its images; lengths are in their pixels."""
    frost_zoom: float
    """Factor by which its photographs of frost are scaled, before a piece of the images' size is taken."""
    constants: Mapping[str, tuple[Any, ...]]
    """By corruption, one number or a tuple of them for each of the five severities."""


_CIFAR_C = PublishedGenerator(
    "CIFAR-C",
    32,
    0.2,
    {
        # standard deviation
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        # photons of white
        "shot_noise": (500, 250, 100, 75, 50),
        # share of values
        "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
        # radius of the disk, sigma that smoothes its edge
        "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
        # sigma, reach of a shift, rounds
        "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        # radius, sigma
        "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
        # end and step of the zooms
        "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        # mean, standard deviation, zoom, threshold, radius, sigma, weight of the image
        "snow": (
            (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        # weight of the image, weight of the frost
        "frost": ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        # strength, decay
        "fog": ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
        # added to HSV's value
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        # factor of the distance to the mean
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        # strength of shifts, sigma that smoothes them, jitter of the affine map: all over the side
        "elastic_transform": (
            (0.0, 0.0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
        # share of the size
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
        # quality
        "jpeg_compression": (80, 65, 58, 50, 40),
        # standard deviation
        "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
        # sigma
        "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),
        # mean, standard deviation, sigma, threshold, weight of water or sigma of the edge of mud, whether it is mud
        "spatter": (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1.0, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        # factor, offset
        "saturate": ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
    },
)

_TINY_IMAGENET_C = PublishedGenerator(
    "Tiny-ImageNet-C",
    64,
    0.3,
    {
        "gaussian_noise": (0.04, 0.08, 0.12, 0.15, 0.18),
        "shot_noise": (250, 100, 50, 30, 15),
        "impulse_noise": (0.01, 0.02, 0.05, 0.08, 0.14),
        "defocus_blur": ((0.5, 0.6), (1.0, 0.1), (1.5, 0.1), (2.5, 0.01), (3.0, 0.1)),
        "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        "motion_blur": ((10, 1.0), (10, 1.5), (10, 2.0), (10, 2.5), (12, 3.0)),
        "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "snow": (
            (0.1, 0.2, 1.0, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1.0, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        "frost": ((1.0, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        "fog": ((0.4, 3.0), (0.7, 3.0), (1.0, 2.5), (1.5, 2.0), (2.0, 1.75)),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        "elastic_transform": (
            (0.0, 0.0, 0.08),
            (0.05, 0.3, 0.06),
            (0.1, 0.08, 0.06),
            (0.1, 0.03, 0.03),
            (0.16, 0.03, 0.02),
        ),
        "pixelate": (0.9, 0.8, 0.7, 0.6, 0.5),
        "jpeg_compression": (65, 58, 50, 40, 25),
        "speckle_noise": (0.15, 0.2, 0.25, 0.3, 0.35),
        "gaussian_blur": (0.5, 0.75, 1.0, 1.25, 1.5),
        "spatter": (
            (0.62, 0.1, 0.7, 0.7, 0.6, False),
            (0.65, 0.1, 0.8, 0.7, 0.6, False),
            (0.65, 0.3, 1.0, 0.69, 0.6, False),
            (0.65, 0.1, 0.7, 0.68, 0.6, True),
            (0.65, 0.1, 0.5, 0.67, 0.6, True),
        ),
        "saturate": ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (30.0, 0.2)),
    },
)

_ELASTIC = 244 / 224
"""ImageNet-C's generator takes its shifts of images of 244 pixels, and moves images of 224 by them."""

_IMAGENET_C = PublishedGenerator(
    "ImageNet-C",
    224,
    1.0,
    {
        "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "shot_noise": (60, 25, 12, 5, 3),
        "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
        "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        "snow": (
            (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "frost": ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        "fog": ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        "elastic_transform": tuple(
            tuple(number * _ELASTIC for number in numbers)
            for numbers in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
        "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": (25, 18, 15, 10, 7),
        "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
        "gaussian_blur": (1, 2, 3, 4, 6),
        "spatter": (
            (0.65, 0.3, 4.0, 0.69, 0.6, False),
            (0.65, 0.3, 3.0, 0.68, 0.6, False),
            (0.65, 0.3, 2.0, 0.68, 0.5, False),
            (0.65, 0.3, 1.0, 0.65, 1.5, True),
            (0.67, 0.4, 1.0, 0.65, 1.5, True),
        ),
        "saturate": ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
    },
)

GENERATORS = (_CIFAR_C, _TINY_IMAGENET_C, _IMAGENET_C)


def generator_of(height: int, width: int) -> PublishedGenerator:
    """Return the generator whose side is nearest, as a ratio, to the shorter side of images: up to 45, 119, above."""
    side = min(height, width)
    return min(GENERATORS, key=lambda generator: abs(math.log(side / generator.side)))
