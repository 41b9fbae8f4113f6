"""Replace the convolutions of any network by TT layers of best fit, and TT layers by convolutions."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import inf
from typing import TypeVar

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from svdctl.errors import ShapeError
from svdctl.layers.layer_ops import name_patterns, require_module
from svdctl.layers.stored_weight import why_not_as_stored
from svdctl.layers.tt import FramesKind, TTConv, TTConv1d, TTConv2d, TTConv3d, rank_pair, require_frames_kind

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
TT_FORMS: tuple[type[TTConv], ...] = (TTConv1d, TTConv2d, TTConv3d)


def tensorize_(
    model: nn.Module,
    *,
    rank: int,
    skip: str | Sequence[str] = (),
    frames: FramesKind = "retract",
    penalty_weight: float = TTConv.penalty_weight,
) -> dict[str, float]:
    """Replace every `Conv1d`, `Conv2d` and `Conv3d` of `model`, in place, by its best TT layer of this rank.

    Subclasses of them and convolutions whose weight is parametrised are left alone; a module that stands in several
    places is replaced by one layer in all of them.

    Args:
        model: any module that contains convolutions; a bare convolution has no place to be replaced in.
        rank: largest rank of both sides.
        skip: patterns of module names to leave alone, as `conv1` or `layer4.*`.
        frames: how the frames are to be kept in further training.
        penalty_weight: of `frames="penalty"`, the weight of `svdctl.Controller.penalty` in the loss. 1e5 is the
            paper's, for its own loss and learning rates; SGD diverges by it at larger ones, as 0.05. `retract` needs
            none.

    Returns:
        The relative error of each replaced layer, by name.

    Raises:
        ShapeError: for a convolution that has no TT layer and that no pattern skips, as a grouped one or one with
            weights that are not finite, and for arguments that are none; before anything is replaced.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.Conv2d(64, 64, 3))
    >>> errors = svdctl.tensorize_(net, rank=16, skip=["0"])
    >>> net[1].rank, 0 < errors["1"] < 1
    ((16, 16), True)
    """
    require_module(model)
    patterns = name_patterns(skip, "skip")
    rank_pair(rank)
    require_frames_kind(frames)
    if isinstance(penalty_weight, bool) or not isinstance(penalty_weight, int | float) or not 0 <= penalty_weight < inf:
        raise ShapeError(f"penalty_weight is a number from 0 on, not {penalty_weight!r}")
    forms: dict[type[nn.Module], type[TTConv]] = {form.ordinary: form for form in TT_FORMS}
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) in forms and not any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if "" in found:
        form = forms[type(model)].__name__
        raise ShapeError(f"a bare convolution cannot be replaced in place; use {form}.from_conv(conv, rank)")
    fitted = made_once(
        found,
        lambda conv: forms[type(conv)].from_conv(conv, rank, frames=frames),
        hint=lambda name: f"; to leave this layer as it is, give skip={name!r}",
    )
    for layer, _ in fitted.values():
        layer.penalty_weight = float(penalty_weight)
    replace_(model, {name: layer for name, (layer, _) in fitted.items()})
    return {name: error for name, (_, error) in fitted.items()}


def untensorize_(model: nn.Module) -> list[str]:
    """Replace every TT layer of `model`, in place, by torch's convolution with the same kernel.

    A layer that stands in several places is replaced by one convolution in all of them; subclasses are left alone. The
    operator stays, up to rounding. An optimiser of the model is to be made anew.

    Args:
        model: any module that contains TT layers; a bare one has no place to be replaced in.

    Returns:
        The names of the layers.

    Raises:
        ShapeError: for a bare TT layer, or one with hooks, before anything is replaced.

    >>> import torch
    >>> net = torch.nn.Sequential(svdctl.TTConv2d(8, 8, 3, rank=4), torch.nn.ReLU())
    >>> svdctl.untensorize_(net)
    ['0']
    >>> type(net[0]).__name__
    'Conv2d'
    """
    require_module(model)
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, TTConv) and type_before_parametrizations(module) in TT_FORMS
    }
    if "" in found:
        raise ShapeError("a bare TT layer cannot be replaced in place; use layer.to_conv()")
    made = made_once(found, _ordinary)
    replace_(model, made)
    return list(made)


def _ordinary(layer: TTConv) -> nn.Module:
    reason = why_not_as_stored(layer, type_before_parametrizations(layer))
    if reason is not None:
        raise ShapeError(f"the TT layer cannot be converted: {reason}")
    conv = layer.to_conv().train(layer.training)
    conv.weight.requires_grad_(layer.core.requires_grad)
    if layer.bias is not None and conv.bias is not None:
        conv.bias.requires_grad_(layer.bias.requires_grad)
    return conv


def made_once(
    found: Mapping[str, M], make: Callable[[M], T], *, hint: Callable[[str], str] = lambda _: ""
) -> dict[str, T]:
    """Return what is made of each module, by name: one thing of a module that has several names.

    Raises:
        ShapeError: one of `make`, with the name before it and the hint after it.
    """
    made: dict[M, T] = {}
    for name, module in found.items():
        if module in made:
            continue
        try:
            made[module] = make(module)
        except ShapeError as error:
            raise ShapeError(f"layer {name!r}: {error}{hint(name)}") from error
    return {name: made[module] for name, module in found.items()}


def replace_(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put modules into the places of a network that have these names."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)
