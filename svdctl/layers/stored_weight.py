"""Whether a layer computes with the weight that it stores, and which weight that is."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from svdctl.errors import ShapeError
from svdctl.spectral.convolution import FREED, is_freed

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ASYNCHRONOUS = {"cuda"}
"""Kinds of devices on which reading a result waits for all work before it."""
_DESCRIPTORS = (property, staticmethod, classmethod)
_PASS = ("forward", "_conv_forward", "__call__", "_call_impl", "_wrapped_call_impl", "__getattribute__")
# What a subclass may define anew: it is no part of what the layer computes.
_HARMLESS = {"__init__", "__doc__", "__module__", "__qualname__", "extra_repr", "reset_parameters", "from_conv"}


def forwards_as(layer: nn.Module, kind: type) -> bool:
    """Return whether the layer's forward pass is still that of one of its classes.

    A subclass that, say, standardises its weights on the way is another function, and so is a patched instance, and
    every layer of a patched class. Of a class that is not torch's every method counts, since several of them may make
    the pass.
    """
    names = {name for name in _PASS if hasattr(kind, name)}
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] not in ("torch", "builtins"):
            names |= {name for name, part in vars(base).items() if callable(part) or isinstance(part, _DESCRIPTORS)}
    compiled = vars(layer).get("_compiled_call_impl")
    if compiled is not None:
        by_torch = getattr(compiled, "__globals__", {}).get("__name__", "").startswith("torch.")
        if not by_torch or inspect.unwrap(compiled) != layer._call_impl:
            return False
    return all(
        inspect.getattr_static(type(layer), name) is inspect.getattr_static(kind, name) and name not in vars(layer)
        for name in names - _HARMLESS
    ) and not any(_is_patched(kind, name) for name in _PASS)


def _is_patched(kind: type, name: str) -> bool:
    """Return whether a method of torch's or our own class is no longer the one that the class's own module defines."""
    owner = next((base for base in kind.__mro__ if name in vars(base)), object)
    if owner.__module__.partition(".")[0] not in ("torch", "svdctl"):
        return False
    method = vars(owner)[name]
    return not inspect.isfunction(method) or method.__globals__ is not vars(sys.modules[owner.__module__])


def _differs(kind: type, name: str) -> bool:
    return inspect.getattr_static(kind, name) is not inspect.getattr_static(nn.Module, name)


def tensor_of_own_class(layer: nn.Module) -> str | None:
    """Return the name of a tensor with its own class among those of a layer, None if there is none.

    What functions do with such a tensor is up to its class.
    """
    for name, tensor in named_tensors(layer):
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"{name}, a {type(tensor).__name__}"
    return None


def named_tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters, buffers and attributes that are tensors, of a module and of those inside it."""
    yield from (*layer.named_parameters(), *layer.named_buffers())
    for module in layer.modules():
        yield from ((name, value) for name, value in vars(module).items() if isinstance(value, Tensor))


def require_memory(model: nn.Module) -> None:
    """Raise a ShapeError if the memory of a parameter or buffer of a network was freed."""
    for name, tensor in named_tensors(model):
        if is_freed(tensor):
            raise ShapeError(f"the memory of {name} {FREED}")


def have_same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors are of one type, shape and place, and the same bit for bit."""
    return bool(same_bits(first, second))


def same_bits(first: Tensor, second: Tensor) -> bool | Tensor:
    """Return what `have_same_bits` does; for tensors on a CUDA device a tensor `()` there: nothing waits for it."""
    kinds = ((tensor.dtype, tensor.shape, tensor.layout, tensor.device) for tensor in (first, second))
    if next(kinds) != next(kinds):
        return False
    if first.layout is not torch.strided or first.is_quantized:
        return first is second or torch.equal(first, second)
    if first.is_complex():
        first, second = torch.view_as_real(first.resolve_conj()), torch.view_as_real(second.resolve_conj())
    bits = _BITS[first.element_size()]
    first, second = (tensor.detach().resolve_neg().view(bits) for tensor in (first, second))
    return (first == second).all() if first.device.type in _ASYNCHRONOUS else torch.equal(first, second)


def read_flags(flags: Sequence[bool | Tensor]) -> list[bool]:
    """Return the values of flags, `()` bool each where they are on a device, after one read of it."""
    places = [place for place, flag in enumerate(flags) if isinstance(flag, Tensor)]
    found = [flag if isinstance(flag, bool) else False for flag in flags]
    if places:
        tensors = [flag for flag in flags if isinstance(flag, Tensor)]
        read = torch.stack([flag.to(tensors[0].device) for flag in tensors]).tolist()
        for place, value in zip(places, read, strict=True):
            found[place] = value
    return found


def why_not_as_stored(layer: nn.Module, kind: type) -> str | None:
    """Return why a layer may not do with its stored weight what layers of the class `kind` do; None when it does.

    Parametrizations are part of what the weight is, and so are weight_norm, spectral_norm and pruning of torch.nn.utils
    in their older form of a hook. Any other hook on the layer may change what goes in, what comes out, or the weight.
    """
    if not forwards_as(layer, kind):
        return f"its forward pass is not that of {kind.__name__}, so what it does with its weight is not known"
    # Not by hasattr, which would compute a parametrised one, and move the vectors of a spectral_norm.
    names = layer._parameters.keys() | layer._buffers.keys() | vars(layer).keys()
    has_weight = "weight" in names or hasattr(type(layer), "weight")
    if issubclass(kind, nn.Linear | nn.modules.conv._ConvNd) and not has_weight:
        return "it has no weight; give it one first"
    own = tensor_of_own_class(layer)
    if own is not None and any(map(is_lazy, layer.parameters())):
        return "its weights are not made before its first forward pass; run the network once first"
    if own is not None:
        return (
            f"what its forward pass does with its {own}, is up to that class of tensors; make it an ordinary one first"
        )
    freed = next((name for name, tensor in named_tensors(layer) if is_freed(tensor)), None)
    if freed is not None:
        return f"the memory of its {freed} {FREED}"
    for part in layer.modules():
        if part.training and any(name in vars(part) or _differs(type(part), name) for name in ("train", "eval")):
            return (
                f"the train() or eval() of a {type(part).__name__} is its own and it is in training mode, so what its "
                "forward pass does in evaluation mode is not known; set that mode first, by eval()"
            )
    hooks = [*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()]
    hooks += [*nn.modules.module._global_forward_pre_hooks.values(), *nn.modules.module._global_forward_hooks.values()]
    for hook in hooks:
        made = made_by(hook)
        if made is None:
            name = getattr(hook, "__qualname__", type(hook).__name__)
            return f"it has a forward hook ({name}), which may change what it computes; remove the hook first"
        if made not in ("weight", "bias"):
            return f"a forward hook ({type(hook).__name__}) computes its {made} before each pass; remove the hook first"
    return None


def made_by(hook: object) -> str | None:
    """Return the tensor that an older hook of torch.nn.utils computes before each pass; None for any other hook."""
    if type(hook) in (WeightNorm, SpectralNorm):
        return hook.name  # type: ignore[attr-defined]
    if isinstance(hook, BasePruningMethod) and all(
        inspect.getattr_static(type(hook), name) is inspect.getattr_static(BasePruningMethod, name)
        for name in ("__call__", "apply_mask")
    ):
        return hook._tensor_name
    return None


@torch.no_grad()
def computed_weight(layer: nn.Module) -> Tensor:
    """Return the weight that a layer's forward pass would compute with in evaluation mode, detached.

    Parametrizations are evaluated, and what older hooks of torch.nn.utils compute before each pass is computed anew;
    nothing of the layer changes.

    Raises:
        ShapeError: a weight that is no ordinary tensor (sparse, quantised, distributed), or made by several hooks.
    """
    makers = [hook for hook in layer._forward_pre_hooks.values() if made_by(hook) == "weight"]
    if len(makers) > 1:
        raise ShapeError("several hooks make the weight of one layer; remove all but one, as by remove_weight_norm")
    weight: object
    with evaluation_mode(layer):
        match makers[0] if makers else None:
            case SpectralNorm() as hook:
                weight = hook.compute_weight(layer, do_power_iteration=False)
            case WeightNorm() as hook:
                weight = hook.compute_weight(layer)
            case BasePruningMethod() as hook:
                weight = hook.apply_mask(layer)
            case _:
                weight = layer.weight
                again = layer.weight
                if again is not weight and not _equal(weight, again):
                    raise ShapeError(f"the weight of a {type(layer).__name__} is another at each reading")
    if not isinstance(weight, Tensor):
        raise ShapeError(f"the weight of a {type(layer).__name__} is a {type(weight).__name__}, not a tensor")
    if type(weight) not in (Tensor, nn.Parameter) or weight.layout is not torch.strided:
        kind = str(weight.layout) if type(weight) in (Tensor, nn.Parameter) else type(weight).__name__
        raise ShapeError(f"the weight of a {type(layer).__name__} is no ordinary tensor ({kind}); make it one first")
    return weight.detach()


def _equal(first: object, second: object) -> bool:
    """Return whether both are the same numbers, those that are not finite included."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return first is second
    return torch.equal(first.nan_to_num(), second.nan_to_num())


@contextmanager
def evaluation_mode(layer: nn.Module) -> Iterator[None]:
    """Set evaluation mode, in which reading changes nothing (in training spectral_norm's vectors move)."""
    training = [module for module in layer.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
