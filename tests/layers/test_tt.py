"""TT layers against their dense kernels."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from svdctl.config.optimizer_config import Sgd
from svdctl.control.controller import Controller
from svdctl.errors import ShapeError
from svdctl.layers import stiefel
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.sott import SOTT
from svdctl.layers.stiefel import frame_error, polar, positive_factor, qr_positive
from svdctl.layers.tensorize import tensorize_
from svdctl.layers.tt import TTConv2d
from svdctl.models.build import build_optimizer
from svdctl.spectral import norm_bound
from tests.dense import dense_values

CASES = [
    dict(rank=3, stride=1, padding=1, dilation=1),
    dict(rank=(2, 5), stride=2, padding=1, dilation=1),
    dict(rank=4, stride=1, padding=2, dilation=2),
    dict(rank=6, stride=(2, 1), padding=0, dilation=1),
    dict(rank=9, stride=1, padding=1, dilation=1),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frames", ["free", "parametrize"])
def test_both_ways_and_to_conv2d_agree(case: dict, frames: str) -> None:
    torch.manual_seed(0)
    layer = TTConv2d(5, 8, 3, **case, frames=frames).double()
    x = torch.randn(2, 5, 9, 8, dtype=torch.float64)
    want = F.conv2d(x, layer.contracted(), layer.bias, layer.stride, layer.padding, layer.dilation)
    assert torch.allclose(layer(x), want, atol=1e-12)
    assert torch.allclose(layer.to_conv()(x), want, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_small_kernel_has_the_layers_singular_values_with_bad_frames(case: dict) -> None:
    torch.manual_seed(0)
    layer = TTConv2d(5, 8, 3, **case, frames="free").double()
    if layer.has_frames:
        layer.frame_in.data += 0.3 * torch.randn_like(layer.frame_in)
        layer.frame_out.data += 0.3 * torch.randn_like(layer.frame_out)
    whole = norm_bound(operator_of(layer.to_conv()))
    small = norm_bound(operator_of(layer))
    assert small.lower == pytest.approx(whole.lower, rel=1e-2)
    assert dense_values(layer, (5, 7, 7))[0] <= small.upper


@pytest.mark.parametrize("method", ["polar", "qr"])
def test_retraction_keeps_the_operator_and_its_momentum_direction(method: str) -> None:
    torch.manual_seed(0)
    layer = TTConv2d(6, 7, 3, rank=4, padding=1, bias=False).double()
    optimizer = build_optimizer(Sgd(lr=0.05, weight_decay=0), layer)
    x, y = torch.randn(4, 6, 5, 5, dtype=torch.float64), torch.randn(4, 7, 5, 5, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimizer.step()
    before = layer.contracted().detach().clone()

    @torch.no_grad()
    def direction() -> float:
        """Change of the kernel along the momentum as a covector: its pairing with tangents must not change."""
        grads = {name: optimizer.state[p]["momentum_buffer"] for name, p in layer.named_parameters()}
        # The same change of the operator in both coordinates, W' = dU C V' with dU = M U: a frame turns by a skew M.
        mixer = torch.arange(49, dtype=torch.float64).reshape(7, 7).sin()
        along_frame = grads["frame_out"] * ((mixer - mixer.T) @ layer.frame_out)
        return float(along_frame.sum() + grads["core"].mul(layer.core).sum())

    pairing = direction()
    layer.retract_(method, optimizer)
    assert frame_error(layer.frame_in) < 1e-12
    assert frame_error(layer.frame_out) < 1e-12
    assert torch.allclose(layer.contracted(), before, atol=1e-12)
    assert direction() == pytest.approx(pairing, rel=1e-9)
    for frame in (layer.frame_in, layer.frame_out):
        # The rest would leave the frames and move into the core, whose own mean holds it already.
        mean = optimizer.state[frame]["momentum_buffer"]
        inner = frame.detach().T @ mean
        assert mean.norm() > 1e-4
        assert torch.allclose(inner, -inner.mT, atol=1e-12)


@pytest.mark.parametrize("kind", [TTConv2d, SOTT])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["polar", "qr"])
def test_retraction_in_half_precision_is_that_of_float32_rounded(kind: type, dtype: torch.dtype, method: str) -> None:
    """With momentum, which is carried along."""
    torch.manual_seed(0)
    half = kind(9, 7, 3, rank=4)
    for frame in (half.frame_in, half.frame_out):
        frame.data += 0.1 * torch.randn_like(frame)
    half.to(dtype)
    single = copy.deepcopy(half).float()
    for layer in (half, single):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
        for parameter in layer.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        layer.retract_(method, optimizer)
        layer.means = {name: optimizer.state[p]["momentum_buffer"] for name, p in layer.named_parameters()}
    for (name, narrow), wide in zip(half.named_parameters(), single.parameters(), strict=True):
        assert narrow.dtype == dtype
        tolerance = 16 * torch.finfo(dtype).eps
        assert torch.allclose(narrow.float(), wide, rtol=tolerance, atol=tolerance), name
        assert torch.allclose(half.means[name].float(), single.means[name], rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_qr_by_products(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    near = qr_positive(torch.randn(3, 40, 12, dtype=dtype))[0] + 0.05 * torch.randn(3, 40, 12, dtype=dtype)
    spread = torch.randn(3, 40, 12, dtype=dtype) * torch.logspace(-5, 0, 12).to(dtype)
    twice = torch.randn(3, 40, 6, dtype=dtype).repeat(1, 1, 2)
    cases = [near, near[0], spread, torch.cat((near, twice)), twice]
    wanted = [qr_positive(case) for case in cases]
    factorised = []
    plain = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda matrix: factorised.append(matrix) or plain(matrix))
    monkeypatch.setattr(stiefel, "products_are_faster", lambda _: True)
    for case, pair in zip(cases, wanted, strict=True):
        found = qr_positive(case)
        assert all(part.dtype == dtype for part in found)
        for part, other in zip(found, pair, strict=True):
            # Small columns are known to eps over their share; those without a direction of their own not at all.
            assert torch.allclose(part, other, atol=1e5 * torch.finfo(dtype).eps)
    # Where columns depend on each other it is Householder's.
    assert [len(matrix) for matrix in factorised] == [6, 3]


def test_factors_multiply_back_and_qr_is_positive() -> None:
    torch.manual_seed(0)
    frame = torch.randn(7, 4, dtype=torch.float64)
    for q, p in (polar(frame), qr_positive(frame)):
        assert torch.allclose(q @ p, frame, atol=1e-10)
        assert frame_error(q) < 1e-10
    assert (qr_positive(frame)[1].diagonal() > 0).all()
    assert torch.equal(positive_factor(frame), qr_positive(frame)[1])
    symmetric = polar(frame)[1]
    assert torch.allclose(symmetric, symmetric.T, atol=1e-6)


def test_best_fit_is_exact_at_full_rank_and_reports_its_error() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, padding=1)
    exact, error = TTConv2d.from_conv(conv, 8)
    assert error == 0
    assert torch.equal(exact.contracted(), conv.weight)
    errors = [TTConv2d.from_conv(conv, rank)[1] for rank in (1, 2, 4, 6)]
    assert errors == sorted(errors, reverse=True)
    layer, error = TTConv2d.from_conv(conv, 4, frames="parametrize")
    distance = (layer.contracted() - conv.weight).norm() / conv.weight.norm()
    assert float(distance) == pytest.approx(error)
    assert 0 < error < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank", [3, 8])
def test_best_fit_of_half_precision_is_that_of_its_numbers_but_for_rounding(dtype: torch.dtype, rank: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, padding=1).to(dtype)
    wide = copy.deepcopy(conv).double()
    layer, error = TTConv2d.from_conv(conv, rank)
    best = TTConv2d.from_conv(wide, rank)[1]
    assert {value.dtype for value in layer.state_dict().values()} == {dtype}
    stored = copy.deepcopy(layer).double().contracted()
    assert error == pytest.approx(float((stored - wide.weight).norm() / wide.weight.norm()), rel=1e-4, abs=1e-12)
    assert best * (1 - 1e-6) <= error <= best + 4 * torch.finfo(dtype).eps
    if layer.frame_in is not None and layer.frame_out is not None:
        assert max(frame_error(layer.frame_in), frame_error(layer.frame_out)) < 4 * torch.finfo(dtype).eps
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64).to(dtype)
    dense = F.conv2d(x.double(), stored, wide.bias, padding=1)
    assert float((layer(x).double() - dense).norm() / dense.norm()) < 8 * torch.finfo(dtype).eps
    with pytest.raises(ShapeError, match=r"no half precision; convert the layer with \.float\(\)"):
        TTConv2d.from_conv(conv, rank, frames="parametrize")


def test_tensorize_replaces_all_but_what_is_skipped_and_refuses_groups() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 8, 3, groups=2)
    )
    with pytest.raises(ShapeError, match="layer '2'"):
        tensorize_(model, rank=2)
    assert isinstance(model[0], nn.Conv2d)
    errors = tensorize_(model, rank=2, skip=["2"])
    assert set(errors) == {"0", "1.1"}
    assert isinstance(model[1][1], TTConv2d)
    assert model(torch.randn(1, 3, 9, 9)).shape == (1, 8, 3, 3)


def test_rank_zero_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least 1"):
        TTConv2d(3, 4, 3, rank=0)


def test_penalty_by_hand() -> None:
    torch.manual_seed(0)
    layer = TTConv2d(6, 7, 3, rank=4, frames="penalty").double()
    layer.frame_in.data *= 1.1
    defect = (1.1**2 - 1) ** 2 * 4
    layer.penalty_weight = 5.0
    for layer.penalty_count, count in (("paper", 2 * 16), ("entries", 32)):
        assert float(Controller.from_config(layer, None, None, None).penalty()) == pytest.approx(5.0 * defect / count)
    whole = TTConv2d(3, 3, 3, rank=3, frames="penalty")
    assert float(Controller.from_config(whole, None, None, None).penalty()) == 0


@pytest.mark.parametrize(
    "optimizer_of",
    [
        lambda layer: build_optimizer(Sgd(lr=0.05, weight_decay=0.1), layer),
        lambda layer: torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.1),
    ],
    ids=["svdctl", "of the user"],
)
def test_parametrized_frames_stay_frames_under_weight_decay(
    optimizer_of: Callable[[TTConv2d], torch.optim.Optimizer],
) -> None:
    torch.manual_seed(0)
    layer = TTConv2d(6, 40, 3, rank=4, frames="parametrize")
    optimizer = optimizer_of(layer)
    x = torch.randn(4, 6, 5, 5)
    for _ in range(5):
        optimizer.zero_grad()
        (layer(x) - 1).square().mean().backward()
        optimizer.step()
    assert frame_error(layer.frame_in) < 1e-5
    assert frame_error(layer.frame_out) < 1e-5


@pytest.mark.parametrize(("kernel", "dilation", "padding"), [(3, 1, "same"), ((5, 3), (1, 2), "same"), (3, 2, "valid")])
def test_padding_by_word_is_that_of_torch(kernel: Any, dilation: Any, padding: str) -> None:
    torch.manual_seed(0)
    layer = TTConv2d(3, 4, kernel, rank=2, dilation=dilation, padding=padding).double()
    conv = nn.Conv2d(3, 4, kernel, dilation=dilation, padding=padding).double()
    conv.weight.data, conv.bias.data = layer.contracted().detach(), layer.bias.detach()
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    assert torch.allclose(layer(x), conv(x), atol=1e-12)
    assert layer(x).shape == conv(x).shape


def test_weight_of_the_penalty_of_tensorized_layers() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3))
    tensorize_(net, rank=2, frames="penalty", penalty_weight=3.0)
    with torch.no_grad():
        net[0].frame_in.mul_(2)
    control = Controller(net, torch.optim.SGD(net.parameters(), 0.1), max_sigma=10.0)
    first = control.penalty()
    net[0].penalty_weight = 6.0
    assert float(first) > 0
    assert float(control.penalty()) == pytest.approx(2 * float(first))
