"""Kernels of many taps, dilations and flat spectra: time and memory in proportion, results against dense oracles."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import svdctl
from svdctl.errors import ShapeError
from svdctl.spectral.bounds import is_bounded, norm_bound
from svdctl.spectral.gram import UNIT64, interpolation, sample_points
from svdctl.spectral.symbol import phases
from tests.dense import dense_values

FLOAT64 = {"dtype": torch.float64}


SERVER = """
import os, resource, sys
import torch, svdctl, svdctl.spectral.bounds
torch.set_num_threads(1)
for line in sys.stdin:
    code, seconds, size = eval(line)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        torch.manual_seed(0)
        exec(code)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
Within = Callable[[str, int, float], None]


@pytest.fixture(scope="module")
def within() -> Iterator[Within]:
    """Run Python code in a child process that may use so many seconds of CPU time and GiB of data."""
    # Of a process that has torch imported already: seconds less for each.
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        asked, answers = server.stdin, server.stdout
        assert asked is not None
        assert answers is not None

        def run(code: str, seconds: int, gigabytes: float) -> None:
            print((code, seconds, int(gigabytes * 2**30)), file=asked, flush=True)
            assert answers.readline() == "0\n", f"{code} needs more than {seconds} s or {gigabytes} GiB, or fails"

        yield run
        asked.close()


@pytest.mark.parametrize("taps", [(2,), (3,), (60,), (512,), (3, 4), (15, 2)])
def test_weights_near_and_at_samples(taps: tuple[int, ...]) -> None:
    """The weights reproduce every wave, also at points that are samples or nearly so, where the quotient is 0 / 0."""
    samples = sample_points(taps)
    shifts = torch.tensor([0.0, 1e-300, 1e-17, 2e-16, 1e-12, 1e-9, 1e-6, 0.01], **FLOAT64)
    points = (samples[:20, None] + shifts[:, None]).flatten(0, 1)
    even, odd = interpolation(points, taps)
    waves = phases(samples, taps, samples)
    expected = phases(points, taps, samples)
    bound = 4 * 100 * sum(k**2 for k in taps) * math.prod(map(float, taps)) * UNIT64
    assert float((even @ waves.real - expected.real).abs().max()) < bound
    assert float((odd @ waves.imag - expected.imag).abs().max()) < bound


@pytest.mark.parametrize(
    ("stride", "dilation", "size"), [(1, 4, 12), (1, 6, 8), (2, 4, 12), (2, 3, 12), (4, 6, 12), (3, 2, 12), (6, 4, 12)]
)
@pytest.mark.parametrize("channels", [(2, 3), (5, 2), (6, 1)])
def test_values_of_dilated_layers(stride: int, dilation: int, size: int, channels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    out, into = channels
    layer = nn.Conv1d(into, out, 3, stride=stride, dilation=dilation, bias=False).double()
    wide, narrow = (svdctl.singular_values(layer.to(dtype), size).double() for dtype in (torch.float64, torch.float32))
    assert len(wide) == len(narrow) == size // stride * min(out, into * stride)
    assert torch.allclose(wide, narrow, atol=1e-6)
    if 2 * dilation <= size:  # else torch pads no circle
        padded = nn.Sequential(nn.CircularPad1d((0, 2 * dilation)), layer).double()
        assert torch.allclose(narrow, dense_values(padded, (into, size))[: len(narrow)], atol=1e-6)


def test_a_large_dilation_takes_no_more_memory_than_none(within: Within) -> None:
    within("svdctl.singular_values(torch.randn(32, 32, 3, 3), 65, dilation=24)", 60, 1.5)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 5), (4, 1, 3, 3), (1, 6, 4), (3, 1, 7, 2), (1, 1, 31, 31), (1, 2, 2, 3, 2), (1, 1, 1, 257), (5, 1, 1, 9)],
)
@pytest.mark.parametrize("tolerance", [0.1, 0.005, 1e-4, 1e-6])
def test_brackets_of_symbols_that_are_vectors(shape: tuple[int, ...], tolerance: float) -> None:
    """Brackets hold what a dense grid finds, are as narrow as asked, and maxima agree with them."""
    torch.manual_seed(sum(shape))
    kernel = torch.randn(shape, **FLOAT64) * 2.0**-40
    axes = tuple(range(2, kernel.ndim))
    found = svdctl.spectral_norm_bound(kernel, tolerance=tolerance)
    sizes = [max(64, 2 * k) if len(axes) > 2 else max(512, 4 * k) for k in shape[2:]]
    values = torch.fft.fftn(kernel, s=sizes, dim=axes).abs().square().sum((0, 1)).sqrt()
    share = math.prod(math.cos(math.pi * (k - 1) / 2 / n) for k, n in zip(shape[2:], sizes, strict=True))
    largest = float(values.max())
    assert largest <= found.upper * (1 + 1e-12)
    assert found.lower * (1 - 1e-12) <= largest / share
    assert found.lower < found.upper <= found.lower * (1 + tolerance) * (1 + 1e-15)
    conv = svdctl.Convolution.make(kernel)
    assert is_bounded(conv, found.upper * (1 + 2e-6))
    assert not is_bounded(conv, min(largest, found.upper) * (1 - 1e-9))
    assert norm_bound(conv, tolerance=0.1, at_most=found.upper * 1.001).upper <= found.upper * 1.001


def test_scalar_groups_are_compared_with_one_another() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(40, 1, 5, 5)
    each = [svdctl.spectral_norm_bound(part[None], tolerance=1e-5) for part in kernel]
    found = svdctl.spectral_norm_bound(kernel, groups=40, tolerance=1e-5)
    assert max(part.lower for part in each) <= found.upper
    assert found.lower <= max(part.upper for part in each)


def test_scalar_extremes() -> None:
    assert svdctl.spectral_norm_bound(torch.zeros(1, 1, 3)).upper == 0.0
    tiny = svdctl.spectral_norm_bound(torch.full((1, 1, 2), 1e-310, **FLOAT64))
    assert tiny.lower <= 2e-310 <= tiny.upper
    huge = svdctl.spectral_norm_bound(torch.full((1, 1, 2), 1.7e308, **FLOAT64))
    assert huge.upper == math.inf
    assert math.isfinite(huge.lower)
    with pytest.raises(ShapeError, match="not finite"):
        svdctl.spectral_norm_bound(torch.tensor([[[1.0, math.nan]]]))
    conv = svdctl.Convolution.make(torch.tensor([[[1.0, -1.0]]]))
    assert is_bounded(conv, math.inf)
    assert not is_bounded(conv, -1.0)
    assert not is_bounded(conv, 0.0)
    with pytest.raises(ShapeError, match="not finite"):
        is_bounded(svdctl.Convolution.make(torch.tensor([[[1.0, math.inf]]])), math.inf)


@pytest.mark.parametrize("taps", [(3,), (7, 7), (3, 2, 3)])
@pytest.mark.parametrize("tolerance", [0.005, 1e-6])
def test_flat_spectra_are_proved_at_once(taps: tuple[int, ...], tolerance: float) -> None:
    """Orthonormal taps at different places: every singular value is 1 at every frequency."""
    torch.manual_seed(0)
    frame = torch.linalg.qr(torch.randn(6, 6, **FLOAT64))[0]
    kernel = torch.zeros(6, 6, math.prod(taps), **FLOAT64)
    for row in range(6):
        kernel[row, :, row % kernel.shape[2]] = frame[row]
    kernel = kernel.unflatten(2, taps)
    found = svdctl.spectral_norm_bound(kernel, tolerance=tolerance)
    # Rounding of the lower end, in float32 at wide tolerances, widens the bracket a little.
    assert found.lower * (1 - 1e-12) <= 1 <= found.upper * (1 + 1e-12)
    assert found.upper <= found.lower * (1 + tolerance) * (1 + tolerance / 50)
    # A change that the samples hardly see must not go unnoticed.
    bent = kernel.clone()
    bent.view(-1)[0] += 0.01
    moved = svdctl.spectral_norm_bound(bent, tolerance=0.005)
    exact = float(torch.linalg.matrix_norm(symbol_on_grid(bent, 24), 2).max())
    assert moved.lower * (1 - 1e-9) <= exact * 1.05
    assert exact <= moved.upper


def symbol_on_grid(kernel: torch.Tensor, size: int) -> torch.Tensor:
    axes = tuple(range(2, kernel.ndim))
    return torch.fft.fftn(kernel, s=[size] * len(axes), dim=axes).flatten(2).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("code", "seconds", "gigabytes"),
    [
        ("svdctl.spectral_norm_bound(torch.randn(128, 1, 512))", 30, 1.5),
        ("svdctl.spectral_norm_bound(torch.randn(128, 2, 300))", 60, 2),
        ("svdctl.spectral_norm_bound(torch.randn(1, 1, 257))", 30, 1.5),
        ("svdctl.spectral_norm_bound(torch.randn(1, 1, 15, 15), tolerance=1e-4)", 30, 1.5),
        ("svdctl.spectral_norm_bound(torch.randn(2, 2, 15, 15))", 60, 2),
        ("svdctl.spectral_norm_bound(torch.randn(1, 1, 21, 21))", 8, 1.5),
        ("svdctl.spectral_norm_bound(torch.randn(64, 1, 31, 31), groups=64)", 60, 1.5),
        ("w = torch.zeros(3, 1, 7, 7); w[:, 0, 3, 3] = 1; svdctl.spectral_norm_bound(w, tolerance=1e-6)", 30, 1.5),
        (
            "w = torch.zeros(3, 3, 7, 7); w[:, :, 3, 3] = torch.eye(3); svdctl.spectral_norm_bound(w, tolerance=1e-6)",
            30,
            2,
        ),
        ("svdctl.spectral.bounds.is_bounded(svdctl.Convolution.make(torch.randn(512, 512, 9, 9)), 1e9)", 30, 2),
        (
            "svdctl.spectral.bounds.is_bounded(svdctl.Convolution.make(torch.randn(512, 512, 9, 9)), float('inf'))",
            30,
            2,
        ),
        ("svdctl.spectral_norm_bound(torch.randn(40, 40, 3, 3), tolerance=1e-6)", 30, 2),
    ],
)
def test_time_and_memory_are_in_proportion(code: str, seconds: int, gigabytes: float, within: Within) -> None:
    within(code, seconds, gigabytes)
