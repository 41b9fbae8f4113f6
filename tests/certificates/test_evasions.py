"""Networks whose own code hides from the proof: caught refusals, other copies, grad mode, batches, hidden state."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import parametrize

import svdctl
from svdctl.certificates import Certifier, lipschitz_bound
from svdctl.errors import ShapeError
from svdctl.layers import stored_weight
from tests.synchronisation import NoHostReads


class Runs(nn.Module):
    """A network written as a function of itself and its input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def scaled(factor: float) -> nn.Linear:
    layer = nn.Linear(6, 6, bias=False)
    layer.weight.data = factor * torch.eye(6)
    return layer


LOOKS: dict[str, Callable[[Tensor], bool]] = {
    "bool": lambda x: bool(x.mean() > 100),
    "item": lambda x: x.mean().item() > 100,
    "numpy": lambda x: bool(x.numpy().mean() > 100),
    "list": lambda x: x.tolist()[0][0] > 100,
    "text": lambda x: "777" in f"{x}",
    "a plain tensor of it": lambda x: torch.tensor(x).mean().item() > 100,
    "a parameter of it": lambda x: nn.Parameter(x).sum().item() > 100,
}


class TestCaughtRefusals:
    @pytest.mark.filterwarnings("ignore:To copy construct")
    @pytest.mark.parametrize("look", LOOKS)
    @pytest.mark.parametrize("kind", [Exception, BaseException])
    def test_a_look_at_the_numbers(self, look: str, kind: type[BaseException]) -> None:
        def run(_: Any, x: Tensor) -> Tensor:
            try:
                large = LOOKS[look](x)
            except kind:
                large = False
            return x * 100 if large else x

        with pytest.raises(ShapeError):
            lipschitz_bound(Runs(run), (6,))

    def test_an_operation_without_a_rule(self) -> None:
        def suppressed(_: Any, x: Tensor) -> Tensor:
            with contextlib.suppress(Exception):
                return x + 100 * torch.relu(torch.sinc(x - 20))
            return x

        def squared(_: Any, x: Tensor) -> Tensor:
            try:
                return x * x * 1e-9 + x
            except ShapeError:
                return x

        for run, named in ((suppressed, "sinc"), (squared, "mul")):
            with pytest.raises(ShapeError, match=named):
                lipschitz_bound(Runs(run), (6,))

    def test_in_a_thread_and_in_a_hook(self) -> None:
        def in_a_thread(_: Any, x: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                failure = pool.submit(lambda: bool(x.mean() > 100)).exception()
            return x if failure else x * 100

        def hook(_m: Any, _i: Any, output: Tensor) -> Tensor:
            with contextlib.suppress(ShapeError):
                return output * output
            return output

        hooked = nn.Sequential(scaled(1.0))
        hooked[0].register_forward_hook(hook)
        for network in (Runs(in_a_thread), hooked):
            with pytest.raises(ShapeError, match="no Lipschitz bound is known"):
                lipschitz_bound(network, (6,))

    def test_a_layer_without_a_bound(self) -> None:
        def run(net: Any, x: Tensor) -> Tensor:
            try:
                return net.layer(x)
            except ShapeError:
                return x

        with pytest.raises(ShapeError, match="finite"):
            lipschitz_bound(Runs(run, layer=scaled(float("inf"))), (6,))

    def test_a_look_at_the_type_that_shows_on_large_images_only(self) -> None:
        with pytest.raises(ShapeError, match="stays as it is"):
            lipschitz_bound(Runs(lambda _, x: x * 100 if type(x) is Tensor and x.mean() > 100 else x), (6,))


class CopiedAsAnother(nn.Linear):
    def __deepcopy__(self, _memo: object) -> nn.Linear:
        return scaled(1.0)


class PickledAsAnother(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 5.0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "factor": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class ClampedWhenConverted(nn.Linear):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.weight.data.clamp_(-0.1, 0.1)
        return self


class ClampedWhenEvaluated(nn.Linear):
    def train(self, mode: bool = True) -> Any:
        if not mode:
            self.weight.data.clamp_(-0.1, 0.1)
        return super().train(mode)


class Factor(nn.Module):
    factor = 1.0

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


def of_a_kind(kind: type[nn.Linear]) -> nn.Module:
    layer = kind(6, 6, bias=False)
    layer.weight.data = 5 * torch.eye(6)
    return nn.Sequential(layer)


def parametrized() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        net.factor.factor = 7.0
        return net.layer(x)

    layer, factor = scaled(1.0), Factor()
    parametrize.register_parametrization(layer, "weight", factor)
    return Runs(run, layer=layer, factor=factor)


def looking(look: Callable[[Tensor], bool], dtype: torch.dtype = torch.float32) -> nn.Module:
    run = lambda net, x: net.layer(x) * (100 if look(net.layer.weight) else 1)  # noqa: E731
    return Runs(run, layer=scaled(1.0)).to(dtype)


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "__deepcopy__": lambda: of_a_kind(CopiedAsAnother),
    "__getstate__": PickledAsAnother,
    "_apply": lambda: of_a_kind(ClampedWhenConverted),
    "train": lambda: of_a_kind(ClampedWhenEvaluated),
    "a parametrization": parametrized,
    "requires_grad": lambda: looking(lambda weight: weight.requires_grad),
    "float32": lambda: looking(lambda weight: weight.dtype == torch.float32),
    "float16": lambda: looking(lambda weight: weight.dtype == torch.float16, torch.float16),
    "bfloat16": lambda: looking(lambda weight: weight.dtype == torch.bfloat16, torch.bfloat16),
}


class TestTheCopyIsTheNetwork:
    @pytest.mark.parametrize("name", OTHERS)
    def test_another_copy_is_refused_and_the_network_left_alone(self, name: str) -> None:
        network = OTHERS[name]()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        with pytest.raises(ShapeError):
            Certifier(network, (6,))
        if name != "float32":  # there the copy that is proved is of float32 too
            with pytest.raises(ShapeError):
                lipschitz_bound(network, (6,))
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        assert all(module.training for module in network.modules())
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert not any("factor" in vars(module) for module in network.modules() if isinstance(module, Factor))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_other_precisions_are_fine(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(32, 4))
        network = nn.Sequential(*layers).to(dtype)
        value = lipschitz_bound(network, (3, 4, 4)).value
        for proved in (torch.float32, torch.float64):
            assert Certifier(network, (3, 4, 4), dtype=proved).bound.value == pytest.approx(value, rel=1e-3)

    def test_weights_that_are_not_made_yet(self) -> None:
        with pytest.raises(ShapeError, match="run the network once"):
            lipschitz_bound(nn.Sequential(nn.LazyLinear(3)), (6,))

    def test_a_network_that_fx_traced_is_followed(self) -> None:
        network = nn.Sequential(scaled(2.0), nn.ReLU(), scaled(3.0))
        assert lipschitz_bound(torch.fx.symbolic_trace(network), (6,)).value == pytest.approx(6.0, rel=1e-5)

    @pytest.mark.parametrize("when", [True, False])
    def test_the_mode_of_gradients(self, when: bool) -> None:
        with pytest.raises(ShapeError, match="stays as it is"):
            lipschitz_bound(Runs(lambda _, x: x * 100 if torch.is_grad_enabled() is when else x), (6,))

    def test_certificates_inside_of_inference_mode(self) -> None:
        network = Runs(lambda net, x: net.layer(x) * (100 if torch.is_inference_mode_enabled() else 1), layer=scaled(1))
        images = torch.rand(2, 6)
        with torch.inference_mode():
            assert lipschitz_bound(network, (6,)).value == pytest.approx(1, rel=1e-5)
            logits = Certifier(network, (6,)).logits(images)
        assert torch.allclose(logits, images.double())


BATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "the image before": lambda x: torch.cat([x[:1], x[1:] + 99 * x[:-1]]),
    "the mean of large batches": lambda x: x + 99 * x.mean(0, keepdim=True) * (x.shape[0] > 3),
    "the last": lambda x: torch.cat([x[:-1], x[-1:] + (x[:1] - x[-1:]) * (len(x) > 1)]),
}


class TestBatches:
    @pytest.mark.parametrize("name", BATCHES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_images_that_look_at_each_other(self, name: str, dtype: torch.dtype) -> None:
        with pytest.raises(ShapeError, match="others of its batch"):
            Certifier(Runs(lambda net, x: net.layer(BATCHES[name](x)), layer=scaled(1)), (6,), dtype=dtype)

    def test_images_that_look_at_each_other_in_larger_batches(self) -> None:
        run = lambda net, x: net.layer(x + 99 * x.mean(0, keepdim=True) * (len(x) > 20))  # noqa: E731
        certifier = Certifier(Runs(run, layer=scaled(1)), (6,))
        certifier.logits(torch.rand(20, 6))
        with pytest.raises(ShapeError, match="others of its batch"):
            certifier.logits(torch.rand(21, 6))
        with pytest.raises(ShapeError, match="others of its batch"), certifier.checks_at_the_end():
            certifier.logits(torch.rand(22, 6))
        # A size whose comparison failed, or was never read, does not count as compared.
        with pytest.raises(ShapeError, match="others of its batch"):
            certifier.logits(torch.rand(22, 6))

    def test_comparisons_of_many_batches_are_read_at_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
        certifier = Certifier(network, (3, 5, 5))
        images = [torch.rand(count, 3, 5, 5) for count in (4, 4, 2)]
        wanted = [certifier.logits(some) for some in images]
        monkeypatch.setattr(stored_weight, "_ASYNCHRONOUS", {"cpu"})
        certifier._sizes.clear()
        with certifier.checks_at_the_end():
            with NoHostReads():
                found = [certifier.logits(some) for some in images]
            assert len(certifier._unread or ()) == 9
        assert all(torch.equal(some, other) for some, other in zip(found, wanted, strict=True))
        weight = next(certifier.network.parameters())

        def change_for_one_batch() -> None:
            with certifier.checks_at_the_end():
                weight.add_(1)
                certifier.logits(images[0])
                weight.sub_(1)

        with pytest.raises(ShapeError, match="was proved"):
            change_for_one_batch()
        weight.add_(1)
        with pytest.raises(ShapeError, match="was proved"):
            certifier.logits(images[0])


class OwnDict(dict[str, float]):
    scale: float


class OwnList(list[float]):
    scale: float


class OwnFloat(float):
    scale: float


class Meta(type):
    scale = 1.0


class WithMeta(metaclass=Meta):
    pass


def function_with_scale(x: Tensor) -> Tensor:
    return x * function_with_scale.scale  # type: ignore[attr-defined]


SCALE = 1.0
VARIABLE = ContextVar("VARIABLE", default=1.0)
MODULE = ModuleType("settings_that_are_imported")


def imports_from(x: Tensor) -> Tensor:
    from settings_that_are_imported import scale

    return x * scale


def imports_all(x: Tensor) -> Tensor:
    import settings_that_are_imported as other

    return x * other.scale


def with_scale(value: Any) -> Any:
    value.scale = 1.0
    return value


ATTACHED = {
    "a thread": with_scale(threading.local()),
    "a function": with_scale(function_with_scale),
    "a tensor": with_scale(torch.ones(6)),
    "a dict": with_scale(OwnDict()),
    "a list": with_scale(OwnList()),
    "a float": with_scale(OwnFloat()),
    "a metaclass": Meta,
}
READERS: dict[str, Callable[[Tensor], Tensor]] = {
    "a function": function_with_scale,
    "a tensor": lambda x, held=ATTACHED["a tensor"]: x * held.scale,  # type: ignore[misc]
    "a dict": lambda x, held=ATTACHED["a dict"]: x * held.scale,  # type: ignore[misc]
    "a list": lambda x, held=ATTACHED["a list"]: x * held.scale,  # type: ignore[misc]
    "a float": lambda x, held=ATTACHED["a float"]: x * held.scale,  # type: ignore[misc]
    "a metaclass": lambda x: x * WithMeta.scale,
    "a thread": lambda x, held=ATTACHED["a thread"]: x * held.scale,  # type: ignore[misc]
    "imports from": imports_from,
    "imports": imports_all,
    "globals()": lambda x: x * globals()["SCALE"],
    "a context": lambda x: x * VARIABLE.get(),
    "environ": lambda x: x * float(os.environ["SCALE_OF_A_TEST"]),
    "getenv": lambda x: x * float(os.getenv("SCALE_OF_A_TEST", "1")),
}


@pytest.mark.parametrize("name", READERS)
def test_state_beside_the_modules_is_watched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE.__name__, MODULE)
    monkeypatch.setattr(MODULE, "scale", 1.0, raising=False)
    monkeypatch.setenv("SCALE_OF_A_TEST", "1")
    function = READERS[name]
    certifier = Certifier(Runs(lambda net, x: net.layer(function(x)), layer=scaled(1.0)), (6,))
    certifier.logits(torch.rand(2, 6))
    if name in ATTACHED:
        monkeypatch.setattr(ATTACHED[name], "scale", 2.0)
    elif "import" in name:
        monkeypatch.setattr(MODULE, "scale", 2.0)
    elif name == "globals()":
        monkeypatch.setitem(globals(), "SCALE", 2.0)
    elif name == "a context":
        VARIABLE.set(2.0)
    else:
        monkeypatch.setenv("SCALE_OF_A_TEST", "2")
    try:
        with pytest.raises(ShapeError, match="was proved"):
            certifier.logits(torch.rand(2, 6))
    finally:
        VARIABLE.set(1.0)


def test_a_generator_is_refused() -> None:
    def ones() -> Iterator[float]:
        yield from [1.0] * 1000

    factors = ones()
    with pytest.raises(ShapeError, match="generator"):
        lipschitz_bound(Runs(lambda _, x: x * next(factors)), (6,))


def test_circular_padding_of_another_size_than_the_kernel() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    conv.weight = nn.Parameter(torch.ones(1, 1, 1, 1))
    x = torch.zeros(1, 1, 4, 4)
    jacobian = torch.autograd.functional.jacobian(conv, x).reshape(-1, x.numel())
    true = float(torch.linalg.matrix_norm(jacobian, 2))
    assert true <= lipschitz_bound(conv, (1, 4, 4)).value <= true * (1 + 1e-5)


class TakesAway(nn.Module):
    """Gives a layer a forward pass of its own for one call, and takes it away again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self.conv.forward = lambda y: 100 * nn.functional.conv2d(y, self.conv.weight)
        y = self.conv(x)
        del self.conv.forward
        return y


def test_a_forward_pass_that_is_taken_away_again_is_followed() -> None:
    torch.manual_seed(0)
    net = TakesAway()
    norm = svdctl.spectral_norm_bound(net.conv)
    assert 99 * norm.lower <= svdctl.lipschitz_bound(net, (2, 6, 6)).value <= 101 * norm.upper
    row = svdctl.spectrum(net, (2, 6, 6))["conv"]
    assert row.bound is None
    assert "forward" in row.note


def test_the_text_of_a_tensor_has_none_of_its_numbers() -> None:
    """So that a network may print what it computes, and cannot follow it."""
    seen = []

    def run(_: Any, x: Tensor) -> Tensor:
        seen.append((repr(x), str(x)))
        return x * 100 if repr(x) != repr(x * 0.5) else x

    x = torch.ones(1, 6)
    assert torch.equal(Runs(run)(x), 100 * x)
    seen.clear()
    with pytest.raises(ShapeError):
        lipschitz_bound(Runs(run), (6,))
    texts = {text for pair in seen for text in pair if "..." in text}
    assert texts == {"tensor(..., size=(1, 6), dtype=torch.float32)"}


NAN = torch.tensor(float("nan"))
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "prelu": lambda x: nn.functional.prelu(x, NAN),
    "prelu of channels": lambda x: nn.functional.prelu(x, torch.tensor([0.1, float("nan"), 0.1, 0.1, 0.1, 0.1])),
    "prelu by an infinite slope": lambda x: nn.functional.prelu(x, NAN.nan_to_num(float("inf"))),
    "leaky_relu": lambda x: nn.functional.leaky_relu(x, NAN),
    "elu": lambda x: nn.functional.elu(x, NAN),
    "celu": lambda x: nn.functional.celu(x, NAN),
    "softplus": lambda x: nn.functional.softplus(x, NAN),
    "softplus beyond no threshold": lambda x: nn.functional.softplus(x, 1, NAN),
    "lerp": lambda x: x.lerp(x, NAN),
}


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_that_are_no_numbers_are_refused(name: str) -> None:
    """Images so far on the positive side that the slope of the negative one takes no part in any output."""
    with pytest.raises(ShapeError, match=r"not finite|no Lipschitz bound is known|no bound"):
        lipschitz_bound(Runs(lambda _, x: SLOPES[name](x + 1e9)), (6,))
