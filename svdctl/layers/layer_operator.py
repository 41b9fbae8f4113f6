"""Layers read as operators, with every reason why one cannot be read or written.

A linear layer is the convolution with one tap, so that one mathematics serves all.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import filterfalse
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod

from svdctl.errors import ShapeError
from svdctl.layers.layer_ops import is_controllable, known_class, layers_of_types, ops_of
from svdctl.layers.stored_weight import evaluation_mode, made_by, tensor_of_own_class, why_not_as_stored
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.parallel_map import parallel_map
from svdctl.spectral.stacks import in_stacks

T = TypeVar("T")
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def operator_of(layer: nn.Module) -> Convolution:
    """Return the convolution that a layer computes, as far as its singular values go, in the precision of its weights.

    The kernel of a TT layer is made in float32 at least.

    The norm of the layer also has a factor for padding that repeats pixels; `layer_norm_bound` counts it.

    Raises:
        ShapeError: a type of layer that is not known, one that need not compute with its weight as it is stored, or a
            parametrised weight that torch cannot make in its precision.
    """
    ops = ops_of(layer)
    return _read(lambda layers: ops.operator(layers[0]), [layer])


def exact_operator(layer: nn.Module) -> tuple[Convolution, float]:
    """Return the operator of a layer for proofs, and how far its norm can be from that of the layer.

    Raises:
        ShapeError: as `operator_of`.
    """
    return exact_operators([layer])[0]


def exact_operators(layers: Sequence[nn.Module]) -> list[tuple[Convolution, float]]:
    """Return `exact_operator` of each layer, on a GPU those of one type together, on the CPU several in threads."""
    on_cpu = all(parameter.device.type == "cpu" for layer in layers for parameter in layer.parameters())
    found: dict[int, tuple[Convolution, float]] = {}
    for ops, places in layers_of_types(layers):
        chosen = [layers[place] for place in places]
        parts = [[layer] for layer in chosen] if on_cpu else [chosen]
        read = parallel_map(partial(_read, ops.exact_operators), parts)
        found |= dict(zip(places, (operator for part in read for operator in part), strict=True))
    return [found[place] for place in range(len(layers))]


def _read(read: Callable[[Sequence[nn.Module]], T], layers: Sequence[nn.Module]) -> T:
    for layer in layers:
        reason = why_not_read(layer) if is_controllable(layer) else None
        if reason is not None:
            raise ShapeError(f"a layer of type {type(layer).__name__} cannot be read off its weight: {reason}")
    try:
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(evaluation_mode(layer))
            return read(layers)
    except NotImplementedError as error:
        # torch has no QR factorisation and no matrix exponential in half precision, which its `orthogonal` needs.
        kind = type_before_parametrizations(layers[0]).__name__
        raise ShapeError(
            f"torch cannot make the weight of this {kind} from its parametrization ({error}); convert the network with "
            ".float() first"
        ) from error


def why_not_read(layer: nn.Module) -> str | None:
    """Return why a layer may not compute with its stored weight; None when it does."""
    known = known_class(layer)
    assert known is not None
    return why_not_as_stored(layer, known)


def why_not_writable(layer: nn.Module) -> str | None:
    """Return why a new kernel would not last in the layer, or not be what it computes with; None when it would."""
    reason = why_not_read(layer)
    if reason is None or tensor_of_own_class(layer) is not None:  # sharded weights have a class of their own
        reason = _who_makes_the_weight(layer) or reason
    if reason is not None:
        return reason
    try:
        with evaluation_mode(layer):
            written = ops_of(layer).tensors(layer)
    except NotImplementedError:
        # Of a parametrization that torch cannot compute in this precision; that there is one is what is said below.
        written = []
    if any(tensor is None for tensor in written):
        return "it has no weight; give it one first"
    plain = {
        id(parameter)
        for part in layer.modules()
        if not isinstance(part, ParametrizationList)
        for parameter in part._parameters.values()
    }
    if not written or any(id(tensor) not in plain for tensor in written):
        return (
            "its weight is computed anew from others, by a parametrization or a hook; make it plain first, as with "
            "svdctl.parametrize.remove_parametrizations"
        )
    if written[0].dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"its weight is {written[0].dtype}, which is not controlled; convert the network with .float() first"
    if any(map(_may_overlap, written)):
        return (
            "entries of its weight share their memory (it was expanded, or is another view that overlaps itself); make "
            "it plain with .clone() first"
        )
    if any(tensor.is_neg() for tensor in written):
        return "its weight is the negative of another tensor's memory; make it plain with .resolve_neg() first"
    if any(tensor.is_inference() for tensor in written) and not torch.is_inference_mode_enabled():
        return (
            "its weight was made under torch.inference_mode() and cannot be changed outside of it; give the layer a "
            "clone, as nn.Parameter(weight.clone())"
        )
    return None


def _who_makes_the_weight(layer: nn.Module) -> str | None:
    """Return what else than the layer holds or makes its weight, by its name, and how to take it away; else None."""
    if is_parametrized(layer, "weight"):
        parts: Iterable[nn.Module] = layer.parametrizations.weight  # type: ignore[union-attr, assignment]
        made = ", ".join(type(part).__name__ for part in parts)
        return (
            f"its weight is parametrised ({made}), and computed anew from others; make it plain first, as with "
            "svdctl.parametrize.remove_parametrizations"
        )
    for hook in layer._forward_pre_hooks.values():
        if made_by(hook) != "weight":
            continue
        name = type(hook).__name__
        if isinstance(hook, BasePruningMethod):
            return (
                f"its weight is pruned ({name}), and computed anew before each pass; make that last first, by "
                "torch.nn.utils.prune.remove"
            )
        return (
            f"its weight is computed anew before each pass, by a hook ({name}); make it plain first, as with "
            "torch.nn.utils.remove_weight_norm or remove_spectral_norm"
        )
    for weight in filterfalse(is_lazy, layer.parameters(recurse=False)):
        if type(weight).__module__.startswith("torch.distributed."):
            return (
                f"its weight is sharded over processes ({type(weight).__name__}, as of FSDP2's fully_shard or tensor "
                "parallelism); control a network that is not sharded, as under DDP"
            )
        if weight.is_complex():
            return f"its weight is complex ({weight.dtype}), and only real ones are controlled"
        if not weight.is_floating_point():
            return f"its weight is quantised ({weight.dtype}); control the network before it is quantised"
    if type(vars(layer).get("weight")) is Tensor:
        return (
            "its weight is no parameter but a view of other memory, as FSDP (FullyShardedDataParallel) leaves it; "
            "control a network that is not sharded, as under DDP"
        )
    return None


def _may_overlap(tensor: Tensor) -> bool:
    """Return whether two entries may lie at one address: False only where each axis steps over all shorter ones."""
    reach = 0
    for step, size in sorted((step, size) for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1:
            if step <= reach:
                return True
            reach += (size - 1) * step
    return False


def batchnorm_gain(layer: BatchNorm, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `max |gamma / sqrt(running_var + eps)|`, the norm in evaluation mode (0-d), in `dtype` or finer."""
    return batchnorm_gains([layer], dtype)[0]


def batchnorm_gains(layers: Sequence[BatchNorm], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `batchnorm_gain` of each layer, `(layers,)`, those of one width in stacks."""
    found: dict[BatchNorm, Tensor] = {}
    for eps in dict.fromkeys(layer.eps for layer in layers):
        alike = [layer for layer in layers if layer.eps == eps]
        variances = [_variance(layer, dtype) for layer in alike]
        weights = [
            torch.ones_like(variance) if layer.weight is None else layer.weight.detach()
            for layer, variance in zip(alike, variances, strict=True)
        ]
        gains = in_stacks(partial(_largest_gains, eps), variances, weights)
        found.update({layer: gain for layer, (gain,) in zip(alike, gains, strict=True)})
    return torch.stack([found[layer] for layer in layers])


def layernorm_gain(layer: nn.LayerNorm) -> float:
    """Return `||diag(weight) (I - 1 1^T / n)|| / sqrt(eps)`, the Lipschitz constant.

    See docs/theory.md, "BatchNorm and normalisation".

    It is right to 1e-9 for n up to a million, and infinite where eps is 0.
    """
    count = math.prod(layer.normalized_shape)
    if count == 1:
        return 0.0
    sizes = torch.ones(count) if layer.weight is None else layer.weight.detach().flatten().cpu()
    sizes = sizes.double().abs().sort(descending=True).values
    largest = float(sizes[0])
    if largest == 0 or not math.isfinite(float(sizes.sum())):
        return largest if largest == 0 else math.nan
    squares = (sizes / largest).square()
    # The largest eigenvalue of `P diag(squares) P` is the root of `sum 1 / (squares - x)` between the largest two.
    low, high = float(squares[1]), 1.0
    while (middle := (low + high) / 2) not in (low, high):
        if float((squares - middle).reciprocal().sum()) > 0:
            high = middle
        else:
            low = middle
    return math.inf if layer.eps == 0 else largest * math.sqrt(high) / math.sqrt(layer.eps)


def _variance(layer: BatchNorm, dtype: torch.dtype) -> Tensor:
    if layer.running_var is None:
        raise ShapeError("BatchNorm without running statistics has no fixed norm; use track_running_stats=True")
    # Half precision is too coarse for eps itself.
    return layer.running_var.to(torch.promote_types(layer.running_var.dtype, dtype))


def _largest_gains(eps: float, variances: Tensor, weights: Tensor) -> tuple[Tensor]:
    return ((weights * torch.rsqrt(variances + eps)).abs().amax(-1),)
