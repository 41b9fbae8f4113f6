"""Control of float16 and bfloat16 weights: proved as they are stored, against the dense matrix in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svdctl
from svdctl.config.control_config import BatchNormControl
from svdctl.control import actions
from svdctl.control.actions import is_layer_bounded
from svdctl.control.clip import Clip
from svdctl.control.controller import Controller
from svdctl.errors import ShapeError
from svdctl.layers.layer_operator import batchnorm_gain
from svdctl.layers.layer_ops import LayerOps
from svdctl.spectral import batched, projection
from svdctl.spectral.stacks import multiply_
from tests.control.test_control import CONTROLS, LAYERS, make
from tests.dense import dense_values

HALF = [torch.float16, torch.bfloat16]
KINDS = [name for name in LAYERS if name != "tt parametrized"]  # torch makes no orthogonal matrix in half precision


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def are_same(model: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(weights(model), before, strict=True))


def largest(layer: nn.Module, shape: tuple[int, ...]) -> float:
    return float(dense_values(copy.deepcopy(layer).double(), shape)[0])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.kind)
@pytest.mark.parametrize("dtype", HALF)
def test_stored_weights_are_within_the_bound_and_near_it(name: str, control: Any, dtype: torch.dtype) -> None:
    layer = make(name, dtype)
    model = nn.Sequential(layer)
    assert largest(layer, LAYERS[name][1]) > 0.7
    controller = Controller.from_config(model, None, control, None)
    controller.step()
    controller.seal(sharp=False)
    assert all(value.dtype == dtype for value in model.parameters())
    assert is_layer_bounded(layer, 0.7)
    assert largest(layer, LAYERS[name][1]) <= 0.7
    # Two units of bfloat16 below the maximum; `divide-each` bounds the product of three factors.
    assert controller.report()[0].largest > (0.5 if control.kind == "divide-each" else 0.685)
    sealed = weights(model)
    controller.seal()
    assert controller.smallest_factor == 1
    assert are_same(model, sealed)


@pytest.mark.parametrize("change", [svdctl.clip_, svdctl.divide_])
@pytest.mark.parametrize("dtype", HALF)
def test_a_second_call_changes_nothing(change: Callable[..., dict[str, float]], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 24, 3), nn.Conv2d(24, 24, 3, stride=2), nn.Linear(40, 30)).to(dtype)
    done = change(net, max_sigma=0.5, linear=True)
    assert all(value not in (0, 1) for value in done.values())
    before = weights(net)
    assert set(change(net, max_sigma=0.5, linear=True).values()) <= {0.0, 1.0}
    assert are_same(net, before)
    shapes = ((16, 7, 7), (24, 8, 8), (40,))
    assert all(0.3 < largest(layer, shape) <= 0.5 for layer, shape in zip(net, shapes, strict=True))


@pytest.mark.parametrize("control", [CONTROLS[0], CONTROLS[2], CONTROLS[4]], ids=lambda control: control.kind)
@pytest.mark.parametrize("dtype", HALF)
def test_whole_networks_as_on_a_gpu(control: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (batched, projection):
        monkeypatch.setattr(module, "products_are_faster", lambda _: True)
    monkeypatch.setattr(actions, "on_cpu", lambda _: False)
    # Frames that are retracted are rounded anew at each step.
    net = nn.ModuleList(make(name, dtype) for name in KINDS if name != "tt kept" for _ in range(2))
    controller = Controller.from_config(net, None, control, None)
    controller.step()
    assert all(is_layer_bounded(layer, 0.7) for layer in net)
    assert all(row.largest > 0.685 for row in controller.report())
    before = weights(net)
    controller.seal()
    assert are_same(net, before)


@pytest.mark.parametrize("dtype", HALF)
def test_a_clip_moves_less_than_a_division(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(16, 16, 3, bias=False).to(dtype).requires_grad_(False)
    start, divided = net.weight.double(), copy.deepcopy(net)
    moved = svdctl.clip_(net, max_sigma=0.5)[""]
    svdctl.divide_(divided, max_sigma=0.5)
    assert moved == pytest.approx(float((net.weight.double() - start).norm()), rel=0.01)
    assert moved < 0.9 * float((divided.weight.double() - start).norm())


@pytest.mark.parametrize("kind", ["divide", "divide-each"])
@pytest.mark.parametrize("dtype", HALF)
def test_division_follows_weights_where_a_factor_of_0_999_changes_none(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3).to(dtype)
    controller = Controller(layer, method=kind, max_sigma=1.0)
    norms = []
    for _ in range(60):
        with torch.no_grad():
            layer.weight.mul_(1.004)  # rounds up for most entries
        controller.step()
        norms.append(svdctl.spectral_norm_bound(layer).lower)
    assert max(norms[20:]) < 1.01
    assert all(value.dtype == torch.complex64 for value in controller.state_dict()["vectors"].values())


@pytest.mark.parametrize("dtype", HALF)
def test_a_factor_near_one_is_not_rounded_before_it_multiplies(dtype: torch.dtype) -> None:
    values, factor = torch.linspace(1, 2, 4096).to(dtype), torch.tensor(1 - torch.finfo(dtype).eps / 2)
    found = values.clone()
    multiply_([found], [factor])
    torch.testing.assert_close(found, (values.double() * factor.double()).to(dtype), rtol=0, atol=0)
    assert int((found == values).sum()) <= 1


@pytest.mark.parametrize("dtype", HALF)
def test_batchnorm_in_half_precision_is_within_its_limit_as_stored(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(300), nn.BatchNorm2d(300)).to(dtype)
    for norm in model:
        norm.weight.data.uniform_(0, 3)
        norm.running_var.uniform_(0.5, 2)
    model[1].float()
    controller = Controller.from_config(model, None, Clip(), BatchNormControl(max_gain=0.7))
    controller.step()
    assert all(0.695 < float(batchnorm_gain(norm, torch.float64)) <= 0.7 for norm in model)
    before = weights(model)
    controller.step()
    assert are_same(model, before)


@pytest.mark.parametrize("change", [svdctl.clip_, svdctl.divide_])
@pytest.mark.parametrize("scale", [1e-4, 3e-6, 1e-6])
def test_subnormal_weights_that_round_back_are_brought_down(change: Callable[..., Any], scale: float) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, bias=False)
    layer.weight.data.mul_(scale)
    layer.half()
    norm = svdctl.spectral_norm_bound(layer).lower
    assert norm > 0
    change(layer, max_sigma=0.99 * norm)
    assert svdctl.spectral_norm_bound(layer).lower <= 0.99 * norm


def test_rounds_that_do_not_help_end_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(4, 4, 3).bfloat16()
    before = weights(layer)
    monkeypatch.setattr(LayerOps, "scale_", lambda *_: None)
    with pytest.raises(ShapeError, match=r"too coarse to be brought to 0\.1: it was scaled 20 times"):
        svdctl.divide_(layer, max_sigma=0.1)
    assert are_same(layer, before)


@pytest.mark.parametrize("dtype", HALF)
def test_the_paper_procedure_runs(dtype: torch.dtype) -> None:
    for control in CONTROLS[:2]:
        layer = make("conv2d", dtype)
        paper = control.model_copy(update={"procedure": "paper"})
        Controller.from_config(nn.Sequential(layer), None, paper, None, sizes={"0": (6, 6)}).step()
        assert layer.weight.isfinite().all()
        assert svdctl.spectral_norm_bound(layer).lower < 1.2
