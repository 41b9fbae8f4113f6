"""Proofs at the ends of the number range and under other settings of torch: a right bound, or a sentence."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import svdctl
from svdctl.errors import ShapeError
from svdctl.spectral import Convolution, is_bounded
from svdctl.spectral.gram import complex_roundings, interpolation, lebesgue


def kernel() -> Tensor:
    return torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("exponent", [-1050, -1030, -1000, -300, 0, 300, 1000, 1018])
def test_scaling_by_powers_of_two_scales_the_bracket(exponent: int) -> None:
    true = svdctl.spectral_norm_bound(kernel(), tolerance=1e-3)
    scaled = kernel() * 2.0**exponent
    # What rounding to a subnormal number moves, sum over taps of Frobenius norms.
    moved = 9 * 4 * 2.0**-1074
    found = svdctl.spectral_norm_bound(scaled, tolerance=1e-3)
    assert found.lower <= true.upper * 2.0**exponent + moved
    assert true.lower * 2.0**exponent <= found.upper + moved
    assert found.upper <= found.lower * 1.002 + moved


@pytest.mark.parametrize("value", [5e-324, 1e-310, 2.0**-1022, 1.0, 2.0**1023])
def test_a_single_number_is_its_own_norm(value: float) -> None:
    found = svdctl.spectral_norm_bound(torch.full((1, 1, 1, 1), value, dtype=torch.float64))
    assert found.lower <= value <= found.upper
    assert found.upper <= value * 1.01 + 1e-323


def test_a_norm_above_all_numbers_is_infinite_and_cannot_be_divided() -> None:
    conv = nn.Conv2d(2, 2, 1, bias=False).double()
    nn.init.constant_(conv.weight, 1.5e308)
    found = svdctl.spectral_norm_bound(conv)
    assert found.lower < math.inf
    assert found.upper == math.inf
    with pytest.raises(ShapeError, match="largest number"):
        svdctl.divide_(conv, max_sigma=1.0)
    assert bool((conv.weight == 1.5e308).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_subnormal_weights_count_where_the_processor_flushes_them(dtype: torch.dtype) -> None:
    small = torch.full((2, 2, 3, 3), 1e-40 if dtype == torch.float32 else 1e-315, dtype=dtype)
    before = svdctl.spectral_norm_bound(small)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        flushed = svdctl.spectral_norm_bound(small)
    finally:
        torch.set_flush_denormal(False)
    assert flushed == before
    assert before.upper > 0


@pytest.mark.parametrize("taps", [1, 3])
def test_groups_of_zeros(taps: int) -> None:
    weight = torch.zeros(4, 1, taps, taps)
    weight[2] = 3.0
    found = svdctl.spectral_norm_bound(weight, groups=4)
    assert found.lower <= 3 * taps**2 <= found.upper
    assert svdctl.spectral_norm_bound(torch.zeros(4, 1, taps, taps), groups=4).upper == 0


def test_questions_at_the_ends() -> None:
    conv = Convolution.make(kernel())
    assert is_bounded(conv, math.inf)
    assert is_bounded(conv, 1e300)
    assert not is_bounded(conv, 0.0)
    assert not is_bounded(conv, -math.inf)
    assert is_bounded(Convolution.make(kernel() * 1e-300), 1e300)
    assert not is_bounded(Convolution.make(kernel() * 1e300), 1e-300)
    with pytest.raises(ShapeError, match="nan"):
        is_bounded(conv, math.nan)
    with pytest.raises(ShapeError, match="finite"):
        is_bounded(Convolution.make(kernel() * math.inf), math.inf)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "medium": lambda: matmul_precision("medium"),
    "high": lambda: matmul_precision("high"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_proofs_do_not_hear_of_reduced_precision(setting: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(48, 48, 3, bias=False)
    layers = [conv, svdctl.TTConv2d(48, 48, 3, rank=16, frames="free")]
    plain = [svdctl.spectral_norm_bound(layer) for layer in layers]
    values = svdctl.singular_values(conv, 6)
    with SETTINGS[setting]():
        assert [svdctl.spectral_norm_bound(layer) for layer in layers] == plain
        assert torch.equal(svdctl.singular_values(conv, 6), values)
        svdctl.clip_(conv, max_sigma=0.6)
    found = svdctl.spectral_norm_bound(conv)
    assert 0.55 < found.lower <= found.upper <= 0.6 * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 3, 3), (4, 4, 3, 3), (4, 4, 1, 1)])
@pytest.mark.parametrize("size", [1e3, 1e8, 1e15, 1e30])
def test_kernels_far_above_the_maximum_are_clipped_to_it_and_not_to_zero(size: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], shape[0], shape[2], bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(shape) * size)
    svdctl.clip_(conv, max_sigma=1.0)
    found = svdctl.spectral_norm_bound(conv)
    assert found.lower > 0.97
    assert found.upper <= 1.0 + 1e-6


@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 1e12), (torch.float32, 1e38), (torch.float64, 1e200)])
def test_small_values_beside_huge_ones_survive_a_clip(dtype: torch.dtype, large: float) -> None:
    conv = nn.Conv2d(2, 2, 1, bias=False).to(dtype)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[large, 0.0], [0.0, 0.5]], dtype=dtype)[:, :, None, None])
    moved = svdctl.clip_(conv, max_sigma=1.0)[""]
    assert moved == pytest.approx(large, rel=1e-6)
    assert conv.weight.detach().flatten().tolist() == pytest.approx([1, 0, 0, 0.5], rel=0.011)


@pytest.mark.parametrize("taps", [2, 37, 90])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_long_kernels_whose_norm_is_known(taps: int, sign: float) -> None:
    weight = (torch.full((taps,), sign, dtype=torch.float64) ** torch.arange(taps))[None, None]
    found = svdctl.spectral_norm_bound(weight, tolerance=1e-3)
    assert found.lower <= taps <= found.upper
    assert found.upper <= taps * (1 + 2e-3)


@pytest.mark.parametrize("length", [1, 7, 300])
def test_complex_inner_products_in_any_order_are_within_the_bound(length: int) -> None:
    generator = np.random.default_rng(0)
    unit = 2.0**-24
    for trial in range(40):
        x, y = (generator.standard_normal((2, length, 2)).astype(np.float32)).view(np.complex64)[..., 0]
        if trial % 2:
            # Equal real and imaginary parts: where sqrt(2) is needed.
            x, y = np.abs(x.real) * np.complex64(1 + 1j), np.abs(y.real) * np.complex64(1 - 1j)
        true = np.sum(np.conj(x.astype(np.complex128)) * y.astype(np.complex128))
        size = float(np.sum(np.abs(x.astype(np.complex128)) * np.abs(y.astype(np.complex128))))
        products = [x.real * y.real, x.imag * y.imag], [x.real * y.imag, -x.imag * y.real]
        for order in (np.arange(2 * length), generator.permutation(2 * length)):
            parts = [np.cumsum(np.concatenate(pair)[order], dtype=np.float32)[-1] for pair in products]
            error = abs(complex(*map(float, parts)) - true)
            assert error <= complex_roundings(length) * unit * size * (1 + 1e-5)


@pytest.mark.parametrize("taps", [(2,), (3,), (9,), (40,), (3, 5)])
def test_the_weights_of_interpolation_sum_to_no_more_than_the_lebesgue_constant(taps: tuple[int, ...]) -> None:
    points = torch.rand(4000, len(taps), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 * math.pi
    even, odd = interpolation(points, taps)
    # Of real Gram matrices the even part alone is met, of others both: no sum is above the constant.
    assert float(even.abs().sum(1).max()) <= lebesgue(taps)
    assert float((even + odd).abs().sum(1).max()) / 2 <= lebesgue(taps)
    assert lebesgue(taps) <= 1.1 * lebesgue(taps, error=True)
