"""Corrupting whole batches against one image at a time with numpy, scipy and Pillow: ratios within one run.

    python benchmarks/corruptions.py [--images 256] [--plain 24] [--repeats 3] [--threads 1]

The other side, `benchmarks/corruptions_reference.py`, is the same mathematics written plainly; the tests compare their
pixels. Every round times both sides of every corruption in turn, over all five severities. Where both need a loop over
pixels in Python, as glass blur does, the ratio says more about Python than about batches: the last lines leave it out.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from corruptions_reference import REFERENCE
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from svdctl.config.corruption_names import CORRUPTIONS
from svdctl.evaluate.corruptions.corruption_functions import corrupt
from svdctl.evaluate.corruptions.frost import plates
from svdctl.utils.machine import machine

SEVERITIES = (1, 2, 3, 4, 5)


def photographs(count: int) -> Tensor:
    """Pieces of a photograph `(count, 3, 32, 32)`, all different."""
    page = Image.fromarray(load_sample_image("china.jpg"))
    draws = np.random.default_rng(0)
    tiles = []
    for _ in range(count):
        left, top, side = int(draws.integers(0, 400)), int(draws.integers(0, 190)), int(draws.integers(100, 230))
        tiles.append(np.asarray(page.crop((left, top, left + side, top + side)).resize((32, 32))))
    return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()


def seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="images in a batch")
    parser.add_argument("--plain", type=int, default=24, help="images that the plain functions take, one by one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = photographs(options.images)
    rows = images[: options.plain].permute(0, 2, 3, 1).contiguous().numpy()
    rng = np.random.default_rng(0)
    extra = {"frost": {"plates": plates(32, 32).permute(0, 2, 3, 1).numpy()}}

    def batched(name: str) -> None:
        for severity in SEVERITIES:
            corrupt(images, name, severity, 0)

    def plain(name: str) -> None:
        for severity in SEVERITIES:
            for image in rows:
                REFERENCE[name](image, severity, rng, **extra.get(name, {}))

    for name in CORRUPTIONS:  # builds the tables, and touches the memory
        batched(name)
    rounds: list[dict[str, tuple[float, float]]] = []
    for _ in range(options.repeats):
        rounds.append({})
        for name in CORRUPTIONS:
            each = seconds(lambda name=name: batched(name)) / (len(images) * len(SEVERITIES))
            alone = seconds(lambda name=name: plain(name)) / (len(rows) * len(SEVERITIES))
            rounds[-1][name] = (each * 1e6, alone * 1e6)

    print(f"{machine()}, batches of {len(images)}, 32 x 32, n = {options.repeats}, medians\n")  # fmt: skip
    print("| corruption | batched, us an image | one by one, us an image | ratio |\n|---|---|---|---|")
    for name in CORRUPTIONS:
        each, alone = (statistics.median(table[name][side] for table in rounds) for side in (0, 1))
        print(
            f"| {name} | {each:.0f} | {alone:.0f} | {statistics.median(t[name][1] / t[name][0] for t in rounds):.1f} |"
        )
    for title, names in (
        ("all 19", CORRUPTIONS),
        ("18, without glass_blur", tuple(name for name in CORRUPTIONS if name != "glass_blur")),
    ):
        sums = [[sum(table[name][side] for name in names) for side in (0, 1)] for table in rounds]
        each, alone = (statistics.median(pair[side] for pair in sums) for side in (0, 1))
        print(f"| **{title}** | {each:.0f} | {alone:.0f} | **{statistics.median(b / a for a, b in sums):.1f}** |")


if __name__ == "__main__":
    main()
