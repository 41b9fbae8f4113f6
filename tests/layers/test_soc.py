"""SOC and SOTT against the dense matrix in float64."""

import copy
import math

import pytest
import torch
from torch import nn

from svdctl.errors import ShapeError
from svdctl.layers.normalized_skew import normalized_skew
from svdctl.layers.recomputed_series import recomputed_series
from svdctl.layers.skew import exponential_matrix, skew_part, unfoldings
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.spectral import norm_bound
from svdctl.spectral.convolution import Convolution
from tests.dense import dense_matrix, dense_values

SHAPES = [
    (4, 4, 3, 1),
    (3, 8, 3, 1),
    (6, 2, 3, 1),
    (4, 8, 3, 2),
    (2, 12, 3, 2),
    (4, 4, 5, 1),
    (5, 3, 1, 1),
    (3, 8, 1, 2),
]


@pytest.mark.parametrize(("i", "o", "k", "s"), SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_orthogonal_but_for_the_cut(i: int, o: int, k: int, s: int, training: bool) -> None:
    torch.manual_seed(0)
    layer = SOC(i, o, k, stride=s).double().train(training)
    skew = layer.skew_kernel()
    assert torch.equal(skew, -skew.transpose(0, 1).flip((-2, -1)))
    inner = nn.Conv2d(layer.width, layer.width, k, padding=k // 2, bias=False).double()
    inner.weight.data = skew
    side = 6 // s
    generator = dense_matrix(inner, (layer.width, side, side))
    assert torch.equal(generator, -generator.T)
    rho = norm_bound(Convolution.make(skew)).upper
    assert float(torch.linalg.matrix_norm(generator, 2)) <= rho
    terms = layer.series_terms(training)
    cut = sum(rho**n / math.factorial(n) for n in range(terms + 1, terms + 40))
    whole = torch.linalg.matrix_exp(generator)
    series = exponential_matrix(generator, terms)
    assert float(torch.linalg.matrix_norm(series - whole, 2)) <= cut
    # The layer is that series, between rearranged and padded inputs and cut outputs.
    matrix = dense_matrix(layer.eval() if not training else Frozen(layer), (i, 6, 6))
    rows, columns = o * side**2, s * s * i * side**2
    shuffle = dense_matrix(nn.PixelUnshuffle(s).double(), (i, 6, 6)) if s > 1 else torch.eye(columns).double()
    assert torch.allclose(matrix, series[:rows, :columns] @ shuffle, atol=1e-12)


class Frozen(nn.Module):
    """A layer in training mode whose vectors do not move."""

    def __init__(self, layer: SOC) -> None:
        super().__init__()
        self.layer = layer
        self.state = {name: value.clone() for name, value in layer.state_dict().items()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer.load_state_dict(self.state)
        return self.layer(x)


@pytest.mark.parametrize("training", [True, False])
def test_pixels_are_the_same_alone_and_among_many(training: bool) -> None:
    torch.manual_seed(0)
    layer = Frozen(SOC(4, 8, 1, stride=2).double().train(training))
    x = torch.randn(16, 4, 2, 2, dtype=torch.float64)
    # By one matrix for more pixels than channels, by its series for fewer.
    many, alone = layer(x), torch.cat([layer(image[None]) for image in x])
    assert torch.allclose(many, alone, atol=1e-14)


def test_two_norms_tell_all_four_unfoldings() -> None:
    torch.manual_seed(0)
    kernel = skew_part(torch.randn(5, 5, 3, 3, dtype=torch.float64))
    four = [kernel.flatten(1), kernel.permute(0, 2, 1, 3).reshape(15, 15), kernel.permute(0, 3, 1, 2).reshape(15, 15)]
    four.append(kernel.permute(0, 2, 3, 1).reshape(45, 5))
    norms = [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in four]
    two = [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in unfoldings(kernel)]
    assert norms[0] == pytest.approx(norms[3]) == pytest.approx(two[0])
    assert norms[1] == pytest.approx(norms[2]) == pytest.approx(two[1])


def test_right_from_the_first_call_and_no_change_in_evaluation() -> None:
    torch.manual_seed(0)
    layer = SOC(8, 8).eval()
    x = torch.randn(2, 8, 6, 6)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    first = layer(x)
    assert torch.equal(layer(x), first)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    norms = [float(torch.linalg.matrix_norm(m, 2)) for m in unfoldings(skew_part(layer.kernel.detach()))]
    scaled = [float(torch.linalg.matrix_norm(m, 2)) for m in unfoldings(layer.skew_kernel())]
    assert min(scaled) == pytest.approx(0.7, rel=2e-3)
    assert min(norms) > 0


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(("i", "o", "k", "s"), [(4, 8, 3, 2), (8, 8, 3, 1), (3, 8, 3, 1), (6, 2, 5, 1), (4, 8, 1, 2)])
def test_gradients_with_recomputed_activations_are_the_same(i: int, o: int, k: int, s: int, low: bool) -> None:
    torch.manual_seed(0)
    found = []
    first = SOC(i, o, k, stride=s)
    for again in (False, True):
        layer = copy.deepcopy(first)
        layer.checkpoint_activations = again
        x = torch.randn(2, i, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        for _ in range(2):
            layer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                y = layer(x)
            y.square().mean().backward()
        found.append([y, x.grad, *(value.grad for value in layer.parameters()), *layer.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_recomputed_powers_are_not_kept() -> None:
    kept = []
    for again in (False, True):
        layer, shapes = SOC(8, 8, checkpoint_activations=again), []

        def pack(value: torch.Tensor, shapes: list[torch.Size] = shapes) -> torch.Tensor:
            shapes.append(value.shape)
            return value

        x = torch.randn(2, 8, 4, 4)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            layer(x)
        kept.append(shapes.count(x.shape))
    # The input and four powers; the input.
    assert kept == [5, 1]


def test_derivatives_of_all_kinds() -> None:
    torch.manual_seed(0)
    kernel = skew_part(torch.randn(3, 3, 3, 3, dtype=torch.float64)).requires_grad_()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    norm = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def series(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return recomputed_series(x, kernel, 3, 2)

    def scaled(skew: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        return normalized_skew(skew, norm, 0.7)

    assert torch.autograd.gradcheck(series, (x, kernel))
    assert torch.autograd.gradgradcheck(series, (x, kernel))
    assert torch.autograd.gradcheck(scaled, (kernel, norm), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(scaled, (kernel, norm))


@pytest.mark.parametrize("again", [False, True])
def test_gradients_for_each_image_at_once(again: bool) -> None:
    torch.manual_seed(0)
    layer = SOC(3, 4, checkpoint_activations=again)
    images = torch.randn(3, 3, 5, 5)

    def loss(values: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        state = {name: value.clone() for name, value in layer.named_buffers()}
        return torch.func.functional_call(layer, (values, state), (image[None],)).square().sum()

    values = dict(layer.named_parameters())
    together = torch.vmap(torch.func.grad(loss), (None, 0))(values, images)
    for index, image in enumerate(images):
        alone = torch.func.grad(loss)(values, image)
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][index], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", ["free", "retract", "parametrize"])
@pytest.mark.parametrize(
    ("i", "o", "k", "s", "rank"), [(8, 10, 3, 1, 4), (6, 9, 3, 2, (5, 7)), (8, 6, 1, 1, (3, 5)), (4, 4, 3, 1, 9)]
)
def test_sott_is_orthogonal_on_its_range(frames: str, i: int, o: int, k: int, s: int, rank) -> None:
    torch.manual_seed(0)
    layer = SOTT(i, o, k, rank=rank, stride=s, frames=frames, eval_terms=25).double().eval()
    layer.retract_("polar")
    rank_in, rank_out = layer.rank
    values = dense_values(layer, (i, 4, 4))
    alive = values[values > 1e-6]
    # The base point of torch's parametrization was rounded to float32 before the layer became float64.
    rounding = 1e-5 if frames == "parametrize" else 1e-9
    assert values[0] <= 1 + rounding
    if layer.core.width == s * s * rank_in == rank_out:
        assert len(alive) == rank_out * (4 // s) ** 2
        assert alive.min() >= 1 - rounding
    elif s * s * rank_in <= rank_out:
        assert (alive > 1 - rounding).sum() == rank_in * 16
    else:
        assert (alive > 1 - rounding).sum() >= 0.99 * rank_out * (4 // s) ** 2


def test_retraction_projects_the_momentum() -> None:
    torch.manual_seed(0)
    layer = SOTT(8, 8, rank=4, frames="retract")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        layer.zero_grad()
        layer(torch.randn(2, 8, 4, 4)).square().sum().backward()
        optimizer.step()
        layer.retract_("polar", optimizer)
        frame, mean = layer.frame_in, optimizer.state[layer.frame_in]["momentum_buffer"]
        inner = frame.T @ mean
        assert (frame.T @ frame - torch.eye(4)).abs().max() < 1e-5
        assert (inner + inner.T).abs().max() < 1e-4 * mean.abs().max()


def test_autocast_keeps_the_generator_in_single_precision() -> None:
    torch.manual_seed(0)
    layer = SOC(8, 8, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer._generator(update=False).dtype == torch.float32
        assert layer(torch.randn(1, 8, 4, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("stride", [1, 2])
def test_no_images_are_images_too(stride: int) -> None:
    assert SOC(4, 8, stride=stride)(torch.zeros(0, 4, 6, 6)).shape == (0, 8, 6 // stride, 6 // stride)


def test_faults() -> None:
    with pytest.raises(ShapeError, match="odd size"):
        SOC(3, 3, 2)
    with pytest.raises(ShapeError, match="at least 1"):
        SOTT(3, 3, rank=0)


def test_both_sides_of_a_square_kernel() -> None:
    layer = SOC(3, 3, (3, 3))
    assert layer.kernel_size == 3
    assert layer.kernel.shape == (3, 3, 3, 3)
    assert SOTT(3, 3, (5, 5), rank=2).kernel_size == 5
