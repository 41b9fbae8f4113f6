"""Products of large matrices on a CPU: right, and in blocks that bound what is copied."""

import pytest
import torch
from torch import Tensor

from svdctl.spectral import symbol
from svdctl.spectral.symbol import gram


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(1, 900, 300), (1, 300, 900), (2, 1000, 40)], ids=str)
def test_grams_of_large_matrices_copy_blocks(
    shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    tall = matrices if shape[1] >= shape[2] else matrices.mT
    exact = torch.stack([one.mH.contiguous() @ one for one in tall])
    sizes: list[int] = []
    real = torch.bmm

    def counted(left: Tensor, right: Tensor) -> Tensor:
        sizes.append(max(left[0].numel(), right[0].numel()))
        return real(left, right)

    monkeypatch.setattr(torch, "bmm", counted)
    monkeypatch.setattr(symbol, "_COPIED", 10_000)
    found = gram(matrices)
    assert torch.allclose(found, exact, rtol=1e-13, atol=1e-11)
    assert max(sizes) <= 10_000
