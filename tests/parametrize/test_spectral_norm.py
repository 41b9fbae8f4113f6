"""The spectral norm of every kind of layer against the dense operator, in training and in evaluation mode."""

import copy
import importlib

import pytest
import torch
from torch import nn

import svdctl
from svdctl.errors import ShapeError
from svdctl.layers.norms import is_layer_bounded
from svdctl.parametrize import remove_parametrizations, spectral_norm
from tests.dense import dense_values
from tests.parametrize.layers import LAYERS, layer
from tests.synchronisation import NoHostReads

FACTORS = {
    "conv2d reflect": 2,
    "conv2d replicate": 2,
    "conv1d reflect": 2**0.5,
    "conv2d reflect stride": 3,
    "conv3d replicate": 8**0.5,
}
"""Of the proved bound of paddings that repeat pixels."""


def norm_module(module):
    return module.parametrizations.weight[0]


def parameter(module):
    return module.parametrizations.weight.original


def perturb_(module, size=0.05):
    with torch.no_grad():
        weight = parameter(module)
        weight.add_(torch.randn_like(weight) * weight.std() * size)


@pytest.mark.parametrize("name", LAYERS)
def test_norm_of_dense_operator(name):
    shape = LAYERS[name][1]
    plain = layer(name)
    before = svdctl.spectral_norm_bound(plain)
    module = spectral_norm(copy.deepcopy(plain), max_sigma=0.3)
    for _ in range(3):
        perturb_(module)
        _ = module.weight  # a training step
    module.eval()
    with torch.no_grad():
        exact = copy.deepcopy(plain).double()
        exact.weight.copy_(module.weight)
    largest = float(dense_values(exact, shape)[0])
    assert largest <= 0.3 * (1 + 1e-6)
    # Edges and the proved factor of the padding are all that is lost.
    lost = 0.2 if exact.weight.ndim > 2 and exact.weight[0, 0].numel() > 1 else 2e-4
    assert largest >= 0.3 / FACTORS.get(name, 1) * (1 - lost)
    bound = svdctl.spectral_norm_bound(module)
    assert bound.upper <= 0.3 <= bound.lower * 1.01 * FACTORS.get(name, 1)
    is_matrix = exact.weight.ndim == 2 or exact.weight[0, 0].numel() == 1
    sharp = svdctl.spectral_norm_bound(exact, tolerance=1e-5)
    assert sharp.upper >= 0.3 / (1.0001 if is_matrix else 1.0052)
    assert before.upper > 0.3


@pytest.mark.parametrize("name", LAYERS)
def test_estimate_of_training(name):
    """Never above the norm but for rounding, and close to it after some steps."""
    module = spectral_norm(layer(name).double(), max_sigma=0.3, mode="normalize")
    for _ in range(10):
        perturb_(module)
        _ = module.weight
    weight, scaled = parameter(module), module.weight
    plain = remove_parametrizations(copy.deepcopy(module))
    with torch.no_grad():
        plain.weight.copy_(weight)
    sigma = 0.3 * float((weight / scaled).detach().mean())
    exact = svdctl.spectral_norm_bound(plain, tolerance=1e-4)
    assert exact.lower * (1 - 0.03) <= sigma <= exact.upper * (1 + 1e-9)


def test_modes():
    small = spectral_norm(layer("conv2d"), max_sigma=50.0)
    assert torch.equal(small.weight, parameter(small))
    assert torch.equal(small.eval().weight, parameter(small))
    grown = spectral_norm(layer("conv2d"), max_sigma=50.0, mode="normalize").eval()
    assert 49 < svdctl.spectral_norm_bound(grown).lower < svdctl.spectral_norm_bound(grown).upper <= 50


def test_matrices_are_close_to_their_maximum():
    module = spectral_norm(layer("linear"), max_sigma=0.3, mode="normalize").eval()
    assert 0.3 * (1 - 1e-4) <= float(torch.linalg.matrix_norm(module.weight.detach().double(), 2)) <= 0.3


def test_gradient():
    """That of the weight over its norm, the vectors fixed, by finite differences."""
    module = spectral_norm(layer("conv2d stride").double(), max_sigma=0.3)
    norm = norm_module(module).eval()
    _ = module.weight
    vectors = norm.vectors.clone()

    def scaled(weight):
        return norm._estimate(weight, (norm.memory.handle, norm.groups, norm.stride, norm.dilation)) * weight

    weight = parameter(module).detach().clone().requires_grad_()
    estimate = torch.ops.svdctl.norm_direction(
        weight.detach(), norm.vectors, norm.place, False, norm.memory.handle, 1, [2, 2], [1, 1]
    )
    (found,) = torch.autograd.grad(scaled(weight).sin().sum(), weight)
    again = weight.detach().clone().requires_grad_()
    by_hand = (again * 0.3 / (estimate * again).sum()).sin().sum()
    (wanted,) = torch.autograd.grad(by_hand, again)
    torch.testing.assert_close(found, wanted)
    # The direction is the derivative of the norm at the point: Richardson's difference of |A(w) v|.
    step = torch.randn_like(weight)

    def value(t):
        moved = weight.detach() + t * step
        direction = torch.ops.svdctl.norm_direction(
            moved, norm.vectors, norm.place, False, norm.memory.handle, 1, [2, 2], [1, 1]
        )
        return float((direction * moved).sum())

    difference = (value(1e-5) - value(-1e-5)) / 2e-5
    assert difference == pytest.approx(float((estimate * step).sum()), rel=1e-6, abs=1e-8)
    assert torch.equal(vectors, norm.vectors)


def test_gradient_in_evaluation_mode():
    module = spectral_norm(layer("conv2d"), max_sigma=0.3)
    module.weight.sin().sum().backward()
    training = parameter(module).grad.clone()
    parameter(module).grad = None
    vectors = norm_module(module).vectors.clone()
    module.eval().weight.sin().sum().backward()
    torch.testing.assert_close(parameter(module).grad, training, rtol=0.05, atol=0.02 * float(training.abs().max()))
    assert torch.equal(vectors, norm_module(module).vectors)


def test_passes_of_one_step_are_one_function():
    module = spectral_norm(layer("conv2d"), max_sigma=0.3)
    perturb_(module)
    first = module.weight.detach().clone()
    vectors = norm_module(module).vectors.clone()
    assert torch.equal(module.weight, first)
    assert torch.equal(norm_module(module).vectors, vectors)
    perturb_(module)
    _ = module.weight
    assert not torch.equal(norm_module(module).vectors, vectors)


def test_learnable_maximum():
    module = spectral_norm(layer("conv2d"), max_sigma="learnable")
    norm = norm_module(module)
    before = svdctl.spectral_norm_bound(layer("conv2d"))
    assert norm.maximum == pytest.approx(before.upper, rel=0.02)
    assert norm.mode == "normalize"
    module.weight.square().sum().backward()
    assert float(norm.log_max_sigma.grad) == pytest.approx(2 * float(module.weight.detach().square().sum()), rel=1e-4)
    with torch.no_grad():
        norm.log_max_sigma.sub_(1.0)
    assert svdctl.spectral_norm_bound(module).upper <= norm.maximum
    limited = spectral_norm(layer("conv2d"), max_sigma="learnable", mode="limit")
    with torch.no_grad():
        norm_module(limited).log_max_sigma.add_(1.0)
    limited.weight.sum().backward()
    assert norm_module(limited).log_max_sigma.grad is not None


def test_evaluation_passes_of_one_weight_take_one_proof(monkeypatch):
    module_of_norm = importlib.import_module("svdctl.layers.spectral_norm")
    proved, proofs = module_of_norm._proved_factor, []
    monkeypatch.setattr(
        module_of_norm, "_proved_factor", lambda *args, **named: proofs.append(1) or proved(*args, **named)
    )
    module = spectral_norm(layer("conv2d"), max_sigma=0.3).eval()
    for _ in range(5):
        with torch.no_grad():
            module(torch.ones(1, *LAYERS["conv2d"][1]))
    assert len(proofs) == 1
    with torch.no_grad():
        parameter(module)[0, 0, 0, 0] += 1
    for _ in range(5):
        with torch.no_grad():
            module(torch.ones(1, *LAYERS["conv2d"][1]))
    assert len(proofs) == 2


def test_written_weight_is_proved_anew():
    module = spectral_norm(layer("conv2d"), max_sigma=0.3).eval()
    first = module.weight.detach().clone()
    parameter(module).data.mul_(-3)
    torch.testing.assert_close(module.weight, -first)
    parameter(module).data[0].mul_(2)
    assert is_layer_bounded(module, 0.3)
    assert not torch.allclose(module.weight, -first)
    module.weight = torch.ones_like(first)
    assert is_layer_bounded(module, 0.3)
    assert float(module.weight.detach().std()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["conv2d", "conv1d stride", "linear", "conv2d reflect"])
def test_precisions(name, dtype):
    module = spectral_norm(layer(name), max_sigma=0.1 + 2**-30, mode="normalize").to(dtype)
    assert module.weight.dtype == dtype
    module.weight.float().sum().backward()
    assert is_layer_bounded(module, 0.1 + 2**-30)
    assert norm_module(module).maximum == 0.1 + 2**-30
    plain = remove_parametrizations(module)
    assert plain.weight.dtype == dtype
    assert is_layer_bounded(plain, 0.1 + 2**-30)
    bound = svdctl.spectral_norm_bound(plain)
    assert bound.lower >= 0.1 * (0.98 if dtype == torch.bfloat16 else 0.99) / FACTORS.get(name, 1)


def test_zero_and_nan_weights():
    module = spectral_norm(layer("conv2d"), max_sigma=0.3, mode="normalize")
    with torch.no_grad():
        parameter(module).zero_()
    assert float(module.weight.abs().max()) == 0
    assert float(module.eval().weight.abs().max()) == 0
    with torch.no_grad():
        parameter(module).fill_(torch.nan)
    assert bool(module.weight.isnan().all())
    assert bool(module.train().weight.isnan().all())
    with torch.no_grad():
        parameter(module).copy_(layer("conv2d").weight)
    for _ in range(3):
        perturb_(module)
        assert bool(module.weight.isfinite().all())
    assert is_layer_bounded(module, 0.3)


@pytest.mark.parametrize("mode", ["limit", "normalize"])
@pytest.mark.parametrize("max_sigma", [0.3, 1e30, "learnable"])
def test_gradient_at_a_weight_of_zeros(mode, max_sigma):
    module = spectral_norm(layer("conv2d"), max_sigma=max_sigma, mode=mode)
    with torch.no_grad():
        parameter(module).zero_()
    for training in (True, False):
        module.train(training).zero_grad()
        (module.weight * 3).sum().backward()
        torch.testing.assert_close(parameter(module).grad, torch.full_like(module.weight, 3.0))
        if max_sigma == "learnable":
            assert float(norm_module(module).log_max_sigma.grad) == 0


def test_training_pass_reads_nothing_from_the_device(monkeypatch):
    monkeypatch.setattr("svdctl.layers.stored_weight._ASYNCHRONOUS", {"cuda", "cpu"})
    module = spectral_norm(layer("conv2d groups"), max_sigma=0.3)
    for _ in range(2):
        perturb_(module)
        _ = module.weight
    perturb_(module)
    with NoHostReads():
        module.weight.sum().backward()


def test_removal():
    module = spectral_norm(layer("conv2d"), max_sigma=0.3)
    perturb_(module)
    weight = parameter(module)
    assert remove_parametrizations(module) is module
    assert type(module) is nn.Conv2d
    assert module.weight is weight
    assert module.training
    assert svdctl.spectral_norm_bound(module).upper <= 0.3
    with pytest.raises(ShapeError, match="no parametrized"):
        remove_parametrizations(module)
    by_torch = torch.nn.utils.parametrizations.weight_norm(layer("conv2d"))
    assert type(remove_parametrizations(by_torch)) is nn.Conv2d


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (lambda: nn.BatchNorm2d(3), {}, "convolution or linear layer"),
        (lambda: svdctl.TTConv2d(4, 4, 3, rank=2), {}, "convolution or linear layer"),
        (lambda: nn.Conv2d(3, 3, 3), {"name": "bias"}, "convolution or linear layer"),
        (lambda: nn.Conv2d(3, 3, 3), {"max_sigma": -1.0}, "max_sigma"),
        (lambda: nn.Conv2d(3, 3, 3), {"max_sigma": True}, "max_sigma"),
        (lambda: nn.Conv2d(3, 3, 3), {"mode": "never"}, "mode"),
        (lambda: spectral_norm(nn.Conv2d(3, 3, 3)), {}, "remove it first"),
        (lambda: nn.utils.prune.l1_unstructured(nn.Conv2d(3, 3, 3), "weight", 0.5), {}, r"prune\.remove"),
    ],
)
def test_refused(make, settings, words):
    module = make()
    with pytest.raises(ShapeError, match=words):
        spectral_norm(module, **settings)
