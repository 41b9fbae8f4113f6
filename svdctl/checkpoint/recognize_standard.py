"""Layers stored as they are: convolutions and linear layers, BatchNorm, and tensors that are analysed no further."""

import re
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from svdctl.checkpoint.parametrized import effective, operator_norm
from svdctl.checkpoint.quantized import scaled
from svdctl.checkpoint.stored_layer import Kind, Leaves, StoredLayer, layer_of, wide, without
from svdctl.checkpoint.tensors import words_of
from svdctl.spectral.convolution import Convolution

_EMBEDDING = re.compile(r"emb|(^|\.)w[tp]e$", re.IGNORECASE)
_NORM = re.compile(r"[a-z]*norm(s|ed|ali[sz][a-z]*)?|lnf?|lns|rms")
"""A word of a name that says that its layer divides by a norm of its input."""
_THREE_AXES = "a convolution computes with it, and no LayerNorm or bilinear layer, whose weights have three axes too"
_EPS = 1e-5
"""Of BatchNorm layers, which no file stores: torch's default."""
_CONV: dict[int, Kind] = {2: "linear", 3: "conv1d", 4: "conv2d", 5: "conv3d"}


def batchnorm(module: str, leaves: Leaves) -> StoredLayer | None:
    """Return a BatchNorm layer in evaluation mode, by its running variance."""
    variance = leaves.get("running_var")
    if variance is None or not variance.is_floating_point() or variance.ndim != 1:
        return None
    used = ("running_var", *(leaf for leaf in ("running_mean", "weight") if leaf in leaves and leaves[leaf].ndim == 1))
    layer = layer_of(module, leaves, used, "batchnorm", "the name running_var")
    inverse, steepest = torch.rsqrt(wide(variance) + _EPS), torch.rsqrt(wide(variance))
    weight = leaves["weight"] if "weight" in used else None
    if weight is not None and weight.shape != variance.shape:
        return without(layer, "its weight and its variance have different shapes")
    weight = torch.ones_like(inverse) if weight is None else wide(weight)
    # The gain of a channel whose weight is 0 is 0, whatever its variance.
    steepest = torch.where(weight == 0, 0, weight * steepest).abs()
    layer = replace(layer, assumption=f"eps is {_EPS:g}, which the file does not tell", scale=weight * inverse)
    return replace(layer, largest_scale=float(steepest.max()) if steepest.numel() else None)


def normalize(module: str, leaves: Leaves) -> StoredLayer | None:
    """Return a normalisation of pixels, by its mean and deviation."""
    if not {"mean", "std"} <= leaves.keys() or leaves["mean"].shape != leaves["std"].shape:
        return None
    if not leaves["std"].is_floating_point() or max(leaves["std"].shape, default=1) != leaves["std"].numel():
        return None
    layer = layer_of(module, leaves, ("std", "mean"), "normalize", "the names mean and std")
    layer = replace(layer, assumption="pixels are normalised by its mean and std, and nothing else is done with them")
    return replace(layer, scale=1 / wide(leaves["std"]).flatten())


def normed_weight(module: str, leaves: Leaves) -> StoredLayer | None:
    """Return a layer whose weight has the spectral norm of svdctl, which tells its geometry and its maximum."""
    found = operator_norm(leaves)
    if found is None:
        return None
    norm, parts = found
    weight = norm.weight
    if weight.ndim not in _CONV:
        return None
    layer = layer_of(module, leaves, parts, _CONV[weight.ndim], "the spectral norm of svdctl")
    return replace(layer, shape=tuple(weight.shape), make=lambda: norm.conv, norm=norm)


def plain_weight(module: str, leaves: Leaves) -> StoredLayer | None:
    """Return the layer of a module with a weight, by the weight's number of axes."""
    found = effective(leaves)
    if found is None:
        return None
    norm = f", stored by {found.rule}" if found.rule else ""
    layer = layer_of(module, leaves, found.parts, "other", f"a weight{norm}")
    weight = found.value
    if weight is None:
        return without(layer, f"its weight is stored by {found.rule} in a form that cannot be undone")
    layer = replace(layer, shape=tuple(weight.shape), assumption=found.assumption)
    if found.rule and not bool(torch.isfinite(weight).all()):
        return without(layer, f"{found.rule} divides by zero, or its parts are not finite")
    if not weight.is_floating_point():
        return without(layer, f"its weight holds {_type_name(weight)} numbers")
    if weight.ndim == 1:
        return without(
            layer, "a vector without running statistics (LayerNorm, GroupNorm, PReLU), whose norm depends on the input"
        )
    if weight.ndim not in _CONV:
        return without(layer, f"a weight with {weight.ndim} axes is of no layer known here")
    if weight.ndim == 2 and "bias" not in leaves and _EMBEDDING.search(module):
        return replace(without(layer, "an embedding is looked up, not multiplied"), kind="embedding")
    if "bias" not in leaves and any(_NORM.fullmatch(word) for word in words_of(module)):
        return without(layer, "a norm layer by its name, whose norm depends on the input")
    layer = replace(layer, by_shape=not leaves.keys() & {"bias", "bias_orig"})
    told = f"a weight with {weight.ndim} axes{norm}"
    product = None if found.rule else scaled(weight, leaves)
    if isinstance(product, str):
        return without(layer, product)
    if weight.ndim == 3:
        assumption = "; ".join(filter(None, (found.assumption, _THREE_AXES)))
        layer = replace(layer, assumption=assumption)
    if product is None:
        return replace(layer, kind=_CONV[weight.ndim], told_by=told, make=partial(_plain_operator, weight))
    multiplied, scale, rule = product
    whole = layer_of(module, leaves, ("weight", scale), _CONV[weight.ndim], f"{told}, {rule}")
    whole = replace(whole, assumption=layer.assumption, by_shape=layer.by_shape)
    return replace(whole, note=f"FP8 {rule}", make=lambda: _plain_operator(multiplied()))


def _plain_operator(weight: Tensor) -> Convolution:
    return Convolution.make(wide(weight if weight.ndim > 2 else weight[:, :, None]))


def attention(module: str, leaves: Leaves) -> StoredLayer | None:
    """Return the joint projection of queries, keys and values of torch's attention."""
    weight = leaves.get("in_proj_weight")
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        return None
    used = ("in_proj_weight", "in_proj_bias")
    layer = layer_of(module, {leaf: leaves[leaf] for leaf in used if leaf in leaves}, used, "linear", "in_proj_weight")
    return replace(layer, make=partial(_plain_operator, weight))


def alone(module: str, leaves: Leaves) -> StoredLayer:
    """Return the first tensor that is left, as a layer of its own."""
    leaf, tensor = next(iter(leaves.items()))
    name = f"{module}.{leaf}" if module else leaf
    layer = StoredLayer(name, "other", "no known name", (name,), tensor.numel(), tuple(tensor.shape))
    if not tensor.is_floating_point():
        return replace(layer, reason=f"{_type_name(tensor)} numbers of no layer known here")
    if re.match(r"weight_(ih|hh|hr)_l\d", leaf):
        return replace(layer, reason="a matrix of a recurrent layer, which is applied at every step")
    if tensor.ndim <= 1:
        return replace(layer, reason="a number or vector of no layer known here")
    return replace(layer, reason="a parameter of no layer known here")


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
