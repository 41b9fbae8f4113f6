"""Which layers of a network are controlled: chosen by name, type or predicate, in the network without its wrappers."""

import sys
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from svdctl.control.actions import naming_what_is_not_finite
from svdctl.errors import ShapeError, UsageError
from svdctl.layers.layer_ops import LayerOps
from svdctl.layers.norms import layer_norm_bounds, stated_maximum
from svdctl.spectral.bounds import Bracket

Choice = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Choices = Choice | Iterable[Choice]
Maxima = float | Mapping[Any, float]
"""One for all convolutions, or by `Choice`, of which the first that fits a layer decides."""
_WRAPPERS = {
    "torch._dynamo.eval_frame:OptimizedModule": "_orig_mod",
    "torch.nn.parallel.distributed:DistributedDataParallel": "module",
    "torch.nn.parallel.data_parallel:DataParallel": "module",
    "torch.optim.swa_utils:AveragedModel": "module",
    "timm.utils.model_ema:ModelEma": "ema",
    "timm.utils.model_ema:ModelEmaV2": "module",
    "timm.utils.model_ema:ModelEmaV3": "module",
}
"""Classes that hold a network, of which theirs is the result, and the name of it; none is imported for this."""
_FSDP = "torch.distributed.fsdp.fully_sharded_data_parallel:FullyShardedDataParallel"
_SHOWN = 8


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside of torch.compile, DDP, DataParallel and averages of torch and timm; else itself."""
    inner = next((name for kind, name in _WRAPPERS.items() if _is_a(model, kind)), None)
    return model if inner is None else unwrapped(getattr(model, inner))


def _is_a(module: object, kind: str) -> bool:
    """Return whether a module is of a class that is named as `package.module:Class`."""
    home, _, name = kind.partition(":")
    found = getattr(sys.modules.get(home), name, None)
    return isinstance(found, type) and isinstance(module, found)


def is_chosen(name: str, layer: nn.Module, choices: Choices) -> bool:
    """Return whether a layer is among those that are asked for.

    Args:
        name: its full name, as `layer1.0.conv1`.
        layer: the layer; one that is parametrised counts as of the type that it had before.
        choices: a pattern of names (fnmatch), a type, a predicate `(name, layer) -> bool`, or several of these, of
            which one is enough.

    Raises:
        UsageError: a choice of another type.
    """
    return any(_suits(name, layer, choice) for choice in single_choices(choices))


def single_choices(choices: Choices) -> tuple[Choice, ...]:
    """Return the patterns, types and predicates that are given, one or several.

    Raises:
        UsageError: a choice of another type.
    """
    is_several = isinstance(choices, Iterable) and not isinstance(choices, str) and not callable(choices)
    found: tuple[Any, ...] = tuple(choices) if is_several else (choices,)  # type: ignore[arg-type]
    for choice in found:
        if not isinstance(choice, str) and not callable(choice):
            raise UsageError(
                f"layers are chosen by patterns of names, types and predicates (name, layer) -> bool, not by {choice!r}"
            )
        if callable(choice) and not isinstance(choice, type) and not _takes_name_and_layer(choice):
            raise UsageError(
                "a predicate that chooses layers takes two arguments, as `lambda name, layer: 'head' not in name`; "
                f"{getattr(choice, '__name__', choice)} does not"
            )
    return found


def _takes_name_and_layer(predicate: Callable[..., Any]) -> bool:
    try:
        found = signature(predicate)
    except ValueError:  # of some functions in C, which tell nothing
        return True
    try:
        found.bind("name", None)
    except TypeError:
        return False
    return True


def checked_choices(choices: Choices) -> tuple[Choice, ...]:
    """Return `single_choices` for functions of single calls.

    Raises:
        ShapeError: a choice of another type.
    """
    try:
        return single_choices(choices)
    except UsageError as error:
        raise ShapeError(str(error)) from error


def _suits(name: str, layer: nn.Module, choice: Choice) -> bool:
    if isinstance(choice, str):
        return fnmatchcase(name, choice)
    if isinstance(choice, type):
        return issubclass(type_before_parametrizations(layer), choice)
    return bool(choice(name, layer))


def choice_text(choice: Choice) -> str:
    """Return a pattern in quotes, or the name of a type or predicate."""
    return repr(choice) if isinstance(choice, str) else str(getattr(choice, "__name__", choice))


def maxima_of(
    known: Mapping[str, tuple[LayerOps, nn.Module]],
    choices: Choices,
    max_sigma: Maxima,
    linear_max: float | None,
) -> dict[str, float]:
    """Return the largest singular value allowed for each layer that is controlled, by name.

    Args:
        known: layers that can be controlled, by their full names.
        choices: as of `is_chosen`.
        max_sigma: for convolutions; or by pattern, type or predicate, where the first one that fits a layer, a linear
            one too, decides and layers that none fits are left alone.
        linear_max: for linear layers that no pattern of `max_sigma` fits; None: they are left alone.
    """
    found = {}
    for name, (ops, layer) in known.items():
        if not is_chosen(name, layer, choices):
            continue
        if isinstance(max_sigma, Mapping):
            limit = next((value for choice, value in max_sigma.items() if _suits(name, layer, choice)), None)
        else:
            limit = None if ops.is_linear else max_sigma
        limit = linear_max if limit is None and ops.is_linear else limit
        if limit is not None:
            found[name] = limit
    return found


def require_matches(
    known: Mapping[str, tuple[LayerOps, nn.Module]],
    choices: Choices,
    max_sigma: Maxima,
    maxima: Mapping[str, float],
) -> None:
    """Raise a UsageError if a pattern fits no name, or nothing is controlled, with the names that there are."""
    shown = ", ".join([name or "'' (the model itself)" for name in known][:_SHOWN])
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    names = f"the layers are {shown}{more}" if known else "the network has no convolution or linear layer"
    patterns = [choice for choice in single_choices(choices) if isinstance(choice, str)]
    keys = list(max_sigma) if isinstance(max_sigma, Mapping) else []
    for choice in keys:
        if not isinstance(choice, str) and not any(_suits(name, layer, choice) for name, (_, layer) in known.items()):
            raise UsageError(f"{choice_text(choice)} of max_sigma fits no layer; {names}")
    for pattern in [*patterns, *(choice for choice in keys if isinstance(choice, str))]:
        if not any(fnmatchcase(name, pattern) for name in known):
            inner = next((name for name in known if fnmatchcase(name, f"*{pattern}")), None)
            example = f"'*{pattern}' fits '{inner}'" if inner else "'*conv1' fits 'layer1.0.conv1', 'conv*' does not"
            raise UsageError(
                f"the pattern {pattern!r} fits no layer: it is held against full names ({example}); {names}"
            )
    if maxima:
        return
    if any(is_chosen(name, layer, choices) for name, (_, layer) in known.items()):
        raise UsageError(
            "only linear layers are chosen, and they have no maximum: give linear_max, or max_sigma by pattern"
        )
    raise UsageError(f"`layers` chooses none: {names}")


def refuse_sharded(model: nn.Module, names: Iterable[str]) -> None:
    """Raise a ShapeError if a layer that is to be controlled lies in FullyShardedDataParallel."""
    for outer, module in model.named_modules():
        if not _is_a(module, _FSDP):
            continue
        for name in names:
            if not outer or name == outer or name.startswith(f"{outer}."):
                raise ShapeError(
                    f"layer {name or '(top)'} cannot be changed: FSDP (FullyShardedDataParallel) shards its weight; "
                    "control a network that is not sharded, as under DDP, or leave it out with layers="
                )


def refuse_quantized(model: nn.Module, choices: Choices, max_sigma: object, linear_max: float | None) -> None:
    """Raise a ShapeError if a quantised module of torch is chosen, which is no layer that svdctl knows."""
    for name, module in model.named_modules():
        if not type(module).__module__.startswith(("torch.ao.nn.", "torch.nn.quantized")):
            continue
        weight = module.weight() if callable(getattr(module, "weight", None)) else None
        if weight is None or not is_chosen(name, module, choices):
            continue
        if isinstance(max_sigma, Mapping):
            is_asked = any(_suits(name, module, choice) for choice in max_sigma)
        else:
            is_asked = weight.ndim > 2
        if is_asked or (weight.ndim == 2 and linear_max is not None):
            raise ShapeError(
                f"layer {name or '(top)'} cannot be changed: its weight is quantised ({type(module).__name__} of "
                "torch.ao); control the network before it is quantised, or leave it out with layers="
            )


def keeps_itself(name: str, layer: nn.Module, max_sigma: float) -> bool:
    """Return whether a layer has svdctl's own spectral norm, which keeps it within the maximum.

    Raises:
        ShapeError: it has one with a maximum above.
    """
    own = stated_maximum(layer) if is_parametrized(layer, "weight") else None
    if own is not None and not own <= max_sigma:
        raise ShapeError(
            f"layer {name or '(top)'} has a spectral norm with a maximum of {own:g}, above {max_sigma:g}; give it "
            f"max_sigma={max_sigma:g}, or leave it out with layers="
        )
    return own is not None


def kept_brackets(layers: Mapping[str, nn.Module], maxima: Mapping[str, float], *, sharp: bool) -> dict[str, Bracket]:
    """Return proved brackets of layers that keep themselves within their maxima; unless `sharp` from 0 to these.

    Raises:
        ShapeError: one is above, as after its own maximum was changed.
    """
    limits = [maxima[name] for name in layers]
    with naming_what_is_not_finite(layers):
        found = dict(zip(layers, layer_norm_bounds(list(layers.values()), maxima=limits), strict=True))
    for name, bracket in found.items():
        if not bracket.upper <= maxima[name]:
            raise ShapeError(
                f"layer {name or '(top)'} has a spectral norm of its own, and is at {bracket.upper:g} above "
                f"{maxima[name]:g}; lower its max_sigma"
            )
    return found if sharp else {name: Bracket(0.0, maxima[name]) for name in found}
