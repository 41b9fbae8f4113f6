"""Bounds of a convolution's norm: svdctl beside what else can be installed, on time and on tightness.

    pip install orthogonium            # optional: its rows are left out without it
    python benchmarks/peers.py [--repeats 5] [--threads 2]

The truth is the norm of the zero-padded convolution over every input size, bracketed to 1e-4 in float64. A bound is
tight when bound / truth is near 1; below 1 it is no bound. Every round times all methods once, in turn.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from svdctl.layers.layer_operator import operator_of
from svdctl.spectral import is_bounded, norm_bound
from svdctl.utils.machine import machine

try:
    from orthogonium.layers.conv.singular_values import get_conv_sv
except ImportError:
    get_conv_sv = None


def random_layer(channels: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    """Gaussian: every frequency is nearly as large as the largest."""
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, size, stride=stride, padding=size // 2, bias=False)
    nn.init.normal_(layer.weight, std=1 / (size * math.sqrt(channels)))
    return layer


def smooth_layer(channels: int) -> nn.Conv2d:
    """A few strong smooth filters over noise, as training leaves them: the largest value is near frequency 0."""
    layer = random_layer(channels)
    with torch.no_grad():
        window = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
        weights = torch.randn(channels, 8) @ torch.randn(8, channels) / channels
        layer.weight.mul_(0.3).add_(weights[..., None, None] * window * 4)
    return layer


def reshaped_power(layer: nn.Conv2d) -> Callable[[], float]:
    """torch's spectral_norm: power steps on the kernel as an O x (I k k) matrix, 15 at first as by default."""

    def value() -> float:
        module = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, bias=False)
        module.weight.data.copy_(layer.weight)
        spectral_norm(module, n_power_iterations=1)
        norms = layer.weight.norm() / module.weight.norm()
        return float(norms.detach())

    return value


def methods(layer: nn.Conv2d) -> dict[str, Callable[[], float]]:
    """Name to a function that gives a bound, or what is taken for one."""
    conv = operator_of(layer)
    taps = math.prod(math.ceil(k / s) for k, s in zip(layer.kernel_size, layer.stride, strict=True))
    power = reshaped_power(layer)
    rows: dict[str, Callable[[], float]] = {
        "torch spectral_norm, as it is": power,
        "torch spectral_norm times sqrt(overlaps), as deel-torchlip does": lambda: power() * math.sqrt(taps),
    }
    if get_conv_sv is not None:
        # A fourth iteration takes 50 times as long as the third: the kernel doubles its size in each.
        for steps in (3, 4) if layer.in_channels * taps < 64 * 10 else (3,):
            rows[f"orthogonium get_conv_sv, {steps} iterations"] = lambda steps=steps: float(
                get_conv_sv(layer, n_iter=steps, return_stab_rank=False)
            )
    for tolerance in (0.05, 0.005):
        rows[f"svdctl norm_bound, {100 * tolerance:g} %, proved"] = lambda tolerance=tolerance: (
            norm_bound(conv, tolerance=tolerance).upper
        )
    return rows


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}, n = {options.repeats}, medians\n")  # fmt: skip
    layers = {
        "random, 64 channels": random_layer(64),
        "random, 160 channels": random_layer(160),
        "random, 64 channels, 5 x 5": random_layer(64, size=5),
        "random, 64 channels, stride 2": random_layer(64, stride=2),
        "smooth, 160 channels": smooth_layer(160),
    }
    print("| layer | method | ms | bound / truth |\n|---|---|---|---|")
    for name, layer in layers.items():
        conv = operator_of(layer)
        truth = norm_bound(conv.with_kernel(conv.kernel.double()), tolerance=1e-4).lower
        assert not is_bounded(conv, truth * (1 - 1e-3))
        rows = methods(layer)
        times: dict[str, list[float]] = {method: [] for method in rows}
        values = {}
        for _ in range(options.repeats + 1):
            for method, bound in rows.items():
                began = time.perf_counter()
                try:
                    values[method] = f"{bound() / truth:.4f}"
                except ValueError as problem:
                    values[method] = f"fails: {problem}"
                times[method].append(time.perf_counter() - began)
        for method in rows:
            print(f"| {name} | {method} | {1e3 * statistics.median(times[method][1:]):.1f} | {values[method]} |")


if __name__ == "__main__":
    main()
