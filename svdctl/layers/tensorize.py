"""Replace the convolutions of any network by TT layers of best fit."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from svdctl.errors import ShapeError
from svdctl.layers.layer_ops import require_module
from svdctl.layers.tt import FramesKind, TTConv2d


def tensorize_(
    model: nn.Module, *, rank: int, skip: str | Sequence[str] = (), frames: FramesKind = "retract"
) -> dict[str, float]:
    """Replace every `Conv2d` of `model`, in place, by its best `TTConv2d` of this rank.

    Subclasses of it and convolutions whose weight is parametrised are left alone; a module that stands in several
    places is replaced by one layer in all of them.

    Args:
        model: any module that contains convolutions; a bare convolution has no place to be replaced in.
        rank: largest rank of both sides.
        skip: patterns of module names to leave alone, as `conv1` or `layer4.*`.
        frames: how the frames are to be kept in further training.

    Returns:
        The relative error of each replaced layer, by name.

    Raises:
        ShapeError: for a grouped convolution that no pattern skips, before anything is replaced.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.Conv2d(64, 64, 3))
    >>> errors = svdctl.tensorize_(net, rank=16, skip=["0"])
    >>> net[1].rank, 0 < errors["1"] < 1
    ((16, 16), True)
    """
    require_module(model)
    patterns = (skip,) if isinstance(skip, str) else tuple(skip)
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) is nn.Conv2d and not any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if "" in found:
        raise ShapeError("a bare convolution cannot be replaced in place; use TTConv2d.from_conv2d(conv, rank)")
    fitted: dict[str, tuple[TTConv2d, float]] = {}
    made: dict[nn.Module, tuple[TTConv2d, float]] = {}
    for name, module in found.items():
        try:
            if module not in made:
                made[module] = TTConv2d.from_conv2d(module, rank, frames=frames)
            fitted[name] = made[module]
        except ShapeError as error:
            raise ShapeError(f"layer {name!r}: {error} (skip=[{name!r}])") from error
    for name, (layer, _) in fitted.items():
        model.set_submodule(name, layer)
    return {name: error for name, (_, error) in fitted.items()}
