"""Polar factors and clipped singular values by products of matrices alone, for devices that factorise slowly.

docs/theory.md, "Clip by products", derives the numbers of steps. The products presume `exact_arithmetic`: rounded to
TF32 they end three digits short. Nothing here waits for the device.
"""

import math

import torch
from torch import Tensor

from svdctl.spectral.symbol import adjoint_product, gram

# Room for rounding above the norm that a matrix is scaled to, as a share of what its smallest value is below it.
_ROOM = 2.0**-7


def step_factors(lowest: float, accuracy: float) -> list[float]:
    """Return the factors of Newton-Schulz steps that bring all values in `[lowest, 1]` into `[1 - accuracy, 1]`.

    A step maps a value x to `p(f x)`, `p(x) = (3 x - x^3) / 2`, with the factor f for which the ends of the interval
    are mapped to one value: the cubic polynomial that raises the lowest value most.
    """
    factors = []
    while 1 - lowest > accuracy:
        widest = 1 + _ROOM * (1 - lowest)
        factors.append(math.sqrt(3 / (widest**2 + widest * lowest + lowest**2)))
        ahead = factors[-1] * lowest
        lowest = ahead * (3 - ahead**2) / 2
    return factors


def newton_schulz(matrices: Tensor, factors: list[float]) -> Tensor:
    """Return nearly the polar factors `U V^H` of `U diag(s) V^H`: each value moved towards 1 as `step_factors` says.

    A value 0 stays 0. Of Hermitian matrices it is the matrix sign.

    Args:
        matrices: `(B, m, n)`, m >= n, of norm at most 1.
        factors: of the steps.
    """
    for factor in factors:
        matrices = torch.baddbmm(matrices, matrices, gram(matrices), beta=1.5 * factor, alpha=-0.5 * factor**3)
    return matrices


def norm_limits(matrices: Tensor) -> Tensor:
    """Return `(sum s^8)^(1/8)` of the singular values of each matrix `(B, m, n)`, `(B,)`: at least its norm.

    It is at most `n^(1/8)` times the norm, 2.3 for 768 columns. Too large for the precision: infinite.
    """
    squares = gram(matrices)
    return torch.linalg.matrix_norm(gram(squares)).sqrt().sqrt()


def polar_by_products(matrices: Tensor, lowest: float, accuracy: float) -> Tensor:
    """Return the nearest matrices whose singular values are all 1, `(B, m, n)`, m >= n.

    Args:
        matrices: `(B, m, n)`.
        lowest: values that are less than this share of `norm_limits` end below 1.
        accuracy: all others end between 1 less this and 1, rounding apart.
    """
    # No power over- or underflows.
    matrices = matrices / matrices.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(matrices.dtype).tiny)
    limits = norm_limits(matrices).clamp_min(torch.finfo(matrices.dtype).tiny)
    return newton_schulz(matrices / limits[:, None, None], step_factors(lowest, accuracy))


def clip_by_products(matrices: Tensor, widest: float, accuracy: float) -> Tensor:
    """Return the nearest matrices of norm at most 1: `(A + P - (A - P) sign(P^H A - I)) / 2`, P the polar factor of A.

    Args:
        matrices: A, `(B, m, n)`, m >= n.
        widest: at least 1 and the largest of their `norm_limits`. Values of matrices beyond it are not all clipped.
        accuracy: values s become `min(s, 1)` but for twice this, rounding apart; at most 0.1.
    """
    limits = norm_limits(matrices).clamp_min(1)[:, None, None]
    polar = newton_schulz(matrices / limits, step_factors(1 / widest, accuracy / 2))
    # Hermitian, of values between -1 and limit - 1.
    excess = adjoint_product(polar, matrices)
    excess.diagonal(dim1=-2, dim2=-1).sub_(1)
    reach = max(widest - 1, 1.0)
    factors = step_factors(8 * accuracy / reach, 2 * accuracy / reach)
    sign = newton_schulz(excess / (limits - 1).clamp_min(1), factors)
    return torch.baddbmm(matrices + polar, matrices - polar, sign, beta=0.5, alpha=-0.5)
