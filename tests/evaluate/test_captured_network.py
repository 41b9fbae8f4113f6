"""Networks whose passes are replayed: counted, kept and dropped as documented, and no caller sees a difference."""

from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn
from torch.nn.modules import module as all_modules

from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.evaluate.attack import adversary, attacked_network
from svdctl.evaluate.attack.attack_batches import attack_batches, begin
from svdctl.evaluate.attack.attacked_network import AttackedNetwork
from svdctl.evaluate.attack_settings import AttackSettings
from svdctl.evaluate.captured_network import EAGER, KEPT, CapturedNetwork
from svdctl.models.build import build_model
from tests.evaluate.victims import run, victim

FAST = AttackSettings(eps=0.24, attacks=("apgd-ce", "fab-t"), batch_size=3, seed=5)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Taped:
    """A recording without a device: results lie in the same place, and all recordings share one memory."""

    def __init__(self, recorder: "FakeRecorder", forward: Any, *, gradient: bool) -> None:
        self._recorder, self._pass, self._gradient = recorder, forward, gradient
        self._output: Tensor | None = None
        self._slope: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self._recorder.replays += 1
        with torch.set_grad_enabled(self._gradient):
            given = x.detach().clone().requires_grad_(self._gradient)
            output = self._pass(given)
        self._recorder.memory = self, given, output
        if self._output is None:
            self._output = torch.empty_like(output)
        return self._output.detach().copy_(output.detach())

    def backward(self, gradient: Tensor) -> Tensor:
        owner, given, output = self._recorder.memory
        assert owner is self, "the activations are those of another recording"
        (found,) = torch.autograd.grad(output, given, gradient, retain_graph=True)
        if self._slope is None:
            self._slope = torch.empty_like(found)
        return self._slope.copy_(found)


class FakeRecorder:
    """Records on a CPU."""

    def __init__(self, why: str | None = None, error: str | None = None) -> None:
        self.replays, self.recorded = 0, list[tuple[torch.Size, bool]]()
        self.memory: Any = None
        self._why, self._error = why, error

    def can_record(self, x: Tensor) -> bool:
        return True

    def watch(self, forward: Any, x: Tensor) -> tuple[Tensor, str | None]:
        return forward(x), self._why

    def record(self, forward: Any, x: Tensor, *, gradient: bool) -> Taped:
        if self._error is not None:
            raise RuntimeError(self._error)
        self.recorded.append((x.shape, gradient))
        return Taped(self, forward, gradient=gradient)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)).eval().requires_grad_(False)


def inputs(count: int = 2, *, gradient: bool = False) -> Tensor:
    return torch.rand(count, 3, 4, 4).requires_grad_(gradient)


def warm(captured: CapturedNetwork, count: int = 2, *, gradient: bool = False) -> None:
    """Call until passes of this kind are recorded."""
    before = captured.kept
    for _ in range(50):
        if captured.kept > before:
            return
        captured(inputs(count, gradient=gradient))
    raise AssertionError("nothing is recorded")


def test_the_third_call_of_a_kind_is_recorded_and_later_ones_are_replayed() -> None:
    module, recorder = network(), FakeRecorder()
    captured = CapturedNetwork(module, recorder)
    for call in range(6):
        x = inputs()
        assert torch.equal(captured(x), module(x))
        assert recorder.replays == max(call - EAGER, 0)
    assert recorder.recorded == [(torch.Size((2, 3, 4, 4)), False)]
    # Another number of images, another layout, another type and a wanted gradient are kinds of their own.
    captured(inputs(1))
    captured(inputs().contiguous(memory_format=torch.channels_last))
    captured(inputs(gradient=True))
    with torch.no_grad():
        assert captured(inputs(gradient=True)).shape == (2, 5)
    assert recorder.replays == 4


def test_outputs_and_gradients_are_the_callers_own() -> None:
    captured = CapturedNetwork(network(), FakeRecorder())
    warm(captured, gradient=True)
    first, second = inputs(gradient=True), inputs(gradient=True)
    outputs = captured(first), captured(second)
    slopes = [torch.randn(2, 5), torch.randn(2, 5)]
    # The second forward pass came between the first and its gradient; one graph is asked twice.
    found = [torch.autograd.grad(outputs[n], (first, second)[n], slopes[n], retain_graph=True)[0] for n in (0, 1, 0)]
    for n, gradient in zip((0, 1, 0), found, strict=True):
        x = (first, second)[n].detach().requires_grad_()
        wanted = captured.module(x)
        assert torch.equal(outputs[n], wanted)
        assert torch.equal(gradient, torch.autograd.grad(wanted, x, slopes[n])[0])
    kept = outputs[0].detach().clone()
    with torch.no_grad():
        captured(second)
    assert torch.equal(outputs[0], kept)
    outputs[0].detach()[:, 0] = torch.inf
    assert bool(captured(first).isfinite().all())


def test_a_gradient_is_differentiated_again() -> None:
    captured = CapturedNetwork(network(), FakeRecorder())
    warm(captured, gradient=True)
    x = inputs(gradient=True)

    def curvature(run: Any) -> Tensor:
        (slope,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    assert torch.allclose(curvature(captured), curvature(captured.module), rtol=1e-5)


def test_hooks_on_the_network_run_and_those_inside_of_it_stop_replays() -> None:
    module, recorder, seen = network(), FakeRecorder(), list[int]()
    captured = CapturedNetwork(module, recorder)
    module.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    module.register_forward_hook(lambda _module, _given, output: output + 1)
    for _ in range(6):
        x = inputs()
        assert torch.equal(captured(x), module(x))
    assert seen == [2] * 12
    assert "forward" not in vars(module)
    replays = recorder.replays
    assert replays == 3
    handle = module[1].register_forward_hook(lambda _module, _given, output: output * 0)
    assert torch.equal(captured(x), module(x))
    handle.remove()
    everywhere = all_modules.register_module_forward_hook(lambda _module, _given, output: output * 2)
    assert torch.equal(captured(x), module(x))
    everywhere.remove()
    assert recorder.replays == replays
    captured(x)
    assert recorder.replays == replays + 1


def test_a_hook_may_make_another_input() -> None:
    captured = CapturedNetwork(module := network(), recorder := FakeRecorder())
    warm(captured)
    x = inputs()
    with module.register_forward_pre_hook(lambda _module, given: (given[0][:1],)):
        assert torch.equal(captured(x), module(x))
    assert recorder.replays == 0
    with module.register_forward_pre_hook(lambda _module, given: (given[0] / 2,)):
        assert torch.equal(captured(x), module(x))
    assert recorder.replays == 1


def test_what_is_not_the_plain_case_runs_eagerly() -> None:
    module, recorder = network(), FakeRecorder()
    captured = CapturedNetwork(module, recorder)
    with torch.inference_mode():
        captured(inputs())
    with torch.autocast("cpu", torch.bfloat16):
        captured(inputs())
    module.train()
    captured(inputs())
    module.eval()
    module[1].train()
    captured(inputs())
    module.eval()
    captured(inputs(0))
    assert not captured._calls
    module[0].weight.requires_grad_()
    captured.refresh()
    captured(inputs())
    assert not captured._calls
    refusing = [FakeRecorder(why="it waits"), FakeRecorder(error="operation not permitted\nmore")]
    for recorder, reason in zip(refusing, ("it waits", "operation not permitted"), strict=True):
        alone = CapturedNetwork(network(), recorder)
        for _ in range(6):
            x = inputs()
            assert torch.equal(alone(x), alone.module(x))
        assert list(alone.refused.values()) == [reason]
        assert not recorder.replays


def test_few_recordings_are_kept_and_each_makes_the_next_one_wait_longer() -> None:
    captured = CapturedNetwork(network(), recorder := FakeRecorder())
    for count in range(1, KEPT + 2):
        if count == KEPT + 1:
            captured(inputs(1))  # used last, so that the second one is dropped
        for _ in range(EAGER + count):
            assert len(recorder.recorded) == count - 1
            captured(inputs(count))
    assert captured.kept == KEPT
    replays = recorder.replays
    captured(inputs(1))
    assert recorder.replays == replays + 1
    captured(inputs(2))
    assert recorder.replays == replays + 1


def test_recordings_are_forgotten_when_weights_lie_elsewhere() -> None:
    captured = CapturedNetwork(module := network(), FakeRecorder())
    warm(captured)
    module[0].weight.mul_(2)
    captured.refresh()
    assert captured.kept == 1
    module[0].weight.data = module[0].weight.clone()
    captured.refresh()
    assert captured.kept == 0
    warm(captured)
    module[1] = nn.ReLU().eval()
    captured.refresh()
    assert captured.kept == 0
    warm(captured)
    torch.nn.utils.parametrizations.orthogonal(module[3])
    module.eval().requires_grad_(False)
    captured.refresh()
    warm(captured)
    captured.refresh()
    assert captured.kept == 0


class Short(AutoAttack):
    """Attacks of few steps."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.apgd.n_iter = self.fab.n_iter = 20
        self.square.n_queries = 60


@pytest.mark.parametrize(
    ("attacks", "protocol"), [(("apgd-ce", "fab"), "pixels"), (("square",), "pixels"), (("apgd-ce",), "paper")]
)
def test_attacks_find_the_same_with_replays(attacks: Any, protocol: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversary, "AutoAttack", Short)
    model, images, _, labels = victim(4, 3)
    settings = FAST.model_copy(update={"attacks": attacks, "protocol": protocol, "eps": 0.1})
    wanted, adversarial = run(model, images, labels, settings)
    recorders: list[FakeRecorder] = []

    def captured(module: nn.Module) -> CapturedNetwork:
        recorders.append(FakeRecorder())
        return CapturedNetwork(module, recorders[-1])

    monkeypatch.setattr(attacked_network, "CapturedNetwork", captured)
    calls: list[int] = []
    hook = model.register_forward_hook(lambda _module, given, _output: calls.append(len(given[0])))
    state, found = run(model, images, labels, settings)
    hook.remove()
    assert torch.equal(found, adversarial)
    assert torch.equal(state.broken_by, wanted.broken_by)
    assert len(recorders) == 1
    assert recorders[0].replays > 20
    assert len(calls) > recorders[0].replays
    for switched_off in ({"attacks": "rand"}, {}):
        begun = begin(model, images, labels, settings.model_copy(update=switched_off))
        next(attack_batches(model, images, labels, settings.model_copy(update=switched_off), begun, capture=False))
    assert len(recorders) == 1


def test_where_memory_is_short_recordings_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacked_network, "CapturedNetwork", lambda module: CapturedNetwork(module, FakeRecorder()))
    given = AttackedNetwork(network(), "pixels", torch.device("cpu"), capture=True)
    with given.frozen():
        for _ in range(4):
            given(inputs())
        assert given._captured is not None
        assert given._captured.kept == 1
        given.at_once = 1
        x = inputs(gradient=True)
        (gradient,) = torch.autograd.grad(given(x).square().sum(), x)
        assert given._captured.kept == 0
        assert torch.allclose(gradient, torch.autograd.grad(given.model(x).square().sum(), x)[0], rtol=1e-4)


def passes(run: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs without a gradient, outputs with one, and the gradient of their squares."""
    with torch.no_grad():
        plain = run(x)
    given = x.clone().requires_grad_()
    output = run(given)
    return plain, output.detach(), torch.autograd.grad(output.square().sum(), given)[0]


def small_network(kind: str) -> nn.Module:
    shared = {"accelerator": "cpu", "precision": "32"}
    if kind == "lipconv":
        sets = ["model.in_channels=2", "layer.rank=6"]
        config = resolve({**shared, "preset": "lipconv5-sott128", "set": sets}, LIPCONV).config
    else:
        sets = ["model.width=1", "model.depth=10", "layer.rank=6"]
        config = resolve({**shared, "preset": "wrn-cifar10-tt", "set": sets}, TRAIN).config
    return build_model(config, 10).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["wrn", "lipconv"])
def test_networks_of_the_paper_are_replayed(kind: str) -> None:
    captured = CapturedNetwork(module := small_network(kind), recorder := FakeRecorder())
    for _ in range(6):
        x = torch.rand(2, 3, 32, 32)
        for found, wanted in zip(passes(captured, x), passes(module, x), strict=True):
            assert torch.equal(found, wanted)
    assert captured.kept == 2
    assert recorder.replays > 3


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("kind", ["wrn", "lipconv"])
def test_replays_on_cuda_equal_eager_passes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    module = small_network(kind).cuda()
    captured = CapturedNetwork(module)
    for _ in range(8):
        x = torch.rand(16, 3, 32, 32, device="cuda")
        for found, wanted in zip(passes(captured, x), passes(module, x), strict=True):
            assert torch.equal(found, wanted)
    assert not captured.refused
    assert captured.kept == 2
    # Two forward passes before the first gradient, and one graph asked twice.
    xs = [torch.rand(16, 3, 32, 32, device="cuda").requires_grad_() for _ in range(2)]
    outputs = [captured(x) for x in xs]
    for n in (0, 1, 0):
        (gradient,) = torch.autograd.grad(outputs[n].square().sum(), xs[n], retain_graph=True)
        assert torch.equal(gradient, passes(module, xs[n].detach())[2])


@pytest.mark.cuda
@needs_cuda
def test_passes_on_cuda_that_cannot_be_recorded_run_eagerly() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) * (2.0 if float(x.sum()) > 0 else 3.0)

    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) + torch.rand_like(x.flatten(1))

    x = torch.rand(2, 3, 4, 4, device="cuda")
    for module in (Reads(), Draws()):
        captured = CapturedNetwork(module.eval())
        for _ in range(6):
            torch.manual_seed(0)
            found = captured(x)
            torch.manual_seed(0)
            assert torch.equal(found, module(x))
        assert captured.kept == 0
        assert len(captured.refused) == 1
    side = torch.cuda.Stream()
    plain = CapturedNetwork(network().cuda())
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(6):
            plain(x)
    torch.cuda.current_stream().wait_stream(side)
    assert plain.kept == 0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("attacks", [("apgd-ce", "fab-t", "fab"), ("square",)])
def test_attacks_on_cuda_find_the_same_with_replays(attacks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversary, "AutoAttack", Short)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    model, images, _, labels = victim(10, 8)
    settings = FAST.model_copy(update={"attacks": attacks, "eps": 0.1, "batch_size": 8})
    model.cuda()
    found = []
    for capture in (False, True):
        state = begin(model, images, labels, settings)
        batches = list(attack_batches(model, images, labels, settings, state, capture=capture))
        found.append((state.broken_by, torch.cat([batch.adversarial for batch in batches])))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
