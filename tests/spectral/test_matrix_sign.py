"""Clip and polar factors by products alone, against singular value decompositions in float64."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from svdctl.spectral import batched, projection
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import exact_arithmetic
from svdctl.spectral.matrix_sign import (
    clip_by_products,
    newton_schulz,
    norm_limits,
    polar_by_products,
    step_factors,
)
from svdctl.spectral.projection import assigned_kernel, project_kernel, project_kernels
from tests.dispatched_operations import DispatchedOperations

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def finest(dtype: torch.dtype) -> float:
    """An accuracy that is not far above rounding."""
    return math.sqrt(torch.finfo(dtype).eps) / 4


def matrices_of(values: Tensor, dtype: torch.dtype, rows: int = 40) -> Tensor:
    """Matrices `(B, rows, n)` of singular values `(B, n)`, made in float64."""
    torch.manual_seed(0)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    left = torch.linalg.qr(torch.randn(len(values), rows, values.shape[1], dtype=wide)).Q
    right = torch.linalg.qr(torch.randn(len(values), *values.shape[1:] * 2, dtype=wide)).Q
    return ((left * values[:, None, :].to(wide)) @ right.mH).to(dtype)


def spread(*parts: Tensor) -> Tensor:
    return torch.cat([part.double() for part in parts])[None]


VALUES = {
    "random": lambda: torch.linalg.svdvals(torch.randn(3, 24, 24, dtype=torch.float64)) / 4,
    "all within": lambda: spread(torch.linspace(0, 1, 24)),
    "no full rank": lambda: spread(torch.linspace(0.3, 2.5, 4), torch.zeros(20)),
    "all zero": lambda: torch.zeros(2, 24, dtype=torch.float64),
    "zeros beside others": lambda: torch.cat((torch.zeros(1, 24), torch.full((1, 24), 3.0))).double(),
    "exactly at the maximum": lambda: torch.ones(2, 24, dtype=torch.float64),
    "at the maximum and zero": lambda: spread(torch.ones(12), torch.zeros(12)),
    "closely around the maximum": lambda: spread(1 + 1e-6 * torch.linspace(-1, 1, 24).double()),
    "around the maximum": lambda: spread(1 + 1e-3 * torch.linspace(-1, 1, 24).double()),
    "on all scales around it": lambda: spread(
        1 + torch.logspace(-9, 0, 12, dtype=torch.float64), 1 - torch.logspace(-9, 0, 12, dtype=torch.float64)
    ),
    "far above": lambda: spread(torch.full((12,), 60.0), torch.linspace(0, 1.01, 12)),
    "condition 1e6": lambda: spread(torch.logspace(-5, 1, 24, dtype=torch.float64)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [24, 40])
@pytest.mark.parametrize("accuracy", [0.1, 2.0**-9, None])
@pytest.mark.parametrize("values", VALUES)
def test_clip_by_products(values: str, accuracy: float | None, rows: int, dtype: torch.dtype) -> None:
    accuracy = accuracy or finest(dtype)
    torch.manual_seed(1)
    matrices = matrices_of(VALUES[values](), dtype, rows)
    widest = max(1.0, float(norm_limits(matrices).max()))
    with exact_arithmetic():
        found = clip_by_products(matrices, widest, accuracy)
    assert found.dtype == dtype
    wide = matrices.to(torch.complex128 if dtype.is_complex else torch.float64)
    left, kept, right = torch.linalg.svd(wide, full_matrices=False)
    wanted = (left * kept.clamp_max(1)[:, None, :].to(wide.dtype)) @ right
    error = float(torch.linalg.matrix_norm(found.to(wide.dtype) - wanted, 2).max())
    assert error <= 2 * accuracy + 40 * torch.finfo(dtype).eps * widest


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_values_far_above_the_maximum_in_float64(dtype: torch.dtype) -> None:
    matrices = matrices_of(spread(torch.logspace(-3, 4, 24, dtype=torch.float64)), dtype)
    found = clip_by_products(matrices, float(norm_limits(matrices).max()), 1e-9)
    left, kept, right = torch.linalg.svd(matrices, full_matrices=False)
    wanted = (left * kept.clamp_max(1)[:, None, :].to(dtype)) @ right
    assert float(torch.linalg.matrix_norm(found - wanted, 2).max()) < 1e-8


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_of_a_stack_do_not_depend_on_each_other(dtype: torch.dtype) -> None:
    matrices = matrices_of(torch.rand(5, 24, dtype=torch.float64) * 2, dtype)
    together = clip_by_products(matrices, 5.0, 1e-3)
    for place in range(5):
        alone = clip_by_products(matrices[place : place + 1], 5.0, 1e-3)[0]
        assert torch.allclose(together[place], alone, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("accuracy", [1e-3, 1e-9])
@pytest.mark.parametrize("lowest", [0.9, 0.1, 1e-3, 1e-7])
def test_steps_bring_values_near_one(lowest: float, accuracy: float) -> None:
    factors = step_factors(lowest, accuracy)
    below = torch.linspace(0, lowest, 2001, dtype=torch.float64)
    inside = torch.logspace(math.log10(lowest), 0, 100_001, dtype=torch.float64)
    ends = [newton_schulz(values[:, None, None], factors).flatten() for values in (below, inside)]
    assert float(ends[1].min()) >= 1 - accuracy * (1 + 1e-6)
    assert float(ends[1].max()) <= 1 + 1e-15
    # Fewer steps would not do, nor as many without factors.
    assert float(newton_schulz(inside[:, None, None], factors[:-1]).min()) < 1 - accuracy
    if lowest < 0.5:
        assert float(newton_schulz(inside[:, None, None], [1.0] * len(factors)).min()) < 1 - accuracy
    # Below the interval: from 0, increasing and concave, which the bound of values near the maximum rests on.
    rises = ends[0].diff()
    assert ends[0][0] == 0
    assert bool((rises >= 0).all())
    assert bool((rises.diff() <= 1e-15).all())


def test_steps_are_few() -> None:
    for lowest, accuracy in ((1e-1, 1e-5), (1e-3, 1e-5), (1e-6, 1e-12)):
        assert len(step_factors(lowest, accuracy)) <= math.log(1 / lowest) / math.log(2.58) + 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_are_above_the_norm(dtype: torch.dtype) -> None:
    for rows in (24, 40):
        values = torch.cat([VALUES[name]() for name in VALUES])
        matrices = matrices_of(values, dtype, rows)
        limits, norms = norm_limits(matrices).double(), torch.linalg.matrix_norm(matrices, 2).double()
        room = 1 + 20 * torch.finfo(dtype).eps
        assert bool((norms <= limits * room).all())
        assert bool((limits <= 24 ** (1 / 8) * norms * room).all())
        assert torch.equal(limits == 0, norms == 0)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_polar_by_products(dtype: torch.dtype, scale: float) -> None:
    matrices = matrices_of(torch.cat([VALUES["random"](), VALUES["condition 1e6"]()]) * scale, dtype)
    found = polar_by_products(matrices, torch.finfo(dtype).eps, finest(dtype))
    wide = matrices.to(torch.complex128 if dtype.is_complex else torch.float64)
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    # What rounding has moved of a matrix moves its polar factor by that over the smallest value.
    allowed = 3 * finest(dtype) + 30 * torch.finfo(dtype).eps * values[:, 0] / values[:, -1]
    assert bool((torch.linalg.matrix_norm(found.to(wide.dtype) - left @ right, 2) <= allowed).all())
    assert torch.equal(polar_by_products(0 * matrices, 1e-6, 1e-3), 0 * matrices)


@pytest.fixture
def by_products(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Makes projections by products, or not, also on a CPU."""

    def choose(chosen: bool) -> None:
        for module in (batched, projection):
            monkeypatch.setattr(module, "products_are_faster", lambda _: chosen)

    return choose


CONVOLUTIONS = {
    "plain": lambda: Convolution.make(torch.randn(6, 6, 3, 3)),
    "wide": lambda: Convolution.make(torch.randn(4, 7, 3, 3)),
    "strided": lambda: Convolution.make(torch.randn(8, 3, 3, 3), stride=2),
    "grouped": lambda: Convolution.make(torch.randn(6, 2, 3, 3), groups=3),
    "matrix": lambda: Convolution.make(torch.randn(5, 7, 1)),
    "three axes": lambda: Convolution.make(torch.randn(3, 2, 2, 3, 2)),
    "no full rank": lambda: Convolution.make(torch.einsum("ok,kihw->oihw", torch.randn(6, 2), torch.randn(2, 6, 3, 3))),
    "zero": lambda: Convolution.make(torch.zeros(4, 4, 3, 3)),
    "far above": lambda: Convolution.make(1e6 * torch.randn(4, 4, 3, 3)),
    "far below": lambda: Convolution.make(1e-12 * torch.randn(4, 4, 3, 3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_projections_by_products_are_those_by_eigenvectors(
    name: str, dtype: torch.dtype, by_products: Callable[[bool], None]
) -> None:
    torch.manual_seed(0)
    conv = CONVOLUTIONS[name]()
    conv = conv.with_kernel(conv.kernel.to(dtype))
    found = {}
    for chosen in (False, True):
        by_products(chosen)
        found[chosen] = project_kernel(conv, 1.3, rounds=4)
    assert found[True].dtype == dtype
    assert torch.allclose(found[True], found[False], atol=2 * projection._ACCURACY[dtype])


@pytest.mark.parametrize("name", ["plain", "wide", "strided", "grouped", "matrix", "no full rank", "zero"])
def test_assigned_kernels_by_products(name: str, by_products: Callable[[bool], None]) -> None:
    torch.manual_seed(0)
    conv = CONVOLUTIONS[name]()
    conv = conv.with_kernel(conv.kernel.double())
    found = {}
    for chosen in (False, True):
        by_products(chosen)
        found[chosen] = assigned_kernel(conv, 0.7)
    assert torch.allclose(found[True], found[False], atol=1e-6)


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_stack_is_projected_as_its_convolutions_are(
    groups: int, chosen: bool, by_products: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_products(chosen)
    torch.manual_seed(0)
    convs = [Convolution.make(scale * torch.randn(6, 3, 3, 3).double(), groups=groups) for scale in (0.1, 1, 2, 1, 3)]
    limits = [1.0, 0.5, 2.0, 1e-3, 100.0]
    stack = convs[0].with_kernel(torch.cat([conv.kernel for conv in convs]))
    together = project_kernel(stack, [limit for limit in limits for _ in range(groups)], rounds=4).split(groups)
    for conv, limit, found in zip(convs, limits, together, strict=True):
        assert torch.allclose(found, project_kernel(conv, limit, rounds=4), atol=1e-7 * limit)
    # What is given is put into stacks by shape, and stacks are no larger than memory allows.
    mixed = [convs[0], Convolution.make(torch.randn(2, 3, 1, 1)), *convs[1:]]
    for size in (1, 1 << 28):
        monkeypatch.setattr(projection, "_STACK_BYTES", size)
        each = project_kernels(mixed, [1.0, 0.1, *limits[1:]], rounds=4)
        for conv, limit, found in zip(mixed, [1.0, 0.1, *limits[1:]], each, strict=True):
            assert torch.allclose(found, project_kernel(conv, limit, rounds=4), atol=1e-5 * limit)


def test_grids_are_brought_to_a_device_once(
    by_products: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_products(True)
    torch.manual_seed(0)
    convs = [CONVOLUTIONS[name]() for name in ("plain", "strided", "matrix")]
    first = project_kernels(convs, [1.0] * 3, rounds=4)
    monkeypatch.setattr(projection, "phases", lambda *_: pytest.fail("phases were computed again"))
    with DispatchedOperations() as counted:
        again = project_kernels(convs, [1.0] * 3, rounds=4)
    assert all(torch.equal(kernel, other) for kernel, other in zip(first, again, strict=True))
    # 42 where phases and weights are brought there anew.
    assert counted.counts["_to_copy"] <= 24


@pytest.mark.parametrize(
    ("work", "wanted"), [(partial(project_kernel, rounds=4), ["__float__"]), (assigned_kernel, ["__bool__"] * 5)]
)
def test_what_is_read_of_a_stack(
    work: Callable[..., Tensor], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number, from which the steps follow, or in each round of assign whether all values have come to 1.

    All else is computed where the kernels are, so that tensors without numbers are enough.
    """
    conv = Convolution.make(torch.randn(24, 12, 3, 3), groups=2, stride=2)
    work(conv, 1.0)  # what is kept of the grid's shape, on the host
    reads = []

    def read(name: str, value: float | bool) -> None:
        monkeypatch.setattr(Tensor, name, lambda self: reads.append((name, self.device.type)) or value)

    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            cuda = conv.with_kernel(torch.empty(conv.kernel.shape).to("cuda"))
        except RuntimeError:
            pytest.skip("this torch asks the driver for fake tensors too")
        read("__float__", 1.5)
        read("__bool__", True)
        found = work(cuda, [1.0, 2.0])
    projection._half_grid_on.cache_clear()  # it holds tensors without numbers
    assert (found.device.type, found.dtype) == ("cuda", torch.float32)
    assert reads == [(name, "cuda") for name in wanted]
