"""Proved norms of layers as they run: kernel, padding and the reading of TT frames, rounding included."""

from collections.abc import Sequence

from torch import nn

from svdctl.layers.layer_operator import exact_operators
from svdctl.layers.padding import padding_factor
from svdctl.spectral.bounds import TOLERANCE, Bracket, are_bounded, norm_bounds


def layer_norm_bound(layer: nn.Module, *, tolerance: float = TOLERANCE, allowed: float | None = None) -> Bracket:
    """Return a proved bracket of a layer's norm over every input size.

    The lower end is reached in the limit of large inputs, where the edges tell little.

    Args:
        layer: a convolution, linear or TT layer.
        tolerance: wanted `upper / lower - 1` of the norm of its kernel; padding that repeats pixels has a factor.
        allowed: a maximum that is proved instead, where that is possible and sharper.

    Raises:
        ShapeError: a layer that is not known or need not compute with its weight as it is stored.
    """
    return layer_norm_bounds([layer], tolerance=tolerance, allowed=[allowed])[0]


def layer_norm_bounds(
    layers: Sequence[nn.Module],
    *,
    tolerance: float | Sequence[float] = TOLERANCE,
    allowed: Sequence[float | None] | None = None,
) -> list[Bracket]:
    """Return `layer_norm_bound` of each layer, all refined together.

    Args:
        layers: any number.
        tolerance: of all, or of each.
        allowed: of each.

    Raises:
        ShapeError: as `layer_norm_bound`, of any of them.
    """
    maxima = [None] * len(layers) if allowed is None else allowed
    read = exact_operators(layers)
    limits = [
        None if maximum is None else kernel_limit(layer, maximum, error)
        for layer, maximum, (_, error) in zip(layers, maxima, read, strict=True)
    ]
    kernels = norm_bounds([conv for conv, _ in read], tolerance=tolerance, at_most=limits)
    found = []
    for layer, (_, error), kernel, limit, maximum in zip(layers, read, kernels, limits, maxima, strict=True):
        upper = layer_norm(kernel.upper, error, padding_factor(layer))
        if maximum is not None and limit is not None and kernel.upper <= limit:
            upper = min(upper, maximum)  # rounding alone would exceed it
        found.append(Bracket(max(kernel.lower - error, 0.0), upper))
    return found


def is_layer_bounded(layer: nn.Module, max_sigma: float) -> bool:
    """Return whether a layer's norm is proved to be at most `max_sigma` at every input size."""
    return are_layers_bounded([layer], [max_sigma])[0]


def are_layers_bounded(layers: Sequence[nn.Module], max_sigmas: Sequence[float]) -> list[bool]:
    """Return `is_layer_bounded` of each layer and its own maximum, all proved together."""
    read = exact_operators(layers)
    limits = [
        kernel_limit(layer, max_sigma, error)
        for layer, max_sigma, (_, error) in zip(layers, max_sigmas, read, strict=True)
    ]
    return are_bounded([conv for conv, _ in read], limits)


def kernel_limit(layer: nn.Module, max_sigma: float, error: float = 0.0) -> float:
    """Return what the norm of a layer's kernel may be, so that the norm of the layer is at most `max_sigma`."""
    factor = padding_factor(layer)
    if factor == 1.0 and error == 0.0:
        return max_sigma
    return (max_sigma / factor - error) * (1 - 2.0**-50)


def layer_norm(kernel_norm: float, error: float, factor: float) -> float:
    """Return at least the norm of a layer, given its kernel's, the error of reading it, and the padding's factor."""
    if factor == 1.0 and error == 0.0:
        return kernel_norm
    return (kernel_norm + error) * factor * (1 + 2.0**-50)
