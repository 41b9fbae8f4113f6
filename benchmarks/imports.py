"""What importing the library costs beside torch: `python benchmarks/imports.py [--n 10]`.

Whole processes in turn, one that imports torch and one that imports svdctl too and computes the singular values of a
convolution: seconds of the CPU (user and system) and of the clock, medians, and the median of the pairs' ratios.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

WAYS = {
    "import torch": "import torch",
    "singular values": "import torch, svdctl; svdctl.singular_values(torch.randn(8, 8, 3, 3), 8)",
}
"""The second imports torch first, as a user's script does."""


def seconds(code: str) -> tuple[float, float]:
    """Return the seconds of the CPU and of the clock that a process with this code takes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for code in WAYS.values():
        seconds(code)  # files are read into the cache
    for _ in range(arguments.n):
        for way, code in WAYS.items():
            found[way].append(seconds(code))
    for clock, name in enumerate(("CPU", "clock")):
        torch, ours = ([pair[clock] for pair in found[way]] for way in WAYS)
        ratio = statistics.median(b / a for a, b in zip(torch, ours, strict=True))
        print(f"{name}: {statistics.median(torch):.2f} s torch, {statistics.median(ours):.2f} s svdctl, {ratio:.2f}")


if __name__ == "__main__":
    main()
