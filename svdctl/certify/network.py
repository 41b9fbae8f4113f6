"""One pass through a whole network: from any `torch.nn.Module` to what is proved of its output.

The network is a frozen copy of the caller's: evaluation mode, one precision, weights that are computed from others
made constants. Layers that `layer_gain` knows are not looked into; everything else is followed function by function.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# These fill the tables of rules and gains.
from svdctl.certify import activations, arithmetic, factored, moves, plain  # noqa: F401
from svdctl.certify.exponential import FixedSOC
from svdctl.certify.facts import Affine, Arithmetic, Facts, norm_above, outward
from svdctl.certify.gains import Gain, forward_of, layer_gain
from svdctl.certify.rules import apply
from svdctl.certify.trace import Contribution, Traced, Tracer
from svdctl.errors import ShapeError
from svdctl.layers.padding import Convolutional, is_cyclic
from svdctl.layers.soc import SOC


@torch.no_grad()
def frozen(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in evaluation mode and `dtype`, computed weights (orthogonal frames, skew kernels) made constants."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ShapeError("the network holds TorchScript modules, which cannot be followed; give the Python modules")
    try:
        copied = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    except RuntimeError as error:
        raise ShapeError(
            f"the network cannot be copied ({error}); run it once under torch.no_grad(), then try again"
        ) from error
    for name, module in list(copied.named_modules()):
        if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ShapeError(f"{name} stays in training mode after eval(): its gain depends on the batch")
        if parametrize.is_parametrized(module):
            _make_plain(module)
    if forward_of(copied) is SOC:
        assert isinstance(copied, SOC)
        return FixedSOC(copied)
    for name, module in list(copied.named_modules()):
        if forward_of(module) is SOC:
            assert isinstance(module, SOC)
            copied.set_submodule(name, FixedSOC(module))
    return copied


def _make_plain(module: nn.Module) -> None:
    """Constants in place of parametrised weights; torch's removal would strip the original's class, which is shared."""
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def is_leaf(module: nn.Module) -> bool:
    """Whether the trace takes the module's gain from `layer_gain` and does not look into it."""
    if forward_of(module) is None:
        return False
    if isinstance(module, Convolutional) and module.padding_mode != "zeros":
        # The overlap of other paddings depends on the size, which F.pad's own rule sees.
        return module.padding_mode == "circular" and is_cyclic(module)
    return True


@dataclass(frozen=True)
class Trace:
    """Facts of the output, and what led to them."""

    facts: Facts
    output: Tensor
    contributions: tuple[Contribution, ...]


@torch.no_grad()
def follow(
    network: nn.Module, centre: Tensor, *, tolerance: float | None = None, also: tuple[Arithmetic, ...] = ()
) -> Trace:
    """Run a frozen network around one image `(1, *shape)`; the facts hold for all images, by their distance from it.

    Args:
        network: in evaluation mode, of the image's precision.
        centre: the image.
        tolerance: see `layer_gain`.
        also: further arithmetics whose rounding is to be followed.
    """
    arithmetics = (Arithmetic(centre.dtype), *also)
    tracer = Tracer(apply, tolerance, arithmetics)
    start = Traced.make(tracer, centre, Facts(1.0, norm_above(centre), (Affine(),) * len(arithmetics)))
    try:
        with _watched(network, tracer):
            output = network(start)
    except RuntimeError as failure:
        reason = str(failure).strip().splitlines()[0]
        raise ShapeError(f"{tracer.where} fails on an image of shape {tuple(centre.shape[1:])}: {reason}") from failure
    if isinstance(output, Sequence) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Traced):
        raise ShapeError(
            f"the network's output is a {type(output).__name__} whose path from the image was lost; it must return one "
            "tensor computed by torch functions"
        )
    facts = tracer.facts(output)
    proved = replace(facts, lipschitz=outward(facts.lipschitz), errors=tuple(e * outward(1.0) for e in facts.errors))
    return Trace(proved, output.value, tuple(tracer.contributions))


@contextmanager
def _watched(network: nn.Module, tracer: Tracer) -> Iterator[None]:
    """Let the tracer know which module runs, and take over the layers that it does not look into."""
    handles, leaves = [], []
    for name, module in network.named_modules():

        def enter(module: nn.Module, _inputs: Any, name: str = name) -> None:
            tracer.path.append((name, module))

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            tracer.path.pop()

        if is_leaf(module):
            leaves.append(module)
            module.forward = _leaf(name, module, module.forward, tracer)
        handles += [module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in leaves:
            del module.forward


def _leaf(name: str, module: nn.Module, forward: Callable[..., Any], tracer: Tracer) -> Callable[..., Any]:
    def run(*inputs: Any, **options: Any) -> Any:
        if len(inputs) != 1 or options or not isinstance(inputs[0], Traced):
            return forward(*inputs, **options)
        tracer.facts(inputs[0])
        gain = tracer.once(id(module), lambda: layer_gain(module, tolerance=tracer.tolerance), module)
        kind = getattr(module, "stands_for", type(module).__name__)
        count = tracer.calls[name] = tracer.calls.get(name, 0) + 1
        measured = measurement(name, count) if is_measured(gain) else ""
        return tracer.layer(kind, inputs[0], forward(inputs[0].value), gain, forward, measured)

    return run


def measurement(name: str, count: int) -> str:
    """The name of what is measured at the `count`-th call of a module, counted from 1."""
    return f"{name}#{count}"


def is_measured(gain: Gain) -> bool:
    """Whether a layer sums so many numbers that a measurement of its error is worth its while."""
    return gain.is_affine and gain.terms > 8
