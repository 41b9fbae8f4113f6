"""What is proved is what runs: weights that change on the way, ignored arguments, precision, modes, and certifiers."""

import copy
import itertools
from collections import deque
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from svdctl.certificates import Certifier, lipschitz_bound, rounding_bound
from svdctl.errors import DataError, ShapeError
from svdctl.layers.normalize import Normalize
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT

SMALL, LARGE = torch.eye(6, dtype=torch.float64), 100 * torch.eye(6, dtype=torch.float64)


class Runs(nn.Module):
    """A network written as a function of itself and its input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def identity() -> nn.Linear:
    layer = nn.Linear(6, 6, bias=False).double()
    layer.weight.data.copy_(SMALL)
    return layer


def bound(function: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...] = (6,), **parts: Any) -> float:
    return lipschitz_bound(Runs(function, **parts), shape).value


def write_numpy(weight: Tensor, new: Tensor) -> None:
    weight.detach().numpy()[:] = new.numpy()


WRITES: dict[str, Callable[[nn.Linear, Tensor], object]] = {
    "assigned": lambda layer, w: setattr(layer, "weight", nn.Parameter(w)),
    "data": lambda layer, w: layer.weight.data.copy_(w),
    "numpy": lambda layer, w: write_numpy(layer.weight, w),
    "set_": lambda layer, w: layer.weight.set_(w.clone()),
    "swapped": lambda layer, w: setattr(layer.weight, "data", w.clone()),
}


class TestWeightsThatChangeOnTheWay:
    @pytest.mark.parametrize("write", WRITES)
    @pytest.mark.parametrize("by_function", [False, True])
    def test_one_layer_with_two_weights(self, write: str, by_function: bool) -> None:
        def run(net: Any, x: Tensor) -> Tensor:
            for weight in (SMALL, LARGE):
                WRITES[write](net.layer, weight)
                x = F.linear(x, net.layer.weight) if by_function else net.layer(x)
            return x

        assert bound(run, layer=identity()) == pytest.approx(100, rel=1e-5)

    @pytest.mark.parametrize("order", [(SMALL, LARGE), (LARGE, SMALL), (SMALL, SMALL)])
    def test_functional_call(self, order: tuple[Tensor, ...]) -> None:
        def run(net: Any, x: Tensor) -> Tensor:
            for weight in order:
                x = functional_call(net.layer, {"weight": weight}, x)
            return x

        true = float(torch.linalg.matrix_norm(order[0] @ order[1], 2))
        assert true <= bound(run, layer=identity()) <= true * (1 + 1e-5)

    @pytest.mark.parametrize(("name", "other"), [("stride", (2, 2)), ("stride", (1, 3)), ("dilation", (2, 1))])
    def test_geometry(self, name: str, other: tuple[int, int]) -> None:
        torch.manual_seed(1)
        conv = nn.Conv2d(4, 4, 3, padding=1, groups=2).double()

        def run(net: Any, x: Tensor) -> Tensor:
            before = getattr(net.conv, name)
            x = net.conv(x)
            setattr(net.conv, name, other)
            x = net.conv(x)
            setattr(net.conv, name, before)
            return x

        network = Runs(run, conv=conv)
        x = torch.zeros(1, 4, 6, 6, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(network, x).reshape(-1, x.numel())
        assert lipschitz_bound(network, (4, 6, 6)).value >= float(torch.linalg.matrix_norm(jacobian, 2))

    @pytest.mark.parametrize("weights", [(SMALL, LARGE), (SMALL, SMALL, LARGE), (SMALL, SMALL, SMALL, LARGE)])
    @pytest.mark.parametrize("taken_back", [False, True])
    def test_a_hook_that_alternates_weights_is_refused(self, weights: tuple[Tensor, ...], taken_back: bool) -> None:
        layer, turn = identity(), itertools.cycle(weights)

        def write(module: nn.Linear, weight: Tensor) -> None:
            module.weight.data.copy_(weight)

        layer.register_forward_pre_hook(lambda module, _: write(module, next(turn)))
        if taken_back:
            layer.register_forward_hook(lambda module, _i, _o: write(module, SMALL))
        with pytest.raises(ShapeError, match="stays as it is"):
            lipschitz_bound(nn.Sequential(layer), (6,))

    def test_a_counter_or_random_numbers_are_refused(self) -> None:
        def counts(net: Any, x: Tensor) -> Tensor:
            net.count = getattr(net, "count", 0) + 1
            return x * (1 + 9 * (net.count % 4 == 0))

        for run in (counts, lambda net, x: x + torch.randn(6), lambda net, x: x * torch.rand(6)):
            with pytest.raises(ShapeError, match="stays as it is"):
                bound(run)

    def test_a_look_at_the_type_of_the_input_is_refused(self) -> None:
        with pytest.raises(ShapeError, match="stays as it is"):
            bound(lambda net, x: x * 10 if type(x) is Tensor else x)

    def test_weights_from_the_image_are_refused(self) -> None:
        with pytest.raises(ShapeError, match="depends on the image"):
            bound(lambda net, x: functional_call(net.layer, {"weight": x.t() * SMALL}, x), layer=identity())

    def test_hooks_inside_of_known_layers_are_seen(self) -> None:
        sott = SOTT(6, 6, rank=3).eval()
        sott.core.register_forward_hook(lambda _m, _i, output: output * 10)
        for network in (sott, sott.core):
            with pytest.raises(ShapeError, match="hooks"):
                lipschitz_bound(nn.Sequential(network), (sott.core.in_channels if network is sott.core else 6, 5, 5))

    def test_hooks_of_all_modules_are_seen(self) -> None:
        network = nn.Sequential(nn.Linear(6, 3)).double()
        plain = lipschitz_bound(network, (6,)).value
        certifier = Certifier(network, (6,))
        hook = nn.modules.module.register_module_forward_hook(lambda _m, _i, output: output * 10)
        try:
            # Of the layer and of the whole.
            assert lipschitz_bound(network, (6,)).value >= 99.9 * plain
            with pytest.raises(ShapeError, match="was proved"):
                certifier.logits(torch.rand(2, 6))
            with pytest.raises(ShapeError, match="hooks"):
                lipschitz_bound(nn.Sequential(SOTT(6, 6, rank=3)), (6, 5, 5))
        finally:
            hook.remove()
        certifier.logits(torch.rand(2, 6))

    def test_hooks_that_keep_activations_are_let_be(self) -> None:
        kept: dict[str, Tensor] = {}
        layer = nn.Linear(6, 3)
        layer.register_forward_hook(lambda _m, _i, output: kept.__setitem__("features", output))
        certifier = Certifier(nn.Sequential(layer), (6,))
        for count in (2, 5):
            certifier.logits(torch.rand(count, 6))
            assert len(kept["features"]) == count


def traced(x: Tensor) -> Tensor:
    return x.sum()


REFUSED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "clamp": lambda _, x: torch.clamp(x, min=5 * traced(x)),
    "clamp by name": lambda _, x: x.clamp(max=traced(x)),
    "clamp in place": lambda _, x: x.clamp_(traced(x)),
    "full_like": lambda _, x: x + torch.full_like(x, traced(x)),
    "full_like by name": lambda _, x: x + torch.full_like(x, fill_value=traced(x)),
    "new_full": lambda _, x: x + x.new_full((6,), traced(x)),
    "full": lambda _, x: x + torch.full((6,), traced(x)),
    "leaky_relu": lambda _, x: F.leaky_relu(x, traced(x)),
    "softplus": lambda _, x: F.softplus(x, beta=traced(x)),
    "prelu": lambda _, x: F.prelu(x, traced(x)),
    "pad": lambda _, x: F.pad(x, (1, 1), value=traced(x)),
    "add": lambda _, x: torch.add(x, x, alpha=traced(x)),
    "scales of elu": lambda _, x: torch._C._nn.elu(x, 1.0, 5.0),
    "scales of elu by name": lambda _, x: torch._C._nn.elu(x, 1.0, input_scale=5.0),
    "out": lambda _, x: torch.add(x, 1, out=torch.zeros(1, 6)),
    "out of a pool": lambda _, x: torch.amax(x, 1, out=torch.zeros(1)),
    "batch_norm": lambda _, x: F.batch_norm(x, torch.zeros(6), torch.ones(6), training=True),
    "linear": lambda _, x: F.linear(torch.ones(1, 6), x),
    "bias": lambda _, x: F.linear(x, torch.eye(6), x[0]),
    "conv": lambda _, x: F.conv1d(x[None], x[None]),
    "index": lambda _, x: x[:, x[0] > 0],
    "repeats": lambda _, x: x.repeat_interleave(x[0].long()),
    "where": lambda _, x: torch.where(x > 0, x, 5 * x),
    "a rounding mode": lambda _, x: torch.div(x, 0.1, rounding_mode="floor"),
    "a dtype": lambda _, x: x.mean(1, dtype=torch.float64),
    "another dtype": lambda _, x: x.view(torch.int32),
    "indices": lambda _, x: F.max_pool1d(x[None], 2, return_indices=True)[0],
    "complex": lambda _, x: (x * (1 + 10j)).abs(),
    "a parameter of it": lambda _, x: nn.Parameter(x) * 10,
    "a plain tensor of it": lambda _, x: x.as_subclass(Tensor) * 10,
    "a lazy layer": lambda _, x: nn.LazyLinear(5)(x),
    "an error of its own": lambda _, x: x * [][0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_no_rule_covers_are_refused(name: str) -> None:
    with pytest.raises(ShapeError):
        bound(REFUSED[name])


class Tenfold(Tensor):
    """A tensor whose products are ten times too large."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result * 10 if func is Tensor.mul else result


def test_tensors_of_a_subclass_are_refused() -> None:
    factor = torch.ones(6).as_subclass(Tenfold)
    with pytest.raises(ShapeError, match="Tenfold"):
        bound(lambda net, x: x * factor)


TRUE: dict[str, tuple[Callable[[Any, Tensor], Tensor], float]] = {
    "clamp with more bounds": (lambda _, x: torch.clamp(x.mean(1), min=-100 * torch.ones(64)), 8 / 6**0.5),
    "maximum with more": (lambda _, x: torch.maximum(x.sum(1), torch.zeros(4)), 2 * 6**0.5),
    "sum with more": (lambda _, x: x[:, :1] + torch.zeros(9), 3.0),
    "product with more": (lambda _, x: x[:, :1] * torch.ones(9), 3.0),
    "product in place": (lambda _, x: (x * 1).mul_(torch.full((6,), -7.0)), 7.0),
    "expanded": (lambda _, x: x[:, :1].expand(1, 9) + 0.0, 3.0),
    "the other operand": (lambda _, x: torch.rsub(x, x * 2, alpha=-3), 5.0),
    "from a number": (lambda _, x: 3 - x, 1.0),
    "of integers": (lambda _, x: x * torch.arange(6), 5.0),
    "of truth values": (lambda _, x: x * (torch.arange(6) > 3), 1.0),
    "divided by a tenth": (lambda _, x: x / 0.1, 10.0),
    "there and back": (lambda _, x: x * 1e-46 * 1e23 * 1e23, 1.0),
    "divided there and back": (lambda _, x: x / 1e46 / 1e-23 / 1e-23, 1.0),
    "added there and back": (lambda _, x: torch.add(x, x, alpha=1e-46).mul(1e-23) * 1e23, 1.0),
    "a factor of third parts": (lambda _, x: x * (1 / 3), 1 / 3),
    "a slope": (lambda _, x: F.leaky_relu(x, 10 / 3), 10 / 3),
}


@pytest.mark.parametrize("name", TRUE)
def test_constants_and_broadcasting_are_counted(name: str) -> None:
    run, true = TRUE[name]
    # A float64 weight: the proof is in float64.
    value = bound(lambda net, x: run(net, x), weight=nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    assert true * (1 - 1e-15) <= value <= true * (1 + 1e-8)


def test_a_normalisation_that_repeats_the_image() -> None:
    network = Normalize((0.4, 0.5, 0.6), (0.25, 0.25, 0.25)).double()
    assert lipschitz_bound(network, (1, 4, 4)).value == pytest.approx(4 * 3**0.5)
    assert lipschitz_bound(network, (3, 4, 4)).value == pytest.approx(4)


@pytest.mark.parametrize(
    "run",
    [
        lambda _, x: x.clamp(0.1, 0.7),
        lambda _, x: F.hardtanh(x, -0.1, 0.3),
        lambda _, x: F.pad(x, (1, 1), value=0.1),
        lambda _, x: torch.maximum(x, torch.tensor(0.1, dtype=torch.float64)),
        lambda _, x: x * 1e-46,
        lambda _, x: x * 1e-42,
        lambda _, x: F.leaky_relu(x, 1e-46),
        lambda _, x: torch.add(x, x, alpha=1e-46),
    ],
)
def test_constants_that_float32_rounds_are_in_the_rounding_bound(run: Callable[[Any, Tensor], Tensor]) -> None:
    network = Runs(run)
    for scale in (0.01, 1.0, 1e30):
        x = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)) * scale
        error = float((network(x).double() - network(x.double())).norm())
        assert error <= rounding_bound(network, (6,), torch.float32, float(x.double().norm()))


class TestTheCopy:
    @pytest.mark.parametrize("kind", ["parameter", "buffer"])
    def test_complex_tensors_are_refused(self, kind: str) -> None:
        network = Runs(lambda net, x: F.linear(x, net.w.abs()))
        w = torch.full((6, 6), 1 + 10j)
        network.register_parameter("w", nn.Parameter(w)) if kind == "parameter" else network.register_buffer("w", w)
        with pytest.raises(ShapeError, match="complex"):
            lipschitz_bound(network, (6,))

    @pytest.mark.parametrize("kind", ["buffer", "attribute", "integer buffer"])
    def test_tensors_that_are_no_parameters_count(self, kind: str) -> None:
        network = Runs(lambda net, x: x * net.w, layer=nn.Linear(6, 6))
        w = (
            torch.full((6,), 1 + 2.0**-40, dtype=torch.float64)
            if kind != "integer buffer"
            else torch.tensor([2**25 + 1])
        )
        network.register_buffer("w", w) if "buffer" in kind else setattr(network, "w", w)
        assert lipschitz_bound(network, (6,)).value >= float(w.max())

    def test_a_network_that_is_not_copied_is_refused_and_left_alone(self) -> None:
        class Single(nn.Linear):
            def __deepcopy__(self, _memo: object) -> "Single":
                return self

        layer = Single(6, 6)
        with pytest.raises(ShapeError, match="__deepcopy__"):
            Certifier(nn.Sequential(layer), (6,))
        assert layer.training
        assert layer.weight.dtype == torch.float32

    def test_parts_outside_of_the_copy_are_followed_or_refused(self) -> None:
        outside = identity()
        outside.weight.data.mul_(7)
        assert bound(lambda _, x: outside(x), inside=nn.Linear(1, 1).double()) == pytest.approx(7, rel=1e-5)
        for unset in (nn.BatchNorm1d(6), nn.Dropout()):
            with pytest.raises(ShapeError, match=r"batch|training"):
                bound(lambda net, x, unset=unset: unset(x))


def in_between(part: nn.Module, x: Tensor, mode: Callable[[], object]) -> Tensor:
    mode()
    y = part(x)
    part.eval()
    return y


MODES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "train()": lambda net, x: (net.part.train(), net.part(x))[1],
    "train() and back": lambda net, x: in_between(net.part, x, net.part.train),
    "training": lambda net, x: in_between(net.part, x, lambda: setattr(net.part, "training", True)),
    "of the whole": lambda net, x: in_between(net.part, x, net.train),
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("part", [nn.BatchNorm2d(3), nn.Dropout(), SOC(3, 3), nn.Conv2d(3, 3, 1)])
def test_modes_that_change_inside_are_refused(name: str, part: nn.Module) -> None:
    with pytest.raises(ShapeError):
        bound(MODES[name], (3, 4, 4), part=part)


def test_evaluation_mode_inside_is_fine() -> None:
    assert bound(lambda net, x: (net.eval(), net.part(x))[1], (3, 4, 4), part=nn.BatchNorm2d(3)) < 1


OUTSIDE = {"scale": 1.0}


class Slotted:
    __slots__ = ("tensor",)

    def __init__(self) -> None:
        self.tensor = torch.ones(1)


class OfItsClass(nn.Module):
    scale = torch.ones(1)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.scale)


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "data": lambda net: net[0].weight.data.mul_(2),
    "in place": lambda net: net[0].weight.mul_(2),
    "numpy": lambda net: net[0].weight.numpy().__setitem__((0, 0), 9.0),
    "one bit": lambda net: net[2].bias.data.view(torch.int64).add_(1),
    "a weight": lambda net: setattr(net[0], "weight", nn.Parameter(torch.ones(4, 6, dtype=torch.float64))),
    "a hook": lambda net: net[0].register_forward_hook(lambda _m, _i, output: output * 2),
    "a forward pass": lambda net: setattr(net[0], "forward", lambda x: x[:, :4]),
    "a mode": lambda net: net.train(),
    "a layer": lambda net: net.__setitem__(1, nn.Tanh()),
    "one layer more": lambda net: net.append(nn.Softmax(1)),
}


class TestCertifier:
    def network(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))

    @pytest.mark.parametrize("name", CHANGES)
    def test_what_was_proved_is_what_is_evaluated(self, name: str) -> None:
        network = self.network()
        certifier = Certifier(network, (6,))
        images = torch.rand(2, 6)
        logits = certifier.logits(images)
        CHANGES[name](network.double().requires_grad_(False))
        assert torch.equal(certifier.logits(images), logits)
        CHANGES[name](certifier.network)
        with pytest.raises(ShapeError, match="was proved"):
            certifier.logits(images)
        with pytest.raises(ShapeError, match="was proved"):
            certifier.evaluate([(images, torch.zeros(2, dtype=torch.long))])

    def test_what_its_code_reaches_outside_is_watched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        factor, array, slotted, queue = torch.ones(1), np.ones(1), Slotted(), deque([torch.ones(1)])
        module = ModuleType("settings_of_a_network")
        module.scale = 1.0  # type: ignore[attr-defined]
        outside = nn.Linear(6, 6).double()

        def by_default(x: Tensor, scale: Tensor = torch.ones(1)) -> Tensor:  # noqa: B008 - it is what is tested
            return x * scale

        defaults = by_default.__defaults__
        assert defaults is not None
        changes: list[tuple[Callable[[Tensor], Tensor], Callable[[], object]]] = [
            (lambda x: x * factor, lambda: factor.mul_(2)),
            (lambda x: x * OUTSIDE["scale"], lambda: monkeypatch.setitem(OUTSIDE, "scale", 2.0)),
            (lambda x: x * torch.from_numpy(array), lambda: array.fill(2)),
            (lambda x: x * slotted.tensor, lambda: slotted.tensor.mul_(2)),
            (lambda x: x * queue[0], lambda: queue[0].mul_(2)),
            (lambda x: x * module.scale, lambda: setattr(module, "scale", 2.0)),
            (by_default, lambda: defaults[0].mul_(2)),
            (partial(torch.mul, factor), lambda: factor.mul_(2)),
            (outside, lambda: outside.weight.data.mul_(2)),
            (outside, lambda: outside.weight.numpy(force=True).fill(2)),
        ]
        for function, change in changes:
            network = Runs(lambda net, x, function=function: net.layer(function(x)), layer=nn.Linear(6, 3))
            certifier = Certifier(network, (6,))
            certifier.logits(torch.rand(2, 6))
            change()
            with pytest.raises(ShapeError, match="was proved"):
                certifier.logits(torch.rand(2, 6))
        certifier = Certifier(OfItsClass(), (6,))
        monkeypatch.setattr(OfItsClass, "scale", torch.full((1,), 2.0))
        with pytest.raises(ShapeError, match="was proved"):
            certifier.logits(torch.rand(2, 6))

    def test_a_copied_certifier_goes_on(self) -> None:
        certifier = Certifier(self.network(), (6,))
        images = torch.rand(2, 6)
        copied = copy.deepcopy(certifier)
        assert torch.equal(copied.logits(images), certifier.logits(images))
        copied.network[0].weight.data.mul_(2)
        certifier.logits(images)
        with pytest.raises(ShapeError, match="was proved"):
            copied.logits(images)

    def test_images_are_left_as_they_are_and_checked_first(self) -> None:
        certifier = Certifier(Runs(lambda net, x: net.layer(x.clamp_(0.0, 0.5)), layer=nn.Linear(6, 3)), (6,))
        images = torch.full((5, 6), 0.75, dtype=torch.float64)
        certifier.evaluate([(images, torch.zeros(5, dtype=torch.long))])
        assert bool((images == 0.75).all())
        for bad in (1.5, -0.1, float("nan")):
            with pytest.raises(DataError, match=r"\[0, 1\]"):
                certifier.evaluate([(torch.full((5, 6), bad), torch.zeros(5, dtype=torch.long))])

    @pytest.mark.parametrize("images", [torch.rand(2, 5), torch.rand(2, 1, 6), torch.rand(2, 6) * 1j])
    def test_images_that_were_not_meant_are_refused(self, images: Tensor) -> None:
        certifier = Certifier(Runs(lambda net, x: x.flatten(1)[:, :3], layer=nn.Linear(6, 3)), (6,))
        with pytest.raises(ShapeError, match=r"\(6,\)"):
            certifier.logits(images)

    def test_images_that_look_at_each_other_are_refused(self) -> None:
        for run in (lambda net, x: net.layer(x - x.mean(0, keepdim=True)), lambda net, x: net.layer(x.sort(0)[0])):
            with pytest.raises(ShapeError):
                Certifier(Runs(run, layer=nn.Linear(6, 3)), (6,))

    def test_the_default_dtype_of_the_proof_is_kept(self) -> None:
        network = Runs(lambda net, x: net.layer(x) / torch.tensor([0.7, 0.7, 0.7]), layer=nn.Linear(6, 3))
        certifier = Certifier(network, (6,))
        images = torch.rand(4, 6)
        logits = certifier.logits(images)
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(certifier.logits(images), logits)
        finally:
            torch.set_default_dtype(torch.float32)
