"""Make the layers of any network orthogonal: SOC in place of convolutions, linear layers parametrised."""

from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from svdctl.control.layer_choice import Choices, checked_choices, is_chosen
from svdctl.errors import ShapeError
from svdctl.layers.layer_ops import is_controllable, require_module
from svdctl.layers.orthogonal_weight import is_orthogonal_by_parametrization
from svdctl.layers.soc import SOC
from svdctl.layers.stored_weight import require_memory, why_not_as_stored
from svdctl.layers.tensorize import made_once, replace_
from svdctl.parametrize import orthogonal

_ALREADY = "it is orthogonal already"


class Orthogonalized(NamedTuple):
    """What `orthogonalize_` did."""

    replaced: dict[str, str]
    """Name of each layer that is orthogonal now, to what it is: `SOC`, or `orthogonal`, a parametrised linear layer."""
    skipped: dict[str, str]
    """Name of each other convolution or linear layer, to the reason why it stayed."""


def orthogonalize_(model: nn.Module, layers: Choices | None = None) -> Orthogonalized:
    """Make convolutions and linear layers of a network orthogonal, in place, before it is trained.

    A `Conv2d` becomes a `SOC` layer where it has an odd square kernel, zero padding that keeps the size ("same"),
    stride 1 or 2, one group and no dilation. Its kernel is not kept: a new one is drawn. Its bias is. With stride 2 the
    layer takes images of even sides only. The weight of a `Linear` is parametrised by `svdctl.parametrize.orthogonal`,
    from the factor Q of its QR decomposition: rows or columns are orthonormal, whichever are fewer.

    Device, type, mode and what needs no gradient stay as they are; a module that stands in several places is replaced
    by one in all of them, whichever of its names is given. Make the optimiser afterwards.

    Args:
        model: any network.
        layers: patterns of layers' names, as `conv*`, types (`nn.Linear`), or predicates `(name, layer) -> bool`;
            several in a sequence: one of them is enough. Absent: all where it is possible.

    Returns:
        What was replaced, and what was skipped for which reason.

    Raises:
        ShapeError: with `layers`, for a convolution or linear layer that one of them chooses and that neither is
            orthogonal nor can be made so, and for a pattern that names none, or types and predicates that choose none;
            without it, for a network that is a bare convolution. Nothing is changed then.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 4), torch.nn.Linear(9, 8))
    >>> made = svdctl.orthogonalize_(net)
    >>> made.replaced
    {'0': 'SOC', '2': 'orthogonal'}
    >>> made.skipped
    {'1': 'its kernel is 4 x 4, and SOC needs a square one of odd size'}
    """
    require_module(model)
    require_memory(model)
    choices = None if layers is None else checked_choices(layers)
    candidates = {
        name: module for name, module in model.named_modules(remove_duplicate=False) if is_controllable(module)
    }
    named = set(candidates.values())
    if choices is not None:
        named = {layer for name, layer in candidates.items() if is_chosen(name, layer, choices)}
    for pattern in choices or ():
        if isinstance(pattern, str) and not any(fnmatchcase(name, pattern) for name in candidates):
            raise ShapeError(f"no convolution or linear layer has a name like {pattern!r}")
    if choices and not named:
        raise ShapeError("`layers` chooses no convolution or linear layer of the network")
    found = {name: module for name, module in candidates.items() if module in named}
    owners = _owners(model)
    reasons = {name: _why_not(module, owners) for name, module in found.items()}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, reason in skipped.items():
        if choices is not None and reason != _ALREADY:
            raise ShapeError(f"layer {name!r} cannot be made orthogonal: {reason}")
    chosen = {name: module for name, module in found.items() if name not in skipped}
    convolutions = {name: module for name, module in chosen.items() if isinstance(module, nn.Conv2d)}
    if "" in convolutions:
        raise ShapeError("a bare convolution cannot be replaced in place; make a svdctl.SOC of its sizes instead")
    replace_(model, made_once(convolutions, _soc))
    for module in dict.fromkeys(chosen.values()):
        if isinstance(module, nn.Linear):
            orthogonal(module)
    kinds = {name: "SOC" if name in convolutions else "orthogonal" for name in chosen}
    return Orthogonalized(kinds, skipped)


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of the modules that have each parameter, by its identity; each module once."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(name)
    return found


def _why_not(module: nn.Module, owners: dict[int, list[str]]) -> str | None:
    """Return why a convolution or linear layer is not made orthogonal; None: it can be."""
    if type(module) not in (nn.Conv2d, nn.Linear):
        kind, known = type(module), type_before_parametrizations(module)
        if is_orthogonal_by_parametrization(module):
            return _ALREADY
        if known is not kind:
            return (
                f"its weight is parametrised already (a {known.__name__}); remove the parametrization first, by "
                "svdctl.parametrize.remove_parametrizations"
            )
        return f"it is a {kind.__name__}, and only a Conv2d or Linear itself is made orthogonal"
    reason = why_not_as_stored(module, type(module))
    if reason is not None:
        return reason
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed from others before each pass (pruning, weight_norm); make it plain first"
    if weight.dtype not in (torch.float32, torch.float64):
        return f"its weight is {weight.dtype}, too coarse to stay orthogonal; convert the network with .float() first"
    if weight.is_meta:
        return "its weight is on the meta device and has no values yet; load them first"
    if len(owners[id(weight)]) > 1:
        return f"{' and '.join(map(repr, owners[id(weight)]))} share its weight; give each one of its own"
    if isinstance(module, nn.Conv2d):
        return _geometry(module)
    return None if bool(weight.isfinite().all()) else "its weight holds values that are not finite"


def _geometry(conv: nn.Conv2d) -> str | None:
    """Return why the geometry of a convolution is not that of a SOC layer."""
    height, width = conv.kernel_size
    if height != width or height % 2 == 0:
        return f"its kernel is {height} x {width}, and SOC needs a square one of odd size"
    if conv.stride not in ((1, 1), (2, 2)):
        return f"its stride is {conv.stride}, and SOC takes the place of stride 1 or 2 on both axes"
    if conv.groups != 1 or conv.dilation != (1, 1):
        return f"it has {conv.groups} groups and dilation {conv.dilation}, and SOC has one group and no dilation"
    if conv.padding_mode != "zeros":
        return f"its padding mode is {conv.padding_mode!r}, and SOC pads with zeros"
    half = height // 2
    if conv.padding not in ((half, half), "same") and not (conv.padding == "valid" and half == 0):
        return f"its padding is {conv.padding}, and SOC has that which keeps the size, {half}"
    return None


def _soc(conv: nn.Conv2d) -> SOC:
    weight, bias = conv.weight, conv.bias
    with torch.device(weight.device):
        layer = SOC(
            conv.in_channels, conv.out_channels, conv.kernel_size[0], stride=conv.stride[0], bias=bias is not None
        )
    layer.to(weight.dtype).train(conv.training)
    layer.kernel.requires_grad_(weight.requires_grad)
    if bias is not None and layer.bias is not None:
        layer.bias.data.copy_(bias.detach())
        layer.bias.requires_grad_(bias.requires_grad)
    return layer
