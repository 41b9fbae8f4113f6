"""What a controller does in a step to layers of every kind, on a device: it reads nothing back and stays there."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import svdctl
from svdctl.control.controller import Controller
from svdctl.layers import stored_weight
from tests import fake_cuda
from tests.fake_cuda import without_numbers
from tests.synchronisation import NoHostReads

STEPS = (1, 2, 1000)
"""The last has all that is done now and then."""
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv1d": lambda: nn.Conv1d(3, 4, 3),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, dilation=2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "conv3d": lambda: nn.Conv3d(2, 3, (1, 2, 3)),
    "transposed1d": lambda: nn.ConvTranspose1d(3, 4, 3, stride=2),
    "transposed2d": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "transposed3d": lambda: nn.ConvTranspose3d(2, 3, 2),
    "linear": lambda: nn.Linear(7, 5),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "normalization": lambda: nn.BatchNorm1d(4),
    "skew": lambda: svdctl.SOC(4, 4, 3),
    "skew between frames": lambda: svdctl.SOTT(6, 6, 3, rank=3),
    "tt1d": lambda: svdctl.TTConv1d(6, 8, 3, rank=3, padding=1),
    "tt3d": lambda: svdctl.TTConv3d(6, 8, 2, rank=3, frames="penalty"),
    "tt strided": lambda: svdctl.TTConv2d(6, 8, 3, rank=(5, 3), stride=2),
    "tt free": lambda: svdctl.TTConv2d(6, 8, 3, rank=3, frames="free"),
    "tt parametrized": lambda: svdctl.TTConv2d(6, 8, 3, rank=3, frames="parametrize"),
}
METHODS = {"divide": None, "divide-each": None, "clip": 50, "assign": 50, "divide-exact": 50}
"""With the steps between two applications; those that have a number read values back at them, and between them not."""

ESTIMATING = [method for method, every in METHODS.items() if every is None]


def network(dtype: torch.dtype) -> nn.ModuleDict:
    torch.manual_seed(0)
    # torch makes no orthogonal matrix in half precision.
    names = [name for name in LAYERS if dtype == torch.float32 or name != "tt parametrized"]
    return nn.ModuleDict({name: LAYERS[name]() for name in names}).to(dtype)


def control_of(model: nn.Module, method: str) -> Controller:
    every = METHODS[method]
    return Controller(model, method=method, max_sigma=0.5, linear_max=0.7, batchnorm_max=0.9, every_steps=every)


def make_steps(model: nn.Module, control: Controller, watched: Callable[[], AbstractContextManager[object]]) -> None:
    """Make steps of an optimiser, each with its control under the eyes of `watched`."""
    optimizer = control.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=True)
    for step in STEPS:
        for value in model.parameters():
            value.grad = torch.randn_like(value)
        optimizer.step()
        reads = control.why_not_captured(step) is not None
        assert reads == (METHODS[control.config.kind] is not None and step == 1000)
        if not reads:
            with watched():
                control.penalty()
                control.apply_(step)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        *((method, torch.float32) for method in METHODS),
        *((method, dtype) for method in ESTIMATING for dtype in (torch.bfloat16, torch.float16)),
    ],
)
def test_control_of_every_layer_reads_nothing_back(method: str, dtype: torch.dtype) -> None:
    model = network(dtype)
    control = control_of(model, method)
    make_steps(model, control, NoHostReads)
    assert all(value.dtype == dtype and value.isfinite().all() for value in model.parameters())


@pytest.mark.skipif(not fake_cuda.is_possible(), reason="this torch asks the driver for fake tensors")
@pytest.mark.parametrize(
    ("method", "dtype"),
    [*((method, torch.float32) for method in (*ESTIMATING, "clip")), ("divide", torch.bfloat16)],
)
def test_control_of_every_layer_stays_on_the_device(
    method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Weights of a class of tensors of its own are refused, and these are.
    shown = lambda value: Tensor if isinstance(value, FakeTensor) else type(value)  # noqa: E731
    monkeypatch.setattr(stored_weight, "type", shown, raising=False)
    model = network(dtype)
    control = control_of(model, method)
    with without_numbers(model, control):
        make_steps(model, control, nullcontext)
        assert {value.device for value in model.state_dict().values()} == {fake_cuda.CUDA}
