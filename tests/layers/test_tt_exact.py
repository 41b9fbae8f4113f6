"""Small kernels for proofs, by factors of Gram matrices: as near to the layer as they say, and far from vacuous."""

import math

import pytest
import torch
from torch import Tensor

import svdctl
from svdctl.layers.tt import TTConv2d
from svdctl.layers.tt_exact import exact_kernels
from svdctl.spectral.symbol import angles, half_grid, phases, symbol


def layer_of(shape: tuple[int, int, int, int], spread: float, dtype: torch.dtype = torch.float32) -> TTConv2d:
    """A TT layer `(O, I, r_out, r_in)` whose frames have singular values from 1 - spread to 1 + spread."""
    out, into, rank_out, rank_in = shape
    layer = TTConv2d(into, out, 3, rank=(rank_in, rank_out), frames="free").to(dtype)
    for frame in (layer.frame_in, layer.frame_out):
        assert frame is not None
        left, _, right = torch.linalg.svd(torch.randn(frame.shape, dtype=torch.float64), full_matrices=False)
        values = torch.linspace(1 - spread, 1 + spread, frame.shape[1], dtype=torch.float64)
        frame.data.copy_(left * values @ right)
    return layer


def norms(kernel: Tensor) -> Tensor:
    """Return the norms of a kernel `(O, I, kh, kw)` at some frequencies, in float64."""
    wide = kernel.double()[None]
    points = angles(half_grid((7, 6))[0], (7, 6))
    return torch.linalg.matrix_norm(symbol(wide, phases(points, (3, 3), wide)), 2)


def whole(layer: TTConv2d) -> Tensor:
    parts = (layer.frame_out, layer.core, layer.frame_in)
    return torch.einsum("ob,bahw,ia->oihw", *(part.detach().double() for part in parts if part is not None))


SHAPES = [(8, 8, 3, 3), (40, 24, 24, 12), (5, 9, 1, 2), (64, 64, 48, 48)]


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.1, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_at_every_frequency_are_within_the_error(spread: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [layer_of(shape, spread, dtype) for shape in SHAPES for _ in range(2)]
    for layer, (kernel, error) in zip(layers, exact_kernels(layers), strict=True):
        true, found = norms(whole(layer)), norms(kernel)
        assert float((true - found).abs().max()) <= error + 1e-13 * float(true.max())
        assert error <= 1e-8 * float(true.max())
        (alone,) = exact_kernels([layer])
        assert torch.allclose(alone[0], kernel, rtol=1e-12, atol=1e-14)
        assert alone[1] == pytest.approx(error, rel=0.5)


def test_an_error_in_the_factor_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the factorisation does, what it leaves over is counted."""
    torch.manual_seed(0)
    layer = layer_of((40, 24, 24, 12), 0.1)
    cholesky = torch.linalg.cholesky_ex

    def wrong(matrices: Tensor, *, upper: bool) -> tuple[Tensor, Tensor]:
        factor, info = cholesky(matrices, upper=upper)
        return factor * (1 + 1e-6), info

    monkeypatch.setattr(torch.linalg, "cholesky_ex", wrong)
    ((kernel, error),) = exact_kernels([layer])
    true, found = norms(whole(layer)), norms(kernel)
    moved = float((true - found).abs().max())
    assert moved > 1e-7 * float(true.max())
    assert moved <= error


@pytest.mark.parametrize("size", [1e-120, 1e-60, 1e60, 1e120])
def test_sizes_far_from_one_are_bounded_too(size: float) -> None:
    torch.manual_seed(0)
    plain, scaled = (layer_of((8, 8, 3, 3), 0.2, torch.float64) for _ in range(2))
    for name, tensor in scaled.named_parameters():
        tensor.data.copy_(plain.get_parameter(name).data * {"core": size, "frame_in": 1 / size}.get(name, 1.0))
    true, found = (svdctl.spectral_norm_bound(layer, tolerance=1e-4) for layer in (plain, scaled))
    assert true.lower <= found.upper
    assert found.lower <= true.upper


def test_frames_far_from_orthonormal_are_read_by_qr() -> None:
    torch.manual_seed(0)
    layer = layer_of((8, 8, 3, 3), 1 - 1e-6, torch.float64)
    ((kernel, error),) = exact_kernels([layer])
    reference, bound = layer.exact_kernel()
    assert torch.equal(kernel, reference)
    assert error == bound
    layer.frame_in.data[0, 0] = math.nan  # type: ignore[union-attr]
    with pytest.raises(svdctl.errors.ShapeError, match="not finite"):
        exact_kernels([layer])
