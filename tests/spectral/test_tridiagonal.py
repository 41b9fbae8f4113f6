"""Eigenvalues of many matrices at once against LAPACK in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from svdctl.spectral import batched, tridiagonal
from svdctl.spectral.tridiagonal import eigenvalues_by_bisection

DTYPES = (torch.complex128, torch.float64, torch.complex64, torch.float32)


def _noise(*shape: int, dtype: torch.dtype) -> Tensor:
    found = torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(3))
    return found.to(dtype) if dtype.is_complex else found.real.to(dtype)


def _random(side: int, dtype: torch.dtype, count: int = 3) -> Tensor:
    noise = _noise(count, side, side, dtype=dtype)
    return noise + noise.mH


def _with_values(values: Tensor, dtype: torch.dtype) -> Tensor:
    basis = torch.linalg.qr(_noise(2, len(values), len(values), dtype=dtype))[0]
    found = (basis * values.to(dtype)) @ basis.mH
    return (found + found.mH) / 2


def _tridiagonal(dtype: torch.dtype) -> Tensor:
    ones = torch.ones(20, dtype=dtype)
    return (torch.diag(ones, 1) + torch.diag(ones, -1) + 2 * torch.eye(21, dtype=dtype))[None]


CASES: dict[str, Callable[[torch.dtype], Tensor]] = {
    **{f"random {side}": (lambda dtype, side=side: _random(side, dtype)) for side in (1, 2, 3, 8, 9, 10, 17, 60)},
    "batch of 1": lambda dtype: _random(12, dtype, count=1),
    "rank deficient": lambda dtype: (lambda tall: tall @ tall.mH)(_noise(3, 30, 7, dtype=dtype)),
    "clustered": lambda dtype: _with_values(torch.tensor([1.0] * 9 + [1 + 1e-13] * 5 + [2.0] * 6).double(), dtype),
    "of many sizes": lambda dtype: _with_values(torch.logspace(-12, 0, 24).double(), dtype),
    "zero": lambda dtype: torch.zeros(2, 9, 9, dtype=dtype),
    "identity": lambda dtype: torch.eye(9, dtype=dtype).expand(3, 9, 9),
    "diagonal": lambda dtype: torch.diag_embed(_noise(3, 11, dtype=dtype).real.to(dtype)),
    "signed zeros": lambda dtype: torch.diag_embed(torch.tensor([[-0.0, 1.0, -0.0, -1.0, 0.0]]).to(dtype)),
    "tridiagonal": _tridiagonal,
    "zeros below a corner": lambda dtype: torch.block_diag(*_random(6, dtype))[None],
    "tiny": lambda dtype: _random(13, dtype) * 1e-30,
    "columns that underflow": lambda dtype: torch.block_diag(
        torch.ones(1, 1, dtype=dtype), _random(9, dtype, count=1)[0] * torch.finfo(dtype).tiny ** 0.5 / 3
    )[None],
}


def _require_right(matrices: Tensor) -> None:
    dtype = matrices.dtype
    wide = matrices.to(torch.complex128 if dtype.is_complex else torch.float64)
    wanted, found = torch.linalg.eigvalsh(wide), eigenvalues_by_bisection(matrices.clone())
    assert found.dtype == dtype.to_real()
    assert found.shape == wanted.shape
    assert bool((found.diff(dim=1) >= 0).all())
    allowed = (4 + 0.5 * matrices.shape[-1]) * torch.finfo(dtype).eps * wanted.abs().amax(1, keepdim=True)
    assert bool(((found - wanted).abs() <= allowed).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_eigenvalues_are_those_of_lapack(case: str, dtype: torch.dtype) -> None:
    _require_right(CASES[case](dtype))


@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_matrices_of_any_size_are_neither_lost_nor_overflow(dtype: torch.dtype, scale: float) -> None:
    _require_right(_random(14, dtype) * scale)


def test_a_known_spectrum() -> None:
    side = 150
    matrix = torch.diag(torch.ones(side - 1).double(), 1)
    wanted = (2 * torch.cos(torch.arange(side, 0, -1).double() * (math.pi / (side + 1))))[None]
    assert (eigenvalues_by_bisection((matrix + matrix.T)[None]) - wanted).abs().max() < 8e-15


def test_each_matrix_is_computed_alone() -> None:
    matrices = _random(11, torch.complex128, count=5)
    matrices[3] *= 1e9
    together = eigenvalues_by_bisection(matrices.clone())
    for place in range(5):
        alone = eigenvalues_by_bisection(matrices[place : place + 1].clone())
        torch.testing.assert_close(
            together[place : place + 1], alone, rtol=1e-14, atol=1e-13 * float(alone.abs().max())
        )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(value: float) -> None:
    matrices = _random(6, torch.float64)
    matrices[1, 2, 4] = matrices[1, 4, 2] = value
    finite = eigenvalues_by_bisection(matrices).isfinite()
    assert finite.all(1).tolist() == [True, False, True]
    assert not finite[1].any()


@pytest.mark.parametrize("shape", [(0, 5, 5), (4, 0, 0)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    assert eigenvalues_by_bisection(torch.zeros(shape)).shape == shape[:2]


def test_the_place_of_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = _random(7, torch.complex128)
    monkeypatch.setattr(batched, "eigenvalues_by_bisection", lambda part: pytest.fail("a CPU has its own routine"))
    batched.eigenvalues_of(matrices)
    monkeypatch.setattr(batched, "bisection_is_faster", lambda count, device: count == 3)
    monkeypatch.setattr(batched, "eigenvalues_by_bisection", tridiagonal.eigenvalues_by_bisection)
    torch.testing.assert_close(batched.eigenvalues_of(matrices), torch.linalg.eigvalsh(matrices))
