"""Parameter counts and shapes of LipConvNet."""

from functools import partial

import pytest
import torch
from torch import nn

from svdctl.errors import ShapeError
from svdctl.layers.normalize import Normalize
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.models.lipconvnet import LipConvNet

NORMALIZE = ((0.5,) * 3, (0.25,) * 3)


def soc(i, o, k, *, stride, padding, bias):
    return SOC(i, o, k, stride=stride, bias=bias)


def sott(i, o, k, *, stride, padding, bias, rank):
    return SOTT(i, o, k, stride=stride, bias=bias, rank=rank, frames="free")


def count(block: int, conv) -> int:
    with torch.device("meta"):
        model = LipConvNet(block, 10, conv=conv, normalize=Normalize(*NORMALIZE))
    return sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize(
    ("block", "parameters", "at_128", "at_256"),
    [(1, 17_668_042, 2.90, 1.23), (4, 27_209_578, 3.29, 1.40), (6, 33_496_874, 3.47, 1.48)],
)
def test_parameters_and_compression(block: int, parameters: int, at_128: float, at_256: float) -> None:
    assert count(block, soc) == parameters
    assert round(parameters / count(block, partial(sott, rank=128)), 2) == at_128
    assert round(parameters / count(block, partial(sott, rank=256)), 2) == at_256


def test_shapes_and_faults() -> None:
    model = LipConvNet(1, 10, in_channels=4, conv=soc, normalize=Normalize(*NORMALIZE))
    assert model(torch.rand(2, 3, 64, 32)).shape == (2, 10)
    with pytest.raises(ShapeError, match="five times"):
        model(torch.rand(2, 3, 40, 40))
    with pytest.raises(ShapeError, match="classes"):
        LipConvNet(1, 100, in_channels=2, conv=soc, normalize=Normalize(*NORMALIZE))
    with pytest.raises(ShapeError, match="even"):
        LipConvNet(1, 10, in_channels=3, conv=soc, normalize=Normalize(*NORMALIZE))


def test_it_moves_no_two_images_apart() -> None:
    torch.manual_seed(0)
    model = LipConvNet(1, 10, in_channels=4, conv=soc, normalize=Normalize(*NORMALIZE)).double().eval()
    x = torch.rand(16, 3, 32, 32, dtype=torch.float64)
    y = x + 0.1 * torch.randn_like(x)
    moved = (model(x) - model(y)).norm(dim=1)
    assert (moved <= 4 * (x - y).flatten(1).norm(dim=1) * (1 + 1e-6)).all()


def test_standard_convolutions_serve_too() -> None:
    def plain(i, o, k, *, stride, padding, bias):
        return nn.Conv2d(i, o, k, stride=stride, padding=padding, bias=bias)

    model = LipConvNet(1, 10, in_channels=4, conv=[plain] * 6, normalize=Normalize(*NORMALIZE))
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("kind", ["soc", "sott"])
def test_recomputed_activations_change_nothing_in_training(kind: str) -> None:
    found = []
    for again in (False, True):

        def conv(i, o, k, *, stride, padding, bias, again=again):
            if kind == "soc":
                return SOC(i, o, k, stride=stride, bias=bias, checkpoint_activations=again)
            return SOTT(i, o, k, rank=8, stride=stride, bias=bias, checkpoint_activations=again)

        torch.manual_seed(0)
        model = LipConvNet(2, 10, in_channels=4, conv=conv, normalize=Normalize(*NORMALIZE))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.rand(4, 3, 32, 32)), torch.arange(4)).backward()
            optimizer.step()
        found.append([*(value.grad for value in model.parameters()), *model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
