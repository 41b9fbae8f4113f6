"""Every kind of control against the dense matrix, on every kind of layer."""

import pytest
import torch
from torch import nn

from svdctl import spectral_norm_bound
from svdctl.config.control_config import BatchNormControl
from svdctl.control import actions
from svdctl.control.actions import is_layer_bounded
from svdctl.control.assign import Assign
from svdctl.control.clip import Clip
from svdctl.control.controller import Controller
from svdctl.control.divide import Divide
from svdctl.control.divide_each import DivideEach
from svdctl.control.divide_exact import DivideExact
from svdctl.layers.layer_operator import batchnorm_gain
from svdctl.layers.layer_ops import ops_of
from svdctl.layers.soc import SOC
from svdctl.layers.tt import TTConv2d
from svdctl.spectral import batched, projection
from tests.dense import dense_values

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (3, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 5, 3, padding=1), (4, 6, 6)),
    "strided": (lambda: nn.Conv2d(4, 5, 3, padding=1, stride=2), (4, 7, 7)),
    "dilated": (lambda: nn.Conv2d(4, 5, 3, padding=2, dilation=2, stride=2), (4, 8, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "tt": (lambda: TTConv2d(6, 8, 3, rank=3, padding=1, frames="free"), (6, 6, 6)),
    "tt strided": (lambda: TTConv2d(6, 8, 3, rank=(5, 3), padding=1, stride=2, frames="free"), (6, 7, 7)),
    "tt kept": (lambda: TTConv2d(6, 8, 3, rank=3, padding=1, frames="retract"), (6, 6, 6)),
    "tt parametrized": (lambda: TTConv2d(6, 8, 3, rank=3, padding=1, frames="parametrize"), (6, 6, 6)),
}
CONTROLS = [
    Clip(max_sigma=0.7, every_steps=1, linear_max=0.7),
    Divide(max_sigma=0.7, linear_max=0.7),
    DivideExact(max_sigma=0.7, linear_max=0.7),
    DivideEach(max_sigma=0.7, linear_max=0.7),
    Assign(max_sigma=0.7, every_steps=1, linear_max=0.7),
]


def make(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layer = LAYERS[name][0]().to(dtype)
    with torch.no_grad():
        (layer.core if isinstance(layer, TTConv2d) else layer.weight).mul_(5)
        if isinstance(layer, TTConv2d) and layer.frames_kind == "free":
            layer.frame_in.add_(0.2 * torch.randn_like(layer.frame_in))
    return layer


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bound_holds_after_a_step_and_the_seal(name: str, control, dtype: torch.dtype) -> None:
    layer = make(name, dtype)
    model = nn.Sequential(layer)
    assert dense_values(layer.double(), LAYERS[name][1])[0] > 0.7
    model.to(dtype)
    controller = Controller.from_config(model, None, control, None)
    controller.step()
    controller.seal()
    assert is_layer_bounded(layer, 0.7)
    report = controller.report()[0]
    assert report.bound <= 0.7
    largest = float(dense_values(layer.double(), LAYERS[name][1])[0])
    assert largest <= 0.7
    assert largest > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("control", [CONTROLS[0], CONTROLS[-1]], ids=lambda control: control.kind)
def test_clip_and_assign_of_a_whole_network_as_on_a_gpu(
    control, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products over stacks, all layers at once, end where eigenvectors of each layer do."""
    kinds = [name for name in LAYERS for _ in range(2)]
    worked_on: list[int] = []

    def controlled() -> nn.ModuleList:
        model = nn.ModuleList(make(name, dtype) for name in kinds)
        with torch.no_grad():
            model[0].weight.mul_(0.01)
        worked_on.clear()
        Controller.from_config(model, None, control, None).step()
        return model

    for name in ("project_kernel", "assigned_kernel"):
        plain = getattr(projection, name)

        def noted(conv, *more, plain=plain, **settings):
            worked_on.append(len(conv.kernel))
            return plain(conv, *more, **settings)

        monkeypatch.setattr(projection, name, noted)
    alone, found = controlled(), len(worked_on)
    for module in (batched, projection):
        monkeypatch.setattr(module, "products_are_faster", lambda _: True)
    monkeypatch.setattr(actions, "on_cpu", lambda _: False)
    reads: list[int] = []
    on_host = projection.on_host
    monkeypatch.setattr(projection, "on_host", lambda values: reads.append(len(values)) or on_host(values))
    together = controlled()
    assert len(worked_on) <= found // 2 + 1
    # What is read of the stacks is read at once, of layers that share memory apart.
    assert reads[:1] == ([len(worked_on)] if control.kind == "clip" else [])
    for one, other in zip(alone, together, strict=True):
        assert is_layer_bounded(other, 0.7)
        kernels = [ops_of(layer).operator(layer).kernel for layer in (one, other)]
        assert torch.allclose(*kernels, atol=1e-3)


def test_assign_brings_values_together() -> None:
    layer = make("conv2d", torch.float64)
    spread = dense_values(layer, (4, 6, 6))
    Controller.from_config(nn.Sequential(layer), None, Assign(max_sigma=1.0, every_steps=1), None).step()
    after = dense_values(layer, (4, 6, 6))
    assert after[0] / after[100] < 0.7 * spread[0] / spread[100]


def test_divide_sees_no_host_and_follows_the_weights() -> None:
    layer = make("conv2d", torch.float32)
    controller = Controller.from_config(nn.Sequential(layer), None, Divide(max_sigma=1.0), None)
    for _ in range(19):
        with torch.no_grad():
            layer.weight.add_(0.05 * torch.randn_like(layer.weight))
        controller.step()
    assert controller.report()[0].largest < 1.1


def test_layers_without_a_maximum_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    before = model[2].weight.detach().clone()
    controller = Controller.from_config(model, None, Clip(max_sigma=0.01, every_steps=3), None)
    for _ in range(3):
        controller.step()
    controller.seal()
    assert torch.equal(model[2].weight, before)
    assert is_layer_bounded(model[0], 0.01)


@pytest.mark.parametrize("kind", LAYERS)
def test_brackets_of_a_seal_depend_on_the_sealed_weights_alone(kind: str) -> None:
    model = nn.Sequential(make(kind, torch.float32))

    def controller() -> Controller:
        return Controller.from_config(model, None, Divide(max_sigma=0.05, linear_max=0.05), None)

    sealed = controller().seal()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    rows = {row.name: (row.largest, row.bound) for row in controller().report()}
    assert controller().seal() == sealed
    assert rows == {name: (bracket.lower, bracket.upper) for name, bracket in sealed.items()}
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), weights, strict=True))
    assert sealed["0"].lower > 0.049


@pytest.mark.parametrize("kind", LAYERS)
def test_a_wide_report_finds_the_largest_values_that_a_quick_seal_leaves_open(kind: str) -> None:
    model = nn.Sequential(make(kind, torch.float32))
    controller = Controller.from_config(model, None, Divide(max_sigma=0.05, linear_max=0.05), None)
    quick = controller.seal(sharp=False)
    assert quick["0"].lower == 0
    [wide], [sharp] = controller.report(quick, tolerance=0.05), controller.report()
    assert sharp.largest / 1.05 <= wide.largest <= sharp.bound
    assert wide.largest <= wide.bound <= 0.05
    assert wide.is_proved


def test_paper_procedure_has_no_seal() -> None:
    layer = make("conv2d", torch.float32)
    sizes = {"0": (6, 6)}
    controller = Controller.from_config(
        nn.Sequential(layer), None, Clip(max_sigma=0.7, every_steps=1, procedure="paper"), None, sizes=sizes
    )
    controller.step()
    controller.seal()
    assert not is_layer_bounded(layer, 0.7)


SMALL_INPUTS = {
    # layer: (input size, grid)
    "conv1d": ((2,), (3,)),
    "conv2d": ((2, 2), (3, 3)),
    "strided": ((1, 1), (2, 2)),
    "dilated": ((2, 1), (3, 3)),
    "grouped": ((1, 5), (3, 5)),
    "depthwise": ((2, 2), (3, 3)),
    "conv3d": ((1, 4, 1), (2, 4, 2)),
    "tt": ((2, 2), (3, 3)),
    "tt strided": ((2, 2), (2, 2)),
    "tt parametrized": ((1, 1), (3, 3)),
    "linear": ((1,), (1,)),
}


def paper_clip(layer: nn.Module, maximum: float, size: tuple[int, ...]) -> Controller:
    control = Clip(max_sigma=maximum, every_steps=1, procedure="paper", linear_max=maximum)
    controller = Controller.from_config(nn.Sequential(layer), None, control, None, sizes={"0": size})
    controller.step()
    return controller


def kernel_of(layer: nn.Module) -> torch.Tensor:
    return (layer.contracted() if isinstance(layer, TTConv2d) else layer.weight).detach().clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SMALL_INPUTS)
def test_paper_clip_leaves_kernels_larger_than_their_input_that_are_within_the_limit(
    name: str, dtype: torch.dtype
) -> None:
    layer, (size, grid) = make(name, dtype), SMALL_INPUTS[name]
    limit = 1.001 * spectral_norm_bound(layer).upper
    before = kernel_of(layer)
    controller = paper_clip(layer, limit, size)
    assert float((kernel_of(layer) - before).norm() / before.norm()) < 1e-6
    sizes = [" x ".join(map(str, axes)) for axes in (size, grid)]
    notices = "".join(controller.notices())
    # A grid of half the input's sides does not hold the strided kernel either.
    enlarged = size != grid or name == "tt strided"
    assert notices.endswith(f"0 (input {sizes[0]}, grid {sizes[1]})") if enlarged else not notices


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "grouped", "depthwise", "conv3d", "tt", "tt parametrized"])
def test_paper_clip_of_kernels_larger_than_their_input_is_the_clip_on_their_own_grid(name: str) -> None:
    layer = make(name, torch.float64)
    before = kernel_of(layer)
    taps = before.shape[2:]
    paper_clip(layer, 0.5, (1,) * len(taps))
    groups = getattr(layer, "groups", 1)

    def values(kernel: torch.Tensor) -> torch.Tensor:
        # Matrices of each group at each frequency of the grid, torch's transform as the oracle.
        matrices = torch.fft.fftn(kernel.unflatten(0, (groups, -1)), dim=tuple(range(-len(taps), 0)))
        return torch.linalg.svdvals(matrices.flatten(3).movedim(3, 0))

    # On the kernel's own grid nothing is cut: each value is the smaller one of its own and the limit.
    torch.testing.assert_close(values(kernel_of(layer)), values(before).clamp_max(0.5), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_batchnorm_gain_uses_the_layers_own_eps(eps: float) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, eps=eps)
    norm.running_var.copy_(torch.tensor([1e-4, 1.0, 4.0, 9.0]))
    norm.weight.data.normal_()
    controller = Controller.from_config(nn.Sequential(norm), None, Clip(max_sigma=1.0), BatchNormControl(max_gain=2.0))
    controller.step()
    assert batchnorm_gain(norm) <= 2.0
    norm.eval()
    assert dense_values(norm.double(), (4, 2, 2))[0] <= 2.0


def test_a_step_names_what_is_due_and_what_no_graph_can_hold() -> None:
    model = nn.Sequential(SOC(2, 2), nn.BatchNorm2d(2), TTConv2d(2, 4, 3, rank=1), nn.Conv2d(4, 2, 3))
    norms = BatchNormControl(max_gain=2.0, every_steps=4)
    divided = Controller.from_config(model, None, Divide(max_sigma=1.0, every_steps=5), norms)
    assert [divided.due(step) for step in (1, 4, 5, 40)] == [(), ("batchnorm",), ("control",), ("batchnorm", "control")]
    assert divided.due(200) == ("batchnorm", "control", "norm estimates")
    assert all(divided.why_not_captured(step) is None for step in (1, 5, 200))
    clipped = Controller.from_config(model, None, Clip(max_sigma=1.0, every_steps=100), None)
    assert clipped.why_not_captured(99) is None
    assert "'clip' reads values back" in clipped.why_not_captured(100)
    model[2].retraction = "qr"
    assert "tt layers" in divided.why_not_captured(1)


def test_control_proofs_and_reports_tell_how_many_layers_are_done() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    controller = Controller(net, method="clip", max_sigma=0.5, linear_max=0.5, every_steps=1)
    told: list[tuple[int, int, str]] = []
    for work in (controller.step, controller.seal, controller.report):
        told.clear()
        with controller.reporting(lambda done, total, now: told.append((done, total, now))):
            work()
        assert told == [(1, 3, "layers"), (2, 3, "layers"), (3, 3, "layers")]
        told.clear()
        work()
        assert not told


@pytest.mark.parametrize(("procedure", "count"), [("certified", 0), ("paper", 1)])
def test_what_the_papers_procedure_means_for_a_scaling_by_proofs_is_said(procedure: str, count: int) -> None:
    config = DivideExact.model_validate({"procedure": procedure})
    controller = Controller.from_config(nn.Sequential(nn.Conv2d(3, 4, 3)), None, config, None)
    said = controller.notices()
    assert len(said) == count
    assert all("no maximum is proved at evaluations and checkpoints" in text for text in said)
