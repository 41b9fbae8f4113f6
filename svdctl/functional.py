"""Public functions of `import svdctl` for single layers, kernels and whole networks."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from svdctl.control.actions import LayerGroups, clip_layers_, divide_exact_layers_, on_cpu, refuse_unwritable
from svdctl.control.layer_choice import Choices, checked_choices, is_chosen, keeps_itself, kept_brackets
from svdctl.control.shared_memory import restored_on_error
from svdctl.distributed.scheduling import on_layers
from svdctl.errors import ShapeError
from svdctl.layers.layer_operator import operator_of
from svdctl.layers.layer_ops import find_ops, is_controllable, ops_of, require_module
from svdctl.layers.norms import layer_norm_bound
from svdctl.spectral import bounds, values
from svdctl.spectral.bounds import Bracket
from svdctl.spectral.convolution import Convolution, per_axis
from svdctl.spectral.exact_arithmetic import exact_products

Layer = nn.Module | Tensor | Convolution


def convolution_of(
    layer: Layer, *, stride: int | tuple[int, ...] = 1, dilation: int | tuple[int, ...] = 1, groups: int = 1
) -> Convolution:
    """Return a layer, a kernel `(O, I/g, *k)` or a matrix `(O, I)` as a convolution; only kernels need the settings."""
    if isinstance(layer, Convolution):
        return layer
    if isinstance(layer, Tensor):
        if is_lazy(layer):
            raise ShapeError("a weight that is not made yet has no singular values; run the network once first")
        kernel = layer.detach()[:, :, None] if layer.ndim == 2 else layer.detach()
        return Convolution.make(kernel, stride=stride, dilation=dilation, groups=groups)
    return operator_of(layer)


@exact_products()
def singular_values(
    layer: Layer,
    input_size: int | Sequence[int] = 1,
    *,
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    accuracy: Literal["full", "fast"] = "full",
) -> Tensor:
    """Return all singular values of a layer with circular padding, exact, descending.

    Args:
        layer: `Conv1d/2d/3d`, `ConvTranspose`, `Linear`, TT layers, or a kernel `(O, I/g, *k)` or matrix `(O, I)`.
        input_size: spatial size of the input; one number stands for all axes. Linear layers need none.
        stride, dilation, groups: of a kernel; a layer knows its own.
        accuracy: `full`, or `fast`: to 1e-3 of the largest.

    Returns:
        The values that the operator has by its shape, zeros of a TT layer's missing rank left out.

    Raises:
        ShapeError: a stride that does not divide the input, a layer that is not known, or one with a forward pass or
            hooks of its own.

    >>> import torch
    >>> svdctl.singular_values(torch.tensor([[[1.0, -1.0]]]), 4).round(decimals=4)
    tensor([2.0000, 1.4142, 1.4142, 0.0000])
    """
    conv = convolution_of(layer, stride=stride, dilation=dilation, groups=groups)
    size = per_axis(input_size, conv.axes, "the size of the input needs")
    ops = find_ops(layer) if isinstance(layer, nn.Module) else None
    if ops is not None and ops.is_adjoint:
        size = tuple(n * s for n, s in zip(size, conv.stride, strict=True))
    return values.singular_values(conv, size, accuracy=accuracy)


@exact_products()
def spectral_norm_bound(
    layer: Layer,
    *,
    tolerance: float = bounds.TOLERANCE,
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Bracket:
    """Return a proved bracket of a layer's norm over every input size, rounding included.

    It holds for zero padding of any width. Of a layer with padding that repeats pixels, `upper` has a proved factor for
    it (docs/theory.md, "Other padding"): sqrt(2) an axis for a 3 x 3 kernel with `padding=1`, by reflection or
    replication. With circular padding it holds on inputs that the stride divides; on others, `lipschitz_bound` has the
    bound.

    Args:
        layer: as for `singular_values`.
        tolerance: wanted `upper / lower - 1`.
        stride, dilation, groups: of a kernel; a layer knows its own.

    Raises:
        ShapeError: a layer that is not known, one with a forward pass or hooks of its own, so that its weight does not
            tell what it computes, or weights that are not finite.

    >>> import torch
    >>> found = svdctl.spectral_norm_bound(torch.tensor([[[1.0, -1.0]]]))
    >>> found.lower <= 2 <= found.upper
    True
    """
    if isinstance(layer, nn.Module):
        return layer_norm_bound(layer, tolerance=tolerance)
    return bounds.norm_bound(
        convolution_of(layer, stride=stride, dilation=dilation, groups=groups), tolerance=tolerance
    )


@torch.no_grad()
@exact_products()
def clip_(model: nn.Module, *, max_sigma: float, layers: Choices = "*", linear: bool = False) -> dict[str, float]:
    """Bring all singular values of a network's convolutions down to `max_sigma`, in place, the bound proved afterwards.

    The bound is the one of `spectral_norm_bound`, on the convolution by the kernel with its stride, dilation and
    groups, for inputs of any size; no input size is asked for. Kernels keep their support: values above `max_sigma` go
    down to it, the others stay close to where they were (the nearest such kernel, by alternating projections).
    Layers that are within the bound are not touched, nor are biases, BatchNorm and activations; layers under
    `svdctl.parametrize.spectral_norm` keep themselves, and are proved with the others. TT layers keep their rank and
    their frames stay orthonormal. float16 and bfloat16 weights are clipped in float32, to half a unit of rounding below
    `max_sigma`, and proved as they are stored. Works on the weights' own device; on the CPU several layers at a time.

    Args:
        model: any module, or a single layer.
        max_sigma: the largest singular value allowed.
        layers: which ones: patterns of names (`layer3.*`), types (`nn.Conv2d`), or predicates `(name, layer) -> bool`;
            several in a sequence: one of them is enough.
        linear: clip linear layers too.

    Returns:
        How far each layer moved (Frobenius norm of its kernel's change); 0 for those that were within the bound.

    Raises:
        ShapeError: no layer matches, a kernel is not finite, or a weight cannot be written: parametrised by others,
            pruned, quantised, complex, sharded, in a layer with a forward pass of its own, or with a spectral norm
            above `max_sigma`. Nothing is changed then.

    Source:
        Sedghi, Gupta and Long, "The Singular Values of Convolutional Layers" (ICLR 2019), without the loss of the bound
        when a clipped kernel is cut to its support.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, stride=2))
    >>> moved = svdctl.clip_(net, max_sigma=0.5)
    >>> list(moved)
    ['0', '2']
    >>> all(svdctl.spectral_norm_bound(net[index]).upper <= 0.5 for index in (0, 2))
    True
    """
    limit = _maximum(max_sigma)
    written, kept = _chosen(model, layers, linear, limit)
    moved = _on_all(lambda some: clip_layers_(some, [limit] * len(some)), limit, written, writes_operator=True)
    return {name: 0.0 if is_kept else moved[name] for name, is_kept in kept.items()}


@torch.no_grad()
@exact_products()
def divide_(model: nn.Module, *, max_sigma: float, layers: Choices = "*", linear: bool = False) -> dict[str, float]:
    """Scale each convolution of a network by `min(1, max_sigma / norm)`, in place, the bound proved afterwards.

    Args:
        model: any module, or a single layer.
        max_sigma: the largest singular value allowed; the bound is the one of `clip_`.
        layers: as of `clip_`.
        linear: divide linear layers too.

    Returns:
        The factor of each layer; 1 for those that were within the bound, which are not touched.

    Raises:
        ShapeError: as of `clip_`.

    >>> import torch
    >>> conv = torch.nn.Conv2d(1, 1, 1)
    >>> _ = torch.nn.init.constant_(conv.weight, 4.0)
    >>> {name: round(factor, 2) for name, factor in svdctl.divide_(conv, max_sigma=1.0).items()}
    {'': 0.25}
    """
    limit = _maximum(max_sigma)
    written, kept = _chosen(model, layers, linear, limit)
    factors = _on_all(
        lambda some: divide_exact_layers_(some, [limit] * len(some)), limit, written, writes_operator=False
    )
    return {name: 1.0 if is_kept else factors[name] for name, is_kept in kept.items()}


def _maximum(value: Any) -> float:
    """Return `max_sigma` as a float, checked."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 1e-30 <= float(value) <= 1e30:
        raise ShapeError(f"max_sigma is a number from 1e-30 to 1e30, not {value!r}")
    return float(value)


def _on_all(
    work: Callable[[list[nn.Module]], list[float]],
    max_sigma: float,
    layers: dict[str, nn.Module],
    *,
    writes_operator: bool,
) -> dict[str, float]:
    """Run `work` on all layers; after an error all weights are restored. Layers that share memory run in turn."""
    groups = LayerGroups(layers, dict.fromkeys(layers, max_sigma))

    def on_groups(firsts: list[str]) -> dict[str, dict[str, float]]:
        found = groups.act_(
            firsts, lambda names: work([layers[name] for name in names]), writes_operator=writes_operator
        )
        return {first: {name: found[name] for name in groups.names[first]} for first in firsts}

    with restored_on_error(tensor for parts in groups.tensors.values() for tensor in parts):
        done = on_layers(on_groups, groups.costs, on_cpu(layers.values()))
    found = {name: result for part in done.values() for name, result in part.items()}
    return {name: found[name] for name in layers}


def _chosen(
    model: nn.Module, layers: Choices, linear: bool, max_sigma: float
) -> tuple[dict[str, nn.Module], dict[str, bool]]:
    """Return the chosen layers that are to be written, by name, and of all chosen ones whether they keep themselves.

    The former are known to be writable, the latter proved to be within the maximum.
    """
    require_module(model)
    choices = checked_choices(layers)
    found = {
        name: module
        for name, module in model.named_modules()
        if is_controllable(module)
        and (linear or module is model or not ops_of(module).is_linear)
        and is_chosen(name, module, choices)
    }
    if not found:
        what = "convolution or linear layer" if linear else "convolution"
        if choices and all(isinstance(choice, str) for choice in choices):
            patterns = " or ".join(map(str, choices))
            raise ShapeError(f"the pattern {patterns} matches nothing: no {what} of the network has such a name")
        raise ShapeError(f"`layers` chooses no {what} of the network")
    kept = {name: keeps_itself(name, layer, max_sigma) for name, layer in found.items()}
    written = {name: layer for name, layer in found.items() if not kept[name]}
    refuse_unwritable(model, written)
    kept_brackets({name: found[name] for name in found if kept[name]}, dict.fromkeys(found, max_sigma), sharp=False)
    return written, kept
