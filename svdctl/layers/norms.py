"""Proved norms of layers as they run: kernel, padding and the reading of TT frames, rounding included."""

from torch import nn

from svdctl.layers.layer_operator import exact_operator
from svdctl.layers.padding import padding_factor
from svdctl.spectral.bounds import TOLERANCE, Bracket, is_bounded, norm_bound


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
    conv, error = exact_operator(layer)
    limit = None if allowed is None else kernel_limit(layer, allowed, error)
    found = norm_bound(conv, tolerance=tolerance, at_most=limit)
    upper = layer_norm(found.upper, error, padding_factor(layer))
    if allowed is not None and limit is not None and found.upper <= limit:
        upper = min(upper, allowed)  # rounding alone would exceed it
    return Bracket(max(found.lower - error, 0.0), upper)


def is_layer_bounded(layer: nn.Module, max_sigma: float) -> bool:
    """Return whether a layer's norm is proved to be at most `max_sigma` at every input size."""
    conv, error = exact_operator(layer)
    return is_bounded(conv, kernel_limit(layer, max_sigma, error))


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
