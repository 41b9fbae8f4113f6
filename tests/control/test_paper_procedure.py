"""The paper's procedure against dense matrices: a clip on the grid of the outputs, power steps with zero padding."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.control.actions import paper_clip_layer_, paper_divide_layer_
from svdctl.control.clip import Clip
from svdctl.control.controller import Controller
from svdctl.layers.tt import TTConv2d
from svdctl.spectral import power_iteration

SIDE = 8


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def circular_matrix(weight: Tensor, stride: int) -> Tensor:
    """Return the matrix of the strided convolution with circular padding, of inputs `SIDE x SIDE`."""
    channels, taps = weight.shape[1], weight.shape[2]
    units = torch.eye(channels * SIDE**2, dtype=weight.dtype).view(-1, channels, SIDE, SIDE)
    wrapped = F.pad(units, (0, taps - 1, 0, taps - 1), mode="circular")
    return F.conv2d(wrapped, weight, stride=stride).flatten(1).T


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_clip_is_that_of_the_dense_circular_matrix_cut_to_the_kernel(stride: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, stride=stride, padding=1).double()
    before = layer.weight.detach().clone()
    left, values, right = torch.linalg.svd(circular_matrix(before, stride), full_matrices=False)
    limit = float(values.median())
    clipped = (left * values.clamp_max(limit)) @ right
    # The first output reads the input's first taps.
    outputs = clipped.view(4, -1, 3, SIDE, SIDE)[:, 0]
    paper_clip_layer_(layer, limit, (SIDE, SIDE))
    torch.testing.assert_close(layer.weight, outputs[:, :, :3, :3], rtol=1e-12, atol=1e-13)
    assert float((layer.weight - before).norm()) > 0.1 * float(before.norm())


def test_frames_become_orthonormal_where_nothing_is_above_the_maximum_too() -> None:
    torch.manual_seed(0)
    layer = TTConv2d(6, 8, 3, rank=(4, 5), padding=1, bias=False, frames="free").double()
    layer.frame_in.mul_(1.5)
    before = layer.contracted().clone()
    assert not paper_clip_layer_(layer, 1e3, (SIDE, SIDE))
    torch.testing.assert_close(layer.frame_in.T @ layer.frame_in, torch.eye(4).double(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(layer.contracted(), before, rtol=1e-10, atol=1e-12)
    plain = nn.Conv2d(3, 4, 3).double()
    weight = plain.weight.clone()
    assert not paper_clip_layer_(plain, 1e3, (SIDE, SIDE))
    assert torch.equal(plain.weight, weight)
    assert paper_clip_layer_(plain, 0.1, (SIDE, SIDE))


def test_a_clip_of_a_tt_layer_is_that_of_its_dense_kernel() -> None:
    torch.manual_seed(0)
    layer = TTConv2d(6, 8, 3, rank=(4, 5), stride=2, padding=1, bias=False, frames="free").double()
    layer.core.data.mul_(3)
    dense = layer.to_conv()
    for one in (layer, dense):
        paper_clip_layer_(one, 0.7, (SIDE, SIDE))
    torch.testing.assert_close(layer.contracted(), dense.weight, rtol=1e-10, atol=1e-12)
    control = Clip(max_sigma=0.7, procedure="paper")
    [notice] = Controller.from_config(nn.Sequential(layer), None, control, None, sizes={"0": (SIDE, SIDE)}).notices()
    assert "another kernel than there: 0" in notice
    assert not Controller.from_config(nn.Sequential(dense), None, control, None, sizes={"0": (SIDE, SIDE)}).notices()


PADDED = {
    "same": nn.Conv2d(3, 4, 3, padding=1),
    "valid": nn.Conv2d(3, 4, 3),
    "grouped": nn.Conv2d(4, 6, (1, 3), padding="same", groups=2),
    "dilated": nn.Conv2d(3, 4, 3, padding=2, dilation=2),
    "transposed": nn.ConvTranspose2d(3, 4, 3, padding=1),
    "tt": TTConv2d(6, 8, 3, rank=3, padding=1, frames="free"),
    "1d": nn.Conv1d(3, 4, 5, padding=2),
    "linear": nn.Linear(5, 7),
}


@pytest.mark.parametrize("name", PADDED)
def test_a_division_takes_two_power_steps_with_the_zero_padded_layer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = PADDED[name].double()
    layer.bias.data.zero_()
    channels, size = {
        "grouped": (4, (6, 6)),
        "tt": (6, (6, 6)),
        "1d": (3, (6,)),
        "linear": (5, ()),
    }.get(name, (3, (6, 6)))
    units = torch.eye(channels * 6 ** len(size), dtype=torch.float64).view(-1, channels, *size)
    matrix = layer(units).detach().flatten(1).T
    if name == "transposed":
        matrix = matrix.T  # steps begin on the other side
    rank = 3 if name == "tt" else None
    if rank is not None:
        # The layer's own norm is reached between its frames, where the steps are made.
        core = nn.Conv2d(rank, rank, 3, padding=1, bias=False).double()
        core.weight.data = layer.small_kernel()
        units = torch.eye(rank * 36, dtype=torch.float64).view(-1, rank, 6, 6)
        matrix = core(units).detach().flatten(1).T
    start = torch.linspace(-1, 1.5, matrix.shape[1], dtype=torch.float64).cos()
    vector = matrix.T @ (matrix @ (matrix.T @ (matrix @ start)))
    estimate = float((matrix @ vector).norm() / vector.norm())
    monkeypatch.setattr(power_iteration, "paper_start", lambda shape, generator: start.view(shape))
    kernel = (layer.core if name == "tt" else layer.weight).detach().clone()
    paper_divide_layer_(layer, estimate / 2, (6,) * len(size) or (1,), torch.Generator())
    torch.testing.assert_close(layer.core if name == "tt" else layer.weight, kernel / 2, rtol=1e-12, atol=1e-14)
