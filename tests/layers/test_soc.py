"""SOC and SOTT against the dense matrix in float64."""

import math

import pytest
import torch
from torch import nn

from svdctl.errors import ShapeError
from svdctl.layers.minmax import MinMax
from svdctl.layers.skew import exponential_matrix, skew_part, unfoldings
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.spectral import norm_bound
from svdctl.spectral.operator import Convolution
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


def test_gradients_with_recomputed_activations_are_the_same() -> None:
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        layers = nn.Sequential(
            SOC(4, 8, stride=2, checkpoint_activations=again), MinMax(), SOC(8, 8, checkpoint_activations=again)
        )
        for _ in range(2):
            layers.zero_grad()
            layers(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))).square().mean().backward()
        grads.append([value.grad for value in layers.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


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
    with pytest.raises(ShapeError, match="pairs channels"):
        MinMax()(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ShapeError, match="at least 1"):
        SOTT(3, 3, rank=0)
