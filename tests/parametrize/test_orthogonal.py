"""Orthonormal matrices of linear layers and convolutions of one tap, against the dense operator."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from svdctl.checkpoint.parametrized import effective
from svdctl.errors import ShapeError
from svdctl.parametrize import orthogonal, remove_parametrizations
from tests.dense import dense_values

LAYERS = {
    "linear": (lambda: nn.Linear(8, 5), (8,)),
    "tall": (lambda: nn.Linear(5, 8), (5,)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 1), (6, 3)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 1), (4, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(4, 4, 1), (4, 2, 2, 2)),
    "groups": (lambda: nn.Conv2d(6, 9, 1, groups=3), (6, 2, 2)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 1, groups=2), (6, 2, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_singular_values_are_one(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    module = orthogonal(make().double())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(2, *shape, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    values = dense_values(module, shape)
    count = min(values.numel(), int((values > 0.5).sum()))
    torch.testing.assert_close(values[:count], torch.ones(count, dtype=torch.float64))
    assert float(values[count:].abs().max() if count < len(values) else 0) < 1e-9
    rank = min(module.weight.shape[0] // getattr(module, "groups", 1), module.weight.shape[1])
    assert count == rank * getattr(module, "groups", 1) * int(torch.Size(shape[1:]).numel())


def _error(module):
    """Return the largest distance of a singular value of the groups' matrices from 1."""
    weight = module.weight.detach().double()
    groups = getattr(module, "groups", 1)
    values = torch.linalg.svdvals(weight.reshape(groups, weight.shape[0] // groups, weight.shape[1]))
    return float((values - 1).abs().max())


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("name", ["linear", "tall", "conv2d", "groups"])
def test_weight_decay_leaves_it_orthonormal(name, kind):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    module = orthogonal(make())
    start = module.weight.detach().clone()
    optimizer = kind(module.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (module(torch.randn(4, *shape)) - 1).square().mean().backward()
        optimizer.step()
    assert _error(module) < 1e-5
    assert float((module.weight - start).detach().abs().max()) > 0.1


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("multi_avg_fn", [None, get_ema_multi_avg_fn(0.999), get_ema_multi_avg_fn(0.9)])
@pytest.mark.parametrize("name", ["linear", "groups"])
def test_means_of_weights_are_orthonormal(name, multi_avg_fn, use_buffers):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    module = orthogonal(make())
    mean = AveragedModel(module, multi_avg_fn=multi_avg_fn, use_buffers=use_buffers)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(50):
        optimizer.zero_grad()
        (module(torch.randn(4, *shape)) - 1).square().mean().backward()
        optimizer.step()
        mean.update_parameters(module)
    assert _error(mean.module) < 1e-5
    # Signs that were lost would turn columns round.
    assert float((mean.module.weight - module.weight).detach().abs().max()) < 0.3
    assert not torch.equal(mean.module.weight, module.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear", "groups"])
def test_conversions_leave_it_orthonormal(name, dtype):
    torch.manual_seed(0)
    module = orthogonal(LAYERS[name][0]())
    before = module.weight.detach().clone()
    module.to(dtype)
    assert module.weight.dtype == dtype
    assert _error(module) < 8 * torch.finfo(dtype).eps
    module.float()
    assert _error(module) < 1e-5
    torch.testing.assert_close(module.weight.detach(), before, atol=8 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_state_alone_tells_the_weight(name):
    torch.manual_seed(0)
    module = orthogonal(LAYERS[name][0]())
    found = effective(module.state_dict())
    assert found.value.shape == module.weight.shape
    torch.testing.assert_close(found.value, module.weight.detach().double(), atol=1e-6, rtol=0)
    assert found.may_be_orthonormal
    assert "svdctl's orthogonal" in found.assumption


@pytest.mark.parametrize("name", LAYERS)
def test_assigned_weight(name):
    """Its columns, of wide matrices the rows, are those of Q where R has a positive diagonal."""
    torch.manual_seed(0)
    module = orthogonal(LAYERS[name][0]().double())
    weight = torch.randn(module.weight.shape, dtype=torch.float64)
    module.weight = weight
    groups = getattr(module, "groups", 1)
    for found, given in zip(module.weight.detach().chunk(groups), weight.chunk(groups), strict=True):
        found, given = found.flatten(1), given.flatten(1)
        factor = given @ found.T if len(found) < found.shape[1] else (found.T @ given).T
        torch.testing.assert_close(factor.triu(1), torch.zeros_like(factor), atol=1e-12, rtol=0)
        assert bool((factor.diagonal() > 0).all())


def test_copies_state_and_removal():
    torch.manual_seed(0)
    module = orthogonal(nn.Conv2d(4, 6, 1))
    copied = copy.deepcopy(module)
    other = orthogonal(nn.Conv2d(4, 6, 1))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.weight, module.weight)
    weight = module.weight.detach().clone()
    assert torch.equal(remove_parametrizations(copied).weight, weight)
    assert type(copied) is nn.Conv2d
    assert torch.equal(module.weight, weight)


def test_orthonormal_weight_stays():
    torch.manual_seed(0)
    weight = torch.linalg.qr(torch.randn(6, 4))[0].reshape(6, 4, 1, 1)
    module = nn.Conv2d(4, 6, 1)
    with torch.no_grad():
        module.weight.copy_(weight)
    torch.testing.assert_close(orthogonal(module).weight.detach(), weight)


def _filled(module, value):
    nn.init.constant_(module.weight, value)
    return module


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_weight_of_zeros_or_rank_one_becomes_orthonormal(name, value):
    make, shape = LAYERS[name]
    module = orthogonal(_filled(make().double(), value))
    values = dense_values(module, shape)
    rank = min(module.weight.shape[0] // getattr(module, "groups", 1), module.weight.shape[1])
    count = rank * getattr(module, "groups", 1) * int(torch.Size(shape[1:]).numel())
    torch.testing.assert_close(values[:count], torch.ones(count, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Conv2d(3, 3, 3), "SOC"),
        (lambda: nn.Linear(3, 3).half(), "float"),
        (lambda: orthogonal(nn.Linear(3, 3)), "remove it first"),
        (lambda: nn.Linear(3, 3, dtype=torch.complex64), "not torch.complex64"),
        (lambda: _filled(nn.Linear(3, 3), math.nan), "not finite"),
        (lambda: nn.Linear(3, 3, device="meta"), "meta device"),
        (lambda: nn.utils.spectral_norm(nn.Linear(3, 3)), "computed from others"),
        (lambda: nn.ReLU(), "convolution or linear"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refused(make, words):
    module = make()
    with pytest.raises(ShapeError, match=words):
        orthogonal(module)
