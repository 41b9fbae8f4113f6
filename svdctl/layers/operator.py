"""Layers read as operators, and operators written back: the only place that knows which layer holds what.

A linear layer is the convolution with one tap, so that one mathematics serves all.
"""

from functools import singledispatch

import torch
from torch import Tensor, nn

from svdctl.errors import ShapeError
from svdctl.layers.tt import TTConv2d
from svdctl.spectral.operator import Convolution

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@singledispatch
def operator_of(layer: nn.Module) -> Convolution:
    """The convolution that a layer computes, as far as its singular values go; detached from the graph.

    Raises:
        ShapeError: for a type of layer that is not known.
    """
    raise ShapeError(f"a layer of type {type(layer).__name__} is no convolution or linear layer that svdctl can read")


@operator_of.register(nn.Conv1d)
@operator_of.register(nn.Conv2d)
@operator_of.register(nn.Conv3d)
def _conv(layer: nn.Conv2d) -> Convolution:
    return Convolution.make(layer.weight.detach(), stride=layer.stride, dilation=layer.dilation, groups=layer.groups)


@operator_of.register(nn.ConvTranspose1d)
@operator_of.register(nn.ConvTranspose2d)
@operator_of.register(nn.ConvTranspose3d)
def _conv_transpose(layer: nn.ConvTranspose2d) -> Convolution:
    # The adjoint of the convolution with the same weight.
    return Convolution.make(layer.weight.detach(), stride=layer.stride, dilation=layer.dilation, groups=layer.groups)


@operator_of.register
def _linear(layer: nn.Linear) -> Convolution:
    return Convolution.make(layer.weight.detach()[:, :, None])


@operator_of.register
def _tt(layer: TTConv2d) -> Convolution:
    return Convolution.make(layer.small_kernel(), stride=layer.stride, dilation=layer.dilation)


def is_controllable(layer: nn.Module) -> bool:
    """Whether `operator_of` knows the layer's type."""
    return operator_of.dispatch(type(layer)) is not operator_of.dispatch(object)


def forwards_as(layer: nn.Module, kind: type) -> bool:
    """Whether the layer's forward pass is still that of one of its classes.

    A subclass that, say, standardises its weights on the way is another function, and so is a patched instance.
    """
    names = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
    return all(getattr(type(layer), name) is getattr(kind, name) and name not in vars(layer) for name in names)


def why_not_writable(layer: nn.Module) -> str | None:
    """Why a new kernel would not last in the layer, or not be what it computes with; None when it would."""
    kind = next(kind for kind in type(layer).__mro__ if kind in operator_of.registry)
    if not forwards_as(layer, kind):
        return f"its forward pass is not that of {kind.__name__}, so what it does with its weight is not known"
    weight = weight_of(layer)
    if not isinstance(weight, nn.Parameter):
        return (
            "its weight is computed anew from others (a parametrization, a hook or pruning); make it plain first, as "
            "with torch.nn.utils.parametrize.remove_parametrizations"
        )
    if weight.dtype not in (torch.float32, torch.float64):
        return f"its weight is {weight.dtype}, too coarse for a proof; convert the network with .float() first"
    return None


def quick_operator(layer: nn.Module) -> Convolution:
    """`operator_of`, except that frames which are kept orthonormal are taken at their word: no QR."""
    if isinstance(layer, TTConv2d) and layer.frames_kind in ("retract", "parametrize"):
        return Convolution.make(layer.core.detach(), stride=layer.stride, dilation=layer.dilation)
    return operator_of(layer)


@torch.no_grad()
def write_operator_(layer: nn.Module, conv: Convolution, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Give the layer the kernel of `conv`, in place; a TT layer's frames become orthonormal by it."""
    if isinstance(layer, TTConv2d):
        layer.set_small_kernel(conv.weight, optimizer)
    else:
        weight = weight_of(layer)
        weight.copy_(conv.weight.reshape(weight.shape))


@torch.no_grad()
def scale_(layer: nn.Module, factor: Tensor | float) -> None:
    """Multiply the layer's operator by a number or 0-d tensor, in place; its bias stays."""
    weight_of(layer).mul_(factor)


def weight_of(layer: nn.Module) -> Tensor:
    """The tensor that a factor on the operator multiplies."""
    weight = layer.core if isinstance(layer, TTConv2d) else layer.weight
    assert isinstance(weight, Tensor)
    return weight


def batchnorm_gain(layer: BatchNorm) -> Tensor:
    """`max |gamma / sqrt(running_var + eps)|`, the norm of the layer in evaluation mode (0-d)."""
    if layer.running_var is None:
        raise ShapeError("BatchNorm without running statistics has no fixed norm; use track_running_stats=True")
    inverse = torch.rsqrt(layer.running_var + layer.eps)
    return (inverse if layer.weight is None else layer.weight.detach() * inverse).abs().max()
