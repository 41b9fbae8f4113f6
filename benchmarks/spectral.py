"""The spectral engine against the straightforward way: ratios within one run.

    python benchmarks/spectral.py [--repeats 5] [--threads 2] [--only NAME ...] [--memory]

The straightforward way is written out below: a complex FFT of the kernel over the whole H x W grid and a batched SVD of
every frequency. Every round times both sides once, in turn.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import svdctl
from svdctl.cli.training_flags import resolve
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.layer_ops import is_controllable, ops_of
from svdctl.layers.shapes import input_sizes
from svdctl.models.build import build_model
from svdctl.spectral import Convolution, clip_kernel, is_bounded, norm_bound, singular_values
from svdctl.spectral.projection import project_kernel
from svdctl.utils.machine import machine


def all_symbols(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Symbols `(H, W, O, I)` of a kernel `(O, I, k, k)` on the whole grid."""
    return torch.fft.fft2(kernel, s=size).permute(2, 3, 0, 1)


def plain_values(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """All singular values, unsorted."""
    return torch.linalg.svdvals(all_symbols(kernel, size))


def plain_clip(kernel: Tensor, size: tuple[int, int], max_sigma: float) -> Tensor:
    """One clip pass, cut back to the support."""
    left, values, right = torch.linalg.svd(all_symbols(kernel, size), full_matrices=False)
    clipped = left * values.clamp_max(max_sigma)[..., None, :].to(left.dtype) @ right
    back = torch.fft.ifft2(clipped.permute(2, 3, 0, 1)).real
    return back[..., : kernel.shape[2], : kernel.shape[3]]


def kernel_of(channels: int) -> Tensor:
    """A random 3x3 kernel of norm near 2."""
    torch.manual_seed(0)
    kernel = torch.randn(channels, channels, 3, 3)
    return kernel * (2 / norm_bound(Convolution.make(kernel)).upper)


def wrn() -> torch.nn.Module:
    config = resolve({"preset": "wrn-cifar10-tt", "frames": "retract"}).config
    return build_model(config, 10)


def plain_wrn_clip(model: torch.nn.Module, sizes: dict[str, tuple[int, ...]], max_sigma: float) -> None:
    """The straightforward clip of every layer (strided ones by their unfolded kernel), on the layer's own grid."""
    for name, layer in model.named_modules():
        if not is_controllable(layer) or len(sizes[name]) != 2:
            continue
        conv = operator_of(layer)
        kernel = conv.polyphase()[0]
        size = tuple(n // s for n, s in zip(sizes[name], conv.stride, strict=True))
        ops_of(layer).write_([layer], [conv.from_polyphase(plain_clip(kernel, size, max_sigma)[None])])


def pairs() -> dict[str, tuple[Callable[[], object], Callable[[], object], float]]:
    """Name to (straightforward, svdctl, wanted ratio)."""
    big, small = kernel_of(160), kernel_of(64)
    conv, narrow = Convolution.make(big), Convolution.make(small)
    grid = (32, 32)
    top = float(plain_values(big, grid).max())
    model, other = wrn(), wrn()
    sizes = input_sizes(model, (3, 32, 32))
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def values() -> object:
        return plain_values(big, grid)

    def restored(network: torch.nn.Module) -> torch.nn.Module:
        network.load_state_dict(start)
        return network

    return {
        "all values, full accuracy, 160 channels, 32 x 32": (values, lambda: singular_values(conv, grid), 1.9),
        "all values, to 1e-3 of the largest, 160 channels": (
            values,
            lambda: singular_values(conv, grid, accuracy="fast"),
            3.5,
        ),
        "all values, to 1e-3 of the largest, 64 channels": (
            lambda: plain_values(small, grid),
            lambda: singular_values(narrow, grid, accuracy="fast"),
            3.0,
        ),
        "is every value at most 1.05 x the largest, 160": (values, lambda: is_bounded(conv, 1.05 * top), 50),
        "is every value at most 1.3 x the largest, 160": (values, lambda: is_bounded(conv, 1.3 * top), 50),
        "largest value, proved within 5 %, 160": (values, lambda: norm_bound(conv, tolerance=0.05), 25),
        "largest value, proved within 2 %, 160": (values, lambda: norm_bound(conv, tolerance=0.02), 8),
        "one clip pass to 1 from 2, 160": (
            lambda: plain_clip(big, grid, 1.0),
            lambda: project_kernel(conv, 1.0, rounds=1),
            40,
        ),
        "clip to 1 from 2, four passes and the proof, 160": (
            lambda: plain_clip(big, grid, 1.0),
            lambda: clip_kernel(conv, 1.0),
            math.nan,
        ),
        "certified clip to 1 of WRN-16-10 TT 192": (
            lambda: plain_wrn_clip(restored(model), sizes, 1.0),
            lambda: svdctl.clip_(restored(other), max_sigma=1.0),
            8,
        ),
    }


MEMORY = """
import sys, torch
sys.path.insert(0, {here!r})
torch.set_num_threads({threads})
from spectral import all_symbols, plain_values, resident
from svdctl.spectral import Convolution, singular_values
torch.manual_seed(0)
kernel = torch.randn(640, 640, 3, 3)
singular_values(Convolution.make(kernel[:8, :8]), (4, 4)), plain_values(kernel[:8, :8], (4, 4))
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
{statement}
print(resident("VmHWM") - before)
"""


def resident(field: str) -> int:
    """KiB of this process's memory: VmRSS now, VmHWM at its peak since the last reset (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))


def peak_memory(statement: str, threads: int) -> int:
    """KiB that a statement adds at its peak to a fresh process."""
    code = MEMORY.format(here=os.path.dirname(os.path.abspath(__file__)), statement=statement, threads=threads)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}, n = {options.repeats}, medians\n")  # fmt: skip
    print("| work | straightforward s | svdctl s | ratio, round by round | wanted |\n|---|---|---|---|---|")
    for name, (plain, ours, wanted) in pairs().items():
        if not any(part in name for part in options.only):
            continue
        times: list[tuple[float, float]] = []
        ours()
        for _ in range(options.repeats):
            began = time.perf_counter()
            plain()
            between = time.perf_counter()
            ours()
            times.append((between - began, time.perf_counter() - between))
        plain_time, our_time = (statistics.median(side) for side in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        print(f"| {name} | {plain_time:.3f} | {our_time:.4f} | {ratio:.1f} | {wanted:g} |", flush=True)
    if any(part in "one clip pass" for part in options.only):
        kernel = kernel_of(160)
        plain = plain_clip(kernel, (32, 32), 1.0)
        apart = project_kernel(Convolution.make(kernel), 1.0, rounds=1)[0] - plain
        share = float(apart.norm() / plain.norm())
        left = norm_bound(Convolution.make(plain)).lower
        print(f"\nafter one clip pass the kernels are {share:.1e} of their norm apart; the largest value is {left:.3f}")
    if options.memory:
        plain_peak = peak_memory("all_symbols(kernel, (32, 32))", options.threads)
        our_peak = peak_memory("singular_values(Convolution.make(kernel), (32, 32))", options.threads)
        print(f"\npeak memory, all values, 640 x 640 x 3 x 3 at 32 x 32: {plain_peak / 2**20:.2f} GiB for the symbols "
              f"of the straightforward way alone (its SVD takes many minutes and needs a copy), "
              f"{our_peak / 2**20:.3f} GiB svdctl, ratio {plain_peak / our_peak:.1f} (wanted 10)")  # fmt: skip


if __name__ == "__main__":
    main()
