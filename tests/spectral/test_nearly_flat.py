"""Kernels whose singular values are nearly equal at all frequencies: proofs above a floor, against dense matrices."""

import math

import pytest
import torch

from svdctl.spectral import Convolution, is_bounded, norm_bound
from svdctl.spectral.exact_arithmetic import exact_arithmetic
from svdctl.spectral.gram import GramField, ranges_by_flatness
from svdctl.spectral.symbol import angles, half_grid, phases, symbol
from tests.dispatched_operations import DispatchedOperations
from tests.spectral.test_device_proofs import norm_of


def nearly_flat(noise: float, *shape: int) -> torch.Tensor:
    """Return a kernel `(O, I, *k)` of orthonormal rows or columns at the middle tap, with noise."""
    kernel = noise * torch.randn(shape, dtype=torch.float64)
    middle = tuple(k // 2 for k in shape[2:])
    frame = torch.linalg.qr(torch.randn(max(shape[:2]), min(shape[:2]), dtype=torch.float64))[0]
    kernel[(..., *middle)] += frame if shape[0] >= shape[1] else frame.T
    return kernel


def paraunitary(side: int) -> torch.Tensor:
    """Return an orthogonal kernel `(n, n, 3, 3)`: a product of shifts of half the channels."""
    kernel = torch.linalg.qr(torch.randn(side, side, dtype=torch.float64))[0][..., None, None]
    for axis in (2, 3, 2, 3):
        frame = torch.linalg.qr(torch.randn(side, side, dtype=torch.float64))[0][:, : side // 2]
        shifted = torch.einsum("oiyx,ij->ojyx", kernel, frame @ frame.T)
        empty = torch.zeros_like(kernel.narrow(axis, 0, 1))
        kernel = torch.cat((kernel - shifted, empty), axis) + torch.cat((empty, shifted), axis)
    return kernel


def convolutions() -> dict[str, Convolution]:
    torch.manual_seed(0)
    return {
        "noise 1e-5": Convolution.make(nearly_flat(1e-5, 12, 12, 3, 3)),
        "noise 1e-3": Convolution.make(nearly_flat(1e-3, 12, 12, 3, 3)),
        "noise 1e-2": Convolution.make(nearly_flat(1e-2, 6, 6, 3, 3) * 1e-5),
        "wide": Convolution.make(nearly_flat(3e-3, 6, 10, 3, 3)),
        "groups": Convolution.make(nearly_flat(1e-3, 12, 4, 3, 3), groups=3),
        "stride": Convolution.make(nearly_flat(1e-3, 12, 3, 3, 3), stride=2),
        "orthogonal": Convolution.make(paraunitary(8).float()),
        "orthogonal, noise": Convolution.make(paraunitary(8) + 1e-4 * torch.randn(8, 8, 3, 3)),
        "one axis": Convolution.make(nearly_flat(1e-3, 8, 8, 7)),
        "three axes": Convolution.make(nearly_flat(1e-3, 3, 3, 2, 3, 2)),
        "no axes": Convolution.make(nearly_flat(1e-4, 9, 9, 1, 1)),
    }


NAMES = list(convolutions())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tolerance", [0.02, 1e-3, 1e-5])
def test_brackets_hold_the_norm(name: str, tolerance: float) -> None:
    conv = convolutions()[name]
    norm, bracket = norm_of(conv), norm_bound(conv, tolerance=tolerance)
    assert bracket.lower <= norm * (1 + 1e-12)
    assert norm * (1 - 1e-12) <= bracket.upper <= bracket.lower * (1 + 1.001 * tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [1e-2, 1e-4, 1e-5, -1e-6, -1e-4, -1e-2])
def test_a_maximum_is_proved_above_the_norm_alone(name: str, share: float) -> None:
    conv = convolutions()[name]
    assert is_bounded(conv, norm_of(conv) * (1 + share)) == (share > 0)


@pytest.mark.parametrize("name", NAMES)
def test_eigenvalues_are_in_the_range(name: str) -> None:
    with exact_arithmetic():
        field = GramField(convolutions()[name])
        ((least, largest),) = ranges_by_flatness([field])
        points = 2 * math.pi * torch.rand(400, len(field.taps), dtype=torch.float64)
        values = torch.linalg.eigvalsh(field.matrices(points))
    assert least <= values.min() * (1 + 1e-12)
    assert values.max() <= largest * (1 + 1e-12)
    assert largest - least <= 12 * (values.max() - values.min()) + 1e-6


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
def test_squares_above_a_floor_stay_above_the_cosine(noise: float) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        kernel = nearly_flat(noise, 3, 3, 3, 3)[None]
        points = angles(half_grid((96, 96))[0], (96, 96))
        squares = torch.linalg.svdvals(symbol(kernel, phases(points, (3, 3), kernel))).square()
        # The grid's extremes are those of all frequencies but for the square of its step, of what lies between them.
        top, floor = squares[:, 0].max(), squares[:, -1].min()
        floor = floor - 0.01 * (top - floor)
        gap = (points - points[squares[:, 0].argmax()] + math.pi) % (2 * math.pi) - math.pi
        near = (distance := gap.abs().sum(1)) <= math.pi / 2
        above = squares[near, 0] - floor
        assert (above >= 0.99 * (top - floor) * distance[near].cos().square()).all()


def test_a_floor_saves_cells() -> None:
    torch.manual_seed(0)
    conv = Convolution.make(nearly_flat(1e-4, 48, 48, 3, 3).float())
    with DispatchedOperations() as counted:
        norm_bound(conv, tolerance=1e-4)
    assert counted.total <= 5000
