"""Parameter counts and compression ratios of the paper's networks."""

from functools import partial

import pytest
import torch

from svdctl.errors import ShapeError
from svdctl.layers.normalize import Normalize
from svdctl.layers.tt import TTConv2d
from svdctl.models.build import count_parameters
from svdctl.models.vgg import Vgg19
from svdctl.models.wrn import WideResNet, default_conv

HALF = Normalize((0.5,) * 3, (0.5,) * 3)


def wrn(classes: int, rank: int | None) -> int:
    conv = default_conv if rank is None else partial(TTConv2d, rank=rank)
    return count_parameters(WideResNet(16, 10, classes, conv=conv, stem=conv, normalize=HALF))


def vgg(classes: int, rank: int | None) -> int:
    conv = default_conv if rank is None else partial(TTConv2d, rank=rank)
    return count_parameters(Vgg19(classes, conv=conv, stem=conv, normalize=HALF))


@pytest.mark.parametrize(
    ("build", "classes", "ratios"),
    [
        (wrn, 10, {192: 3.58, 256: 2.39, 320: 1.84}),
        (wrn, 100, {192: 3.55, 256: 2.38, 320: 1.83}),
        (vgg, 10, {192: 3.13, 256: 2.14}),
        (vgg, 100, {192: 3.12, 256: 2.13}),
    ],
)
def test_compression_as_published(build, classes: int, ratios: dict[int, float]) -> None:
    full = build(classes, None)
    assert {rank: round(full / build(classes, rank), 2) for rank in ratios} == ratios


def test_parameter_counts_as_published() -> None:
    assert wrn(10, None) == 16_858_074
    assert wrn(10, 192) == 4_706_266
    assert vgg(10, None) == 20_565_834


def test_vgg_sizes() -> None:
    model = Vgg19(10, conv=default_conv, stem=default_conv, normalize=HALF).eval()
    assert model(torch.rand(1, 3, 48, 40)).shape == (1, 10)
    with pytest.raises(ShapeError, match="32 or more"):
        model(torch.rand(1, 3, 16, 16))
