"""The generator J of SOC and SOTT layers, as it is stored: by svdctl, and by the paper's public code.

Both store a free kernel M, of which J is the skew part over the smallest of four norms of its unfoldings, times a
factor; the layer is the Taylor series of exp(J), 12 terms in evaluation. The public code does not compute the norms in
evaluation: they are what its stored pairs of vectors say, and here they are taken at their word. svdctl stores vectors
too and takes a power step from them, but not its factor, which is 0.7, and 1 for a 1x1 kernel, unless it was chosen.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from svdctl.layers.skew import power_step, skew_part, unfoldings
from svdctl.spectral.convolution import Convolution

SERIES_TERMS = 12
OWN_VECTORS = ("right1", "right2")
PAPER_VECTORS = (*(f"{side}{pair}" for pair in range(1, 5) for side in "uv"), "correction")


def skew_factor(leaves: Mapping[str, Tensor], free: str, vectors: tuple[str, ...]) -> float | str:
    """Return what a layer multiplies the skew part of its free kernel by, or why that is not known.

    Args:
        leaves: tensors of one layer.
        free: name of the free kernel (c, c, k, k).
        vectors: names of `PAPER_VECTORS` or `OWN_VECTORS` in the layer; with svdctl's own its factor is presumed.
    """
    kernel = leaves[free]
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != kernel.shape[3] or kernel.shape[2] % 2 == 0:
        return f"{free} is no square kernel with a middle tap"
    for name in vectors:
        if name not in leaves or not leaves[name].is_floating_point():
            return f"{name} is missing"
    skew, given = skew_part(kernel.double()), [leaves[name].double() for name in vectors]
    try:
        if vectors == PAPER_VECTORS:
            factor = float(given.pop())
            norms = [float((skew * (u * v)).sum()) for u, v in zip(given[::2], given[1::2], strict=True)]
        else:
            factor = 1.0 if kernel.shape[-1] == 1 else 0.7
            steps = [(matrix, *power_step(matrix, v)) for matrix, v in zip(unfoldings(skew), given, strict=True)]
            norms = [float(torch.dot(u, matrix @ v)) for matrix, u, v in steps]
    except (RuntimeError, ValueError):
        return "its vectors do not fit its kernel"
    if not min(norms) > 0:
        return "its vectors do not belong to its kernel, as before any training, so its norm is unknown"
    return factor / min(norms)


def generator(kernel: Tensor, factor: float) -> Convolution:
    """Return J, with the free kernel's channels."""
    return Convolution.make(skew_part(kernel.double()) * factor)
