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
PUBLIC_VECTORS = tuple(f"{side}{pair}" for pair in range(1, 5) for side in "uv")


def public_factor(leaves: Mapping[str, Tensor], free: str) -> float | str:
    """Return what the public code multiplies the skew part by, or why that is not known.

    Args:
        leaves: tensors of one layer: `free` (c, c, k, k), u1 to v4, and `correction` (1,).
        free: name of the free kernel.
    """
    if fault := _fault(leaves, free, (*PUBLIC_VECTORS, "correction")):
        return fault
    skew = skew_part(leaves[free].double())
    try:
        norms = [
            float((skew * (leaves[f"u{pair}"].double() * leaves[f"v{pair}"].double())).sum()) for pair in range(1, 5)
        ]
        correction = float(leaves["correction"])
    except (RuntimeError, ValueError):
        return "its vectors do not fit its kernel"
    return _over(correction, min(norms))


def own_factor(leaves: Mapping[str, Tensor], free: str) -> float | str:
    """Return what svdctl's layer multiplies the skew part by unless its factor was chosen, or why that is not known."""
    inner = free.removesuffix("kernel")
    if fault := _fault(leaves, free, tuple(inner + name for name in OWN_VECTORS)):
        return fault
    skew = skew_part(leaves[free].double())
    norms = []
    for matrix, name in zip(unfoldings(skew), OWN_VECTORS, strict=True):
        right = leaves[inner + name].double()
        if right.shape != matrix.shape[1:]:
            return "its vectors do not fit its kernel"
        left, right = power_step(matrix, right)
        norms.append(float(torch.dot(left, matrix @ right)))
    return _over(1.0 if skew.shape[-1] == 1 else 0.7, min(norms))


def generator(kernel: Tensor, factor: float) -> Convolution:
    """J, with the free kernel's channels."""
    return Convolution.make(skew_part(kernel.double()) * factor)


def _fault(leaves: Mapping[str, Tensor], free: str, vectors: tuple[str, ...]) -> str | None:
    kernel = leaves[free]
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != kernel.shape[3] or kernel.shape[2] % 2 == 0:
        return f"{free} is no square kernel with a middle tap"
    for name in vectors:
        if name not in leaves or not leaves[name].is_floating_point():
            return f"{name} is missing"
    return None


def _over(factor: float, norm: float) -> float | str:
    if not norm > 0:
        return "its vectors do not belong to its kernel, as before any training, so its norm is unknown"
    return factor / norm
