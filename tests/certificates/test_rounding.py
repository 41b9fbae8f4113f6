"""The proved rounding error against the measured one: float32 against float64 on random and on chosen images."""

import math

import pytest
import torch
from torch import nn

from svdctl.certificates import rounding_bound
from svdctl.certificates.error_bounds import Affine
from svdctl.spectral.rounding import gamma
from tests.certificates.networks import SHAPE, TABLE, made, stirred, wrn


def measured(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Error `(N,)` of the float32 network on float32 images."""
    exact = network.double()(images.double()).flatten(1)
    return (network.float()(images.float()).flatten(1).double() - exact).norm(dim=1).detach()


@pytest.mark.parametrize("name", TABLE)
def test_float32_stays_within_the_bound(name: str) -> None:
    # Weights that float32 holds exactly: both networks are the same function.
    network = made(name).float()
    images = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    for scale in (0.0, 1e-3, 1.0, 100.0):
        scaled = images * scale
        bound = rounding_bound(network, SHAPE, torch.float32, float(scaled.flatten(1).norm(dim=1).max()))
        error = float(measured(network, scaled).max())
        assert error <= bound
        assert bound <= 1e-2 * max(scale, 1)


def test_an_adversary_that_looks_for_rounding() -> None:
    network = stirred(wrn(4)).eval()
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    best = measured(network, images)
    generator = torch.Generator().manual_seed(1)
    for _ in range(30):
        candidates = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
        errors = measured(network, candidates)
        images = torch.where((errors > best)[:, None, None, None], candidates, images)
        best = torch.maximum(best, errors)
    assert float(best.max()) <= rounding_bound(network.float(), (3, 8, 8), torch.float32, math.sqrt(192))


def test_float64_is_harmless_where_float32_is_not() -> None:
    network = stirred(wrn()).eval()
    narrow, wide = (rounding_bound(network, (3, 16, 16), dtype, 16.0) for dtype in (torch.float32, torch.float64))
    assert wide < 1e-8 * narrow
    assert narrow / wide == pytest.approx(2.0**29, rel=0.1)


def test_grows_with_the_images_and_never_shrinks() -> None:
    network = made("residual")
    bounds = [rounding_bound(network, SHAPE, torch.float32, norm) for norm in (0.0, 1.0, 2.0)]
    assert 0 < bounds[0] < bounds[1] < bounds[2]
    assert bounds[2] - bounds[1] == pytest.approx(bounds[1] - bounds[0], rel=1e-6)


def test_too_many_roundings_prove_nothing() -> None:
    assert gamma(10, 0.1) == math.inf
    assert Affine(1.0, math.inf)(0.0) == math.inf
    assert (Affine(0.0, 1.0) * math.inf)(1.0) == math.inf
    assert (Affine(0.0, 1.0) * 0.0)(1e9) == 0.0
