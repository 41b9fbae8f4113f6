"""Cells cover every frequency, before and after they are cut, and their centres see what is promised."""

import math

import pytest
import torch

from svdctl.spectral.frequency_cells import FrequencyCells, cover

TAPS = [(2,), (5,), (3, 3), (2, 2), (3, 2), (5, 3), (2, 7), (3, 3, 3), (2, 3, 2)]


def distances(cells: FrequencyCells, points: torch.Tensor) -> torch.Tensor:
    """From each point to its nearest centre, one of w and -w, over the axes that the cells have."""
    inner = min(2, points.shape[1])
    both = torch.cat((cells.centres, -cells.centres))
    gap = (points[:, None, :] - both + math.pi) % (2 * math.pi) - math.pi
    leading = gap[..., :-inner].abs().amax(-1) if points.shape[1] > inner else torch.zeros(gap.shape[:2])
    weighted = (gap[..., -inner:].abs() * torch.tensor(cells.half_widths[-inner:])).sum(-1)
    return torch.where(leading < 1e-9, weighted, math.inf).amin(1)


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("radius", [0.7, 0.3])
def test_every_frequency_is_in_a_cell(taps: tuple[int, ...], radius: float) -> None:
    generator = torch.Generator().manual_seed(0)
    cells = cover(taps, radius, lead=0.8)
    assert cells.radius <= radius
    points = 2 * math.pi * torch.rand(400, len(taps), generator=generator, dtype=torch.float64)
    if len(taps) > 2:
        # On the leading axes the grid itself is what is covered.
        chosen = torch.randint(len(cells.centres), (400,), generator=generator)
        points[:, :-2] = cells.centres[chosen, :-2]
    for _ in range(2):
        assert float(distances(cells, points).max()) <= cells.radius * (1 + 1e-9)
        cells = cells.halved()


@pytest.mark.parametrize("taps", [(3, 3), (2, 3), (4, 2)])
def test_no_more_cells_than_a_plane_of_squares_needs(taps: tuple[int, ...]) -> None:
    cells = cover(taps, 0.1)
    area = math.prod(2 * math.pi * (k - 1) / 2 for k in taps)
    assert len(cells.centres) <= 1.15 * area / (2 * cells.radius**2) / 2


@pytest.mark.parametrize("lead", [0.7, 0.95])
def test_leading_axes_see_their_share(lead: float) -> None:
    cells = cover((3, 3, 3), 0.5, lead)
    assert cells.lead >= lead
    assert cells.share == pytest.approx(cells.lead * math.cos(cells.radius))


def test_a_wave_along_the_diagonal_is_no_lower_than_promised() -> None:
    # cos(x + y) falls as fast as the distance allows.
    cells = cover((3, 3), 0.4)
    seen = torch.cos(cells.centres.sum(1) - 0.2).abs().max()
    assert float(seen) >= math.cos(cells.radius)
