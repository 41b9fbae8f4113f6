"""Whether a layer computes with the weight that it stores, and which weight that is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from svdctl.errors import ShapeError


def forwards_as(layer: nn.Module, kind: type) -> bool:
    """Return whether the layer's forward pass is still that of one of its classes.

    A subclass that, say, standardises its weights on the way is another function, and so is a patched instance.
    """
    names = (
        "forward",
        "_conv_forward",
        "_generator",
        "skew_kernel",
        "series_terms",
        "__call__",
        "_call_impl",
        "_wrapped_call_impl",
    )
    return all(
        getattr(type(layer), name) is getattr(kind, name) and name not in vars(layer)
        for name in names
        if hasattr(kind, name)
    )


def why_not_as_stored(layer: nn.Module, kind: type) -> str | None:
    """Return why a layer may not do with its stored weight what layers of the class `kind` do; None when it does.

    Parametrizations are part of what the weight is, and so are weight_norm, spectral_norm and pruning of torch.nn.utils
    in their older form of a hook. Any other hook on the layer may change what goes in, what comes out, or the weight.
    """
    if not forwards_as(layer, kind):
        return f"its forward pass is not that of {kind.__name__}, so what it does with its weight is not known"
    hooks = [*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()]
    hooks += [*nn.modules.module._global_forward_pre_hooks.values(), *nn.modules.module._global_forward_hooks.values()]
    hooks = [hook for hook in hooks if not isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod)]
    if hooks:
        name = getattr(hooks[0], "__qualname__", type(hooks[0]).__name__)
        return f"it has a forward hook ({name}), which may change what it computes; remove the hook first"
    return None


@torch.no_grad()
def computed_weight(layer: nn.Module) -> Tensor:
    """Return the weight that a layer's forward pass would compute with in evaluation mode, detached.

    Parametrizations are evaluated, and what older hooks of torch.nn.utils compute before each pass is computed anew;
    nothing of the layer changes.

    Raises:
        ShapeError: a weight that is no ordinary tensor (sparse, quantised, distributed), or made by several hooks.
    """
    makers = [hook for hook in layer._forward_pre_hooks.values() if _makes_weight(hook)]
    if len(makers) > 1:
        raise ShapeError("several hooks make the weight of one layer; remove all but one, as by remove_weight_norm")
    weight: object
    with _evaluation_mode(layer):
        match makers[0] if makers else None:
            case SpectralNorm() as hook:
                weight = hook.compute_weight(layer, do_power_iteration=False)
            case WeightNorm() as hook:
                weight = hook.compute_weight(layer)
            case BasePruningMethod() as hook:
                weight = hook.apply_mask(layer)
            case _:
                weight = layer.weight
    if not isinstance(weight, Tensor):
        raise ShapeError(f"the weight of a {type(layer).__name__} is a {type(weight).__name__}, not a tensor")
    weight = weight.detach()
    if type(weight) is not Tensor or weight.layout is not torch.strided:
        kind = type(weight).__name__ if type(weight) is not Tensor else str(weight.layout)
        raise ShapeError(f"the weight of a {type(layer).__name__} is no ordinary tensor ({kind}); make it one first")
    return weight


def _makes_weight(hook: object) -> bool:
    if isinstance(hook, WeightNorm | SpectralNorm):
        return hook.name == "weight"
    return isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight"


@contextmanager
def _evaluation_mode(layer: nn.Module) -> Iterator[None]:
    """In evaluation mode reading a parametrised weight changes nothing (spectral_norm's vectors move in training)."""
    training = [module for module in layer.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
