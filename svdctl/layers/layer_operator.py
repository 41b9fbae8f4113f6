"""Layers read as operators, and operators written back: the only place that knows which layer holds what.

A linear layer is the convolution with one tap, so that one mathematics serves all.
"""

from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from svdctl.errors import ShapeError
from svdctl.layers.stored_weight import computed_weight, evaluation_mode, why_not_as_stored
from svdctl.layers.tt import TTConv2d
from svdctl.spectral.convolution import Convolution

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@singledispatch
def stored_operator(layer: nn.Module) -> Convolution:
    """Return the convolution by a layer's weight, whatever its forward pass does with it; detached from the graph.

    Raises:
        ShapeError: a type of layer that is not known.
    """
    raise ShapeError(f"a layer of type {type(layer).__name__} is no convolution or linear layer that svdctl can read")


@stored_operator.register(nn.Conv1d)
@stored_operator.register(nn.Conv2d)
@stored_operator.register(nn.Conv3d)
def _conv(layer: nn.Conv2d) -> Convolution:
    weight = computed_weight(layer)
    return Convolution.make(weight, stride=layer.stride, dilation=layer.dilation, groups=layer.groups)


@stored_operator.register(nn.ConvTranspose1d)
@stored_operator.register(nn.ConvTranspose2d)
@stored_operator.register(nn.ConvTranspose3d)
def _conv_transpose(layer: nn.ConvTranspose2d) -> Convolution:
    # The adjoint of the convolution with the same weight.
    weight = computed_weight(layer)
    return Convolution.make(weight, stride=layer.stride, dilation=layer.dilation, groups=layer.groups)


@stored_operator.register
def _linear(layer: nn.Linear) -> Convolution:
    return Convolution.make(computed_weight(layer)[:, :, None])


@stored_operator.register
def _tt(layer: TTConv2d) -> Convolution:
    # Half precision would round what the frames are moved into.
    kernel = layer.small_kernel().to(torch.promote_types(layer.core.dtype, torch.float32))
    return Convolution.make(kernel, stride=layer.stride, dilation=layer.dilation)


def operator_of(layer: nn.Module) -> Convolution:
    """Return the convolution that a layer computes, as far as its singular values go, in the precision of its weights.

    The kernel of a TT layer is made in float32 at least.

    The norm of the layer also has a factor for padding that repeats pixels; `layer_norm_bound` counts it.

    Raises:
        ShapeError: a type of layer that is not known, one that need not compute with its weight as it is stored, or a
            parametrised weight that torch cannot make in its precision.
    """
    if is_controllable(layer):
        reason = why_not_read(layer)
        if reason is not None:
            raise ShapeError(f"a layer of type {type(layer).__name__} cannot be read off its weight: {reason}")
    try:
        with evaluation_mode(layer):
            return stored_operator(layer)
    except NotImplementedError as error:
        kind = type_before_parametrizations(layer).__name__
        raise ShapeError(
            f"torch cannot make the weight of this {kind} from its parametrization ({error}); convert the network with "
            ".float() first"
        ) from error


def exact_operator(layer: nn.Module) -> tuple[Convolution, float]:
    """Return `operator_of(layer)` for proofs, and how far the norms of the two can differ: 0 but for TT layers."""
    conv = operator_of(layer)
    if isinstance(layer, TTConv2d) and layer.has_frames:
        with evaluation_mode(layer):
            kernel, error = layer.exact_kernel()
        return Convolution.make(kernel, stride=layer.stride, dilation=layer.dilation), error
    return conv, 0.0


def is_controllable(layer: nn.Module) -> bool:
    """Return whether `operator_of` knows the layer's type."""
    return stored_operator.dispatch(type(layer)) is not stored_operator.dispatch(object)


def why_not_read(layer: nn.Module) -> str | None:
    """Return why a layer may not compute with its stored weight; None when it does."""
    return why_not_as_stored(layer, next(kind for kind in type(layer).__mro__ if kind in stored_operator.registry))


def why_not_writable(layer: nn.Module) -> str | None:
    """Return why a new kernel would not last in the layer, or not be what it computes with; None when it would."""
    reason = why_not_read(layer)
    if reason is not None:
        return reason
    names = ["weight"]
    if isinstance(layer, TTConv2d):
        frames = layer.has_frames and layer.frames_kind != "parametrize"
        names = ["core", "frame_in", "frame_out"] if frames else ["core"]
    written = [tensor for tensor in map(layer._parameters.get, names) if tensor is not None]
    if len(written) < len(names):
        return (
            "its weight is computed anew from others (a parametrization, a hook or pruning); make it plain first, as "
            "with torch.nn.utils.parametrize.remove_parametrizations"
        )
    weight = weight_of(layer)
    if weight.dtype not in (torch.float32, torch.float64):
        return f"its weight is {weight.dtype}, too coarse for a proof; convert the network with .float() first"
    if any(n > 1 and step == 0 for tensor in written for n, step in zip(tensor.shape, tensor.stride(), strict=True)):
        return "entries of its weight share their memory (it was expanded); make it plain with .clone() first"
    return None


def operator_assuming_orthonormal(layer: nn.Module) -> Convolution:
    """Return an estimate of `operator_of`: no QR of frames that are kept orthonormal, of others in their precision."""
    if isinstance(layer, TTConv2d):
        exact = layer.frames_kind in ("retract", "parametrize")
        kernel = layer.core.detach() if exact else layer.small_kernel(dtype=layer.core.dtype)
        return Convolution.make(kernel, stride=layer.stride, dilation=layer.dilation)
    return stored_operator(layer)


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
    weight = weight_of(layer)
    if isinstance(factor, Tensor):
        weight.mul_(factor)
    else:
        # A small factor on large weights would be no number of their own precision.
        weight.copy_(weight.double() * factor)


def weight_of(layer: nn.Module) -> Tensor:
    """The tensor that a factor on the operator multiplies."""
    weight = layer.core if isinstance(layer, TTConv2d) else layer.weight
    assert isinstance(weight, Tensor)
    return weight


def batchnorm_gain(layer: BatchNorm, dtype: torch.dtype = torch.float32) -> Tensor:
    """`max |gamma / sqrt(running_var + eps)|`, the norm of the layer in evaluation mode (0-d), in `dtype` or finer."""
    if layer.running_var is None:
        raise ShapeError("BatchNorm without running statistics has no fixed norm; use track_running_stats=True")
    # Half precision is too coarse for eps itself.
    inverse = torch.rsqrt(layer.running_var.to(torch.promote_types(layer.running_var.dtype, dtype)) + layer.eps)
    return (inverse if layer.weight is None else layer.weight.detach() * inverse).abs().max()
