"""Layers in the compiler: whole graphs, the same numbers; and nothing that waits for a value."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from svdctl.layers.normalize import Normalize
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.tt import TTConv1d, TTConv2d, TTConv3d
from svdctl.models.lipconvnet import LipConvNet


def lipconvnet(again: bool) -> LipConvNet:
    def conv(i, o, k, *, stride, padding, bias):
        return SOTT(i, o, k, rank=6, stride=stride, bias=bias, checkpoint_activations=again)

    return LipConvNet(1, 4, in_channels=4, conv=conv, normalize=Normalize((0.5,) * 3, (0.25,) * 3))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "soc": (partial(SOC, 4, 6, stride=2), (2, 4, 8, 8)),
    "soc, 1x1": (partial(SOC, 4, 6, 1), (2, 4, 4, 4)),
    "soc, recomputed": (partial(SOC, 6, 4, checkpoint_activations=True), (2, 6, 4, 4)),
    "sott": (partial(SOTT, 8, 6, rank=3, stride=2), (2, 8, 8, 8)),
    "sott, parametrised": (partial(SOTT, 8, 6, rank=3, frames="parametrize"), (2, 8, 4, 4)),
    "tt": (partial(TTConv2d, 8, 6, 3, rank=3, padding=1), (2, 8, 8, 8)),
    "tt, parametrised": (partial(TTConv2d, 8, 6, 3, rank=3, padding=1, frames="parametrize"), (2, 8, 8, 8)),
    "tt, one axis": (partial(TTConv1d, 8, 6, 3, rank=3, padding=1), (2, 8, 8)),
    "tt, three axes": (partial(TTConv3d, 8, 6, 3, rank=3, padding=1), (2, 8, 4, 4, 4)),
    "lipconvnet": (partial(lipconvnet, False), (2, 3, 32, 32)),
    "lipconvnet, recomputed": (partial(lipconvnet, True), (2, 3, 32, 32)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_one_graph_with_the_same_numbers(name: str, training: bool) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    make, shape = CASES[name]
    layer = make().train(training)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="eager" if "lipconvnet" in name else "aot_eager")
    for _ in range(2):
        x = torch.randn(shape)
        y, wanted = compiled(x), twin(x)
        torch.testing.assert_close(y, wanted)
        y.square().sum().backward()
        wanted.square().sum().backward()
    for mine, other in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    # The warm-start vectors moved in the graph too.
    for mine, other in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_no_value_is_asked_for(name: str, training: bool) -> None:
    make, shape = CASES[name]
    # Tensors without numbers: reading one on the host is an error.
    with FakeTensorMode():
        layer = make().train(training)
        layer(torch.empty(shape)).sum().backward()
        assert all(value.grad is not None for value in layer.parameters())
