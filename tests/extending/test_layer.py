"""A user's layer has spectra, bounds, control, certificates and training; `input_major_layer.py` is all it takes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import svdctl
from svdctl.config.configuration import configuration
from svdctl.errors import ShapeError, UsageError
from svdctl.train import start as recipe
from tests.dense import dense_values
from tests.extending.input_major_layer import InputMajorConv2d
from tests.train.test_runs import Recorder, assert_equal, weights


def pair(stride: int = 1) -> tuple[InputMajorConv2d, nn.Conv2d]:
    """The layer, and torch's convolution with the same kernel."""
    torch.manual_seed(0)
    layer = InputMajorConv2d(3, 5, 3, stride=stride, padding=1, bias=True)
    conv = nn.Conv2d(3, 5, 3, stride=stride, padding=1)
    with torch.no_grad():
        conv.weight.copy_(layer.weight())
        conv.bias.zero_()
    return layer, conv


@pytest.mark.parametrize("stride", [1, 2])
def test_its_spectrum_and_bounds_are_those_of_the_convolution_that_it_is(stride: int) -> None:
    layer, conv = pair(stride)
    assert torch.equal(svdctl.singular_values(layer, 6), svdctl.singular_values(conv, 6))
    assert svdctl.spectral_norm_bound(layer) == svdctl.spectral_norm_bound(conv)
    rows = [svdctl.spectrum(nn.Sequential(part), (3, 6, 6))["0"] for part in (layer, conv)]
    assert rows[0].bound == rows[1].bound
    assert rows[0].shape == rows[1].shape == (5, 3, 3, 3)
    assert rows[0].assumption == ""
    proved = [svdctl.lipschitz_bound(nn.Sequential(part, nn.ReLU()), (3, 6, 6)).value for part in (layer, conv)]
    assert proved[0] == proved[1]
    assert dense_values(layer.double(), (3, 6, 6))[0] <= rows[0].bound.upper


def test_it_is_clipped_and_divided_in_place() -> None:
    for change_ in (svdctl.clip_, svdctl.divide_):
        layer, conv = pair()
        assert change_(nn.Sequential(layer), max_sigma=0.5) == change_(nn.Sequential(conv), max_sigma=0.5)
        assert torch.equal(layer.weight(), conv.weight)
        assert dense_values(layer.double(), (3, 6, 6))[0] <= 0.5


class Doubled(InputMajorConv2d):
    """Has a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Helped(InputMajorConv2d):
    """Changes what a method gives that the forward pass calls, and that its operator is not read from."""

    def weight(self) -> Tensor:
        return 2 * super().weight()


@pytest.mark.parametrize("kind", [Doubled, Helped])
def test_a_subclass_that_computes_something_else_is_not_taken_for_it(kind: type[InputMajorConv2d]) -> None:
    torch.manual_seed(0)
    layer = kind(3, 5, 3, stride=1, padding=1, bias=False)
    largest = float(dense_values(layer.double(), (3, 6, 6))[0])
    for call in (svdctl.spectral_norm_bound, lambda layer: svdctl.clip_(layer, max_sigma=1.0)):
        with pytest.raises(ShapeError, match="its forward pass is not that of InputMajorConv2d"):
            call(layer)
    # A certificate looks into its forward pass.
    assert svdctl.lipschitz_bound(nn.Sequential(layer), (3, 6, 6)).value >= largest
    assert svdctl.spectrum(nn.Sequential(layer, nn.Conv2d(5, 5, 1)).double(), (3, 6, 6))["0"].bound is None


SMALL = (
    "model.depth=10", "model.width=1", "layer.kind=input-major", "control.kind=clip", "control.max_sigma=0.8",
    "control.every_steps=5", "max_steps=8", "batch_size=32", "log.every_steps=1",
)  # fmt: skip


def test_it_is_trained_under_control_resumed_and_loaded(tmp_path: Path) -> None:
    config = configuration("quickstart", [*SMALL, f"out_dir={tmp_path}"])
    assert any("input-major convolutions" in line for line in recipe.plan(config, "test"))
    whole = recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=3))
    assert not part.completed
    assert recipe.resume(part.folder, reporter=Recorder()).completed
    assert_equal(weights(whole.folder), weights(part.folder))
    layers = [layer for layer in svdctl.load(whole.folder).modules() if isinstance(layer, InputMajorConv2d)]
    assert len(layers) == 7
    assert all(svdctl.spectral_norm_bound(layer).upper <= 0.8 for layer in layers)


def test_a_wrong_kind_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'standard', 'tt', 'soc', 'sott'.*'input-major'"):
        configuration("quickstart", ["layer.kind=output-major"])
