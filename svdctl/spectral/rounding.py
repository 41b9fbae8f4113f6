"""Bounds of rounding: products and norms that are rounded up, and the error of n operations."""

import math

import torch
from torch import Tensor

_FLOOR = 1e-290
"""For soundness: far above the subnormal numbers, below all bounds of interest."""
_LEAST_SQUARED, _LARGEST_SQUARED = 1e-100, 1e100
"""For soundness: largest entries whose squares, and sums of as many as there are, are normal numbers."""


def times(*factors: float) -> float:
    """Return at least the product of non-negative numbers but for rounding, also where it underflows."""
    product = 1.0
    for factor in factors:
        if factor == 0:
            return 0.0
        product = max(product * factor, _FLOOR)
    return product


def times_power(bound: float, exponent: int) -> float:
    """Return `bound * 2^exponent`, infinite where it overflows and as in `times` where it underflows."""
    try:
        return 0.0 if bound == 0 else max(math.ldexp(bound, exponent), _FLOOR)
    except OverflowError:
        return math.inf


def to_unit_size(tensor: Tensor) -> tuple[Tensor, int]:
    """Return the tensor in float64 over a power of two, its largest entry in [1/2, 1), and the exponent."""
    wide = tensor.detach().double()
    largest = float(wide.abs().max()) if wide.numel() else 0.0
    if not 0 < largest < math.inf:
        return wide, 0
    exponent = math.frexp(largest)[1]
    # In two steps: the power itself may be too large or too small for a number.
    half = exponent // 2
    return wide * 2.0**-half * 2.0 ** (half - exponent), exponent


def gamma(operations: int, unit: float) -> float:
    """Return `n u / (1 - n u)`, the relative error of n roundings (Higham 2002, Lemma 3.1); infinite for n u >= 1/2."""
    product = operations * unit
    return product / (1 - product) if product < 0.5 else math.inf


def tiny_of(unit: float) -> float:
    """Return the smallest normal number of the precision with this unit roundoff."""
    return torch.finfo(torch.float64 if unit < 1e-10 else torch.float32).tiny


def norm_above(tensor: Tensor) -> float:
    """Return at least the Euclidean norm of all entries."""
    if tensor.numel():
        wide = tensor.detach().double()
        largest, norm = torch.stack((wide.abs().max(), wide.norm())).tolist()
        # No square over- or underflows so that it is felt: one read of a device.
        if _LEAST_SQUARED < largest < _LARGEST_SQUARED:
            return norm * (1 + (tensor.numel() + 8) * 2.0**-52)
    unit, exponent = to_unit_size(tensor)
    return times_power(float(unit.norm()) * (1 + (tensor.numel() + 8) * 2.0**-52), exponent)
