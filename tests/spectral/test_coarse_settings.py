"""Bounds, control and retraction stay what they say where torch is told to compute coarsely, on CPUs and GPUs.

The oracle is made in float64 outside of the coarse settings: dense matrices, or kernels whose values are known by how
they are made.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svdctl
from svdctl.layers.stiefel import frame_error, gram_defect
from svdctl.spectral.bounds import is_bounded
from svdctl.spectral.convolution import Convolution
from svdctl.spectral.exact_arithmetic import exact_arithmetic, exact_products
from tests.dense import dense_values
from tests.spectral.test_extremes import matmul_precision

MATMUL = torch.backends.cuda.matmul


@contextmanager
def changed(owner: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def all_at_once(device: str) -> Iterator[None]:
    """Enter every setting but float16, of which autocast takes one number format."""
    with ExitStack() as stack:
        for name in ("cuDNN in TF32", "reduced sums", "medium", "autocast"):
            stack.enter_context(SETTINGS[name](device))
        assert MATMUL.allow_tf32  # by "medium"; both by themselves could not be given back
        yield


SETTINGS: dict[str, Callable[[str], AbstractContextManager[object]]] = {
    "autocast": lambda device: torch.autocast(device, torch.bfloat16),
    "autocast to float16": lambda device: torch.autocast(device, torch.float16),
    "medium": lambda _: matmul_precision("medium"),
    "matmul in TF32": lambda _: changed(MATMUL, allow_tf32=True),
    "cuDNN in TF32": lambda _: changed(torch.backends.cudnn, allow_tf32=True),
    "reduced sums": lambda _: changed(
        MATMUL, allow_fp16_reduced_precision_reduction=True, allow_bf16_reduced_precision_reduction=True
    ),
    "all at once": all_at_once,
}
ON_CPU = ("autocast", "all at once")  # a CPU obeys autocast and "medium"; what leaves "medium" on fails the second
NEEDS_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
coarsely = pytest.mark.parametrize(
    ("device", "setting"),
    [
        *(("cpu", setting) for setting in ON_CPU),
        *(pytest.param("cuda", setting, marks=NEEDS_CUDA) for setting in SETTINGS),
    ],
)


def switches(device: str) -> list[object]:
    return [
        torch.get_float32_matmul_precision(),
        MATMUL.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        MATMUL.allow_fp16_reduced_precision_reduction,
        MATMUL.allow_bf16_reduced_precision_reduction,
        torch.backends.mkldnn.enabled,
        torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device),
        torch.get_default_dtype(),
    ]


@contextmanager
def coarse(setting: str, device: str) -> Iterator[None]:
    """Enter a setting, and check that it is still made when the test has ended."""
    with SETTINGS[setting](device):
        before = switches(device)
        yield
        assert switches(device) == before


def unitary(side: int, seed: int) -> Tensor:
    """Return an orthogonal matrix, of float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(side, side, generator=generator, dtype=torch.float64)).Q


def one_tap(values: Tensor, taps: int, dtype: torch.dtype) -> Tensor:
    """Return a kernel `(n, n, taps, taps)` of one tap, a matrix of these singular values before it is rounded."""
    side = len(values)
    kernel = torch.zeros(side, side, taps, taps, dtype=torch.float64)
    kernel[:, :, taps // 2, 0] = unitary(side, 1) @ values.diag() @ unitary(side, 2)
    return kernel.to(dtype)


def product_of_axes(side: int, largest: float) -> Tensor:
    """Return a kernel `(n, n, 3, 3)` of norm `largest` at one frequency: a matrix times a filter along each axis."""
    along = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64) * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    down = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    values = torch.linspace(0.2, largest, side, dtype=torch.float64)
    matrix = unitary(side, 3) @ values.diag() @ unitary(side, 4)
    return matrix[:, :, None, None] * (down[:, None] * along)


def grid_norm(kernel: Tensor, size: int) -> float:
    """Return the largest singular value of the circular convolution, by the FFT, in float64."""
    with exact_arithmetic():
        transformed = torch.fft.fft2(kernel.cpu().double(), (size, size)).permute(2, 3, 0, 1)
        return float(torch.linalg.svdvals(transformed)[..., 0].max())


@coarsely
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_brackets_hold_at_the_threshold(device: str, setting: str, dtype: torch.dtype) -> None:
    values = torch.linspace(0.1, 1.0, 16, dtype=torch.float64)
    values[-3:] = 1.0
    for largest in (1 - 1e-7, 1 + 1e-7):
        kernel = one_tap(values * largest, 3, dtype)
        exact = float(torch.linalg.svdvals(kernel.double().sum((2, 3)))[0])
        with coarse(setting, device):
            for tolerance in (1e-3, 0.02):
                found = svdctl.spectral_norm_bound(kernel.to(device), tolerance=tolerance)
                assert found.lower <= exact * (1 + 1e-14)
                assert exact * (1 - 1e-14) <= found.upper <= found.lower * (1 + tolerance) * (1 + 1e-9)
            for limit in (exact * (1 - 1e-12), exact * (1 + 1e-4)):
                proved = is_bounded(Convolution.make(kernel.to(device)), limit)
                assert proved == (limit > exact)
            # A norm so little below the limit may be left unproved.
            assert exact <= 1 or not is_bounded(Convolution.make(kernel.to(device)), 1.0)


@coarsely
def test_brackets_hold_where_one_frequency_alone_is_at_the_threshold(device: str, setting: str) -> None:
    kernel = product_of_axes(40, 1.0)
    assert grid_norm(kernel, 4) == pytest.approx(1.0, abs=1e-12)
    for dtype in (torch.float32, torch.float64):
        exact = grid_norm(kernel.to(dtype), 4)
        with coarse(setting, device):
            conv = Convolution.make(kernel.to(device, dtype))
            for tolerance in (1e-3, 0.02):
                found = svdctl.spectral_norm_bound(conv, tolerance=tolerance)
                # The rounded kernel's largest frequency is only near that of the grid.
                assert found.lower <= exact + 1e-6
                assert exact * (1 - 1e-13) <= found.upper <= (exact + 1e-6) * (1 + tolerance)
            assert not is_bounded(conv, exact * (1 - 1e-7))
            assert is_bounded(conv, exact * (1 + 1e-4))


@coarsely
@pytest.mark.parametrize("shape", [(48, 48, 3, 3), (64, 16, 1, 1), (8, 40, 5, 5)])
def test_brackets_and_values_of_random_kernels_are_those_of_the_dense_matrix(
    device: str, setting: str, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(shape, generator=generator) / math.sqrt(shape[1] * shape[2] * shape[3])
    fine = grid_norm(kernel, 64)
    dense = torch.fft.fft2(kernel.double(), (6, 6)).permute(2, 3, 0, 1)
    with exact_arithmetic():
        oracle = torch.linalg.svdvals(dense).flatten().sort(descending=True).values
    with coarse(setting, device):
        found = svdctl.spectral_norm_bound(kernel.to(device), tolerance=0.005)
        values = svdctl.singular_values(kernel.to(device), 6)
        assert not is_bounded(Convolution.make(kernel.to(device)), fine * (1 - 1e-6))
    assert fine <= found.upper
    # A grid of 64 points misses at most this much of a peak.
    assert found.lower <= fine * 1.02
    assert torch.allclose(values.cpu().double(), oracle, atol=float(oracle[0]) * 1e-5)


def network(device: str, frames: Any = "retract") -> nn.Sequential:
    torch.manual_seed(0)
    layers = [svdctl.TTConv2d(24, 32, 3, rank=8, frames=frames), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1)]
    return nn.Sequential(*layers).to(device)


def dense_norm(layer: Any) -> float:
    """Return the largest singular value of a layer on a 5 x 5 input, as a float64 matrix."""
    conv = layer.to_conv() if isinstance(layer, svdctl.TTConv2d) else layer
    channels = conv.weight.shape[1]
    same = nn.Conv2d(channels, conv.weight.shape[0], conv.kernel_size, bias=False, dtype=torch.float64)
    with torch.no_grad():
        same.weight.copy_(conv.weight.cpu().double())
    return float(dense_values(same, (channels, 5, 5))[0])


def defect(layer: Any) -> float:
    return max(float(gram_defect(frame.detach().cpu().double()).norm()) for frame in (layer.frame_in, layer.frame_out))


@coarsely
@pytest.mark.parametrize("change", [svdctl.clip_, svdctl.divide_])
def test_layers_that_are_changed_are_within_the_maximum(device: str, setting: str, change: Any) -> None:
    net = network(device)
    with coarse(setting, device):
        change(net, max_sigma=0.5)
    for layer in (net[0], net[2]):
        assert 0.3 < dense_norm(layer) <= 0.5 * (1 + 1e-9)
        assert svdctl.spectral_norm_bound(layer).upper <= 0.5 * (1 + 1e-5)
    assert defect(net[0]) < 1e-5


@coarsely
@pytest.mark.parametrize("method", ["clip", "divide", "divide-each", "divide-exact", "assign"])
def test_steps_and_seals_compute_in_the_weights_precision(device: str, setting: str, method: str) -> None:
    def trained(inside: Callable[[], AbstractContextManager[object]]) -> tuple[list[Tensor], nn.Sequential, Any]:
        net = network(device)
        generator = torch.Generator().manual_seed(1)
        with inside():
            controller = svdctl.Controller(net, method=method, max_sigma=0.5, every_steps=1)
            for _ in range(2):
                with torch.no_grad():
                    for parameter in net.parameters():
                        parameter.add_(torch.randn(parameter.shape, generator=generator).to(device), alpha=0.01)
                controller.step()
            assert controller.frame_residual is not None
            stepped = [parameter.detach().clone() for parameter in net.parameters()]
            residual = float(controller.frame_residual)
            assert residual < 1e-4
            if method != "divide-each":
                assert defect(net[0]) < 1e-5
            return stepped, net, controller.seal()

    plain, _, expected = trained(nullcontext)
    found, net, brackets = trained(lambda: coarse(setting, device))
    for one, other in zip(plain, found, strict=True):
        assert torch.equal(one, other) if device == "cpu" else torch.allclose(one, other, atol=1e-5)
    assert brackets.keys() == expected.keys()
    for name, bracket in brackets.items():
        assert bracket.upper <= 0.5
        exact = dense_norm(net.get_submodule(name))
        assert exact <= bracket.upper * (1 + 1e-9)
        assert bracket.lower <= 0.5


@coarsely
def test_a_retraction_ends_at_frames(device: str, setting: str) -> None:
    net = network(device)
    layer: Any = net[0]
    with torch.no_grad():
        layer.frame_in.mul_(1.02)
        layer.frame_out.mul_(0.97)
    before = layer.contracted().detach().clone()
    with coarse(setting, device):
        layer.retract_("polar")
    assert defect(layer) < 1e-5
    assert torch.allclose(layer.contracted(), before, atol=1e-6 * float(before.abs().max()) * 24)


@coarsely
def test_a_penalty_on_frames_is_that_of_float32(device: str, setting: str) -> None:
    net = network(device, frames="penalty")
    with torch.no_grad():
        net[0].frame_in.mul_(1.0 + 1e-4)
    controller = svdctl.Controller(net, method="divide", max_sigma=0.5)
    expected = controller.penalty()
    with coarse(setting, device):
        found = controller.penalty()
    assert expected is not None
    assert found is not None
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-2)


@coarsely
def test_spectra_and_lipschitz_bounds_are_those_of_exact_products(device: str, setting: str) -> None:
    net = network(device).eval()
    plain = svdctl.spectrum(net, (24, 8, 8))
    constant = svdctl.lipschitz_bound(net, (24, 8, 8)).value
    with coarse(setting, device):
        found = svdctl.spectrum(net, (24, 8, 8))
        again = svdctl.lipschitz_bound(net, (24, 8, 8)).value
    assert again == pytest.approx(constant, rel=1e-6)
    for one, other in zip(plain, found, strict=True):
        assert other.bound is not None
        assert one.bound is not None
        assert other.bound.upper == pytest.approx(one.bound.upper, rel=1e-6)
        assert torch.allclose(torch.as_tensor(other.values), torch.as_tensor(one.values), rtol=1e-4, atol=1e-5)
        assert dense_norm(net.get_submodule(other.name)) <= other.bound.upper * (1 + 1e-9)


@coarsely
def test_conversions_to_tt_form_and_back_keep_float32(device: str, setting: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 16, 3).to(device)
    with coarse(setting, device):
        layer, error = svdctl.TTConv2d.from_conv(conv, (12, 15))
        back = layer.to_conv()
        left_over = float(frame_error(layer.frame_out))
    again = svdctl.TTConv2d.from_conv(conv, (12, 15))
    assert error == pytest.approx(again[1], rel=1e-4)
    assert torch.allclose(back.weight, again[0].to_conv().weight, atol=1e-5)
    assert left_over < 1e-5


@coarsely
def test_products_are_in_the_precision_of_their_factors(device: str, setting: str) -> None:
    torch.manual_seed(0)
    one, other = torch.randn(2, 256, 256).to(device)
    exact = one.double() @ other.double()
    with coarse(setting, device), exact_products():
        product = one @ other
    assert product.dtype == torch.float32
    # TF32 and bfloat16 err by 1e-2 here.
    assert float((product.double() - exact).abs().max()) < 1e-3
