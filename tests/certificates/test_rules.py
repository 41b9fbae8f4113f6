"""Rules of torch's functions against dense Jacobians, chords and float32: never exceeded, reached where sharp."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.certificates import Certifier, lipschitz_bound, rounding_bound
from svdctl.errors import ShapeError
from tests.certificates.test_what_is_proved import Runs

GENERATOR = torch.Generator().manual_seed(3)
MASK = torch.tensor([True, False, True, False, True, True])
W = torch.randn(6, 5, generator=GENERATOR).double()
HEADS = torch.randn(3, 6, 4, generator=GENERATOR).double()
PLACES = torch.tensor([[[0, 0, 1, 5]]]).expand(1, 4, 4)


def like(constant: Tensor, x: Tensor) -> Tensor:
    return constant.to(x.dtype)


def max_min(x: Tensor) -> Tensor:
    a, b = x.split(x.size(1) // 2, 1)
    return torch.cat([torch.max(a, b), torch.min(a, b)], dim=1)


def max_min_of_views(x: Tensor) -> Tensor:
    grouped = lambda: x.view(1, 2, 2, 6)  # noqa: E731 - each call makes another view
    return torch.cat((grouped().max(2)[0], torch.min(grouped(), dim=2).values), 1)


def picked(largest: int, smallest: int, join: Callable[..., Tensor], *, of_axis: bool = False) -> Any:
    """One maximum and one minimum of the same entries, each so many times in one concatenation."""

    def run(x: Tensor) -> Tensor:
        m = x.amax(1) if of_axis else torch.maximum(x[:, :2], x[:, 2:])
        n = x.amin(1) if of_axis else torch.minimum(x[:, :2], x[:, 2:])
        return join([*[m] * largest, *[n] * smallest])

    return run


def group_sort(x: Tensor) -> Tensor:
    return x.view(1, 2, 2, 6).sort(dim=2, descending=True)[0].view(x.shape)


RULES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], float | None]] = {
    "max and min of halves": (max_min, (4, 6), 1.0),
    "max and min of views": (max_min_of_views, (4, 6), 1.0),
    "max and min of steps": (
        lambda x: torch.stack((torch.maximum(x[:, ::2], x[:, 1::2]), x[:, ::2]), 1),
        (4, 6),
        2**0.5,
    ),
    "min and max in the other order": (
        lambda x: torch.stack((torch.min(x[:, 1:2], x[:, :1]), torch.max(input=x[:, :1], other=x[:, 1:2])), 1),
        (4, 6),
        1.0,
    ),
    "two largest of one pair": (
        lambda x: torch.cat((torch.max(x[:, :2], x[:, 2:]), torch.max(x[:, :2], x[:, 2:])), 1),
        (4, 6),
        2**0.5,
    ),
    "largest and smallest of one": (lambda x: torch.cat((x[:, :1].amax(1), x[:, :1].amin(1)), 1), (4, 6), 2**0.5),
    "amax and amin": (lambda x: torch.cat((x.amax(1), x.amin([1])), 1), (4, 6), 1.0),
    "the same twice": (lambda x: torch.cat((torch.max(x, x), torch.min(x, x)), 1), (4, 6), 2**0.5),
    "the same maximum twice and a minimum": (picked(2, 1, lambda parts: torch.cat(parts, 1)), (4, 6), 2**0.5),
    "a maximum and the same minimum twice": (picked(1, 2, lambda parts: torch.cat(parts, 1)), (4, 6), 2**0.5),
    "the same maximum and minimum twice": (picked(2, 2, lambda parts: torch.cat(parts, 1)), (4, 6), 2**0.5),
    "the same maximum 9 times": (picked(9, 1, lambda parts: torch.cat(parts, 1)), (4, 6), 3.0),
    "the same maximum 16 times": (picked(16, 1, lambda parts: torch.cat(parts, 1)), (4, 6), 4.0),
    "the same minimum 9 times": (picked(1, 9, torch.concatenate), (4, 6), 3.0),
    "the same maximum 9 times, stacked": (picked(9, 1, torch.stack), (4, 6), 3.0),
    "the same maximum 9 times, hstacked": (picked(9, 1, torch.hstack), (4, 6), 3.0),
    "the same amax 9 times": (picked(9, 1, torch.hstack, of_axis=True), (4, 6), 3.0),
    "the same amin 4 times": (picked(1, 4, torch.stack, of_axis=True), (4, 6), 2.0),
    "halves joined": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), (4, 6), 1.0),
    "halves and the whole": (lambda x: torch.cat((x[:, 2:], x), 1), (4, 6), 2**0.5),
    "rows expanded": (lambda x: torch.cat((x[:, :1].expand(1, 3, 6), x[:, 1:]), 1), (4, 6), 3**0.5),
    "half of it scaled": (lambda x: torch.cat((2 * x[:, :2], x[:, 2:]), 1), (4, 6), None),
    "group sort": (group_sort, (4, 6), 1.0),
    "sort of columns": (lambda x: torch.sort(input=x, dim=-2)[0], (4, 6), 1.0),
    "msort": (lambda x: torch.msort(x[0]), (4, 6), 1.0),
    "max": (lambda x: x.max().reshape(1), (4, 6), 1.0),
    "max of an axis": (lambda x: x.max(-1, keepdim=True).values, (4, 6), 1.0),
    "min by names": (lambda x: torch.min(input=x, dim=1, keepdim=False)[0], (4, 6), 1.0),
    "min with a constant": (lambda x: torch.min(x, torch.zeros_like(x)), (4, 6), 1.0),
    "topk": (lambda x: x.topk(3, dim=-1).values, (4, 6), 1.0),
    "topk by names": (lambda x: torch.topk(input=x, k=2, dim=1, largest=False)[0], (4, 6), 1.0),
    "kthvalue": (lambda x: x.kthvalue(2, -1)[0], (4, 6), 1.0),
    "median": (lambda x: x.median(dim=2, keepdim=True)[0], (4, 6), 1.0),
    "median of all": (lambda x: torch.median(x).reshape(1), (4, 6), 1.0),
    "logsumexp": (lambda x: x.logsumexp((1, 2)), (4, 6), 1.0),
    "logsumexp of an axis": (lambda x: torch.logsumexp(input=x, dim=-1, keepdim=True), (4, 6), 1.0),
    "log_softmax": (lambda x: F.log_softmax(x, dim=-1), (4, 6), 6**0.5),
    "log_softmax of the method": (lambda x: x.log_softmax(1), (4, 6), 2.0),
    "norm": (lambda x: x.norm().reshape(1), (4, 6), 1.0),
    "norm of an axis": (lambda x: torch.norm(x, p=2, dim=-1), (4, 6), 1.0),
    "sum norm": (lambda x: x.norm(1, dim=(1, 2)), (4, 6), 24**0.5),
    "largest norm": (lambda x: torch.linalg.vector_norm(x, ord=math.inf, dim=1, keepdim=True), (4, 6), 1.0),
    "linalg norm": (lambda x: torch.linalg.norm(x, dim=1), (4, 6), 1.0),
    "lp_pool": (lambda x: F.lp_pool2d(x[:, None], 2, (2, 3), stride=(2, 3)), (4, 6), 1.0),
    "lp_pool that overlaps": (lambda x: F.lp_pool1d(x, norm_type=2.0, kernel_size=3, stride=1), (4, 7), None),
    "where": (lambda x: torch.where(MASK, x, 0.0), (4, 6), 1.0),
    "where of two": (lambda x: torch.where(MASK, x, x.flip(1)), (4, 6), None),
    "where by names": (
        lambda x: torch.where(condition=MASK, input=x[:, :1], other=torch.zeros(3, 6).to(x.dtype)),
        (4, 6),
        3**0.5,
    ),
    "where of the method": (lambda x: x.where(MASK, torch.tensor(1.0).to(x.dtype)), (4, 6), 1.0),
    "masked_fill": (lambda x: x.masked_fill(mask=MASK, value=0.1), (4, 6), 1.0),
    "axes exchanged in place": (lambda x: (2 * x).transpose_(1, 2), (4, 6), 2.0),
    "an axis dropped in place": (lambda x: (2 * x[:, :, None]).squeeze_(2), (4, 6), 2.0),
    "an axis more in place": (lambda x: torch.cat(((2 * x).unsqueeze_(1), x[:, None]), 1), (4, 6), 5**0.5),
    "a triangle in place": (lambda x: (2 * x).tril_(), (4, 6), 2.0),
    "sums in place": (lambda x: x.clone().cumsum_(1), (1, 6), 1.0),
    "added to itself in place": (lambda x: (lambda y: y.add_(y))(x * 1), (4, 6), 2.0),
    "masked_fill in place": (lambda x: (2 * x).masked_fill_(MASK, -3), (4, 6), 2.0),
    "bilinear": (lambda x: F.interpolate(x[None], scale_factor=2, mode="bilinear"), (20, 20), None),
    "bilinear to a size": (
        lambda x: F.interpolate(x[None], size=(7, 5), mode="bilinear", align_corners=True),
        (4, 6),
        None,
    ),
    "bilinear down": (lambda x: F.interpolate(x[None], scale_factor=(0.5, 0.7), mode="bilinear"), (6, 9), None),
    "bilinear of an odd scale": (
        lambda x: F.interpolate(x[None], scale_factor=1.7, mode="bilinear", recompute_scale_factor=True),
        (5, 7),
        None,
    ),
    "bicubic": (lambda x: F.interpolate(x[None], scale_factor=2.0, mode="bicubic"), (5, 6), None),
    "linear": (lambda x: F.interpolate(x, 13, mode="linear"), (4, 6), None),
    "trilinear": (lambda x: nn.Upsample(scale_factor=2, mode="trilinear")(x[None]), (2, 3, 4), None),
    "area": (lambda x: F.interpolate(x[None], size=(3, 4), mode="area"), (5, 6), None),
    "cumsum": (lambda x: x.cumsum(-1), (4, 6), None),
    "cumsum by names": (lambda x: torch.cumsum(input=x, dim=1), (4, 6), None),
    "diff": (lambda x: x.diff(), (4, 6), None),
    "diff of diff": (lambda x: torch.diff(x, n=2, dim=1), (4, 6), None),
    "gather": (lambda x: x.gather(-1, PLACES), (4, 6), 2**0.5),
    "gather by names": (lambda x: torch.gather(input=x, dim=2, index=PLACES), (4, 6), 2**0.5),
    "take_along_dim": (lambda x: torch.take_along_dim(x, PLACES, dim=2), (4, 6), 2**0.5),
    "diagonal": (lambda x: x.diagonal(-1, 1, 2), (4, 6), 1.0),
    "tril": (lambda x: x.tril(diagonal=-1), (4, 6), 1.0),
    "triu": (lambda x: torch.triu(x, 1), (4, 6), 1.0),
    "lerp": (lambda x: torch.lerp(x, torch.ones_like(x), 0.25), (4, 6), 0.75),
    "lerp of two": (lambda x: x.lerp(end=x.flip(1), weight=-1.5), (4, 6), None),
    "lerp by entries": (lambda x: torch.zeros_like(x).lerp(x, torch.arange(6).to(x.dtype)), (4, 6), 5.0),
    "a matrix on the right": (lambda x: x @ like(W, x), (4, 6), None),
    "a matrix on the left": (lambda x: like(W, x).T @ x.mT, (4, 6), None),
    "a vector": (lambda x: x @ like(W[:, 0], x), (4, 6), None),
    "mv": (lambda x: torch.mv(x[0], vec=like(W[:, 0], x)), (4, 6), None),
    "matrices for each": (lambda x: x[:, :, None] @ like(HEADS, x), (3, 6), None),
    "matrices on one": (lambda x: x @ like(HEADS, x), (4, 6), None),
    "matrices on the left": (lambda x: torch.matmul(like(HEADS, x).mT, x.mT), (4, 6), None),
    "bmm": (lambda x: torch.bmm(x.permute(1, 0, 2), mat2=like(HEADS, x)), (3, 6), None),
    "addmm": (lambda x: torch.addmm(like(W[0], x), x[0], mat2=like(W, x), beta=3, alpha=-0.7), (4, 6), None),
    "addmm on the left": (lambda x: torch.addmm(torch.zeros(5, 4).to(x.dtype), like(W, x).T, x[0].T), (4, 6), None),
    "baddbmm": (
        lambda x: torch.baddbmm(torch.ones(1).to(x.dtype), x[0][:, None], like(HEADS, x), alpha=2),
        (3, 6),
        None,
    ),
    "einsum": (lambda x: torch.einsum("bij,jk->bik", x, like(W, x)), (4, 6), None),
    "einsum without a result": (lambda x: torch.einsum("zj, jk", x[0], like(W, x)), (4, 6), None),
    "einsum of heads": (lambda x: torch.einsum("bhj,hjk->bhk", x, like(HEADS, x)), (3, 6), None),
    "einsum of dots": (lambda x: torch.einsum("...j,kj->...k", x, like(W.T, x)), (4, 6), None),
    "einsum of both": (lambda x: torch.einsum("hjk,bhj->kb", like(HEADS, x), x), (3, 6), None),
    "einsum outer": (lambda x: torch.einsum("bij,k->bijk", x, like(W[0], x)), (4, 6), None),
    "einsum by entries": (lambda x: torch.einsum("bij,ij->bij", x, like(HEADS[:, :, 0], x)), (3, 6), None),
    "einsum of one": (lambda x: torch.einsum("bij->bj", x), (4, 6), 2.0),
    "einsum of a diagonal": (lambda x: torch.einsum("bii->bi", x), (4, 4), 1.0),
    "fold": (lambda x: F.fold(x, (3, 4), kernel_size=2), (4, 6), 2.0),
    "fold with steps": (lambda x: F.fold(x, (4, 4), (2, 2), 1, 0, stride=2), (8, 4), 1.0),
    "atan": (lambda x: torch.atan(x), (4, 6), 1.0),
    "asinh": (lambda x: x.asinh(), (4, 6), 1.0),
    "threshold": (lambda x: nn.Threshold(0, 0)(x), (4, 6), 1.0),
    "threshold elsewhere": (lambda x: F.threshold(x, 0.1, 0.1), (4, 6), 1.0),
    "data": (lambda x: x + 9 * x.data, (4, 6), None),
}


def images(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(1, *shape, generator=generator, dtype=torch.float64) * s for s in (0.1, 1.0, 10.0, 100.0)]
    # Where norms and softmax are steepest: one entry far above the others, and all equal.
    spike = found[1].clone()
    spike[(0, *(0,) * len(shape))] = 60.0
    return [*found, spike, torch.full((1, *shape), 0.5, dtype=torch.float64) + 1e-6 * found[1]]


def steepest(run: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
    """The largest norm of a Jacobian found, and of a chord along its strongest direction."""
    best = 0.0
    for x in images(shape):
        jacobian = torch.autograd.functional.jacobian(run, x).reshape(-1, x.numel())
        _, values, directions = torch.linalg.svd(jacobian, full_matrices=False)
        best = max(best, float(values[0]))
        for step in (1e-4, 0.3, 10.0):
            moved = x + step * directions[0].reshape(x.shape)
            best = max(best, float((run(moved) - run(x)).norm()) / step * (1 - 1e-9))
    return best


@pytest.mark.parametrize("name", RULES)
def test_never_exceeded_and_reached(name: str) -> None:
    run, shape, gain = RULES[name]
    network = Runs(lambda _, x: run(x), weight=nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    bound = lipschitz_bound(network, shape).value
    if gain is not None:
        assert gain * (1 - 1e-14) <= bound <= gain * (1 + 1e-5)
    if name != "data":  # a gradient does not see it
        found = steepest(run, shape)
        assert 0.7 * bound <= found <= bound
        if gain is not None:
            assert found >= 0.9 * bound


@pytest.mark.parametrize("name", RULES)
def test_float32_stays_within_the_bound(name: str) -> None:
    run, shape, _ = RULES[name]
    network = Runs(lambda _, x: run(x))
    for image in images(shape):
        x = image.float()
        error = float((run(x).double() - run(x.double())).norm())
        bound = rounding_bound(network, shape, torch.float32, float(x.double().norm()))
        assert error <= bound
        assert bound <= 1e-3 * max(1.0, float(x.norm()))


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "places": (lambda x: x.max(1).indices.double(), "jump"),
    "places as an index": (lambda x: x.gather(1, x.argmax(1, keepdim=True)), "depends on the image as"),
    "places of a sort": (lambda x: x[:, x.sort(1)[1][0]], "jump"),
    "places as the output": (lambda x: x.argsort(1), "jump"),
    "places compared": (lambda x: x * 100 if int(x.argmax()) == 3 else x, "item|int|index"),
    "an unsorted topk": (lambda x: x.topk(2, sorted=False)[0], "sorted"),
    "a mask from the image": (lambda x: torch.where(x > 0, x, -x), "gt"),
    "a filling from the image": (lambda x: x.masked_fill(MASK, x.sum()), "as value"),
    "a threshold that jumps": (lambda x: F.threshold(x, 0, 1), "jumps"),
    "a norm of order 0": (lambda x: x.norm(0, dim=1), "order 0"),
    "a norm of matrices": (lambda x: torch.linalg.norm(x, ord=2, dim=(0, 1)).reshape(1), "matrices"),
    "a nuclear norm": (lambda x: torch.norm(x, p="nuc").reshape(1), "nuc"),
    "lp_pool of cubes": (lambda x: F.lp_pool1d(x[None], 3, 2), "order 3"),
    "lp_pool that counts short windows": (lambda x: F.lp_pool1d(x[None], 2, 4, ceil_mode=True), "ceil_mode"),
    "antialias": (lambda x: F.interpolate(x[None], size=3, mode="linear", antialias=True), "antialias"),
    "lerp by the image": (lambda x: x.lerp(x, x), "weight"),
    "einsum of the image with itself": (lambda x: torch.einsum("bi,bi->b", x, x), "both depend"),
    "einsum of three": (lambda x: torch.einsum("bi,i,i->bi", x, torch.ones(6), torch.ones(6)), "3 operands"),
    "einsum that sums one": (lambda x: torch.einsum("bi,j->b", x, torch.ones(2)), "one operand alone"),
    "addmm of the image": (lambda x: torch.addmm(x, x, torch.eye(6)), "add it to the product"),
    "statistics of the image": (lambda x: F.instance_norm(x[None]), "track_running_stats"),
    "exp": (lambda x: x.exp(), "exp .*slope"),
    "pow": (lambda x: x**2, "pow.*slope"),
    "an axis out of range": (lambda x: x.max(7)[0], "range"),
    "cumsum out of range": (lambda x: x.cumsum(7), "range"),
    "a huge number": (lambda x: x * 10**400, "401 digits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_is_wrong(name: str) -> None:
    run, words = REFUSED[name]
    with pytest.raises(ShapeError, match=words):
        lipschitz_bound(Runs(lambda _, x: run(x)), (6,))


def test_places_show_their_shape() -> None:
    def run(_: Any, x: Tensor) -> Tensor:
        values, places = x.topk(2)
        return values * places.shape[-1]

    assert lipschitz_bound(Runs(run), (6,)).value == pytest.approx(2)


def test_a_half_that_was_written_into_is_its_own() -> None:
    def run(_: Any, x: Tensor) -> Tensor:
        a = (x * 1).chunk(2, 1)[0]
        a.mul_(5)
        return torch.cat((a, a), 1)

    assert lipschitz_bound(Runs(run), (6,)).value == pytest.approx(5 * 2**0.5)


def test_instance_norm_with_statistics() -> None:
    network = nn.Sequential(nn.InstanceNorm2d(3, affine=True, track_running_stats=True)).double()
    network[0].running_var.copy_(torch.tensor([0.25, 1.0, 4.0]))
    network[0].weight.data.copy_(torch.tensor([3.0, -1.0, 2.0]))
    assert lipschitz_bound(network, (3, 4, 4)).value == pytest.approx(6, rel=1e-4)
    with pytest.raises(ShapeError, match="track_running_stats"):
        lipschitz_bound(nn.Sequential(nn.InstanceNorm2d(3)), (3, 4, 4))


def test_max_and_min_in_a_certifier() -> None:
    network = Runs(lambda net, x: net.last(max_min(net.first(x))), first=nn.Linear(6, 6), last=nn.Linear(6, 3))
    certifier = Certifier(network, (6,))
    norms = [
        float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2)) for layer in (network.first, network.last)
    ]
    assert certifier.bound.value == pytest.approx(norms[0] * norms[1], rel=1e-5)
    assert certifier.logits(torch.rand(5, 6)).shape == (5, 3)


def test_the_same_maximum_several_times_in_a_certifier() -> None:
    """The bound and the radius hold though one value stands in a concatenation 9 times."""
    join = picked(9, 1, lambda parts: torch.cat(parts, 1))
    network = Runs(lambda net, x: net.last(join(net.first(x))), first=nn.Linear(4, 4), last=nn.Linear(20, 2))
    with torch.no_grad():
        network.first.weight.copy_(torch.eye(4))
        network.first.bias.copy_(torch.tensor([0.2, 0.3, -0.2, -0.3]))
        network.last.weight.copy_(torch.cat((torch.ones(1, 18), torch.zeros(1, 2)), 1) * torch.tensor([[1.0], [-1.0]]))
        network.last.bias.copy_(torch.tensor([-9.0, 9.0]))
    certifier, image = Certifier(network, (4,)), torch.full((1, 4), 0.5, dtype=torch.float64)
    logits = certifier.logits(image)
    label = logits.argmax(1)
    radius = float(certifier.radii(logits, label))
    # All of m equally large is the shortest way to a tie: 9 (m_1 + m_2) = 9.
    step = torch.tensor([[-0.25, -0.25, 0.0, 0.0]], dtype=torch.float64)
    assert abs(float(certifier.network(image + step).diff())) < 1e-6
    assert 0.99 * float(step.norm()) <= radius <= float(step.norm())
