"""TT layers on one, two and three axes: one mathematics, compared with dense matrices; whole networks and back."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import svdctl
from svdctl.checkpoint.stored_layers import stored_layers
from svdctl.control.actions import is_layer_bounded
from svdctl.errors import ShapeError
from svdctl.layers.layer_operator import exact_operator, operator_of
from svdctl.layers.stiefel import frame_error
from svdctl.layers.tensorize import TT_FORMS
from svdctl.layers.tt import TTConv
from svdctl.spectral import norm_bound
from tests.dense import dense_values

SIZES = {1: (9,), 2: (6, 5), 3: (4, 3, 4)}
CASES = [
    dict(rank=3, padding=1),
    dict(rank=(2, 4), stride=2, padding=1),
    dict(rank=3, padding=2, dilation=2),
    dict(rank=9, padding=1),
]


def layer_of(form: type[TTConv], frames: str = "free", **case: object) -> TTConv:
    torch.manual_seed(0)
    layer = form(4, 6, 3, **case, frames=frames).double()
    if layer.has_frames and frames == "free":
        layer.frame_in.data += 0.3 * torch.randn_like(layer.frame_in)
    return layer


@pytest.mark.parametrize("form", TT_FORMS)
@pytest.mark.parametrize("frames", ["free", "retract", "parametrize"])
@pytest.mark.parametrize("case", CASES)
def test_every_contraction_is_the_convolution_by_the_whole_kernel(form: type[TTConv], frames: str, case: dict) -> None:
    layer = layer_of(form, frames, **case)
    x = torch.randn(2, 4, *SIZES[form.axes], dtype=torch.float64)
    settings = (layer.bias, layer.stride, layer.padding, layer.dilation)
    wanted = form.convolve(x, layer.contracted(), *settings)
    for layer.contraction in (None, (True, True), (True, False), (False, True), (False, False)):
        torch.testing.assert_close(layer(x), wanted)
    conv = layer.to_conv()
    assert type(conv) is form.ordinary
    torch.testing.assert_close(conv(x), wanted)
    torch.testing.assert_close(layer(x[0]), wanted[0])


@pytest.mark.parametrize("form", TT_FORMS)
@pytest.mark.parametrize("case", CASES)
def test_norms_and_gains_are_at_least_those_of_the_dense_matrix(form: type[TTConv], case: dict) -> None:
    layer = layer_of(form, **case)
    shape = (4, *SIZES[form.axes])
    truth = float(dense_values(layer, shape)[0])
    conv, error = exact_operator(layer)
    bracket = norm_bound(conv)
    assert truth <= bracket.upper + error
    assert bracket.lower == pytest.approx(norm_bound(operator_of(layer.to_conv())).lower, rel=1e-2)
    assert truth <= svdctl.spectral_norm_bound(layer).upper
    certified = svdctl.lipschitz_bound(nn.Sequential(layer, nn.ReLU()), shape).value
    assert truth <= certified <= 1.02 * bracket.upper


@pytest.mark.parametrize("form", TT_FORMS)
def test_all_singular_values_with_circular_padding(form: type[TTConv]) -> None:
    layer = layer_of(form, rank=3, padding=1)
    ring = form.ordinary(4, 6, 3, padding=1, padding_mode="circular", bias=False).double()
    with torch.no_grad():
        ring.weight.copy_(layer.contracted())
    size = SIZES[form.axes]
    found = svdctl.singular_values(layer, size)
    wanted = dense_values(ring, (4, *size))
    torch.testing.assert_close(found, wanted[: len(found)], rtol=1e-9, atol=1e-9)
    assert float(wanted[len(found) :].abs().max()) < 1e-9


@pytest.mark.parametrize("form", TT_FORMS)
@pytest.mark.parametrize("frames", ["free", "retract", "parametrize"])
@pytest.mark.parametrize("method", ["clip", "divide", "assign"])
def test_control_and_its_seal_bound_the_dense_matrix(form: type[TTConv], frames: str, method: str) -> None:
    layer = layer_of(form, frames, rank=3, padding=1).float()
    with torch.no_grad():
        layer.core.mul_(5)
    controller = svdctl.Controller(nn.Sequential(layer), method=method, max_sigma=0.7, every_steps=1)
    controller.step()
    controller.seal()
    assert is_layer_bounded(layer, 0.7)
    largest = float(dense_values(copy.deepcopy(layer).double(), (4, *SIZES[form.axes]))[0])
    assert 0.1 < largest <= 0.7


@pytest.mark.parametrize("form", TT_FORMS)
@pytest.mark.parametrize("method", ["polar", "qr"])
def test_retraction_keeps_the_operator(form: type[TTConv], method: str) -> None:
    layer = layer_of(form, rank=3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.randn(2, 4, *SIZES[form.axes], dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    before = layer.contracted().detach()
    layer.retract_(method, optimizer)
    assert max(frame_error(layer.frame_in), frame_error(layer.frame_out)) < 1e-12
    torch.testing.assert_close(layer.contracted(), before)


@pytest.mark.parametrize("form", TT_FORMS)
def test_bare_states_are_recognised(form: type[TTConv]) -> None:
    layer = layer_of(form, rank=3)
    (stored,) = stored_layers(dict(layer.state_dict()))
    assert stored.kind == "tt"
    assert (stored.shape, stored.rank) == ((6, 4, *(3,) * form.axes), (3, 3))
    assert norm_bound(stored.make()).lower == pytest.approx(norm_bound(operator_of(layer)).lower, rel=1e-6)


def test_names_in_the_state_of_a_layer_stay() -> None:
    assert list(svdctl.TTConv2d(4, 6, 3, rank=2).state_dict()) == ["core", "frame_in", "frame_out", "bias"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    shared = nn.Conv3d(4, 4, 3, padding=1)
    frozen = nn.Conv2d(8, 8, 3, stride=2).requires_grad_(False).eval()
    net = nn.Sequential(nn.Conv1d(4, 6, 3, dilation=2, bias=False), frozen, shared, nn.ReLU(), shared)
    return net.double()


@pytest.mark.parametrize("frames", ["retract", "parametrize"])
def test_whole_networks_are_tensorised_and_put_back(frames: str) -> None:
    net = network()
    before = copy.deepcopy(net)
    errors = svdctl.tensorize_(net, rank=8, frames=frames)
    assert list(errors) == ["0", "1", "2", "4"]
    assert max(errors.values()) < 1e-12
    assert [type(layer).__name__.removeprefix("Parametrized") for layer in net] == [
        *("TTConv1d", "TTConv2d", "TTConv3d", "ReLU", "TTConv3d")
    ]
    assert net[2] is net[4]
    assert [layer.training for layer in net] == [True, False, True, True, True]
    if frames == "retract":
        net[0].retract_("qr")
    assert svdctl.untensorize_(net) == ["0", "1", "2", "4"]
    assert net[2] is net[4]
    for layer, old in zip(net, before, strict=True):
        assert (type(layer), layer.training) == (type(old), old.training)
        if not isinstance(old, nn.ReLU):
            torch.testing.assert_close(layer.weight, old.weight)
            assert str(layer) == str(old)
            assert layer.weight.requires_grad == old.weight.requires_grad
    assert svdctl.untensorize_(net) == []


def test_an_approximation_tells_its_error_and_is_what_is_put_back() -> None:
    net = network()
    before = copy.deepcopy(net)
    errors = svdctl.tensorize_(net, rank=2, skip="1")
    kernels = [net[0].contracted().detach(), net[2].contracted().detach()]
    svdctl.untensorize_(net)
    for name, kernel in zip(("0", "2"), kernels, strict=True):
        layer, old = net.get_submodule(name), before.get_submodule(name)
        torch.testing.assert_close(layer.weight.detach(), kernel)
        apart = float((layer.weight - old.weight).detach().norm() / old.weight.detach().norm())
        assert apart == pytest.approx(errors[name], rel=1e-9)
        assert 0.1 < apart < 1
    assert type(net[1]) is nn.Conv2d


def test_what_cannot_be_put_back_is_refused_before_anything_is_replaced() -> None:
    net = nn.Sequential(svdctl.TTConv1d(4, 4, 3, rank=2), svdctl.TTConv2d(4, 4, 3, rank=2))
    net[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ShapeError, match="layer '1': the TT layer cannot be converted: it has a forward hook"):
        svdctl.untensorize_(net)
    assert type(net[0]) is svdctl.TTConv1d
    with pytest.raises(ShapeError, match=r"use layer\.to_conv\(\)"):
        svdctl.untensorize_(net[0])
    with pytest.raises(ShapeError, match=r"use TTConv3d\.from_conv\(conv, rank\)"):
        svdctl.tensorize_(nn.Conv3d(2, 2, 3), rank=1)


def test_wrong_geometry_is_refused() -> None:
    with pytest.raises(ShapeError, match="one for each of its 3 axes"):
        svdctl.TTConv3d(4, 4, (3, 3), rank=2)
    for value in ("full", 1.5, (1.5, 1), None):
        with pytest.raises(ShapeError, match="whole number or one for each of its 2 axes"):
            svdctl.TTConv2d(4, 4, 3, rank=2, padding=value)
    assert svdctl.TTConv2d(4, 4, np.int64(3), rank=2, padding=[1, 2]).padding == (1, 2)
    with pytest.raises(ShapeError, match="a TTConv1d is made of a Conv1d, not of a Conv2d"):
        svdctl.TTConv1d.from_conv(nn.Conv2d(2, 2, 3), 1)
