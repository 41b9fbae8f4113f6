"""One pass through a whole network: from any `torch.nn.Module` to what is proved of its output.

The network is a frozen copy of the caller's: evaluation mode, one precision, weights that are computed from others
made constants. Layers that `layer_gain` knows are not looked into; everything else is followed function by function.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# These fill the tables of rules and gains.
from svdctl.certify import activations, arithmetic, factored, moves, plain  # noqa: F401
from svdctl.certify.contents import Contents
from svdctl.certify.exponential import FixedSOC
from svdctl.certify.facts import Affine, Arithmetic, Facts, norm_above, outward
from svdctl.certify.gains import forward_of, layer_gain
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
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_complex():
            raise ShapeError(f"{name} is complex ({tensor.dtype}); only networks of real numbers can be followed")
    try:
        copied = copy.deepcopy(model)
    except Exception as error:  # whatever the network's own classes raise
        raise ShapeError(
            f"the network cannot be copied ({error}); run it once under torch.no_grad(), then try again"
        ) from error
    _refuse_shared(model, copied)
    try:
        copied = copied.to(dtype).eval().requires_grad_(False)
    except Exception as error:
        raise ShapeError(f"the network cannot be converted to {dtype} ({error})") from error
    for name, module in list(copied.named_modules()):
        if module.training:
            raise ShapeError(
                f"{name or 'the network'} ({type(module).__name__}) stays in training mode after eval(): what it "
                "computes may depend on the batch or on chance"
            )
        if parametrize.is_parametrized(module):
            _make_plain(module)
    if forward_of(copied) is SOC:
        assert isinstance(copied, SOC)
        return _fixed(copied)
    for name, module in list(copied.named_modules()):
        if forward_of(module) is SOC:
            assert isinstance(module, SOC)
            copied.set_submodule(name, _fixed(module))
    return copied


def _refuse_shared(model: nn.Module, copied: nn.Module) -> None:
    """A copy that shares anything with the caller's network would change it, and be changed by it."""
    mine = {id(module) for module in model.modules()} | {id(t) for t in (*model.parameters(), *model.buffers())}
    for name, part in (*copied.named_modules(), *copied.named_parameters(), *copied.named_buffers()):
        if id(part) in mine:
            raise ShapeError(
                f"{name or 'the network'} ({type(part).__name__}) is not copied by copy.deepcopy; remove its own "
                "__deepcopy__"
            )


def _fixed(module: SOC) -> FixedSOC:
    if _has_hooks(module):
        raise ShapeError("a SOC layer with forward hooks cannot be followed; remove them first")
    return FixedSOC(module).eval()


def _has_hooks(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, *_hooks_of_all()))


def _hooks_of_all() -> tuple[Any, ...]:
    """The hooks that torch calls for every module."""
    hooks = nn.modules.module
    return hooks._global_forward_hooks, hooks._global_forward_pre_hooks


def _make_plain(module: nn.Module) -> None:
    """Constants in place of parametrised weights; torch's removal would strip the original's class, which is shared."""
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in parametrizations}
    for name, value in values.items():
        if not torch.equal(value, getattr(module, name)):
            raise ShapeError(f"the parametrised {name} of a {type(module).__name__} is another at each reading")
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def is_leaf(module: nn.Module) -> bool:
    """Whether the trace takes the module's gain from `layer_gain` and does not look into it."""
    if forward_of(module) is None:
        return False
    inner = [part for part in module.modules() if part is not module]
    if any(forward_of(part) is None or _has_hooks(part) for part in inner):
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
    contents: Contents
    """What the network was made of, its tensors copied."""
    passing: frozenset[str]
    """Paths where a pass leaves values of its image: they are no part of what the network computes with."""
    farthest: float
    """The distance from the centre up to which nothing overflows; below 0 if nothing is known of that."""

    def error(self, distance: float) -> float:
        """At least the error of the output as it is computed, for images at most this far from the centre."""
        return self.facts.error(distance) if distance <= self.farthest else math.inf

    def require_unchanged(self, network: nn.Module) -> None:
        """Raise a ShapeError if anything that the network computes with is not what it was."""
        changed = self.contents.difference(_contents_of(network), self.passing)
        if changed is not None:
            raise ShapeError(
                f"{changed!r} of the network is not what it was when the bound was proved: it was changed from "
                "outside, or the network changes it while it runs; a bound holds for a network that stays as it is"
            )


@torch.no_grad()
def follow(network: nn.Module, centre: Tensor, *, tolerance: float | None = None) -> Trace:
    """Run a frozen network around one image `(1, *shape)`; the facts hold for all images, by their distance from it.

    Args:
        network: in evaluation mode, of the image's precision.
        centre: the image.
        tolerance: see `layer_gain`.

    Raises:
        ShapeError: an operation without a rule, or a network that does not compute the same each time.
    """
    tracer = Tracer(apply, tolerance, Arithmetic(centre.dtype))
    with _watched(network, tracer):
        output, facts = _traced_pass(network, tracer, centre)
        farthest, contributions = tracer.largest.reaches(tracer.arithmetic.largest), tuple(tracer.contributions)
        # Again away from the centre, where a difference that the centre hides (a factor on zeros, say) shows.
        generator = torch.Generator().manual_seed(0)
        step = torch.rand(centre.shape, generator=generator, dtype=torch.float64).to(centre) - centre
        other = centre + step * min(1.0, max(farthest, 0.0) / 2 / norm_above(step))
        again, same = _traced_pass(network, tracer, other)
    passing = frozenset(_contents_of(network).without_numbers)
    allowed = 2 * facts.error(norm_above(other - centre)) * outward(1.0) + 1e-12 * norm_above(again)
    _require_close(_only(network(other.clone())), again, allowed)
    proved = replace(facts, lipschitz=outward(facts.lipschitz), error=facts.error * outward(1.0))
    trace = Trace(proved, output, contributions, _contents_of(network).kept(), passing, farthest)
    _require_close(_only(network(other.clone())), again, allowed)
    trace.require_unchanged(network)
    if same.lipschitz != facts.lipschitz:
        raise ShapeError(_CHANGES)
    return trace


def _traced_pass(network: nn.Module, tracer: Tracer, image: Tensor) -> tuple[Tensor, Facts]:
    """The output for one image, and what is proved of it."""
    start = Traced.make(tracer, image.clone(), Facts(1.0, norm_above(image), Affine()))
    try:
        output = _only(network(start))
    except ShapeError:
        raise
    except Exception as failure:  # whatever the network's own code raises
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        raise ShapeError(f"{tracer.where} fails on an image of shape {tuple(image.shape[1:])}: {reason}") from failure
    if not isinstance(output, Traced):
        raise ShapeError(
            f"the network's output is a {type(output).__name__} whose path from the image was lost; it must return one "
            "tensor computed by torch functions"
        )
    return output.value, tracer.facts(output)


_CHANGES = (
    "the network computes something else each time that it is run (by random numbers, by a state that its own code "
    "changes, or by a look at the type of its input); a bound holds for a network that stays as it is"
)


def _contents_of(network: nn.Module) -> Contents:
    return Contents.of(network, hooks_of_all_modules=_hooks_of_all())


def _only(output: Any) -> Any:
    return output[0] if isinstance(output, Sequence) and len(output) == 1 else output


def _require_close(found: Any, value: Tensor, allowed: float) -> None:
    """Raise a ShapeError unless another pass gave the same, but for what rounding may do."""
    if (
        isinstance(found, Traced)
        or found.shape != value.shape
        or not float((found.double() - value.double()).norm()) <= allowed
    ):
        raise ShapeError(_CHANGES)


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
            module.forward = _leaf(module, module.forward, tracer)
        handles += [module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in leaves:
            del module.forward


def _leaf(module: nn.Module, forward: Callable[..., Any], tracer: Tracer) -> Callable[..., Any]:
    def run(*inputs: Any, **options: Any) -> Any:
        if len(inputs) != 1 or options or not isinstance(inputs[0], Traced):
            return forward(*inputs, **options)
        tracer.facts(inputs[0])
        # Weights that depend on the image, by functional_call say: the functions that use them decide.
        if Contents.of(module).without_numbers:
            return forward(*inputs)
        if any(part.training for part in module.modules()):
            raise ShapeError(
                f"{tracer.where} is set to training mode while the network runs; use evaluation mode alone"
            )
        gain = tracer.once(id(module), module, lambda: layer_gain(module, tolerance=tracer.tolerance))
        kind = getattr(module, "stands_for", type(module).__name__)
        value = inputs[0].value.clone()
        output = forward(value)
        if not torch.equal(value, inputs[0].value):
            raise ShapeError(f"{tracer.where} writes into its input, which its gain does not tell")
        return tracer.layer(kind, inputs[0], output, gain, forward)

    return run
