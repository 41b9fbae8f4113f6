"""Exact values and proved bounds against the dense matrix, over a table of shapes."""

import itertools
import math

import pytest
import torch
from torch import nn

from svdctl.layers.layer_operator import operator_of
from svdctl.spectral import clip_kernel, is_bounded, norm_bound, scale_to_bound, singular_values
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.power_iteration import FactoredOperators, KernelPower, paper_clip, paper_sigma
from tests.dense import dense_values

TWO_D = [
    (o, i, k, s, d, g)
    for (o, i), k, s, d, g in itertools.product(
        [(1, 1), (2, 3), (3, 5), (4, 4), (5, 3), (6, 2)], [(1, 1), (2, 3), (3, 3), (5, 4)], [1, 2, 3], [1, 2], [1, 2]
    )
    if o % g == 0 and i % g == 0
]
OTHER = [
    (kind, o, i, k, s, d)
    for kind, (o, i), k, s, d in itertools.product([nn.Conv1d, nn.Conv3d], [(2, 3), (3, 2)], [2, 3], [1, 2], [1, 2])
]


def circular(layer: nn.Module, axes: int, size: int) -> nn.Module:
    """The layer on circularly padded input: its outputs are those of the torus, up to a shift."""
    reach = [layer.dilation[a] * (layer.kernel_size[a] - 1) for a in range(axes)]

    class Torus(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for axis in range(axes):
                index = torch.arange(size + reach[axis]) % size
                x = x.index_select(2 + axis, index)
            return layer(x)

    return Torus()


def check(layer: nn.Module, axes: int) -> None:
    layer = layer.double()
    size = 6
    want = dense_values(circular(layer, axes, size), (layer.in_channels, *[size] * axes))
    got = singular_values(operator_of(layer), (size,) * axes)
    assert (got - want[: len(got)]).abs().max() <= 1e-10 * want[0]
    assert len(got) == len(want) or want[len(got) :].abs().max() < 1e-9 * want[0]
    bound = norm_bound(operator_of(layer))
    zero_padded = dense_values(layer, (layer.in_channels, *[size + (4 if axes < 3 else 2)] * axes))[0]
    assert max(want[0], zero_padded) <= bound.upper
    assert bound.upper <= bound.lower * 1.0101
    finest = singular_values(operator_of(layer), (48,) * axes if axes < 3 else (12,) * axes)[0]
    assert bound.upper >= finest
    assert bound.lower <= bound.upper


@pytest.mark.parametrize(("o", "i", "k", "s", "d", "g"), TWO_D)
def test_two_d(o: int, i: int, k: tuple[int, int], s: int, d: int, g: int) -> None:
    torch.manual_seed(0)
    check(nn.Conv2d(i, o, k, stride=s, dilation=d, groups=g, bias=False), 2)


@pytest.mark.parametrize(("kind", "o", "i", "k", "s", "d"), OTHER)
def test_one_and_three_d(kind: type, o: int, i: int, k: int, s: int, d: int) -> None:
    torch.manual_seed(0)
    check(kind(i, o, k, stride=s, dilation=d, bias=False), 1 if kind is nn.Conv1d else 3)


def test_the_table_is_as_long_as_promised() -> None:
    assert len(TWO_D) + len(OTHER) >= 200


@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_convolution_is_the_adjoint(stride: int) -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(3, 2, 3, stride=stride, bias=False).double()
    bound = norm_bound(operator_of(layer))
    assert dense_values(layer, (3, 7, 7))[0] <= bound.upper
    assert dense_values(layer, (3, 12, 12))[0] >= 0.9 * bound.lower


def test_the_filter_that_neither_padding_bounds() -> None:
    # (1, -1): 1.73 circular and 1.80 zero-padded at n = 3, the supremum is 2.
    conv = Convolution.make(torch.tensor([[[1.0, -1.0]]], dtype=torch.float64))
    bound = norm_bound(conv)
    assert bound.lower <= 2 <= bound.upper <= 2.03
    assert float(singular_values(conv, (3,))[0]) == pytest.approx(math.sqrt(3))


def test_is_bounded_is_one_sided() -> None:
    torch.manual_seed(0)
    conv = Convolution.make(torch.randn(16, 16, 3, 3))
    finest = float(singular_values(conv, (256, 256), accuracy="fast")[0])
    assert not is_bounded(conv, finest * 0.9999)
    assert is_bounded(conv, finest * 1.001)
    assert is_bounded(conv.with_kernel(conv.kernel * 0), 1e-30)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clip_is_within_the_bound_and_moves_less_than_division(stride: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = Convolution.make(torch.randn(64, 64, 3, 3, dtype=dtype), stride=stride)
    conv = conv.with_kernel(conv.kernel * (2 / norm_bound(conv).upper))
    clipped = clip_kernel(conv, 1.0)
    assert norm_bound(clipped).upper <= 1.0
    divided = scale_to_bound(conv, 1.0)[0]
    assert float((clipped.kernel - conv.kernel).norm()) <= 0.80 * float((divided.kernel - conv.kernel).norm())


def test_clip_leaves_what_is_within_the_bound() -> None:
    torch.manual_seed(0)
    conv = Convolution.make(torch.randn(8, 8, 3, 3))
    assert clip_kernel(conv, 100.0).kernel is conv.kernel


def test_polyphase_comes_back() -> None:
    conv = Convolution.make(torch.randn(4, 2, 3, 5, dtype=torch.float64), stride=(2, 3), groups=2)
    assert torch.equal(conv.from_polyphase(conv.polyphase()).kernel, conv.kernel)


def test_power_steps_are_a_lower_bound_and_converge() -> None:
    torch.manual_seed(0)
    conv = Convolution.make(torch.randn(32, 32, 3, 3))
    bound = norm_bound(conv)
    operators = FactoredOperators.of([conv])
    power = KernelPower(operators)
    value = float(power.step(operators, power.start(operators), 100)[0])
    assert 0.95 * bound.lower <= value <= bound.upper


def test_paper_procedures_fall_short_as_reported() -> None:
    torch.manual_seed(0)
    conv = Convolution.make(torch.randn(64, 64, 3, 3))
    bound = norm_bound(conv)
    assert float(paper_sigma(conv, (16, 16), torch.Generator().manual_seed(0))) < 0.95 * bound.lower
    halved = conv.with_kernel(conv.kernel * (2 / bound.upper))
    assert norm_bound(paper_clip(halved, 1.0, (16, 16))).lower > 1.1


@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (4, 2, 1, 1), (4, 2, 1), (4, 1, 3, 3), (4, 2, 3, 3)])
@pytest.mark.parametrize("stride", [1, (4, 3)])
def test_a_bracket_proves_the_maximum_that_the_answer_proves_where_groups_are_zero(
    shape: tuple[int, ...], stride: int | tuple[int, int]
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[: shape[0] * shape[1] // 4] = 0
    weight[-1] = 0
    conv = Convolution.make(weight, stride=1 if len(shape) == 3 else stride, groups=4 // shape[1])
    scaled, _ = scale_to_bound(conv, 0.05)
    limit = 0.05
    assert is_bounded(scaled, limit)
    assert norm_bound(scaled).lower > 0
    assert norm_bound(scaled, at_most=limit).upper <= limit
