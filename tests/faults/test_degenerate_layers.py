"""Layers of zeros and frames without rank: controls go on and prove their bounds, and what is said of them is true.

Whole trainings of such networks: `test_numbers.py`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import svdctl
from svdctl.certificates.radius import Certifier
from svdctl.control.actions import is_layer_bounded
from svdctl.control.controller import Controller
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.tt import TTConv2d
from svdctl.registry import CONTROLS
from svdctl.spectral.power_iteration import FactoredOperators, KernelPower


def tt(frames: Any) -> TTConv2d:
    torch.manual_seed(0)
    return TTConv2d(12, 10, 3, rank=4, frames=frames)


def _zero_core(layer: Any) -> None:
    layer.core.zero_()


def _zero_frame(layer: Any) -> None:
    layer.frame_in.zero_()


def _all_zero(layer: Any) -> None:
    for value in layer.parameters():
        value.zero_()


def _rank_one(layer: Any) -> None:
    layer.frame_in.copy_(torch.outer(layer.frame_in[:, 0].clone(), torch.ones(4)))


def _two_columns_equal(layer: Any) -> None:
    layer.frame_out[:, 1] = layer.frame_out[:, 0]


def _column_of_zeros(layer: Any) -> None:
    layer.frame_out[:, 2] = 0


def _hardly_any_rank(layer: Any) -> None:
    layer.frame_in[:, 1:] = layer.frame_in[:, :1] * (1 + 1e-6 * torch.randn(12, 3))


def _tiny(layer: Any) -> None:
    layer.core.mul_(1e-38)


DEFECTS = (
    _zero_core,
    _zero_frame,
    _all_zero,
    _rank_one,
    _two_columns_equal,
    _column_of_zeros,
    _hardly_any_rank,
    _tiny,
)
KINDS = ("clip", "divide", "divide-each", "divide-exact", "assign")


def controlled_steps(layer: nn.Module, kind: str) -> None:
    """Five steps of training with momentum, each with its control, and the seal."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
    control = CONTROLS.get(kind).config(max_sigma=1.0, every_steps=1)
    controller = Controller.from_config(layer, optimizer, control, None)
    for _ in range(5):
        (layer(torch.randn(2, 12, 8, 8)) - 1).square().mean().clamp_max(1e3).backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step()
    controller.seal()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", ["free", "penalty", "retract"])
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__.strip("_").replace("_", " "))
def test_frames_and_cores_without_rank(defect: Callable[[Any], None], frames: str, kind: str) -> None:
    layer = tt(frames)
    with torch.no_grad():
        defect(layer)
    controlled_steps(layer, kind)
    assert all(bool(torch.isfinite(value).all()) for value in layer.parameters())
    assert is_layer_bounded(layer, 1.0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "divide-each"])
@pytest.mark.parametrize("scale", [0.0, 1e-42])
def test_a_convolution_of_zeros(kind: str, scale: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 10, 3)
    with torch.no_grad():
        layer.weight.mul_(scale)
    controlled_steps(layer, kind)
    assert bool(torch.isfinite(layer.weight).all())
    assert is_layer_bounded(layer, 1.0)


def test_power_steps_survive_a_layer_of_zeros() -> None:
    """Vectors that a layer swallowed would call it 0 for ever after, however it grew."""
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, 3, bias=False)

    def operators() -> FactoredOperators:
        return FactoredOperators.of([operator_of(layer)])

    power, vectors = KernelPower(operators()), KernelPower(operators()).start(operators())
    kernel = layer.weight.detach().clone()
    layer.weight.data.zero_()
    value, vectors = power.step(operators(), vectors, steps=3)
    assert float(value) == 0.0
    layer.weight.data.copy_(3 * kernel)
    norm = svdctl.spectral_norm_bound(layer).upper
    assert 0.9 * norm < float(power.step(operators(), vectors, steps=20)[0]) <= norm


@pytest.mark.parametrize("zero", ["conv", "norm", "linear"])
def test_what_is_said_of_a_network_that_is_constant(zero: str) -> None:
    """Its constant is 0; an answer that no input can change is certified at every radius, one that ties at none."""
    torch.manual_seed(0)
    conv, norm, linear = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8 * 64, 4)
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), linear).eval()
    with torch.no_grad():
        {"conv": conv, "norm": norm, "linear": linear}[zero].weight.zero_()
        if zero == "linear":
            linear.bias.zero_()
    assert svdctl.lipschitz_bound(model, (3, 8, 8)).value == 0.0
    rows = svdctl.spectrum(model, (3, 8, 8))
    flat = next(row for row in rows if row.bound is not None and row.bound.upper == 0.0)
    assert (flat.bound.lower, flat.smallest_nonzero, flat.condition_number) == (0.0, None, None)
    assert str(rows)
    images = torch.rand(6, 3, 8, 8)
    answer = int(model(images[:1]).argmax())
    labels = torch.tensor([answer, 0, 1, 2, 3, answer])
    found = Certifier(model, (3, 8, 8)).evaluate([(images, labels)])
    certified = (labels == answer) & (zero != "linear")
    # Rounding is bounded away from 0 where numbers are subnormal, so that a radius may be a finite, huge number.
    assert bool((found.radii[certified] > 1e300).all())
    assert bool((found.radii[~certified] == 0).all())
