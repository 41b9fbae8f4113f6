"""Kernels of many taps, dilations and flat spectra: time and memory in proportion, results against dense oracles."""

import math
import resource
import subprocess
import sys

import pytest
import torch
from torch import nn

import svdctl
from svdctl.spectral.gram import UNIT64, interpolation, sample_points
from svdctl.spectral.symbol import phases
from tests.dense import dense_values

FLOAT64 = {"dtype": torch.float64}


def within(code: str, *, seconds: int, gigabytes: float) -> str:
    """Return what Python code prints in a child process that may use so much CPU time and data."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30),) * 2)

    done = subprocess.run(
        [sys.executable, "-c", f"import torch, svdctl\ntorch.set_num_threads(1)\ntorch.manual_seed(0)\n{code}"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


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


def test_a_large_dilation_takes_no_more_memory_than_none() -> None:
    within("svdctl.singular_values(torch.randn(32, 32, 3, 3), 65, dilation=24)", seconds=60, gigabytes=1.5)
