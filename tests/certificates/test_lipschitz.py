"""Bounds of whole networks: never below what a search finds, sharp where they can be, errors that name the culprit."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import svdctl
from svdctl.certificates import Gain, layer_gain, lipschitz_bound
from svdctl.errors import ShapeError
from svdctl.layers.normalize import Normalize
from svdctl.layers.ops.normalization_ops import BatchNormOps
from svdctl.layers.ops.standard_ops import StandardOps
from svdctl.layers.ops.tt_ops import TTOps
from svdctl.layers.tt import TTConv2d
from tests.certificates.networks import SHAPE, TABLE, Calls, conv, made, steepest, steepest_chord, stirred, vgg, wrn
from tests.dense import dense_matrix


@pytest.mark.parametrize("name", TABLE)
def test_never_below_what_a_search_finds(name: str) -> None:
    network = made(name)
    bound = lipschitz_bound(network, SHAPE).value
    found = max(steepest(network, SHAPE), steepest_chord(network, SHAPE))
    assert found <= bound
    # And of use: these small networks leave no room for a vacuous one.
    assert bound <= 12 * found


@pytest.mark.parametrize("build", [wrn])
def test_residual_network(build) -> None:
    network = stirred(build(4)).double().eval()
    bound = lipschitz_bound(network, (3, 8, 8), tolerance=0.05)
    assert steepest(network, (3, 8, 8), starts=2, climbs=2) <= bound.value
    assert any(layer.kind == "Tensor.add" for layer in bound.layers)


def test_shape_checks_in_forward_are_run_as_they_are() -> None:
    class Checks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList([conv(3, 3, padding=1) for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            if min(x.shape[-2:]) < 4 or x.size(1) != 3 or x.dtype != torch.float64 or x.dim() != 4:
                raise ValueError
            for layer in self.body:
                x = layer(x) + torch.zeros_like(x)
            return x.view(x.shape[0], -1)

    network = Checks().double()
    assert lipschitz_bound(network, SHAPE).value >= steepest(network, SHAPE, starts=1)


@pytest.mark.slow
def test_vgg() -> None:
    network = stirred(vgg()).eval()
    bound = lipschitz_bound(network, (3, 32, 32), tolerance=0.5)
    assert math.isfinite(bound.value)
    assert sum(layer.kind == "Conv2d" for layer in bound.layers) == 16


@pytest.mark.slow
def test_torchvision_networks() -> None:
    for build in (torchvision.models.resnet18, torchvision.models.squeezenet1_1, torchvision.models.shufflenet_v2_x0_5):
        bound = lipschitz_bound(build(num_classes=5), (3, 64, 64), tolerance=0.5)
        assert math.isfinite(bound.value)


@pytest.mark.parametrize(
    "name", ["conv", "strided", "dilated", "grouped", "transposed", "tt", "tt strided", "circular"]
)
def test_linear_layers_are_bounded_by_their_dense_matrix(name: str) -> None:
    network = made(name)
    for size in (6, 10):
        shape = (3, size, size)
        norm = float(torch.linalg.matrix_norm(dense_matrix(network, shape), 2))
        assert norm <= lipschitz_bound(network, shape).value
    assert lipschitz_bound(network, shape).value <= 1.6 * norm


class TestSharp:
    def test_orthogonal_network_is_one_over_std(self) -> None:
        first = nn.Conv2d(3, 12, 1, bias=False)
        second = nn.Linear(12 * 16, 10)
        network = nn.Sequential(
            Normalize((0.5, 0.5, 0.5), (0.25, 0.3, 0.5)), first, nn.ReLU(), nn.PixelUnshuffle(2), nn.Flatten(), second
        ).double()
        nn.init.orthogonal_(first.weight)
        nn.init.orthogonal_(second.weight)
        bound = lipschitz_bound(network, (3, 4, 4))
        assert 4.0 <= bound.value <= 4.0 * (1 + 1e-5)
        assert bound.by_kind()["normalisation"] == pytest.approx(4.0)

    @pytest.mark.parametrize(
        ("function", "gain"),
        [
            (lambda m, x: F.avg_pool2d(x, 2), 0.5),
            (lambda m, x: F.max_pool2d(x, 2), 1.0),
            (lambda m, x: F.max_pool2d(x, 3, 2, 1), 2.0),
            (lambda m, x: x.mean((2, 3)), 1 / 6),
            (lambda m, x: x.sum((1, 2, 3)), math.sqrt(108)),
            (lambda m, x: torch.cat((x, x), 1), math.sqrt(2)),
            (lambda m, x: x + x, 2.0),
            (lambda m, x: 1 - x / 3, 1 / 3),
            (lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 2.0),
            (lambda m, x: F.pad(x, (2, 2, 0, 0), mode="replicate"), math.sqrt(3)),
            (lambda m, x: F.pad(x, (1, 1, 1, 1), value=3.0), 1.0),
            (lambda m, x: F.interpolate(x, scale_factor=3), 3.0),
            (lambda m, x: F.interpolate(x, size=(4, 4)), 1.0),
            (lambda m, x: x[:, :, ::2, 1], 1.0),
            (lambda m, x: x[:, [0, 0, 1]], math.sqrt(2)),
            (lambda m, x: x.unbind(1)[1], 1.0),
            (lambda m, x: x.expand(5, *x.shape[1:]), math.sqrt(5)),
            (lambda m, x: torch.add(x, x, alpha=3), 4.0),
            (lambda m, x: torch.rsub(x, x, alpha=3), 4.0),
            (lambda m, x: torch.tensor([1.0, -5.0, 2.0], dtype=x.dtype)[:, None, None] * x, 5.0),
            (lambda m, x: torch.zeros(4, 1, 1, 1, dtype=x.dtype) + x, 2.0),
            (lambda m, x: F.prelu(x, torch.tensor([-3.0], dtype=x.dtype)), 3.0),
            (lambda m, x: x.clamp(0, 1).abs().neg().flip(2).roll(1, 3).contiguous().detach().clone(), 1.0),
        ],
    )
    def test_one_function(self, function, gain: float) -> None:
        network = Calls(function, unused=nn.Linear(1, 1).double())
        bound = lipschitz_bound(network, SHAPE).value
        assert gain <= bound <= gain * (1 + 1e-9)

    def test_a_frame_scaled_behind_its_back_is_seen(self) -> None:
        network = nn.Sequential(TTConv2d(6, 8, 3, rank=4, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)).double()
        before = lipschitz_bound(network, (6, 5, 5))
        with torch.no_grad():
            network[0].frame_in.mul_(1.1)
        after = lipschitz_bound(network, (6, 5, 5))
        assert after.value == pytest.approx(1.1 * before.value, rel=2e-3)
        assert after.by_kind()["frames"] == pytest.approx(1.1, rel=2e-3)


class TestRefused:
    @pytest.mark.parametrize(
        ("function", "name"),
        [
            (lambda m, x: torch.cumprod(x, 1), "cumprod"),
            (lambda m, x: m["a"](x).exp(), "exp"),
            (lambda m, x: x * x, "mul"),
            (lambda m, x: x * x.mean(), "mul"),
            (lambda m, x: 1 / x, "__rdiv__"),
            (lambda m, x: F.layer_norm(x, x.shape[1:]), "layer_norm"),
            (lambda m, x: F.dropout(x), "dropout"),
            (lambda m, x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True), "interpolate"),
            (lambda m, x: x if x.sum() > 0 else -x, "gt"),
            (lambda m, x: torch.tensor(x.flatten().tolist()), "tolist"),
            (lambda m, x: x.grad, "grad"),
            (lambda m, x: x.round(), "round"),
            (lambda m, x: torch.where(x > 0, x, 1), "gt"),
            (lambda m, x: torch.sinc(x), "sinc"),
            (lambda m, x: F.conv2d(x, x), "conv2d"),
            (lambda m, x: F.batch_norm(x, None, None, training=True), "batch_norm"),
            (lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0], "max_pool2d_with_indices"),
            (lambda m, x: torch.zeros(1, 3, 6, 6, dtype=x.dtype).add_(x), "add_"),
            (lambda m, x: torch.add(x, 1, out=torch.zeros(1, 3, 6, 6, dtype=x.dtype)), "add"),
        ],
    )
    def test_an_operation_without_a_rule_is_named(self, function, name: str) -> None:
        network = nn.Sequential(conv(3, 3), nn.Sequential(Calls(function, a=conv(3, 3)))).double()
        with pytest.raises(ShapeError, match=rf"{name}\b.*module '1\.0' \(Calls\)"):
            lipschitz_bound(network, SHAPE)

    def test_custom_functions_are_followed(self) -> None:
        class Doubles(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x: Tensor) -> Tensor:
                return 2 * x

        bound = lipschitz_bound(Calls(lambda m, x: Doubles.apply(x), a=conv(3, 3)), SHAPE).value
        assert bound == pytest.approx(2)

    @pytest.mark.parametrize(
        "function",
        [
            lambda m, x: x + torch.tensor(x) * 5,
            lambda m, x: x + torch.from_numpy(x.numpy()),
            lambda m, x: x + Tensor(x),
            lambda m, x: x.as_subclass(Tensor) * 7,
            lambda m, x: x + x.as_subclass(Tensor),
            lambda m, x: x + nn.Parameter(x),
            lambda m, x: torch.func.vmap(lambda y: 3 * y)(x),
            lambda m, x: torch.ops.aten.mul(x, 7),
        ],
    )
    def test_code_that_hides_from_the_trace_is_never_taken_for_a_constant(self, function) -> None:
        with pytest.raises((ShapeError, AttributeError)):
            lipschitz_bound(Calls(function, a=conv(3, 3)), SHAPE)

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_scripted_code(self) -> None:
        doubled = torch.jit.trace(lambda x: 2 * x, torch.zeros(1, *SHAPE))
        with pytest.raises(ShapeError, match=r"TorchScript|prims"):
            lipschitz_bound(Calls(lambda m, x: x + doubled(x), a=conv(3, 3)), SHAPE)
        scripted = torch.jit.trace(nn.ReLU(), torch.zeros(1, *SHAPE))
        with pytest.raises(ShapeError, match=r"TorchScript|prims"):
            lipschitz_bound(nn.Sequential(scripted), SHAPE)

    def test_an_image_that_does_not_fit(self) -> None:
        with pytest.raises(ShapeError, match=r"module '0' \(Conv2d\) fails on an image of shape \(4, 6, 6\)"):
            lipschitz_bound(nn.Sequential(conv(3, 3)), (4, 6, 6))

    def test_a_view_of_what_was_changed_in_place(self) -> None:
        def forward(m: nn.ModuleDict, x: Tensor) -> Tensor:
            x = m["a"](x)
            flat = x.flatten(1)
            x.mul_(3)
            return flat + 1

        with pytest.raises(ShapeError, match="changed in place"):
            lipschitz_bound(Calls(forward, a=conv(3, 3)), SHAPE)

    def test_a_view_that_is_written_is_refused_at_its_base(self) -> None:
        def forward(m: nn.ModuleDict, x: Tensor) -> Tensor:
            x = m["a"](x)
            x[:, 0].mul_(100)
            return x + 1

        with pytest.raises(ShapeError, match="changed in place"):
            lipschitz_bound(Calls(forward, a=conv(3, 3)), SHAPE)

    def test_weights_that_are_not_finite(self) -> None:
        network = nn.Sequential(conv(3, 3), conv(3, 3))
        with torch.no_grad():
            network[1].weight[0, 0, 0, 0] = math.nan
        with pytest.raises(ShapeError, match=r"module '1'.*not finite"):
            lipschitz_bound(network, SHAPE)

    def test_batchnorm_without_statistics(self) -> None:
        with pytest.raises(ShapeError, match=r"module '0'.*running statistics"):
            lipschitz_bound(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), SHAPE)

    def test_change_of_precision(self) -> None:
        network = Calls(lambda m, x: x.half().float(), a=conv(3, 3))
        with pytest.raises(ShapeError, match="half"):
            lipschitz_bound(network, SHAPE)

    def test_an_output_that_is_no_tensor(self) -> None:
        with pytest.raises(ShapeError, match="dict"):
            lipschitz_bound(Calls(lambda m, x: {"logits": x}, a=conv(3, 3)), SHAPE)


def test_a_subclass_with_another_forward_is_not_taken_for_its_parent() -> None:
    class Louder(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, 10 * self.weight, self.bias)

    torch.manual_seed(0)
    network = nn.Sequential(Louder(3, 3, 3)).double()
    assert steepest(network, SHAPE, starts=1) <= lipschitz_bound(network, SHAPE).value


def test_a_registered_layer_is_not_looked_into() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sinc() * 2

    with pytest.raises(ShapeError, match="sinc"):
        lipschitz_bound(Doubling(), SHAPE)

    @svdctl.register_layer
    class DoublingOps(svdctl.LayerOps):
        kind = "doubling"
        modules = (Doubling,)
        can_control = False

        def gain(self, layer: Doubling, *, tolerance: float | None = None) -> Gain:
            return Gain({"norm": 2.0}, lambda unit: 0.0)

    assert lipschitz_bound(Doubling(), SHAPE).value == pytest.approx(2.0)


class LouderBatchNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class LouderTT(TTConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class LouderConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class LouderBatchNormOps(BatchNormOps):
    kind = "louder-batchnorm"
    modules = (LouderBatchNorm,)

    def channel_gain(self, layer: LouderBatchNorm) -> float:
        return 3 * super().channel_gain(layer)


class LouderTTOps(TTOps):
    kind = "louder-tt"
    config = None
    modules = (LouderTT,)

    def operator(self, layer: LouderTT) -> svdctl.Convolution:
        conv = super().operator(layer)
        return conv.with_kernel(3 * conv.kernel)


class LouderConvOps(StandardOps):
    kind = "louder-conv"
    config = None
    modules = (LouderConv,)

    def operator(self, layer: LouderConv) -> svdctl.Convolution:
        conv = super().operator(layer)
        return conv.with_kernel(3 * conv.kernel)


LOUDER: dict[str, tuple[type[svdctl.LayerOps], Callable[[], nn.Module]]] = {
    "batchnorm": (LouderBatchNormOps, lambda: LouderBatchNorm(3)),
    "tt": (LouderTTOps, lambda: LouderTT(3, 4, 3, rank=2, padding=1, bias=False)),
    "conv": (LouderConvOps, lambda: LouderConv(3, 4, 3, padding=1, bias=False)),
    "circular conv": (LouderConvOps, lambda: LouderConv(3, 4, 3, 2, 1, padding_mode="circular", bias=False)),
}


@pytest.mark.parametrize("name", LOUDER)
def test_a_registered_subclass_does_not_inherit_the_gain_of_its_parent(name: str) -> None:
    ops, make = LOUDER[name]
    svdctl.register_layer(ops)
    torch.manual_seed(0)
    layer = make().double().eval()
    largest = float(torch.linalg.matrix_norm(dense_matrix(layer, (3, 5, 5)), 2))
    assert largest * (1 - 1e-12) <= lipschitz_bound(layer, (3, 5, 5)).value <= 6 * largest
    with pytest.raises(ShapeError, match="no gain is known"):
        layer_gain(layer)


def test_a_gain_written_for_any_modules_or_for_the_same_is_inherited() -> None:
    class Sorts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(1).values

    class AnyUnitOps(svdctl.LayerOps):
        can_control = False

        def gain(self, layer: nn.Module, *, tolerance: float | None = None) -> Gain:
            return Gain({"norm": 1.0}, lambda unit: 0.0)

    class SortsOps(AnyUnitOps):
        kind = "sorts"
        modules = (Sorts,)

    class NamedSortsOps(SortsOps):
        kind = "named-sorts"

    for ops in (SortsOps, NamedSortsOps):
        svdctl.register_layer(ops)
        assert lipschitz_bound(Sorts(), SHAPE).value == pytest.approx(1.0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("size", [4, 5])
def test_a_strided_circular_layer_is_read_with_the_weight_of_its_next_pass(size: int) -> None:
    layer = nn.Conv2d(1, 1, 3, stride=2, padding=1, padding_mode="circular", bias=False).double()
    layer = nn.utils.weight_norm(layer).eval()
    with torch.no_grad():
        layer.weight_v.fill_(1.0)
        layer.weight_g.fill_(1.0)
        layer(torch.zeros(1, 1, size, size, dtype=torch.float64))
        layer.weight_g.mul_(10)  # The weight that the hook made is the old one until the next pass.
    bound = layer_gain(layer).value
    assert float(torch.linalg.matrix_norm(dense_matrix(layer, (1, size, size)), 2)) <= bound <= 30.1


def test_the_model_is_left_as_it_was() -> None:
    network = nn.Sequential(TTConv2d(3, 6, 3, rank=2, frames="parametrize"), nn.BatchNorm2d(6), nn.Dropout()).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    lipschitz_bound(network, SHAPE)
    assert network.training
    assert type(network[0]).__name__ == "ParametrizedTTConv2d"
    assert not network[0]._forward_hooks
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters() if p.is_floating_point())


def test_a_layer_used_twice_counts_twice() -> None:
    layer = conv(3, 3, padding=1)
    once = lipschitz_bound(nn.Sequential(layer), SHAPE).value
    twice = lipschitz_bound(Calls(lambda m, x: m["a"](m["a"](x)), a=layer), SHAPE).value
    assert twice == pytest.approx(once**2)


def test_the_report_can_be_read() -> None:
    text = str(lipschitz_bound(nn.Sequential(Normalize((0.5,) * 3, (0.2,) * 3), conv(3, 3)), SHAPE))
    assert "normalisation 5" in text
    assert "Conv2d" in text


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_have_no_rule_and_the_sentence_says_so(kind: type[nn.Module]) -> None:
    with pytest.raises(
        ShapeError, match=rf"no Lipschitz bound is known for torch\.\w+, called in .*\({kind.__name__}\)"
    ):
        svdctl.lipschitz_bound(nn.Sequential(nn.Linear(4, 4), kind(4, 5)), (3, 4))
