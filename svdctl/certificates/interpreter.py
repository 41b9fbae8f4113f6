"""One pass through a whole network: from any `torch.nn.Module` to what is proved of its output.

The network is a frozen copy of the caller's: evaluation mode, one precision, weights that are computed from others
made constants. Its outputs are compared with those of the caller's own network. Layers that `layer_gain` knows are not
looked into; everything else is followed function by function.
"""

import copy
import itertools
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

# These fill the table of rules.
from svdctl.certificates import ops_linear, ops_pointwise, ops_reduce, ops_shape_pool  # noqa: F401
from svdctl.certificates.contents import Comparison, Contents
from svdctl.certificates.error_bounds import Affine, Arithmetic, ValueBounds, outward
from svdctl.certificates.op_rules import apply
from svdctl.certificates.traced_tensor import Contribution, FailureRecorder, Traced, Tracer
from svdctl.errors import ShapeError
from svdctl.layers.layer_bounds import forward_of, layer_gain, layer_gains, sharp_tolerance
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.layer_ops import LayerOps, find_ops, is_controllable, known_class
from svdctl.layers.norms import bounds_within, compute_stated_weights, state_maximum, stated_maximum
from svdctl.layers.padding import Convolutional, is_cyclic
from svdctl.layers.stored_weight import forwards_as, made_by, read_flags, require_memory, tensor_of_own_class
from svdctl.spectral.faster_device import few_batches_are_faster
from svdctl.spectral.rounding import norm_above


@torch.no_grad()
def freeze_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy in evaluation mode and `dtype`, computed weights (orthogonal frames, skew kernels) constant."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ShapeError("the network holds TorchScript modules, which cannot be followed; give the Python modules")
    require_memory(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ShapeError(f"{name} is not made before the first forward pass; run the network once first")
        if tensor.is_complex():
            raise ShapeError(f"{name} is complex ({tensor.dtype}); only networks of real numbers can be followed")
    compute_stated_weights(model)  # a copy in another precision may prove another factor
    try:
        copied = copy.deepcopy(model, _copies_made_first(model))
    except Exception as error:  # whatever the network's own classes raise
        raise ShapeError(
            f"the network cannot be copied ({error}); run it once under torch.no_grad(), then try again"
        ) from error
    _refuse_shared(model, copied)
    changed = Contents.of(model).changed_values(Contents.of(copied))
    if changed is not None:
        raise ShapeError(
            f"copy.deepcopy gives the network another {changed}; remove its own __deepcopy__, __getstate__"
        )
    try:
        copied = copied.to(dtype)
        _require_converted(model, copied, dtype)
        copied = copied.eval().requires_grad_(False)
    except ShapeError:
        raise
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
        _take_hooks_away(module)
    for name, module in list(copied.named_modules()):
        frozen = _frozen(module)
        if frozen is not None and not name:
            return frozen
        if frozen is not None:
            copied.set_submodule(name, frozen)
    return copied


def _without_compilation(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` wrapped, if it did; what it computes is compared later."""
    while type(model).__name__ == "OptimizedModule" and type(model).__module__ == "torch._dynamo.eval_frame":
        if _has_hooks(model):
            raise ShapeError("a compiled network with forward hooks cannot be followed; remove them first")
        model = model._orig_mod  # type: ignore[assignment]
    return model


def _copies_made_first(model: nn.Module) -> dict[int, Any]:
    """Return copies, by identity, of what `copy.deepcopy` cannot copy: tensors that hooks compute, compiled modules."""
    made: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _made_by_hooks(model).values()}
    for module in model.modules():
        inner = _without_compilation(module)
        if inner is not module:
            made[id(module)] = copy.deepcopy(inner, made)
    return made


def _made_by_hooks(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that older hooks of torch.nn.utils (pruning, weight_norm) compute before each pass."""
    found = {}
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            name = made_by(hook)
            tensor = None if name is None else vars(module).get(name)
            if isinstance(tensor, Tensor):
                found[f"{path}.{name}" if path else str(name)] = tensor
    return found


def _take_hooks_away(module: nn.Module) -> None:
    """Put constants in place of what older hooks of torch.nn.utils compute before each pass, as the last one does."""
    for key, hook in list(module._forward_pre_hooks.items()):
        name = made_by(hook)
        if name is None:
            continue
        del module._forward_pre_hooks[key]
        hook(module, ())
        value = getattr(module, name).detach().clone()
        if [made_by(other) for other in module._forward_pre_hooks.values()].count(name):
            continue
        vars(module).pop(name, None)
        for part in ("g", "v", "orig", "mask", "u"):
            module._parameters.pop(f"{name}_{part}", None)
            module._buffers.pop(f"{name}_{part}", None)
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _refuse_shared(model: nn.Module, copied: nn.Module) -> None:
    """Raise a ShapeError if the copy shares anything: it would change the caller's network, and change with it."""
    mine = {id(module) for module in model.modules()} | {id(t) for t in (*model.parameters(), *model.buffers())}
    for name, part in (*copied.named_modules(), *copied.named_parameters(), *copied.named_buffers()):
        if id(part) in mine:
            raise ShapeError(
                f"{name or 'the network'} ({type(part).__name__}) is not copied by copy.deepcopy; remove its own "
                "__deepcopy__"
            )


def _require_converted(model: nn.Module, copied: nn.Module, dtype: torch.dtype) -> None:
    """Raise a ShapeError if the copy's weights are neither the caller's nor these in another precision."""
    converted = dict((*copied.named_parameters(), *copied.named_buffers()))
    names, flags = [], []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found = converted.get(name, converted.get(name.replace("_orig_mod.", "")))
        if tensor.is_floating_point() and tensor.layout == torch.strided:
            names.append(name)
            flags.append(found is not None and _is_converted(tensor, found, dtype))
    for name, same in zip(names, read_flags(flags), strict=True):
        if not same:
            raise ShapeError(f"conversion to {dtype} gives the network another {name}; remove its own to, _apply")


def _is_converted(tensor: Tensor, found: Tensor, dtype: torch.dtype) -> bool | Tensor:
    """Return whether `found` is a tensor as it is or in another precision, not read off its device."""
    found = found.to(tensor.device)
    if found.dtype == tensor.dtype == dtype:
        return _are_equal(found, tensor)
    wide = found.double()
    return _are_equal(wide, tensor.to(dtype).double()) | _are_equal(wide, tensor.double())


def _are_equal(first: Tensor, second: Tensor) -> bool | Tensor:
    """Return whether all entries are equal, nan and nan too: `()` on their device, False of two shapes."""
    if first.shape != second.shape:
        return False
    return ((first == second) | (first.isnan() & second.isnan())).all()


def _equal(first: Tensor, second: Tensor) -> bool:
    """Return whether all entries are equal, nan and nan too."""
    return bool(_are_equal(first, second))


def _frozen(module: nn.Module) -> nn.Module | None:
    """Return what computes the same with constants, for layers that make their weights from others in each pass."""
    ops, known = find_ops(module), known_class(module)
    if ops is None or known is None or type(ops).frozen is LayerOps.frozen:
        return None
    if not forwards_as(module, known) or tensor_of_own_class(module) is not None:
        return None
    if _has_hooks(module):
        raise ShapeError(f"a {known.__name__} layer with forward hooks cannot be followed; remove them first")
    frozen = ops.frozen(module)
    return None if frozen is None else frozen.eval()


def _has_hooks(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, *_hooks_of_all()))


def _hooks_of_all() -> tuple[Any, ...]:
    """Return the hooks that torch calls for every module."""
    hooks = nn.modules.module
    return hooks._global_forward_hooks, hooks._global_forward_pre_hooks


def _make_plain(module: nn.Module) -> None:
    """Put constants in place of parametrised weights; torch's removal would change the original's class."""
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in parametrizations}
    maximum = stated_maximum(module)
    for name, value in values.items():
        if not torch.equal(value, getattr(module, name)):
            raise ShapeError(f"the parametrised {name} of a {type(module).__name__} is another at each reading")
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    state_maximum(module, maximum)
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def is_leaf(module: nn.Module) -> bool:
    """Return whether the trace takes the module's gain from `layer_gain` and does not look into it."""
    if forward_of(module) is None:
        return False
    inner = [part for part in module.modules() if part is not module]
    if any(forward_of(part) is None or _has_hooks(part) for part in inner):
        return False
    if isinstance(module, Convolutional) and module.padding_mode != "zeros":
        # The overlap of other paddings depends on the size, which F.pad's own rule sees.
        return module.padding_mode == "circular" and is_cyclic(module)
    return True


@dataclass(frozen=True, eq=False)
class ProvedLayer:
    """A layer as it was when its norm was proved."""

    contents: Contents
    upper: float
    """At least its norm at every input size, its padding counted."""

    @classmethod
    def of(cls, layer: nn.Module, upper: float) -> "ProvedLayer":
        """Return what is proved of a layer; its tensors are copied."""
        return cls(Contents.of(layer).kept(), upper)


_MODE = frozenset({"training"})


def _proved_norms(network: nn.Module, proved: Mapping[str, ProvedLayer]) -> dict[int, float]:
    """Return what is proved of a frozen network's layers, by identity: of those that hold what they held, to the bit.

    Nothing but the training mode may differ.
    """
    found, comparisons = [], []
    for name, module in network.named_modules():
        if name in proved:
            found.append((id(module), proved[name].upper))
            comparisons.append(proved[name].contents.compared(Contents.of(module), _MODE))
    flags = iter(read_flags([flag for comparison in comparisons for flag in comparison.same.values()]))
    same = [all(list(itertools.islice(flags, len(each.same)))) and each.unlike is None for each in comparisons]
    return {module: upper for (module, upper), alike in zip(found, same, strict=True) if alike}


def _norms_within(network: nn.Module, maxima: Mapping[str, float], known: Collection[int]) -> dict[int, float]:
    """Return at least the norms of a frozen network's layers by identity: their maxima, where these are proved.

    None of any if one of them cannot be read: the pass comes to that layer, and says why.

    Args:
        network: frozen.
        maxima: of its layers by name.
        known: layers that are left out, by identity.
    """
    layers = {
        name: module for name, module in network.named_modules() if is_controllable(module) and id(module) not in known
    }
    try:
        tolerances = [sharp_tolerance(operator_of(layer)) for layer in layers.values()]
        found = bounds_within(list(layers.values()), [maxima.get(name) for name in layers], tolerance=tolerances)
    except ShapeError:
        return {}
    return {id(layer): bracket.upper for layer, bracket in zip(layers.values(), found, strict=True)}


@dataclass(frozen=True)
class Trace:
    """Bounds of the output, and what led to them."""

    bounds: ValueBounds
    output: Tensor
    contributions: tuple[Contribution, ...]
    contents: Contents
    """What the network was made of, its tensors copied."""
    passing: frozenset[str]
    """Paths where a pass leaves values of its image: they are no part of what the network computes with."""
    farthest: float
    """The distance from the centre up to which nothing overflows; below 0 if nothing is known of that."""

    def error(self, distance: float) -> float:
        """Return at least the error of the output as it is computed, for images at most this far from the centre."""
        return self.bounds.error(distance) if distance <= self.farthest else math.inf

    def require_unchanged(self, network: nn.Module) -> None:
        """Raise a ShapeError if anything that the network computes with is not what it was."""
        require_same(self.compared(network))

    def compared(self, network: nn.Module) -> Comparison:
        """Compare what the network computes with now with what it was, for `require_same`."""
        return self.contents.compared(_contents_of(network), self.passing)


def require_same(comparison: Comparison) -> None:
    """Raise a ShapeError if a network is not what it was when it was proved."""
    changed = comparison.difference()
    if changed is not None:
        raise ShapeError(
            f"{changed!r} of the network is not what it was when the bound was proved: it was changed from "
            "outside, or the network changes it while it runs; a bound holds for a network that stays as it is"
        )


@torch.no_grad()
def interpret(
    network: nn.Module,
    centre: Tensor,
    *,
    tolerance: float | None = None,
    proved: Mapping[str, ProvedLayer] | None = None,
    maxima: Mapping[str, float] | None = None,
) -> Trace:
    """Run a frozen network around one image `(1, *shape)`; the bounds hold for all images, by their distance from it.

    Args:
        network: in evaluation mode, of the image's precision.
        centre: the image.
        tolerance: see `layer_gain`.
        proved: what is proved of its layers already, by name; of those that have changed since it is not used.
        maxima: of its layers by name. Norms of convolutions and linear layers are then within `sharp_tolerance`, or at
            most the maximum where this is proved, however near to it they are. None: within `tolerance`.

    Raises:
        ShapeError: an operation without a rule, or a network that does not compute the same each time.
    """
    tracer = Tracer(apply, tolerance, Arithmetic(centre.dtype), shape=tuple(centre.shape[1:]))
    norms = _proved_norms(network, proved or {})
    if maxima is not None:
        norms |= _norms_within(network, maxima, norms)
    with _watched(network, tracer) as known:
        _keep_gains(tracer, known, norms)
        output, bounds = _traced_pass(network, tracer, centre)
        farthest, contributions = tracer.largest.distance_below(tracer.arithmetic.largest), tuple(tracer.contributions)
        # Again away from the centre, where a difference that the centre hides (a factor on zeros, say) shows.
        generator = torch.Generator().manual_seed(0)
        step = torch.rand(centre.shape, generator=generator, dtype=torch.float64).to(centre) - centre
        other = centre + step * min(1.0, max(farthest, 0.0) / 2 / norm_above(step))
        again, same = _traced_pass(network, tracer, other)
    passing = frozenset(_contents_of(network).without_numbers)
    widened = replace(bounds, lipschitz=outward(bounds.lipschitz), error=bounds.error * outward(1.0))
    _require_close(_plain_pass(network, other), again, widened, norm_above(other - centre))
    trace = Trace(widened, output, contributions, _contents_of(network).kept(), passing, farthest)
    for grad in (False, True):
        _require_close(_plain_pass(network, other, grad=grad), again, widened, norm_above(other - centre), or_none=grad)
    _require_bound(network, centre, trace)
    trace.require_unchanged(network)
    if same.lipschitz != bounds.lipschitz:
        raise ShapeError(_CHANGES)
    return trace


def _plain_pass(network: nn.Module, image: Tensor, *, grad: bool = False) -> Any:
    """Return the output as the network runs without a trace; None where it raises an error."""
    try:
        with torch.set_grad_enabled(grad):
            output = _only(network(image.clone()))
    except Exception:  # an output that does not come is no output that is wrong
        return None
    return output.detach() if isinstance(output, Tensor) and not isinstance(output, Traced) else output


def probes(centre: Tensor, distance: float) -> Iterator[Tensor]:
    """Return the centre, and random images of several sizes at most `distance` from it."""
    generator = torch.Generator().manual_seed(1)
    yield centre
    for size in (1.0, -1.0, 300.0, -300.0):
        step = size * torch.rand(centre.shape, generator=generator, dtype=torch.float64).to(centre) - centre
        yield centre + step * min(1.0, distance / norm_above(step))


def _require_bound(network: nn.Module, centre: Tensor, trace: Trace) -> None:
    """Raise a ShapeError if images of several sizes give outputs that the bound excludes, or that gradients change."""
    bounds = trace.bounds
    for image in probes(centre, max(trace.farthest, 0.0) / 2):
        output, distance = _plain_pass(network, image), norm_above(image - centre)
        _require_close(_plain_pass(network, image, grad=True), output, bounds, distance, or_none=True)
        if isinstance(output, Tensor) and bool(output.isfinite().all()):
            moved = norm_above(output.double() - trace.output.double())
            allowed = bounds.lipschitz * distance + bounds.error(distance) + bounds.error(0.0)
            # Both have floors, below which nothing is told apart.
            if moved > allowed * (1 + 1e-9) + _FLOOR:
                raise ShapeError(_CHANGES)


@torch.no_grad()
def prove(
    model: nn.Module,
    centre: Tensor,
    *,
    tolerance: float | None = None,
    proved: Mapping[str, ProvedLayer] | None = None,
    maxima: Mapping[str, float] | None = None,
) -> tuple[nn.Module, Trace]:
    """Return a frozen copy of the caller's network in the image's precision, and what is proved of both.

    Args:
        model: the caller's network.
        centre: an image `(1, *shape)`.
        tolerance, proved, maxima: see `interpret`.

    Raises:
        ShapeError: what `interpret` refuses, or a copy that does not compute what the caller's network computes in
            evaluation mode and its own precision.
    """
    model = _without_compilation(model)
    network = freeze_copy(model, centre.dtype)
    trace = interpret(network, centre, tolerance=tolerance, proved=proved, maxima=maxima)
    with _in_evaluation_mode(model), _without_compiling():
        _require_as_given(model, network, trace, centre)
    return network, trace


def _require_as_given(model: nn.Module, network: nn.Module, trace: Trace, centre: Tensor) -> None:
    """Raise a ShapeError if the caller's network gives other outputs than the copy.

    Allowed is the square root of the coarser unit roundoff, relatively to the largest output, and what rounding is
    proved to do at most where that is little. A network that runs in no precision as it is (its weights are of several,
    say) gives no outputs that could be others.
    """
    own = (tensor.dtype for tensor in tensors_of(model) if tensor.is_floating_point())
    precisions = dict.fromkeys((*own, torch.get_default_dtype(), torch.float32, torch.float64))
    dtype = next((d for d in precisions if _plain_pass(model, centre.to(d)) is not None), None)
    if dtype is None:
        return
    before = _contents_of(model).kept()
    images = [image.to(dtype) for image in probes(centre, min(trace.farthest / 2, norm_above(torch.ones_like(centre))))]
    outputs = [_plain_pass(network, image.to(centre)) for image in images]
    if any(output is None for output in outputs):
        raise ShapeError(_CHANGES)
    scale = max(norm_above(output) for output in outputs)
    unit = max(Arithmetic(kind).unit for kind in (dtype, centre.dtype))
    floor = max(_floor(output.to(dtype)) for output in outputs)
    for (image, output), grad in itertools.product(zip(images, outputs, strict=True), (False, True)):
        found = _plain_pass(model, image, grad=grad)
        if found is None and grad:
            continue
        proved = trace.error(norm_above(image.to(centre) - centre)) * (unit / Arithmetic(centre.dtype).unit)
        allowed = max(math.sqrt(unit) * scale, proved if proved < 0.1 * scale else 0.0, floor)
        if not differ_by_at_most(found, output, allowed):
            raise ShapeError(
                f"the copy in {centre.dtype} that is proved gives other outputs than the network as it was given, in "
                f"evaluation mode and {dtype}: its code copies, converts or looks at its tensors in a way of its own, "
                "or rounds too coarsely; convert it first, by .float() or .double(), and leave such code out"
            )
    changed = before.difference(_contents_of(model), trace.passing | frozenset(_made_by_hooks(model)))
    if changed is not None:
        raise ShapeError(
            f"the network changes {changed!r} while it runs; a bound holds for a network that stays as it is"
        )


@contextmanager
def _without_compiling() -> Iterator[None]:
    """Let compiled networks run as they were written, where anything was compiled."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Yield a network's parameters and buffers, then the tensors that are plain attributes of its modules."""
    yield from (*model.parameters(), *model.buffers())
    yield from (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set the flags of a network without running its code; afterwards all that its modules hold is as before."""
    kept = []
    for module in model.modules():
        held = dict(vars(module))
        kept.append((module, held, {name: copy.copy(v) for name, v in held.items() if isinstance(v, dict | list)}))
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    for module, _, _ in kept:
        vars(module)["training"] = False
    try:
        yield
    finally:
        for module, held, inside in kept:
            vars(module).clear()
            vars(module).update(held)
            for name, value in inside.items():
                held[name].clear()
                held[name].update(value) if isinstance(value, dict) else held[name].extend(value)
        same = read_flags([_are_equal(tensor.detach(), values) for tensor, values in tensors])
        for (tensor, values), unchanged in zip(tensors, same, strict=True):
            if not unchanged:
                tensor.data = values


def _traced_pass(network: nn.Module, tracer: Tracer, image: Tensor) -> tuple[Tensor, ValueBounds]:
    """Return the output for one image, and what is proved of it."""
    start = Traced.make(tracer, image.clone(), ValueBounds(1.0, norm_above(image), Affine()))
    output = None
    with FailureRecorder(tracer):
        try:
            output = _only(network(start))
        except Exception as failure:  # whatever the network's own code raises
            tracer.refuse(failure)
    if tracer.refusal is not None:
        raise tracer.refusal
    if not isinstance(output, Traced):
        raise ShapeError(
            f"the network's output is a {type(output).__name__} whose path from the image was lost; it must return one "
            "tensor computed by torch functions"
        )
    return output.value, tracer.bounds(output)


_FLOOR = 1e-280
_CHANGES = (
    "the network computes something else each time that it is run (by random numbers, by a state that its own code "
    "changes, or by a look at the type of its input); a bound holds for a network that stays as it is"
)


def _contents_of(network: nn.Module) -> Contents:
    return Contents.of(network, hooks_of_all_modules=_hooks_of_all())


def _only(output: Any) -> Any:
    return output[0] if isinstance(output, Sequence) and len(output) == 1 else output


def _require_close(found: Any, value: Any, bounds: ValueBounds, distance: float, *, or_none: bool = False) -> None:
    """Raise a ShapeError unless another pass gave the same, but for what rounding may do at this distance."""
    if or_none and (found is None or value is None):
        return
    if not isinstance(value, Tensor):
        raise ShapeError(_CHANGES)
    unit, norm = Arithmetic(value.dtype).unit, norm_above(value)
    allowed = min(2 * bounds.error(distance) + 1e-12 * norm, math.sqrt(unit) * norm + _floor(value))
    if not differ_by_at_most(found, value, allowed):
        raise ShapeError(_CHANGES)


def _floor(value: Tensor) -> float:
    """Return the size below which a tensor's rounding is no longer relative."""
    return max(64 * torch.finfo(value.dtype).tiny * value.numel(), _FLOOR)


def differ_by_at_most(found: Any, value: Any, allowed: float) -> bool:
    """Return whether both are tensors of one shape and this near to one another."""
    if not all(isinstance(tensor, Tensor) and not isinstance(tensor, Traced) for tensor in (found, value)):
        return False
    found, value = found.double(), value.double()
    return _equal(found, value) or (found.shape == value.shape and bool((found - value).norm() <= allowed))


@contextmanager
def _watched(network: nn.Module, tracer: Tracer) -> Iterator[list[nn.Module]]:
    """Let the tracer know which module runs, and take over the layers that it does not look into: those given."""
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
        yield leaves
    finally:
        for handle in handles:
            handle.remove()
        for module in leaves:
            vars(module).pop("forward", None)  # the network may have taken it away


def _keep_gains(tracer: Tracer, layers: Sequence[nn.Module], proved: Mapping[int, float]) -> None:
    """Compute the gains of layers before the pass, their norms together, where that saves time.

    Args:
        tracer: which keeps them.
        layers: that the pass does not look into.
        proved: at least the norms of some of them, by identity.
    """
    chosen = [layer for layer in layers if is_controllable(layer)]
    on_cpu = all(not few_batches_are_faster(tensor.device) for layer in chosen for tensor in layer.parameters())
    norms = [proved.get(id(layer)) for layer in chosen]
    if norms == [None] * len(norms) and (len(chosen) < 2 or (on_cpu and torch.get_num_threads() == 1)):
        return
    try:
        gains = layer_gains(chosen, tolerance=tracer.tolerance, proved=norms)
        for layer, gain in zip(chosen, gains, strict=True):
            tracer.keep_gain(id(layer), layer, gain)
    except Exception:  # whatever a layer's own code raises: the pass comes to that layer, and says so of it
        tracer.gains.clear()


def _leaf(module: nn.Module, forward: Callable[..., Any], tracer: Tracer) -> Callable[..., Any]:
    def run(*inputs: Any, **options: Any) -> Any:
        if len(inputs) != 1 or options or not isinstance(inputs[0], Traced):
            return forward(*inputs, **options)
        # Weights that depend on the image, by functional_call say: the functions that use them decide.
        if Contents.of(module).without_numbers:
            return forward(*inputs)
        try:
            return follow_leaf(inputs[0])
        except Exception as failure:
            raise tracer.refuse(failure) from failure.__cause__

    def follow_leaf(x: Traced) -> Traced:
        tracer.bounds(x)
        if any(part.training for part in module.modules()):
            raise ShapeError(
                f"{tracer.where} is set to training mode while the network runs; use evaluation mode alone"
            )
        gain = tracer.cached_gain(id(module), module, lambda: layer_gain(module, tolerance=tracer.tolerance))
        kind = getattr(module, "stands_for", type(module).__name__)
        value = x.value.clone()
        output = forward(value)
        if not torch.equal(value, x.value):
            raise ShapeError(f"{tracer.where} writes into its input, which its gain does not tell")
        return tracer.layer(kind, x, output, gain, forward)

    return run
