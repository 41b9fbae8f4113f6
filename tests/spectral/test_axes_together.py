"""Kernels along a diagonal: near a maximiser both axes lower the value together, not one factor each."""

import pytest
import torch

from svdctl.spectral import Convolution, is_bounded, norm_bound


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("flipped", [False, True])
def test_bounds_of_diagonal_kernels(seed: int, flipped: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.diag_embed(torch.randn(2, 2, 4, generator=generator, dtype=torch.float64))
    if flipped:
        kernel = kernel.flip(-1)
    # The symbol depends on one sum of frequencies alone, so a fine line sees the supremum.
    line = torch.linspace(0, 2 * torch.pi, 20_001, dtype=torch.float64)
    waves = torch.exp(-1j * line[:, None] * torch.arange(4))
    taps = torch.stack([kernel[..., p, 3 - p if flipped else p] for p in range(4)], -1)
    symbols = torch.einsum("oip,fp->foi", taps.to(torch.complex128), waves)
    truth = float(torch.linalg.matrix_norm(symbols, 2).max())
    conv = Convolution.make(kernel)
    bound = norm_bound(conv)
    assert bound.lower <= truth * (1 + 1e-6)
    assert bound.upper >= truth
    assert bound.upper <= truth * 1.01
    assert not is_bounded(conv, truth * (1 - 1e-5))
    assert is_bounded(conv, truth * 1.001)
