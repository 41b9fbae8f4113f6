"""Norms of convolutions, bounded and kept in training: svdctl beside what else can be installed.

    pip install orthogonium deel-torchlip      # optional: their rows are left out without them
    python benchmarks/peers.py [--part bounds|training] [--repeats 5] [--threads 2] [--steps 200]

Bounds: on time and on tightness. The truth is the norm of the zero-padded convolution over every input size, bracketed
to 1e-4 in float64. A bound is tight when bound / truth is near 1; below 1 it is no bound. Every round times all methods
once, in turn.

Training: one layer under a constraint of 1 learns another one of norm 3 by SGD with momentum, from the same weights and
on the same batches for each method. What counts is the true norm of the weight in evaluation mode at the end, 1 where
the constraint is that of the operator, the loss, and the processor's time of a step over that of the plain layer. Every
step times all methods once, in turn.
"""

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from svdctl import parametrize
from svdctl.layers.layer_operator import operator_of
from svdctl.spectral import Convolution, is_bounded, norm_bound
from svdctl.utils.machine import machine

try:
    from deel import torchlip
except ImportError:
    torchlip = None
try:
    from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d
except ImportError:
    AdaptiveOrthoConv2d = None
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


@dataclass(frozen=True)
class Trained:
    """What a training of one layer came to."""

    norm: float
    """True norm of the operator, a lower end within 1e-4."""
    loss: float
    milliseconds: float
    ratio: float
    """Median of the times of a step over those of the plain layer's step of the same number."""


def constrained(plain: nn.Module) -> dict[str, nn.Module]:
    """Name to a layer of that shape under a constraint of 1, from the same weights where the method takes them."""
    rows: dict[str, nn.Module] = {
        "plain, no constraint": plain,
        "svdctl.parametrize.spectral_norm": parametrize.spectral_norm(copy.deepcopy(plain)),
        "torch spectral_norm": spectral_norm(copy.deepcopy(plain)),
    }
    if isinstance(plain, nn.Linear):
        rows["svdctl.parametrize.orthogonal"] = parametrize.orthogonal(copy.deepcopy(plain))
        if torchlip is not None:
            rows["deel-torchlip SpectralLinear"] = torchlip.SpectralLinear(plain.in_features, plain.out_features)
        return rows
    assert isinstance(plain, nn.Conv2d)
    shape = plain.in_channels, plain.out_channels, plain.kernel_size
    settings = {"stride": plain.stride, "padding": plain.padding, "padding_mode": "zeros"}
    if torchlip is not None:
        rows["deel-torchlip SpectralConv2d"] = torchlip.SpectralConv2d(*shape, **settings)
    if AdaptiveOrthoConv2d is not None:
        rows["orthogonium AdaptiveOrthoConv2d"] = AdaptiveOrthoConv2d(*shape, **settings)
    return rows


def trained_layers(make: Callable[[], nn.Module], input_shape: tuple[int, ...], *, steps: int) -> dict[str, Trained]:
    """Return what each method comes to on one layer."""
    torch.manual_seed(0)
    teacher = make().requires_grad_(False)
    teacher.weight.mul_(3 / norm_bound(operator_of(teacher)).upper)
    plain = make()
    layers = constrained(plain)
    optimizers = {
        name: torch.optim.SGD(layer.parameters(), lr=0.02, momentum=0.9, foreach=False)
        for name, layer in layers.items()
    }
    times: dict[str, list[float]] = {name: [] for name in layers}
    losses: dict[str, float] = {}
    for _ in range(steps):
        x = torch.randn(16, *input_shape)
        wanted = teacher(x)
        for name, layer in layers.items():
            began = time.process_time()
            loss = (layer(x) - wanted).square().mean()
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            times[name].append(time.process_time() - began)
            losses[name] = float(loss.detach())
    found = {}
    for name, layer in layers.items():
        weight = layer.eval().weight.detach().double()
        kernel = weight[:, :, None] if weight.ndim == 2 else weight
        conv = Convolution.make(kernel, stride=plain.stride if isinstance(plain, nn.Conv2d) else 1)
        # The first steps prepare what later ones reuse.
        pairs = list(zip(times[name], times["plain, no constraint"], strict=True))[min(10, steps // 2) :]
        found[name] = Trained(
            norm_bound(conv, tolerance=1e-4).lower,
            losses[name],
            1e3 * statistics.median(own for own, _ in pairs),
            statistics.median(own / other for own, other in pairs),
        )
    return found


TRAINED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv2d 32 to 32, 3 x 3, on 16 x 16": (lambda: nn.Conv2d(32, 32, 3, padding=1), (32, 16, 16)),
    "Conv2d 32 to 64, 3 x 3, stride 2": (lambda: nn.Conv2d(32, 64, 3, stride=2, padding=1), (32, 16, 16)),
    "Linear 256 to 128": (lambda: nn.Linear(256, 128), (256,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("bounds", "training"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}\n")  # fmt: skip
    if options.part != "training":
        bounds(options)
    if options.part != "bounds":
        training(options)


def training(options: argparse.Namespace) -> None:
    print(f"n = {options.steps} steps, medians of the processor's time\n")
    print("| layer | method | norm at the end | loss | ms a step | over the plain layer's |\n|---|---|---|---|---|---|")
    for layer, (make, shape) in TRAINED.items():
        for method, row in trained_layers(make, shape, steps=options.steps).items():
            figures = f"{row.norm:.4f} | {row.loss:.4f} | {row.milliseconds:.2f} | {row.ratio:.2f}"
            print(f"| {layer} | {method} | {figures} |", flush=True)


@torch.no_grad()
def bounds(options: argparse.Namespace) -> None:
    print(f"n = {options.repeats}, medians\n")
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
