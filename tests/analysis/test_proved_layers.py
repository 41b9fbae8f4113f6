"""What is said to be proved of a layer is true of the layer as it runs, or is refused."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.weight_norm import WeightNorm

import svdctl
from svdctl.errors import ShapeError
from svdctl.layers import norms
from svdctl.layers.layer_bounds import layer_gain
from svdctl.layers.norms import layer_norm_bound
from svdctl.layers.soc import FixedSOC
from svdctl.layers.sott import SOTT
from svdctl.spectral.bounds import Bracket, norm_bounds
from svdctl.spectral.convolution import Convolution
from tests.dense import dense_values


class Normalised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class CalledTwice(nn.Conv2d):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(super().__call__(x))


class FreeTT(svdctl.TTConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class OwnKernel(svdctl.TTConv2d):
    def small_kernel(self, *, dtype: torch.dtype = torch.float64) -> Tensor:
        return 1e-12 * super().small_kernel(dtype=dtype)


class OwnChoice(svdctl.TTConv2d):
    def _cheapest(self, shape: torch.Size) -> tuple[bool, bool]:
        self.core.data.mul_(2)
        return super()._cheapest(shape)


class Louder(WeightNorm):
    def compute_weight(self, module: nn.Module) -> Any:
        return 9 * super().compute_weight(module)


def with_hook_on(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = svdctl.TTConv2d(4, 4, 3, rank=2, padding=1, frames="free", bias=False)
        if name == "core":
            nn.utils.weight_norm(layer, "core")
        else:
            prune.l1_unstructured(layer, name, 1)
        return layer

    return make


def nested_hooks() -> nn.Module:
    layer = nn.utils.weight_norm(nn.Conv2d(4, 4, 3))
    return prune.l1_unstructured(layer, "weight_v", 1)


def own_weight_norm() -> nn.Module:
    layer = nn.utils.weight_norm(nn.Conv2d(4, 4, 3))
    (key,) = layer._forward_pre_hooks
    layer._forward_pre_hooks[key] = Louder("weight", 0)
    return layer


def patched() -> nn.Module:
    layer = nn.Conv2d(4, 4, 3)
    layer.forward = lambda x: 5 * F.conv2d(x, layer.weight)
    return layer


def with_hook(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = nn.Conv2d(4, 4, 3, padding=1)
        if kind == "after":
            layer.register_forward_hook(lambda _module, _inputs, output: 5 * output)
        else:
            layer.register_forward_pre_hook(lambda _module, inputs: (5 * inputs[0],))
        return layer

    return make


class OwnTensor(Tensor):
    """Counts five times in convolutions, and once elsewhere."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factor = 5 if func in (F.conv2d, F.linear) else 1
        with torch._C.DisableTorchFunctionSubclass():
            plain = [factor * arg.as_subclass(Tensor) if isinstance(arg, cls) else arg for arg in args]
            return func(*plain, **(kwargs or {}))


def with_own_tensor(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = nn.Conv2d(4, 4, 3, padding=1)
        own = torch.Tensor._make_subclass(OwnTensor, getattr(layer, name).detach())
        delattr(layer, name)
        layer.register_buffer(name, own)
        return layer

    return make


class StaysInTraining(nn.Module):
    """A parametrization that eval() does not reach."""

    def train(self, _mode: bool = True) -> "StaysInTraining":
        return super().train(True)

    def forward(self, weight: Tensor) -> Tensor:
        return 50 * weight if self.training else weight


def stays_in_training() -> nn.Module:
    layer = nn.Linear(16, 10)
    parametrize.register_parametrization(layer, "weight", StaysInTraining())
    return layer.eval()


class OwnAttributes(nn.Linear):
    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return (lambda x: 5 * found(x)) if name == "forward" else found


def compiled_as_another() -> nn.Module:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    layer._compiled_call_impl = lambda x: 5 * layer._call_impl(x)
    return layer


OWN = {
    "stays in training": stays_in_training,
    "attributes": lambda: OwnAttributes(16, 10),
    "compiled": compiled_as_another,
    "weight of an own class": with_own_tensor("weight"),
    "bias of an own class": with_own_tensor("bias"),
    "forward": lambda: Normalised(16, 10),
    "conv_forward": lambda: Standardised(4, 4, 3),
    "call": lambda: CalledTwice(4, 4, 3, padding=1),
    "patched": patched,
    "tt": lambda: FreeTT(8, 8, 3, rank=2),
    "hook": with_hook("after"),
    "pre-hook": with_hook("before"),
    "own kernel": lambda: OwnKernel(4, 4, 3, rank=2, padding=1),
    "own choice": lambda: OwnChoice(4, 4, 3, rank=2, padding=1),
    "hook on the core": with_hook_on("core"),
    "hook on a frame": with_hook_on("frame_in"),
    "hooks on hooks": nested_hooks,
    "own weight_norm": own_weight_norm,
}
READERS: dict[str, Callable[[nn.Module], Any]] = {
    "spectral_norm_bound": svdctl.spectral_norm_bound,
    "singular_values": lambda layer: svdctl.singular_values(layer, 8),
    "clip_": lambda layer: svdctl.clip_(layer, max_sigma=0.1, linear=True),
    "divide_": lambda layer: svdctl.divide_(layer, max_sigma=0.1, linear=True),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", OWN)
def test_a_layer_that_does_something_else_with_its_weight_is_refused(name: str, reader: str) -> None:
    layer = OWN[name]()
    before = [parameter.clone() for parameter in layer.parameters()]
    with pytest.raises(ShapeError, match="forward"):
        READERS[reader](layer)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


@pytest.mark.parametrize(
    ("owner", "name"), [(nn.Conv2d, "_conv_forward"), (nn.Conv2d, "forward"), (nn.Module, "__call__")]
)
def test_a_class_that_is_patched_is_refused(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, before = nn.Conv2d(4, 4, 3), getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: 5 * before(*args))
    with pytest.raises(ShapeError, match="forward"):
        svdctl.spectral_norm_bound(layer)


@pytest.mark.parametrize("name", ["patched", "hook", "pre-hook"])
def test_such_a_layer_is_not_converted(name: str) -> None:
    with pytest.raises(ShapeError, match="forward"):
        svdctl.tensorize_(nn.Sequential(OWN[name]()), rank=2)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", OWN)
def test_its_row_of_a_spectrum_has_no_bound_and_says_why(name: str) -> None:
    layer = OWN[name]()
    shape = (16,) if isinstance(layer, nn.Linear) else (layer.in_channels, 8, 8)
    rows = svdctl.spectrum(nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2)), shape)
    assert rows["0"].bound is None
    assert rows["0"].values is None
    assert "forward" in rows["0"].note
    assert rows["2"].bound is not None


def test_the_bound_of_the_network_follows_the_forward_pass_itself() -> None:
    torch.manual_seed(0)
    layer = Normalised(16, 10).double()
    true = float(torch.linalg.matrix_norm(F.normalize(layer.weight.detach(), dim=1), 2))
    found = svdctl.lipschitz_bound(layer, (16,)).value
    assert true <= found <= 1.001 * true


class ParametersBesideLayers(nn.Module):
    """Weights of a module that has layers too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4, 4), 100.0))
        self.inner = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oi,nihw->nohw", self.weight, self.inner(x))


class FixedFilter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(4, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, groups=4)  # type: ignore[arg-type]


def test_every_module_with_numbers_of_its_own_has_a_row() -> None:
    net = nn.Sequential(ParametersBesideLayers(), FixedFilter(), nn.PReLU(), nn.ReLU())
    rows = svdctl.spectrum(net, (4, 8, 8))
    assert {row.name: row.is_analysed for row in rows} == {"0": False, "0.inner": True, "1": False, "2": False}


class Carries(nn.Module):
    """Computes with the tensor of a layer that spectra have no row for, outside of that layer's own calls."""

    def __init__(self, layer: nn.Module, tensor: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, bias=False)
        self.layer, self.tensor = layer, tensor

    def forward(self, x: Tensor) -> Tensor:
        kernel = 100 * getattr(self.layer, self.tensor).reshape(4, 4, -1)[:, :, :1, None]
        return self.layer(F.conv2d(self.conv(x), kernel))


def minmax_with_a_weight() -> nn.Module:
    layer = svdctl.MinMax()
    layer.register_parameter("weight", nn.Parameter(torch.eye(4)))
    return layer


CARRIERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "MinMax": (minmax_with_a_weight, "weight"),
    "FixedSOC": (lambda: FixedSOC(svdctl.SOC(4, 4, 3).eval()), "kernel"),
}


@pytest.mark.parametrize("kind", CARRIERS)
def test_numbers_of_a_layer_without_a_spectrum_are_not_proved(kind: str) -> None:
    torch.manual_seed(0)
    make, tensor = CARRIERS[kind]
    net = Carries(make(), tensor)
    found = svdctl.spectrum(net, (4, 4, 4))
    row = found["layer"]
    assert row.bound is None
    assert not row.is_analysed
    assert row.note == f"layers of type {kind} have no spectrum known here"
    assert row.shape == tuple(getattr(net.layer, tensor).shape)
    # Of the linear part alone, and so much larger than what the rows prove.
    weight = getattr(net.layer, tensor).detach().double().reshape(4, 4, -1)[:, :, 0]
    true = float(torch.linalg.matrix_norm(100 * weight @ net.conv.weight.detach().double()[:, :, 0, 0], 2))
    assert found.bound_product < true
    assert found.lipschitz is not None
    assert found.lipschitz >= true * (1 - 1e-6)


REPARAMETRISED: dict[str, Callable[[], nn.Module]] = {
    "old weight_norm": lambda: nn.utils.weight_norm(nn.Conv2d(4, 6, 3)),
    "old spectral_norm": lambda: nn.utils.spectral_norm(nn.Conv2d(4, 6, 3)),
    "pruned": lambda: prune.random_unstructured(nn.Conv2d(4, 6, 3), "weight", amount=0.5),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(4, 6, 3)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REPARAMETRISED)
def test_a_weight_that_is_computed_from_others_is_read_as_the_next_pass_computes_it(name: str) -> None:
    torch.manual_seed(0)
    layer = REPARAMETRISED[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.7)  # as an optimiser's step does: hooks compute the weight anew at the next pass only
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    found = svdctl.spectral_norm_bound(layer.train())
    values = svdctl.singular_values(layer, 8)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())
    layer.eval()
    with torch.no_grad():
        layer(torch.zeros(1, 4, 8, 8))
        weight = layer.weight.detach().double()
    assert isinstance(weight, Tensor)
    plain = nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", bias=False).double()
    plain.weight.data.copy_(weight)
    true = dense_values(plain, (4, 8, 8))
    assert found.upper >= float(true[0]) * (1 - 1e-9)
    assert values.double() == pytest.approx(true[: len(values)], rel=1e-5, abs=1e-5)


class Random(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * torch.rand(())


class OnlyInTraining(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight if self.training else 50 * weight


@pytest.mark.parametrize("reader", ["spectral_norm_bound", "singular_values"])
def test_a_weight_that_is_another_at_each_reading_is_refused(reader: str) -> None:
    layer = nn.Conv2d(4, 4, 3)
    parametrize.register_parametrization(layer, "weight", Random())
    with pytest.raises(ShapeError, match="each reading"):
        READERS[reader](layer)


def test_a_tt_core_that_depends_on_the_mode_is_read_in_evaluation() -> None:
    torch.manual_seed(0)
    layer = svdctl.TTConv2d(4, 4, 3, rank=2, bias=False)
    plain = svdctl.spectral_norm_bound(layer)
    parametrize.register_parametrization(layer, "core", OnlyInTraining())
    found = svdctl.spectral_norm_bound(layer.train())
    assert found.lower == pytest.approx(50 * plain.lower, rel=0.01)
    assert layer.training
    with pytest.raises(ShapeError, match="computed anew"):
        svdctl.clip_(layer, max_sigma=1.0)


@pytest.mark.parametrize(("made", "weight"), [(3, 1), (5, 3), (3, 5)])
@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_is_counted_for_the_weight_that_is_there(mode: str, made: int, weight: int) -> None:
    layer = nn.Conv2d(1, 1, made, padding=made // 2, padding_mode=mode, bias=False)
    layer.weight = nn.Parameter(torch.ones(1, 1, weight, weight))
    bound = svdctl.spectral_norm_bound(layer).upper
    for size in (4, 5, 6):
        true = float(dense_values(copy.deepcopy(layer).double(), (1, size, size))[0])
        assert true <= bound * (1 + 1e-9)
        assert true <= svdctl.lipschitz_bound(layer, (1, size, size)).value * (1 + 1e-9)


PADDED: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "reflect 3x3": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    "reflect strided": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "stride": 2, "padding_mode": "reflect"}),
    "reflect wide": (nn.Conv1d, {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"}),
    "reflect dilated": (nn.Conv1d, {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "reflect"}),
    "replicate 3x3": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}),
    "replicate wide": (nn.Conv1d, {"kernel_size": 2, "padding": 3, "padding_mode": "replicate"}),
    "replicate one side": (nn.Conv1d, {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"}),
    "replicate strided": (nn.Conv1d, {"kernel_size": 3, "padding": 1, "stride": 2, "padding_mode": "replicate"}),
    "replicate, stride of the kernel": (
        nn.Conv1d,
        {"kernel_size": 3, "padding": 1, "stride": 3, "padding_mode": "replicate"},
    ),
    "circular wide": (nn.Conv1d, {"kernel_size": 2, "padding": 2, "padding_mode": "circular"}),
    "circular 3x3": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}),
}
FILTERS = {
    "random": torch.randn_like,
    "sum": torch.ones_like,
    "difference": lambda w: torch.ones_like(w).cumsum(-1) - 2,
}


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("name", PADDED)
def test_padding_that_repeats_pixels_is_counted_everywhere(name: str, filters: str) -> None:
    torch.manual_seed(0)
    kind, options = PADDED[name]
    layer = kind(2, 3, **options)
    axes = 2 if kind is nn.Conv2d else 1
    layer.weight.data.copy_(FILTERS[filters](layer.weight))  # type: ignore[operator, union-attr]
    net = nn.Sequential(layer)
    bound = svdctl.spectral_norm_bound(layer).upper
    sizes = [n for n in (1, 2, 3, 4, 5, 8) if _runs(layer, n, axes)]
    true = [float(dense_values(copy.deepcopy(layer).double(), (2, *[n] * axes))[0]) for n in sizes]
    assert max(true) <= bound * (1 + 1e-9)
    # A factor that nobody needs would be no service.
    assert bound <= 3.2 * max(true) if axes == 2 else bound <= 2.3 * max(true)
    for size, norm in zip(sizes, true, strict=True):
        row = svdctl.spectrum(net, (2, *[size] * axes), accuracy="fast")["0"]
        assert row.bound is not None
        assert norm <= row.bound.upper * (1 + 1e-9)
        assert row.zero_padded is not None
        assert row.zero_padded.lower <= norm * (1 + 1e-9)
        assert norm <= svdctl.lipschitz_bound(net, (2, *[size] * axes)).value * (1 + 1e-9)
    for change in (svdctl.clip_, svdctl.divide_):
        changed = copy.deepcopy(layer)
        change(changed, max_sigma=0.7)
        assert svdctl.spectral_norm_bound(changed).upper <= 0.7 * (1 + 1e-12)
        after = [float(dense_values(copy.deepcopy(changed).double(), (2, *[n] * axes))[0]) for n in sizes]
        assert max(after) <= 0.7 * (1 + 1e-9)


def _runs(layer: nn.Module, size: int, axes: int) -> bool:
    try:
        layer(torch.zeros(1, 2, *[size] * axes))
    except RuntimeError:
        return False
    return True


def test_a_circular_layer_is_bounded_on_sizes_that_its_stride_does_not_divide() -> None:
    torch.manual_seed(1)
    for seed in range(30):
        torch.manual_seed(seed)
        layer = nn.Conv1d(1, 1, 3, padding=1, stride=2, padding_mode="circular", bias=False)
        row = svdctl.spectrum(nn.Sequential(layer), (1, 5))["0"]
        assert row.bound is not None
        assert float(dense_values(copy.deepcopy(layer).double(), (1, 5))[0]) <= row.bound.upper * (1 + 1e-9)


def test_the_gain_of_a_circular_layer_holds_where_one_axis_overlaps_and_the_stride_divides_none() -> None:
    layer = nn.Conv2d(1, 1, (4, 3), stride=3, padding=(2, 1), padding_mode="circular", bias=False)
    nn.init.ones_(layer.weight)
    gain = layer_gain(layer).value
    for size in ((2, 1), (2, 2), (4, 1), (5, 4)):
        assert float(dense_values(copy.deepcopy(layer).double(), (1, *size))[0]) <= gain


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular", bias=False).to(dtype)
    net = nn.Sequential(layer)
    true = dense_values(copy.deepcopy(layer).double(), (8, 6, 6))
    values = svdctl.singular_values(layer, 6)
    assert values.dtype == torch.float32
    assert values.double() == pytest.approx(true, rel=2e-4, abs=1e-5)
    row = svdctl.spectrum(net, (8, 6, 6))["0"]
    assert row.smallest_nonzero == pytest.approx(float(true[-1]), rel=1e-3)
    assert row.bound is not None
    assert row.bound.lower <= float(true[0]) * 1.0001
    assert float(true[0]) <= row.bound.upper


HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALF)
def test_tt_layers_of_half_precision_are_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = svdctl.TTConv2d(6, 8, 3, rank=3, padding=1).to(dtype).requires_grad_(False)
    kernel = copy.deepcopy(layer).double().contracted()
    turns = torch.fft.fft2(kernel, s=(6, 6)).permute(2, 3, 0, 1)
    true = torch.linalg.svdvals(turns)[..., :3].flatten().sort(descending=True).values
    values = svdctl.singular_values(layer, 6)
    assert values.double() == pytest.approx(true, rel=1e-5)
    row = svdctl.spectrum(nn.Sequential(layer), (6, 6, 6))["0"]
    assert row.bound is not None
    assert (
        row.bound.lower
        <= float(torch.linalg.matrix_norm(torch.fft.fft2(kernel, s=(64, 64)).permute(2, 3, 0, 1), 2).max()) * 1.001
    )
    assert float(true[0]) <= row.bound.upper
    grams = [frame.double().mT @ frame.double() for frame in (layer.frame_in, layer.frame_out)]
    errors = [torch.linalg.matrix_norm(gram - torch.eye(3, dtype=torch.float64), 2) for gram in grams]
    assert row.frame_error == pytest.approx(float(max(errors)), rel=1e-3)
    assert svdctl.spectrum(nn.Sequential(SOTT(6, 6, rank=3).to(dtype)), (6, 6, 6))["0"].frame_error is not None


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["tt", "sott", "linear", "cayley"])
def test_a_parametrization_that_torch_cannot_compute_is_one_sentence(kind: str, dtype: torch.dtype) -> None:
    layer = {
        "tt": lambda: svdctl.TTConv2d(6, 6, 3, rank=2, padding=1, frames="parametrize"),
        "sott": lambda: SOTT(6, 6, rank=2, frames="parametrize"),
        "linear": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(6, 4)),
        "cayley": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="cayley"),
    }[kind]().to(dtype)
    shape = (6, 8, 8) if "tt" in kind else (6,)
    calls = [lambda: svdctl.spectrum(layer, shape)]
    if kind != "sott":
        calls += [lambda: svdctl.singular_values(layer, 8), lambda: svdctl.spectral_norm_bound(layer)]
        calls += [lambda: svdctl.clip_(layer, max_sigma=0.5), lambda: svdctl.divide_(layer, max_sigma=0.5)]
    for number, call in enumerate(calls):
        with pytest.raises(
            ShapeError, match=r"\.float\(\) first" if number < 3 else r"cannot be changed|\.float\(\) first"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)


def nearly_dependent(dtype: torch.dtype = torch.float32) -> svdctl.TTConv2d:
    """A TT layer of moderate norm whose frames are 1e-6 from being dependent, so that its core is large."""
    torch.manual_seed(0)
    layer = svdctl.TTConv2d(8, 8, 3, rank=2, padding=1, bias=False, frames="free").to(dtype)
    with torch.no_grad():
        for frame in (layer.frame_in, layer.frame_out):
            assert frame is not None
            column = torch.randn(8, 1, dtype=dtype)
            frame.copy_(column + 1e-6 * torch.randn(8, 2, dtype=dtype))
        layer.core.copy_(torch.einsum("ab,pq->abpq", torch.tensor([[1.0, -1], [-1, 1]]), torch.randn(3, 3)) * 1e10)
    return layer


def test_nearly_dependent_frames_are_read_as_exactly_as_they_are_multiplied() -> None:
    layer = nearly_dependent()
    kernel = torch.einsum(
        "ob,bahw,ia->oihw", *(part.detach().double() for part in (layer.frame_out, layer.core, layer.frame_in))
    )
    true = svdctl.spectral_norm_bound(kernel)
    found = svdctl.spectral_norm_bound(layer)
    assert true.lower <= found.upper * (1 + 1e-9)
    assert found.lower <= true.upper * (1 + 1e-9)
    for change in (svdctl.divide_, svdctl.clip_):
        changed = nearly_dependent()
        change(changed, max_sigma=true.lower / 3)
        parts = (changed.frame_out, changed.core, changed.frame_in)
        after = torch.einsum("ob,bahw,ia->oihw", *(part.detach().double() for part in parts))
        assert svdctl.spectral_norm_bound(after).lower <= true.lower / 3


def tt_pair(shared: str) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = (svdctl.TTConv2d(8, 8, 3, rank=3, padding=1, bias=False, frames="free") for _ in range(2))
    with torch.no_grad():
        for layer in (first, second):
            layer.core.mul_(0.3)
            assert layer.frame_in is not None
            layer.frame_in.mul_(torch.tensor([5.0, 0.01, 1.0]))
    if shared in ("frames", "all"):
        second.frame_in, second.frame_out = first.frame_in, first.frame_out
    if shared == "frame_in":
        second.frame_in = first.frame_in
    if shared == "all":
        second.core = first.core
    return nn.Sequential(first, second)


def views_of_one_storage() -> nn.Sequential:
    torch.manual_seed(0)
    memory = torch.randn(4 * 4 * 9 * 2)
    first, second = nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False)
    first.weight = nn.Parameter(memory[:144].view(4, 4, 3, 3))
    second.weight = nn.Parameter(memory[60:204].view(4, 4, 3, 3))
    return nn.Sequential(first, second)


def tied_with_another_stride() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, bias=False, stride=2)
    second.weight = first.weight
    return nn.Sequential(first, second)


SHARING: dict[str, Callable[[], nn.Sequential]] = {
    "frames": lambda: tt_pair("frames"),
    "frame_in": lambda: tt_pair("frame_in"),
    "all": lambda: tt_pair("all"),
    "views": views_of_one_storage,
    "tied": tied_with_another_stride,
}


@pytest.mark.parametrize("change", [svdctl.clip_, svdctl.divide_])
@pytest.mark.parametrize("name", SHARING)
def test_layers_that_share_memory_are_all_within_the_bound_afterwards(
    name: str, change: Callable[..., dict[str, float]]
) -> None:
    for limit in (0.3, 0.9, 1.5, 3.0):
        net = SHARING[name]()
        before = [svdctl.spectral_norm_bound(layer, tolerance=1e-4) for layer in net]
        change(net, max_sigma=limit)
        for layer, bracket in zip(net, before, strict=True):
            after = svdctl.spectral_norm_bound(layer, tolerance=1e-4)
            assert after.upper <= limit * (1 + 2e-4)
            if name.startswith("frame") and bracket.upper < limit:
                # One that was within the bound is still what it was.
                assert after.lower == pytest.approx(bracket.lower, rel=1e-3)


@pytest.mark.parametrize("change", [svdctl.clip_, svdctl.divide_])
@pytest.mark.parametrize("name", SHARING)
def test_a_layer_that_was_not_chosen_is_not_changed(name: str, change: Callable[..., dict[str, float]]) -> None:
    net = SHARING[name]()
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(ShapeError, match="choose both"):
        change(net, max_sigma=0.01, layers="0")
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_common_core_between_different_frames_is_refused_by_clip_and_divided() -> None:
    def net() -> nn.Sequential:
        torch.manual_seed(0)
        layers = [svdctl.TTConv2d(8, 8, 3, rank=3, bias=False, frames="free") for _ in range(2)]
        layers[1].core = layers[0].core
        return nn.Sequential(*layers)

    with pytest.raises(ShapeError, match="share a core"):
        svdctl.clip_(net(), max_sigma=0.1)
    divided = net()
    svdctl.divide_(divided, max_sigma=0.1)
    assert all(svdctl.spectral_norm_bound(layer).upper <= 0.1 * 1.01 for layer in divided)


@pytest.mark.parametrize("change", [svdctl.clip_, svdctl.divide_])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nothing_is_changed_on_an_error(place: int, bad: float, change: Callable[..., dict[str, float]]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), svdctl.TTConv2d(8, 8, 3, rank=2, frames="free"))
    with torch.no_grad():
        next(iter(net[place].parameters()))[0, 0] = bad
    before = [parameter.detach().nan_to_num(7e7) for parameter in net.parameters()]
    with pytest.raises(ShapeError, match="finite"):
        change(net, max_sigma=0.01)
    after = [parameter.detach().nan_to_num(7e7) for parameter in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
def test_a_stride_set_to_one_number_after_construction_counts_for_every_axis(padding_mode: str) -> None:
    torch.manual_seed(0)
    pair = nn.Conv2d(3, 4, 3, padding=1, stride=2, padding_mode=padding_mode)
    number = copy.deepcopy(pair)
    number.stride = 2  # type: ignore[assignment]
    assert svdctl.spectral_norm_bound(number) == svdctl.spectral_norm_bound(pair)
    assert torch.equal(svdctl.singular_values(number, 8), svdctl.singular_values(pair, 8))
    bounds = [svdctl.lipschitz_bound(nn.Sequential(layer), (3, 8, 8)).value for layer in (number, pair)]
    assert bounds[0] == bounds[1]
    rows = [svdctl.spectrum(nn.Sequential(layer), (3, 8, 8))["0"] for layer in (number, pair)]
    assert rows[0].bound == rows[1].bound
    assert svdctl.clip_(number, max_sigma=0.3) == svdctl.clip_(pair, max_sigma=0.3)


def test_a_linear_layer_whose_weight_is_no_matrix_is_one_sentence() -> None:
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.ones(3))
    calls: list[Callable[[], object]] = [
        lambda: svdctl.singular_values(layer),
        lambda: svdctl.spectral_norm_bound(layer),
        lambda: svdctl.clip_(layer, max_sigma=1.0),
        lambda: svdctl.divide_(layer, max_sigma=1.0),
        lambda: svdctl.lipschitz_bound(layer, (3,)),
    ]
    for call in calls:
        with pytest.raises(ShapeError, match=r"matrix \(O, I\), not of shape \(3,\)"):
            call()


def test_equal_layers_are_bounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    one = nn.Conv2d(4, 6, 3)
    layers: list[nn.Module] = [copy.deepcopy(one) for _ in range(5)]
    layers[2].double()
    layers[3:3] = [nn.Conv2d(4, 6, 3)]
    layers += [nn.Linear(5, 5)]
    layers[4].stride = (2, 2)  # type: ignore[assignment]
    layers[5].padding, layers[5].padding_mode = (1, 1), "reflect"  # type: ignore[assignment]
    layers[5]._reversed_padding_repeated_twice = [1, 1, 1, 1]  # type: ignore[assignment]
    layers += [copy.deepcopy(layers[6])]
    alone = [layer_norm_bound(layer) for layer in layers]
    counts = []

    def counted(convs: Sequence[Convolution], **settings: Any) -> list[Bracket]:
        counts.append(len(convs))
        return norm_bounds(convs, **settings)

    monkeypatch.setattr(norms, "norm_bounds", counted)
    assert norms.layer_norm_bounds(layers) == alone
    # The reflecting layer has the kernel's bound times its factor, the strided and the double one their own.
    assert counts == [5, 0]
    assert alone[5].upper > alone[0].upper
    counts.clear()
    tolerances = [0.02 if place == 1 else 0.005 for place in range(len(layers))]
    found = norms.layer_norm_bounds(layers, tolerance=tolerances)
    assert counts == [6, 0]
    assert found[0] == alone[0] != found[1]
