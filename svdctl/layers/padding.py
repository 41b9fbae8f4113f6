"""Factors by which padding can raise the norm of a convolution; docs/theory.md, "Other padding", derives each."""

import math

from torch import nn

from svdctl.errors import ShapeError
from svdctl.layers.stored_weight import computed_weight
from svdctl.spectral.convolution import per_axis

Convolutional = nn.Conv1d | nn.Conv2d | nn.Conv3d


def padding_factor(layer: nn.Module) -> float:
    """Return at least the norm of a layer over the norm of its kernel on the whole grid, at every input size; >= 1.

    Of a layer with circular padding that keeps the number of entries: for inputs that its stride divides.

    Raises:
        ShapeError: a padding mode that is not torch's.
    """
    if not isinstance(layer, Convolutional) or layer.padding_mode == "zeros":
        return 1.0
    squares = 1
    strides, dilations = (per_axis(given, len(_reaches(layer))) for given in (layer.stride, layer.dilation))
    for axis, ((before, after), reach) in enumerate(zip(padded_sides(layer), _reaches(layer), strict=True)):
        keeps_size = before + after <= reach
        sides = (before > 0) + (after > 0)
        if layer.padding_mode == "circular":
            squares *= 1 if keeps_size else 1 + sides
        elif layer.padding_mode == "reflect":
            squares *= min(2, 1 + sides) if keeps_size and strides[axis] == 1 else 1 + sides
        elif layer.padding_mode == "replicate":
            repeats = _repeats_of_one(before + after, reach, strides[axis], dilations[axis])
            squares *= max(1 + before, 1 + after, min(1 + before + after, repeats))
        else:
            raise ShapeError(f"padding_mode {layer.padding_mode!r} is none of torch's; its norm is not known")
    return 1.0 if squares == 1 else math.sqrt(squares) * (1 + 2.0**-50)


def kernel_limit_of(max_sigma: float, factor: float, error: float = 0.0) -> float:
    """Return what the norm of a kernel may be, so that the layer's is at most `max_sigma`.

    Args:
        max_sigma: of the layer.
        factor: of its padding.
        error: of reading the kernel.
    """
    if factor == 1.0 and error == 0.0:
        return max_sigma
    return (max_sigma / factor - error) * (1 - 2.0**-50)


def _repeats_of_one(padded: int, reach: int, stride: int, dilation: int) -> int:
    """Return the squared factor of replication along an axis of one input: outputs times blocks of the symbol."""
    outputs = -(-(1 + padded - reach) // stride)
    return outputs * min(stride // math.gcd(stride, dilation), reach // dilation + 1)


def padded_sides(layer: Convolutional) -> list[tuple[int, int]]:
    """Return how much is padded before and after each axis, for padding modes other than zeros."""
    both = layer._reversed_padding_repeated_twice
    return list(zip(both[::2], both[1::2], strict=True))[::-1]


def is_cyclic(layer: Convolutional) -> bool:
    """Return whether circular padding gives no more outputs (at stride 1) than inputs, along each axis."""
    return all(sum(sides) <= reach for sides, reach in zip(padded_sides(layer), _reaches(layer), strict=True))


def _reaches(layer: Convolutional) -> list[int]:
    # The weight may have been replaced by one of another size, which `kernel_size` does not hear of.
    taps = computed_weight(layer).shape[2:]
    return [dilation * (k - 1) for k, dilation in zip(taps, per_axis(layer.dilation, len(taps)), strict=True)]
