"""A network whose passes are recorded as CUDA graphs and replayed: the same kernels, without Python between them."""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from svdctl.errors import first_line
from svdctl.train.captured_step import waits_for_host

EAGER = 2
"""Eager calls of a kind before the one at which it is recorded; one more for each recording that was made before.

Attacks leave images out when they are broken, so that shapes come and go: what recordings cost is limited by that.
"""
MOST_EAGER = 20
KEPT = 4
"""Recordings kept at once; the least recently used one is dropped."""
_SHARE = 0.25
"""Of the free memory, for one recording, which keeps its activations."""
_SAME = 1e-4
"""Largest difference of a replay from the eager pass, relative to the largest entry: some kernels sum in any order."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)
Pass = Callable[[Tensor], Tensor]


class Recording(Protocol):
    """A pass of one kind; its results lie where the next replay writes its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs for an input of the recorded kind."""

    def backward(self, gradient: Tensor) -> Tensor:
        """Return the gradient with respect to the last input, from that with respect to its outputs."""


class Recorder(Protocol):
    """What records passes."""

    def can_record(self, x: Tensor) -> bool:
        """Return whether a pass over this input may be recorded or replayed now."""

    def watch(self, forward: Pass, x: Tensor) -> tuple[Tensor, str | None]:
        """Return the outputs of an eager pass, and why passes like it cannot be recorded; None: they can."""

    def record(self, forward: Pass, x: Tensor, *, gradient: bool) -> Recording:
        """Record passes over inputs like x, with the gradient with respect to the input where it is wanted.

        Raises:
            RuntimeError: the pass cannot be recorded, or its replay gives something else.
        """


class CapturedNetwork:
    """Calls a module; on a CUDA device passes that are made often are recorded as CUDA graphs, and replayed.

    A caller sees no difference: outputs and gradients are copies of its own, hooks on the module run, a graph that is
    asked for gradients several times, late or twice differentiably gives them. Whatever is not the plain case runs
    eagerly: a module in training mode or with parameters that want gradients, hooks inside of it or on all modules,
    autocast, inference mode, other streams than the default one, random passes, passes that wait for the host or have
    too little memory, and other devices. What recordings presume besides, `refresh` looks at: call it whenever weights
    or modules may have changed.

    Args:
        module: from inputs `(B, *)` to one tensor `(B, K)`.
        recorder: what records; absent: CUDA graphs.
    """

    def __init__(self, module: nn.Module, recorder: Recorder | None = None) -> None:
        self.module = module
        self._recorder = recorder or CudaGraphRecorder()
        self._calls: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, Recording] = {}
        self.refused: dict[Hashable, str] = {}
        """Why calls of some kinds are not recorded."""
        self._made = 0
        self._replays = 0
        """Replays of all recordings, which share their memory: each overwrites the activations of the one before."""
        self._modules: list[nn.Module] = []
        self._state: list[Any] | None = None
        self.refresh()

    @property
    def kept(self) -> int:
        """Return the number of recordings."""
        return len(self._recordings)

    def refresh(self) -> None:
        """Look at modules and tensors anew; recordings are forgotten unless all lie where they lay."""
        modules = list(self.module.modules())
        tensors = [*self.module.parameters(), *self.module.buffers()]
        self._suits = not any(isinstance(module, torch.jit.ScriptModule) for module in modules) and not any(
            tensor.requires_grad or tensor.layout != torch.strided or is_lazy(tensor) for tensor in tensors
        )
        state = [(tensor.data_ptr(), tensor.dtype, tensor.shape) for tensor in tensors] if self._suits else None
        # Cached weights of parametrizations live as long as the cache does.
        if (modules, state) != (self._modules, self._state) or any(map(parametrize.is_parametrized, modules)):
            self.forget()
        self._modules, self._state = modules, state
        # Their memory is not given to others while recordings read it.
        self._held = [tensor.detach() for tensor in tensors] if self._suits else []

    def forget(self) -> None:
        """Drop all recordings and their memory."""
        self._recordings.clear()
        self._calls.clear()
        self.refused.clear()

    def __call__(self, x: Tensor) -> Tensor:
        kind = self._kind(x)
        if kind is None or kind in self.refused:
            return self._eager(x)
        if kind not in self._recordings:
            self._calls[kind] += 1
            if self._calls[kind] <= EAGER + min(self._made, MOST_EAGER):
                return self._eager(x)
            return self._recorded(x, kind)
        # The last one is the one that was used last.
        self._recordings[kind] = recording = self._recordings.pop(kind)
        plain = self.module.forward

        def forward(given: Tensor) -> Tensor:
            if given is not x and self._kind(given) != kind:  # a hook has made another input
                return plain(given)
            if torch.is_grad_enabled() and given.requires_grad:
                return _Replay.apply(given, self, recording)
            return self.replay(recording, given)

        return self._hooked(forward, x)

    def replay(self, recording: Recording, x: Tensor) -> Tensor:
        """Return a copy of the outputs of a recording."""
        self._replays += 1
        return recording.forward(x.detach()).clone()

    def _kind(self, x: Tensor) -> Hashable | None:
        """Return what calls that are replays of one recording have in common; None where none may be recorded."""
        module = self.module
        if (
            not self._suits
            or type(x) is not Tensor
            or not self._recorder.can_record(x)
            or x.layout != torch.strided
            or x.numel() == 0
            or torch.is_inference_mode_enabled()
            or torch.is_autocast_enabled(x.device.type)
            or module.training
            or module._compiled_call_impl is not None
            or any(getattr(all_modules, name) for name in _GLOBAL_HOOKS)
            or any(part.training or any(getattr(part, name) for name in _HOOKS) for part in self._modules[1:])
        ):
            return None
        return x.shape, x.stride(), x.dtype, x.device, torch.is_grad_enabled() and x.requires_grad

    def _eager(self, x: Tensor) -> Tensor:
        output: Tensor = self.module(x)
        return output

    def _hooked(self, forward: Pass, x: Tensor) -> Tensor:
        """Call the module with another forward pass in the place of its own, so that hooks on it run as always."""
        own = vars(self.module).get("forward")
        self.module.forward = forward
        try:
            return self._eager(x)
        finally:
            if own is None:
                del self.module.forward
            else:
                self.module.forward = own

    def _recorded(self, x: Tensor, kind: Hashable) -> Tensor:
        """Return the outputs of one more eager pass, and record those that follow."""
        # A copy: the network may write into its input.
        before, gradient = x.detach().clone(), torch.is_grad_enabled() and x.requires_grad
        output, reason = self._recorder.watch(self._eager, x)
        if reason is None:
            reason = self._record(before, kind, gradient=gradient)
        if reason is not None:
            self.refused[kind] = reason
        return output

    def _record(self, x: Tensor, kind: Hashable, *, gradient: bool) -> str | None:
        """Record passes over inputs like x; return why they cannot be recorded, None where they are."""
        try:
            recording = self._recorder.record(self.module.forward, x, gradient=gradient)
        except RuntimeError as error:  # out of memory is one, too
            return first_line(error)
        self._recordings[kind] = recording
        self._made += 1
        if len(self._recordings) > KEPT:
            oldest = next(iter(self._recordings))
            del self._recordings[oldest], self._calls[oldest]
        return None


class _Replay(torch.autograd.Function):
    """The forward and the backward half of a recording."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: CapturedNetwork, recording: Recording) -> Tensor:
        ctx.network, ctx.recording = network, recording
        ctx.save_for_backward(x)
        output = network.replay(recording, x)
        ctx.replay = network._replays
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        network, recording = ctx.network, ctx.recording
        if torch.is_grad_enabled():
            # The gradient is to be differentiated itself, which a recording cannot.
            (x,) = ctx.saved_tensors
            (found,) = torch.autograd.grad(network.module.forward(x), x, gradients[0], create_graph=True)
            return found, None, None
        if ctx.replay != network._replays:
            # Another replay has overwritten the activations.
            network.replay(recording, ctx.saved_tensors[0])
            ctx.replay = network._replays
        return recording.backward(gradients[0]).clone(), None, None


class CudaGraphRecorder:
    """Records passes as CUDA graphs, in memory that they share."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def can_record(self, x: Tensor) -> bool:
        if x.device.type != "cuda" or x.device.index != torch.cuda.current_device():
            return False
        return torch.cuda.current_stream() == torch.cuda.default_stream()

    def watch(self, forward: Pass, x: Tensor) -> tuple[Tensor, str | None]:
        torch.cuda.reset_peak_memory_stats(x.device)
        in_use, drawn = torch.cuda.memory_allocated(x.device), self._drawn(x.device)
        output, where = waits_for_host(lambda: forward(x))
        if where is not None:
            return output, f"it waits for the device ({where})"
        if any(not torch.equal(now, then) for now, then in zip(self._drawn(x.device), drawn, strict=True)):
            return output, "it draws random numbers"
        # As much again for the backward pass.
        needed = 2 * (torch.cuda.max_memory_allocated(x.device) - in_use)
        unused = torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
        if needed > _SHARE * (torch.cuda.mem_get_info(x.device)[0] + unused):
            return output, "it needs too much memory"
        return output, None

    @staticmethod
    def _drawn(device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)

    def record(self, forward: Pass, x: Tensor, *, gradient: bool) -> Recording:
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(x.device), torch.cuda.graph_pool_handle()
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            # It makes what libraries keep for this stream, and is what the replay has to equal.
            wanted = _eager_pass(forward, x, gradient=gradient)
        caller.wait_stream(self._stream)
        # A recording that fails may leave its own stream as the current one.
        with torch.cuda.stream(caller):
            recording = _CudaRecording(forward, x, self._pool, self._stream, gradient=gradient)
        found = [recording.forward(x)]
        if gradient:
            found.append(recording.backward(torch.ones_like(found[0])))
        for replayed, eager in zip(found, wanted, strict=True):
            size = eager.abs().max().clamp_min(torch.finfo(eager.dtype).tiny)
            if replayed.stride() != eager.stride() or not bool((replayed - eager).abs().max() <= _SAME * size):
                raise RuntimeError("a replay gives something else than the pass")
        return recording


def _eager_pass(forward: Pass, x: Tensor, *, gradient: bool) -> list[Tensor]:
    """Return a copy of the outputs, and the gradient of their sum where it is wanted."""
    with torch.set_grad_enabled(gradient):
        given = x.detach().clone().requires_grad_(gradient)
        output = forward(given)
        return [output.detach(), *(torch.autograd.grad(output.sum(), given) if gradient else ())]


class _CudaRecording:
    """One graph of the forward pass, and where a gradient is wanted one of the backward pass."""

    def __init__(self, forward: Pass, x: Tensor, pool: Any, stream: torch.cuda.Stream, *, gradient: bool) -> None:
        self._x = x.detach().clone().requires_grad_(gradient)
        if self._x.stride() != x.stride():
            raise RuntimeError("inputs that overlap or have gaps are not recorded")
        how: dict[str, Any] = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, **how), torch.set_grad_enabled(gradient):
            output = forward(self._x)
        self._output = output.detach()
        if not gradient:
            return
        self._slope = torch.zeros_like(self._output)
        with torch.cuda.graph(self._backward, **how):
            # Activations are kept: several gradients may be asked for after one forward pass.
            (self._gradient,) = torch.autograd.grad(output, self._x, self._slope, retain_graph=True)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self._x.copy_(x)
        self._forward.replay()
        return self._output

    def backward(self, gradient: Tensor) -> Tensor:
        self._slope.copy_(gradient)
        self._backward.replay()
        return self._gradient
