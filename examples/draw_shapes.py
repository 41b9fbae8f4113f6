"""Draw a folder of small pictures in three classes, of which octagons are hard to tell from discs.

    python examples/draw_shapes.py FOLDER [--train 300] [--val 50] [--size 64] [--seed 0]

`FOLDER/train/<class>/` and `FOLDER/val/<class>/` get so many PNG files a class: discs, squares and octagons of any
place, size, angle and colours, on noise.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = {"disc": 64, "octagon": 8, "square": 4}
"""Corners of each shape."""
SMOOTHING = 4
"""Pictures are drawn so many times larger and scaled down, so that edges are smooth."""


def picture(corners: int, size: int, random: np.random.Generator) -> Image.Image:
    """Return a picture of one regular polygon, RGB, `size` pixels a side."""
    side = SMOOTHING * size
    radius = random.uniform(0.25, 0.45) * side
    x, y = random.uniform(radius, side - radius, size=2)
    turn = random.uniform(-0.2, 0.2) + math.pi / corners
    angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
    back, front = random.integers(0, 100, 3), random.integers(156, 256, 3)
    image = Image.new("RGB", (side, side), tuple(map(int, back)))
    points = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    ImageDraw.Draw(image).polygon(points, fill=tuple(map(int, front)))
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=float)
    return Image.fromarray(np.clip(pixels + random.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8))


def main() -> None:
    """Draw the pictures that the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw discs, octagons and squares as PNG files, a folder a class.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=300, help="pictures of each class in train/ (300)")
    parser.add_argument("--val", type=int, default=50, help="pictures of each class in val/ (50)")
    parser.add_argument("--size", type=int, default=64, help="pixels a side (64)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random = np.random.default_rng(given.seed)
    for part, count in (("train", given.train), ("val", given.val)):
        for name, corners in CLASSES.items():
            folder = given.folder / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture(corners, given.size, random).save(folder / f"{number:04d}.png")


if __name__ == "__main__":
    main()
