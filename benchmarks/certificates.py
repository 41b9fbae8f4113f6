"""What certificates cost on top of the forward passes: `python benchmarks/certificates.py [--images 2000]`.

Both columns run the same float64 network over the same batches in turn; the ratio is of medians. The constants,
computed once, are timed apart.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from svdctl.certificates import Certifier
from svdctl.layers.normalize import Normalize
from svdctl.models.wrn import WideResNet, default_conv


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model: nn.Module = WideResNet(
        10, arguments.width, 10, conv=default_conv, stem=default_conv, normalize=Normalize((0.5,) * 3, (0.25,) * 3)
    )
    start = time.perf_counter()
    certifier = Certifier(model.eval(), (3, 32, 32))
    print(f"constants, once: {time.perf_counter() - start:.2f} s")
    images, labels = torch.rand(arguments.images, 3, 32, 32), torch.randint(10, (arguments.images,))
    batches: list[tuple[Tensor, Tensor]] = list(
        zip(images.split(arguments.batch_size), labels.split(arguments.batch_size), strict=True)
    )

    def forward_alone() -> None:
        for part, _ in batches:
            certifier.logits(part)

    forward_alone()
    alone, certified = [], []
    for _ in range(arguments.repeats):
        alone.append(seconds(forward_alone))
        certified.append(seconds(lambda: certifier.evaluate(batches)))
    ratio = statistics.median(certified) / statistics.median(alone)
    print(f"{arguments.images} images, {torch.get_num_threads()} threads")
    print(
        f"forward passes alone {statistics.median(alone):.2f} s, with certificates {statistics.median(certified):.2f} s"
    )
    print(f"ratio {ratio:.3f} (wanted: at most 1.05)")


if __name__ == "__main__":
    main()
