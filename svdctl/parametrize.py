"""Parametrizations of weights for anybody's training: the spectral norm of the operator, orthonormal matrices."""

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization
from torch.nn.utils.parametrize import remove_parametrizations as remove_by_torch

from svdctl.errors import ShapeError
from svdctl.layers.layer_operator import operator_of, why_not_read
from svdctl.layers.layer_ops import find_ops, require_module
from svdctl.layers.norms import layer_norm_bound, stated_maximum
from svdctl.layers.orthogonal_weight import OrthogonalWeight
from svdctl.layers.padding import padding_factor
from svdctl.layers.spectral_norm import Mode, SpectralNorm
from svdctl.layers.stored_weight import evaluation_mode

M = TypeVar("M", bound=nn.Module)
_KINDS = ("standard", "transposed", "linear")


def spectral_norm(
    module: M, name: str = "weight", *, max_sigma: float | Literal["learnable"] = 1.0, mode: Mode | None = None
) -> M:
    """Keep the norm of a layer at most `max_sigma`: its weight is scaled by `min(1, max_sigma / sigma)` at each use.

    As `torch.nn.utils.parametrizations.spectral_norm`, but sigma is the largest singular value of what the layer
    computes, over inputs of every size, and not of its kernel reshaped to a matrix. Stride, dilation, groups and every
    padding mode are counted; padding that repeats pixels has a proved factor (docs/theory.md, "Other padding").

    In training mode sigma is estimated from below by power steps, one for each new weight, and the weight is
    differentiable; in evaluation mode the bound is proved of the weight as it is rounded, once for each weight, and
    lies at most 0.52 % above the norm (1e-4 of matrices). The vectors are buffers. Works with `state_dict`,
    `torch.compile`, `copy.deepcopy`, DistributedDataParallel, float16 and bfloat16.

    Args:
        module: `Conv1d/2d/3d`, `ConvTranspose1d/2d/3d` or `Linear`; it is changed in place.
        name: of the weight.
        max_sigma: the maximum; `learnable`: a positive parameter, `log_max_sigma` its logarithm, that starts at sigma.
        mode: `limit` scales only where sigma is above the maximum, `normalize` always. Absent: `limit`, and
            `normalize` of a learnable maximum.

    Returns:
        The module.

    Raises:
        ShapeError: another type of module, a weight that has a spectral norm, or one that cannot be read.

    Note:
        `remove_parametrizations` makes the layer plain again, with the weight of evaluation mode. torch's function of
        that name leaves, in training mode, the weight that the estimate gives, of which nothing is proved.

    Source:
        Miyato et al., "Spectral Normalization for Generative Adversarial Networks" (ICLR 2018), for the operator
        itself instead of the reshaped kernel.

    >>> import torch
    >>> conv = svdctl.parametrize.spectral_norm(torch.nn.Conv2d(3, 16, 3, stride=2), max_sigma=0.5)
    >>> svdctl.spectral_norm_bound(conv).upper <= 0.5
    True
    """
    _require_layer(module, name)
    _require_maximum(max_sigma)
    if mode not in (None, "limit", "normalize"):
        raise ShapeError(f"mode is 'limit' or 'normalize', not {mode!r}")
    if is_parametrized(module, name) and any(isinstance(part, SpectralNorm) for part in _parametrizations(module)):
        raise ShapeError(f"the {name} has a spectral norm; remove it first with svdctl.parametrize")
    conv = operator_of(module)
    if not bool(conv.kernel.isfinite().all()):
        raise ShapeError("the weight holds values that are not finite; it has no norm")
    chosen: Mode = mode or ("normalize" if max_sigma == "learnable" else "limit")
    norm = SpectralNorm(conv, max_sigma=max_sigma, mode=chosen, padding_factor=padding_factor(module))
    _register(module, name, norm.train(module.training))
    return module


def orthogonal(module: M, name: str = "weight") -> M:
    """Keep the rows or columns of a matrix orthonormal: all its singular values are 1.

    Whatever an optimiser makes of the parameter, with weight decay too, the weight stays orthonormal; so it does in
    means of weights and after conversions, to the rounding of the weight's type.

    Args:
        module: `Linear`, or a convolution whose kernel has one tap; it is changed in place. A weight that is not
            orthonormal is replaced by the factor Q of its QR decomposition.
        name: of the weight.

    Returns:
        The module.

    Raises:
        ShapeError: another type of module, a kernel of several taps, or a weight that is parametrized, not finite,
            complex or of half precision, in which torch has no such decomposition.

    Note:
        `torch.nn.utils.parametrizations.orthogonal` works on the last two axes, which of a convolution are those of
        the kernel: its 1 x 1 matrices become 1 or -1. Here it is the matrix of the channels, of each group by itself.
        torch's Householder map reads signs from the parameter, which weight decay turns into zeros.

    >>> import torch
    >>> conv = svdctl.parametrize.orthogonal(torch.nn.Conv2d(8, 16, 1))
    >>> svdctl.singular_values(conv, 4).round(decimals=4).unique()
    tensor([1.])
    """
    _require_layer(module, name)
    if is_parametrized(module, name):
        raise ShapeError(f"the {name} has a parametrization; remove it first")
    weight: Tensor = getattr(module, name)
    if math.prod(weight.shape[2:]) != 1:
        size = " x ".join(map(str, weight.shape[2:]))
        raise ShapeError(f"a kernel of {size} taps is no matrix; orthogonal is for one tap, svdctl.SOC for more")
    if weight.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"an orthonormal weight is float32 or float64, not {weight.dtype}; convert it with .float()")
    if weight.is_meta:
        raise ShapeError("weights on the meta device have no values yet; load them first")
    if not bool(weight.isfinite().all()):
        raise ShapeError("the weight holds values that are not finite; it has no QR decomposition")
    _register(module, name, OrthogonalWeight(weight.shape, getattr(module, "groups", 1)))
    return module


def remove_parametrizations(module: M, name: str = "weight") -> M:
    """Make a parametrized weight plain again, with the value of evaluation mode; the parameter stays the same object.

    Of a spectral norm the bound is proved of what is left. Copies of the module are not affected.

    Args:
        module: a layer whose weight is parametrized, by svdctl or by torch.
        name: of the weight.

    Returns:
        The module.

    Raises:
        ShapeError: the weight is not parametrized, or the bound of what is left cannot be proved.

    >>> import torch
    >>> conv = svdctl.parametrize.spectral_norm(torch.nn.Conv2d(3, 16, 3))
    >>> svdctl.spectral_norm_bound(svdctl.parametrize.remove_parametrizations(conv)).upper <= 1
    True
    """
    require_module(module)
    if not is_parametrized(module, name):
        raise ShapeError(f"the {type(module).__name__} has no parametrized {name}")
    maximum = stated_maximum(module) if name == "weight" else None
    _give_own_class(module)
    with evaluation_mode(module):
        remove_by_torch(module, name)
    if maximum is not None and bool(module.weight.isfinite().all()):  # type: ignore[operator]
        found = layer_norm_bound(module, maximum=maximum).upper
        if not found <= maximum:
            raise ShapeError(f"the weight that is left has a norm of at most {found:g}, not {maximum:g}")
    return module


def _require_layer(module: Any, name: str) -> None:
    """Raise a ShapeError unless the weight is that of a torch convolution or linear layer that computes with it."""
    require_module(module)
    ops = find_ops(module)
    if ops is None or ops.kind not in _KINDS or name != "weight":
        raise ShapeError(
            f"parametrizations are for the weight of a convolution or linear layer of torch, not for {name!r} of a "
            f"{type(module).__name__}"
        )
    reason = why_not_read(module)
    if reason is not None:
        raise ShapeError(f"the {type(module).__name__} cannot be parametrized: {reason}")
    if name not in module._parameters and not is_parametrized(module, name):
        raise ShapeError(
            f"the {name} is computed from others before each pass (pruning, or the older functions of torch.nn.utils); "
            "make it plain first, as by torch.nn.utils.prune.remove or remove_spectral_norm"
        )


def _require_maximum(max_sigma: Any) -> None:
    is_number = isinstance(max_sigma, numbers.Real) and not isinstance(max_sigma, bool)
    if max_sigma != "learnable" and not (is_number and 1e-30 <= max_sigma <= 1e30):
        raise ShapeError(f"max_sigma is a number from 1e-30 to 1e30, or 'learnable', not {max_sigma!r}")


def _parametrizations(module: nn.Module) -> nn.ModuleList:
    found: nn.ModuleList = module.parametrizations.weight  # type: ignore[union-attr, assignment]
    return found


def _register(module: nn.Module, name: str, parametrization: nn.Module) -> None:
    register_parametrization(module, name, parametrization)
    _copy_with_own_class(module)


def _copy_with_own_class(module: nn.Module) -> None:
    """Let `copy.deepcopy` give each copy of the module a class of its own.

    torch keeps the property of a parametrized weight in a class that copies share, where removing it from one breaks
    the others, and its cache takes the weight of a copy for that of the original.
    """
    kind: Any = type(module)
    copied: Callable[[Any, dict[int, Any]], nn.Module] = kind.__deepcopy__

    def deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        if id(self) in memo:
            return memo[id(self)]
        found = copied(self, memo)
        _give_own_class(found)
        return found

    if "_copies_have_own_class" not in vars(kind):
        kind.__deepcopy__ = deepcopy
        kind._copies_have_own_class = True


def _give_own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own, and properties that compute and cache its own weights."""
    kind = type(module)
    names = list(module.parametrizations)  # type: ignore[arg-type]
    parts = {
        name: part for name, part in vars(kind).items() if name not in ("__dict__", "__weakref__") and name not in names
    }
    module.__class__ = type(kind.__name__, kind.__bases__, parts)
    for name in names:
        torch.nn.utils.parametrize._inject_property(module, name)
