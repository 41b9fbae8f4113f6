"""Rayleigh quotients of Krylov spaces against eigenvalues of the dense matrices in float64."""

import pytest
import torch
from torch import Tensor

from svdctl.spectral.chebyshev_space import largest_ritz_pairs
from tests.dispatched_operations import DispatchedOperations

DTYPES = [torch.complex64, torch.complex128]


def of_values(values: Tensor) -> Tensor:
    """Return a matrix `(n, n)` in complex128 with these eigenvalues."""
    turned = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.complex128))[0]
    return (turned * values) @ turned.mH


def matrices(side: int) -> dict[str, Tensor]:
    """Return positive semidefinite matrices by what is special about their eigenvalues."""
    torch.manual_seed(side)
    random = torch.randn(3 * side, side, dtype=torch.complex128)
    spread = torch.rand(side, dtype=torch.float64)
    return {
        "random": random.mH @ random,
        "square": random[:side].mH @ random[:side],
        "rank one": random[:1].mH @ random[:1],
        "one far above": of_values(spread + 1e4 * (torch.arange(side) == 0)),
        "one at zero": of_values((1 + 0.1 * spread) * (torch.arange(side) > 0)),
        "clipped": of_values((2 * spread).clamp_max(1)),
        "nearly flat": of_values(1 + 1e-3 * spread),
        "flat": torch.eye(side, dtype=torch.complex128),
        "zero": torch.zeros(side, side, dtype=torch.complex128),
        "tiny": 1e-30 * (random.mH @ random),
        "falling": of_values(torch.logspace(0, -12, side, dtype=torch.float64)),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [1, 2, 9, 40, 150])
def test_quotients_are_below_and_near_the_largest_eigenvalues(side: int, dtype: torch.dtype) -> None:
    found = matrices(side)
    exact = torch.stack(list(found.values()))
    largest = torch.linalg.eigvalsh(exact)[:, -1].clamp_min(0)
    digits = 2e-6 if dtype == torch.complex64 else 1e-13
    # All in one batch: none takes part in what another finds.
    given, start = exact.to(dtype), torch.randn(len(exact), side, dtype=dtype)
    for steps, share in ((8, 0.1), (24, 0.01)):
        values, vectors = largest_ritz_pairs(given, start, steps)
        assert values.isfinite().all()
        assert vectors.isfinite().all()
        assert (values <= largest * (1 + digits)).all()
        # Tiny ones are not looked for.
        kept = torch.tensor([name != "tiny" for name in found])
        assert (values >= largest * (1 - share))[kept].all()
        wide = vectors.to(torch.complex128)
        quotients = (wide.conj() * (exact @ wide[..., None])[..., 0]).sum(-1).real
        assert torch.allclose(quotients, values.double(), rtol=5 * digits, atol=1e-28)
        if side <= 9 and steps == 24:
            assert (values >= largest * (1 - 5e-3))[kept].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_go_on_from_a_start(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    factor = torch.randn(4, 60, 60, dtype=torch.complex128)
    given = (factor.mH @ factor).to(dtype)
    vectors = torch.randn(4, 60, dtype=dtype)
    before = torch.zeros(4)
    for _ in range(4):
        values, vectors = largest_ritz_pairs(given, vectors, 6)
        assert (values >= before * (1 - 1e-6)).all()
        before = values
    largest = torch.linalg.eigvalsh(given.to(torch.complex128))[:, -1]
    assert torch.allclose(values.double(), largest, rtol=1e-5)


def test_they_take_few_operations() -> None:
    given, start = torch.eye(40, dtype=torch.complex64).expand(3, -1, -1).contiguous(), torch.ones(3, 40) + 0j
    with DispatchedOperations() as counted:
        largest_ritz_pairs(given, start, 8)
    # Orthogonalised one by one, vectors took 130.
    assert counted.total <= 60
