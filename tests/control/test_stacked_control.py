"""Control of layers in stacks: the same as of each alone, against dense matrices, and in the same memory for ever."""

import copy
from typing import Literal

import pytest
import torch
from torch import nn

import svdctl
from svdctl.config.control_config import ControlConfig
from svdctl.control.actions import limit_batchnorms_
from svdctl.control.controller import Controller
from svdctl.control.divide import Divide
from svdctl.control.divide_each import DivideEach
from svdctl.layers.layer_operator import batchnorm_gain
from svdctl.layers.ops.standard_ops import StandardOps
from svdctl.layers.ops.tt_ops import TTOps
from svdctl.layers.sott import SOTT
from svdctl.layers.stiefel import MAX_DEFECT
from svdctl.layers.tt import TTConv2d
from svdctl.registry import CONTROLS
from svdctl.spectral.power_iteration import FactoredOperators, KernelPower
from tests.dense import dense_values

FRAMED = {
    "plain": dict(rank=3, padding=1),
    "two ranks, strided": dict(rank=(5, 3), padding=1, stride=2),
    "stride of one axis": dict(rank=4, padding=1, stride=(2, 1)),
    "dilated": dict(rank=4, padding=2, dilation=2, stride=2),
}


def framed(name: str, seed: int) -> TTConv2d:
    """Return a layer with frames far from orthonormal, float64."""
    torch.manual_seed(seed)
    layer = TTConv2d(6, 8, 3, bias=False, frames="penalty", **FRAMED[name]).double()
    with torch.no_grad():
        for frame in (layer.frame_in, layer.frame_out):
            frame.add_(0.5 * torch.randn_like(frame))
    return layer


@pytest.mark.parametrize("name", FRAMED)
def test_power_steps_through_frames_are_lower_bounds_and_converge(name: str) -> None:
    layers = [framed(name, seed) for seed in range(3)]
    operators = TTOps().factored_operators(layers)
    power = KernelPower(operators)
    torch.manual_seed(0)
    vectors = torch.randn_like(power.start(operators))
    bounds = [svdctl.spectral_norm_bound(layer) for layer in layers]
    for _ in range(60):
        found, vectors = power.step(operators, vectors)
        assert all(float(value) <= bound.upper for value, bound in zip(found, bounds, strict=True))
    # The grid of frequencies is small: the largest value between its points may be missed.
    assert all(float(value) >= 0.9 * bound.lower for value, bound in zip(found, bounds, strict=True))


@pytest.mark.parametrize("name", FRAMED)
def test_power_steps_through_frames_are_those_of_the_whole_kernel(name: str) -> None:
    layer = framed(name, 0)
    through = TTOps().factored_operators([layer])
    conv = TTOps().core_operator(layer)
    whole = FactoredOperators.of([conv.with_kernel(layer.contracted().detach()[None])])
    found, wanted = (
        float(power.step(operators, power.start(operators), 300)[0])
        for operators in (through, whole)
        for power in (KernelPower(operators),)
    )
    assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(4, 5, 3, stride=2),
        lambda: nn.Conv2d(4, 6, (3, 1), groups=2),
        lambda: nn.Conv1d(4, 4, 3, groups=4),
        lambda: nn.Conv3d(2, 3, 2, dilation=2),
    ],
)
def test_a_stack_takes_the_steps_of_each_layer(make) -> None:
    torch.manual_seed(0)
    layers = [make().double() for _ in range(3)]
    together = StandardOps().factored_operators(layers)
    power = KernelPower(together)
    start = torch.randn_like(power.start(together))
    values, vectors = power.step(together, start, 3)
    for layer, value, first, last in zip(layers, values, start, vectors, strict=True):
        alone = StandardOps().factored_operators([layer])
        wanted, wanted_last = KernelPower(alone).step(alone, first[None], 3)
        torch.testing.assert_close(value, wanted[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(last, wanted_last[0], rtol=1e-10, atol=1e-12)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        TTConv2d(8, 8, 3, rank=5, padding=1, frames="free"),
        TTConv2d(8, 8, 3, rank=5, padding=1, frames="free"),
        TTConv2d(8, 8, 3, rank=5, padding=1, frames="retract"),
        nn.Flatten(),
        nn.Linear(128, 4),
    )


@pytest.mark.parametrize("config", [Divide(max_sigma=0.7, linear_max=0.2), DivideEach(max_sigma=0.7, linear_max=0.2)])
def test_a_network_is_divided_as_its_layers_are_one_by_one(config: ControlConfig) -> None:
    whole, parts = network().double(), network().double()
    with torch.no_grad():
        for value in (*whole.parameters(), *parts.parameters()):
            value.mul_(1.7)
    together = Controller.from_config(whole, None, config, None)
    alone = [Controller.from_config(layer, None, config, None) for layer in parts]
    for _ in range(3):
        together.step()
        for controller in alone:
            controller.step()
    for value, wanted in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    largest = [dense_values(whole[index], (whole[index].in_channels, 4, 4))[0] for index in range(6)]
    assert max(largest) <= 0.72


def test_frames_are_divided_each_by_its_norm() -> None:
    torch.manual_seed(0)
    layer = TTConv2d(9, 12, 3, rank=5, frames="free").double()
    with torch.no_grad():
        layer.frame_in.mul_(torch.linspace(0.2, 3, 5))
        layer.frame_out.mul_(0.5)
    small = layer.frame_out.clone()
    controller = Controller(layer, method="divide-each", max_sigma=100.0)
    controller.step()
    assert 0.999 <= float(torch.linalg.matrix_norm(layer.frame_in.detach(), 2)) <= 1.001
    assert torch.equal(layer.frame_out, small)


def test_what_is_kept_stays_where_it_is_and_older_states_are_enough() -> None:
    layer = TTConv2d(9, 12, 3, rank=5, frames="retract")
    controller = Controller(layer, method="divide-each", max_sigma=0.5)
    kept = {key: value.data_ptr() for key, value in controller._controlled[""].state.items()}
    residual = controller.frame_residual.data_ptr()
    controller.step()
    state = copy.deepcopy(controller.state_dict())
    del state["frame 0 vectors"], state["frame 1 vectors"], state["retraction"]  # as older versions wrote it
    controller.load_state_dict(state)
    controller.step()
    assert {key: value.data_ptr() for key, value in controller._controlled[""].state.items()} == kept
    assert controller.frame_residual.data_ptr() == residual


class Halve(ControlConfig):
    kind: Literal["halve-and-count"] = "halve-and-count"


class HalveControl(svdctl.ControlMethod):
    """A method of a user's that puts new tensors in the state."""

    kind, config = "halve-and-count", Halve

    def has_factors(self, config: Halve) -> bool:
        return True

    def start(self, layers, config) -> None:
        for layer in layers:
            layer.state["count"] = torch.zeros(())

    def factors(self, layers, config, context):
        for layer in layers:
            layer.state["count"] = layer.state["count"] + 1
        return [[torch.tensor(0.5)] for _ in layers]


def test_a_users_new_tensors_are_written_into_the_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(2, 2, 1)
    monkeypatch.setitem(CONTROLS._variants, "halve-and-count", HalveControl())
    controller = Controller(layer, method="halve-and-count", max_sigma=1.0)
    kept = controller._controlled[""].state["count"]
    controller.step()
    controller.step()
    assert controller._controlled[""].state["count"] is kept
    assert float(kept) == 2.0


def test_batchnorms_of_all_widths_are_limited_alone_and_together() -> None:
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(width, eps=eps) for width, eps in ((4, 1e-5), (8, 1e-5), (4, 1e-3), (8, 1e-5))]
    layers.append(nn.BatchNorm1d(3, affine=False))
    for layer in layers:
        layer.running_var.uniform_(0.1, 2)
        if layer.weight is not None:
            nn.init.normal_(layer.weight, std=2)
    with torch.no_grad():
        layers[1].weight.mul_(1e-3)
    alone = copy.deepcopy(layers)
    limit_batchnorms_(layers, 1.5)
    for layer, other in zip(layers, alone, strict=True):
        gain = float(batchnorm_gain(other))
        limit_batchnorms_([other], 1.5)
        if layer.weight is not None:
            assert torch.equal(layer.weight, other.weight)
            assert float(batchnorm_gain(layer)) == pytest.approx(min(gain, 1.5), rel=1e-5)
            assert float(batchnorm_gain(layer)) <= 1.5


def test_the_penalty_of_a_network_is_the_sum_over_its_frames_and_so_is_its_gradient() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        TTConv2d(6, 8, 3, rank=4, frames="penalty"),
        TTConv2d(8, 8, 3, rank=4, frames="penalty"),
        TTConv2d(8, 8, 3, rank=4, frames="free"),
        SOTT(8, 8, rank=3, frames="penalty"),
        TTConv2d(8, 5, 3, rank=4, frames="penalty"),
    ).double()
    network[4].penalty_weight = 7.0
    found = Controller.from_config(network, None, None, None).penalty()
    wanted = torch.zeros((), dtype=torch.float64)
    for layers in ((network[0], network[1], network[3]), (network[4],)):
        defects = [
            (frame.T @ frame - torch.eye(frame.shape[1])).square().sum()
            for layer in layers
            for frame in (layer.frame_in, layer.frame_out)
        ]
        count = sum(2 * layer.rank[1] ** 2 for layer in layers)
        wanted = wanted + layers[0].penalty_weight / count * torch.stack(defects).sum()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    frames = [value for name, value in network.named_parameters() if "frame" in name]
    gradients = [torch.autograd.grad(term, frames, allow_unused=True, retain_graph=True) for term in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_largest_defect_is_gathered_and_qr_mends_what_products_cannot() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(TTConv2d(8, 8, 3, rank=4), SOTT(8, 8, rank=3), TTConv2d(8, 8, 3, rank=4, frames="free"))
    controller = Controller.from_config(network, None, None, None)
    controller.step()
    assert float(controller.frame_residual) < 1e-5
    with torch.no_grad():
        network[0].frame_in[:, 0] = 0
    controller.step()
    controller.step()
    assert float(controller.frame_residual) > MAX_DEFECT
    assert controller.why_not_captured(3) is None
    controller.retract_by_qr()
    controller.frame_residual.zero_()
    controller.step()
    assert float(controller.frame_residual) < 1e-5
    assert "tt layers" in controller.why_not_captured(4)
    again = Controller.from_config(copy.deepcopy(network), None, None, None)
    for layer in again.layers.values():
        layer.retraction = "polar"
    again.load_state_dict(controller.state_dict())
    assert again.why_not_captured(4) == controller.why_not_captured(4)


def test_control_follows_weights_on_every_kind_of_frames() -> None:
    """Within 10 % above the maximum, as the weights move, without a proof."""
    torch.manual_seed(0)
    kinds = ("free", "penalty", "retract", "parametrize")
    network = nn.Sequential(*(TTConv2d(8, 8, 3, rank=5, padding=1, bias=False, frames=kind) for kind in kinds))
    controller = Controller(network, method="divide", max_sigma=0.5)
    for _ in range(30):
        with torch.no_grad():
            for name, value in network.named_parameters():
                # Of parametrised frames the diagonal holds signs.
                step = 0.005 * torch.randn_like(value)
                value.add_(step.tril(-1) if "original" in name else step)
        controller.step()
    assert all(0.45 < row.largest < 0.55 for row in controller.report())


@pytest.mark.parametrize("method", ["divide", "divide-exact", "clip", "assign"])
def test_layers_whose_weights_have_one_shape_but_other_groups_are_controlled_apart(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=2))
    assert net[0].weight.shape == net[1].weight.shape
    controller = Controller(net, method=method, max_sigma=0.2, every_steps=1)
    for _ in range(3):
        controller.step()
    assert all(bracket.upper <= 0.2 for bracket in controller.seal().values())
    for layer in net:
        layer.bias = None
        assert float(dense_values(layer.double(), (layer.in_channels, 8, 8)).max()) <= 0.2
