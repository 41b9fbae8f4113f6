"""Retractions of stacks of frames against polar factors by the SVD in float64."""

import pytest
import torch
from torch import Tensor

from svdctl.layers import stiefel
from svdctl.layers.stiefel import MAX_DEFECT, SMALLEST, Retraction, newton_schulz_scalings, retractions


def moved(rows: int, columns: int, values: Tensor, seed: int = 0) -> Tensor:
    """Return a matrix `(rows, columns)` of these singular values, float64."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, columns, dtype=torch.float64, generator=generator))[0]
        for size in (rows, columns)
    )
    return left * values @ right.T


SPREADS = {
    "a frame": lambda r: torch.ones(r, dtype=torch.float64),
    "shrunk by 1/2": lambda r: torch.full((r,), 0.5, dtype=torch.float64),
    "stretched by 1/2": lambda r: torch.full((r,), 1.5, dtype=torch.float64),
    "both": lambda r: torch.linspace(0.5, 1.5, r, dtype=torch.float64),
    "one each": lambda r: torch.cat([torch.tensor([0.5]), torch.ones(r - 2), torch.tensor([1.5])]).double(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (40, 40), (300, 190), (1000, 8)])
def test_frames_moved_by_half_come_back_to_the_nearest_frame(
    rows: int, columns: int, spread: str, dtype: torch.dtype
) -> None:
    matrix = moved(rows, columns, SPREADS[spread](columns))
    (found,) = retractions([matrix.to(dtype)], "polar")
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    eps = torch.finfo(dtype).eps
    close = {"rtol": 0, "atol": 200 * eps, "check_dtype": False}
    torch.testing.assert_close(found.frame, left @ right, **close)
    torch.testing.assert_close(found.factor, right.T * values @ right, **close)
    torch.testing.assert_close(found.inverse, right.T / values @ right, **close)
    assert float(found.defect) <= 20 * columns**0.5 * eps
    assert float(found.defect) == pytest.approx(
        float((found.frame.mT @ found.frame - torch.eye(columns)).norm()), abs=eps * columns * rows**0.5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scalings_bring_all_that_they_promise_to_one(dtype: torch.dtype) -> None:
    values = torch.linspace(SMALLEST, 1, 10_001, dtype=torch.float64)
    for factor in newton_schulz_scalings(dtype):
        values = factor * values * (3 - (factor * values) ** 2) / 2
        assert float(values.max()) <= 1 + 1e-15
    assert float((1 - values**2).max()) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("least", [0.0, 1e-6, 1e-3])
def test_frames_that_products_cannot_retract_say_so_and_stay_finite(least: float) -> None:
    values = torch.ones(12, dtype=torch.float64)
    values[0] = least
    for matrix in (moved(20, 12, values), torch.zeros(20, 12)):
        (found,) = retractions([matrix.float()], "polar")
        assert float(found.defect) > MAX_DEFECT
        assert all(bool(torch.isfinite(part).all()) for part in found)
        assert not found.inverse.any()
        (by_qr,) = retractions([matrix.float()], "qr")
        assert float(by_qr.defect) < 1e-5


@pytest.mark.parametrize("method", ["polar", "qr"])
def test_stacks_change_nothing(method: str) -> None:
    torch.manual_seed(0)
    frames = [moved(rows, 4, 1 + 0.2 * torch.randn(4).double(), seed) for seed, rows in enumerate((9, 7, 9, 9, 4))]
    together = retractions(frames, method)
    for frame, found in zip(frames, together, strict=True):
        (alone,) = retractions([frame], method)
        for name in Retraction._fields:
            torch.testing.assert_close(getattr(found, name), getattr(alone, name), rtol=1e-12, atol=1e-12)


def test_frames_of_all_shapes_are_factorised_by_products_with_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [moved(rows, columns, torch.ones(columns).double()) for rows, columns in ((9, 4), (7, 4), (9, 4), (8, 8))]
    # Columns of the last one are the same: it is left to Householder's factorisation.
    frames.append(moved(6, 2, torch.ones(2).double()).repeat(1, 2))
    wanted = retractions(frames, "qr")
    reads: list[int] = []
    factorised: list[tuple[int, ...]] = []
    on_host, qr = stiefel.on_host, torch.linalg.qr
    monkeypatch.setattr(stiefel, "on_host", lambda defects: reads.append(len(defects)) or on_host(defects))
    monkeypatch.setattr(torch.linalg, "qr", lambda stack: factorised.append(tuple(stack.shape)) or qr(stack))
    monkeypatch.setattr(stiefel, "products_are_faster", lambda _: True)
    found = retractions(frames, "qr")
    assert reads == [4]
    assert factorised == [(1, 6, 4)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.frame, other.frame, rtol=0, atol=1e-12)
        torch.testing.assert_close(one.factor, other.factor, rtol=0, atol=1e-12)
        assert float(one.defect) < 1e-11
