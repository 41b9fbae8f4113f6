"""Random chains of functions: ranges, constants and rounding bounds hold wherever a chain is not refused."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.certificates.interpreter import Trace, prove
from svdctl.errors import ShapeError
from tests.certificates.test_what_is_proved import Runs

MASK = torch.tensor([True, False, True, False])
OF_ONE: tuple[Callable[[Tensor, random.Random], Tensor], ...] = (
    lambda x, _: x.tanh(),
    lambda x, _: x.sigmoid(),
    lambda x, _: x.abs(),
    lambda x, _: F.relu(x),
    lambda x, _: x.exp(),
    lambda x, _: x.expm1(),
    lambda x, _: x.square(),
    lambda x, _: x.sqrt(),
    lambda x, _: x.rsqrt(),
    lambda x, _: x.log(),
    lambda x, _: x.log1p(),
    lambda x, _: x.cosh(),
    lambda x, _: x.sinh(),
    lambda x, _: x.sin(),
    lambda x, _: 1 / x,
    lambda x, _: x.softmax(-1),
    lambda x, _: F.logsigmoid(x),
    lambda x, _: F.elu(x),
    lambda x, _: F.normalize(x, dim=-1, eps=0.5),
    lambda x, _: x.sort(-1)[0],
    lambda x, _: x.mean(-1, keepdim=True).expand(-1, 4),
    lambda x, _: F.avg_pool1d(x, 3, 1, 1),
    lambda x, r: F.softplus(x, r.uniform(0.3, 2)),
    lambda x, r: x.clamp(*sorted((r.uniform(-3, 3), r.uniform(-3, 3)))),
    lambda x, r: x.clamp(min=r.uniform(-1, 1)),
    lambda x, r: x.clamp(max=r.uniform(-1, 2)),
    lambda x, r: x * r.uniform(-3, 3),
    lambda x, r: x / r.uniform(0.3, 3),
    lambda x, r: x + r.uniform(-2, 2),
    lambda x, r: r.uniform(-2, 2) - x,
    lambda x, r: x ** r.choice([2, 3, 4, -1, -2, 0.5, 1.5, -0.7, 0.37]),
    lambda x, r: r.uniform(0.2, 3) ** x,
    lambda x, r: x.masked_fill(MASK, r.uniform(-2, 2)),
)
OF_TWO: tuple[Callable[[Tensor, Tensor, random.Random], Tensor], ...] = (
    lambda a, b, _: a * b,
    lambda a, b, _: a / b,
    lambda a, b, _: a + b,
    lambda a, b, _: torch.maximum(a, b),
    lambda a, b, _: torch.where(MASK, a, b),
    lambda a, b, r: torch.sub(a, b, alpha=r.uniform(-2, 2)),
)


def chain(seed: int) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        choose, values = random.Random(seed), [x, x.clamp(-2, 1.5)]
        for _ in range(choose.randint(2, 7)):
            if choose.random() < 0.3:
                function = choose.choice(OF_TWO)
                values.append(function(choose.choice(values), choose.choice(values), choose))
            else:
                one = choose.choice(OF_ONE)
                values.append(one(values[-1] if choose.random() < 0.7 else choose.choice(values), choose))
        return values[-1]

    return run


CENTRE = 0.3


def proved(run: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Trace | None:
    network = Runs(lambda _, x: run(x), weight=nn.Parameter(torch.zeros(1, dtype=dtype)))
    try:
        return prove(network, torch.full((1, 4), CENTRE, dtype=dtype))[1]
    except ShapeError:
        return None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_random_chains(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 4, generator=generator, dtype=torch.float64)
    line = torch.linspace(-4, 4, 801, dtype=torch.float64)[:, None].expand(-1, 4)
    images = torch.cat((0.1 * noise, noise, 10 * noise, line)).to(dtype)
    steps = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    steps = (steps / steps.norm(dim=1, keepdim=True)).to(dtype)
    followed = 0
    for seed in range(150):
        run = chain(seed)
        trace = proved(run, dtype)
        if trace is None:
            continue
        followed += 1
        # Nothing is said of images so far away that values may overflow.
        near = (images.double() - CENTRE).norm(dim=1) + 0.1 <= trace.farthest
        if not near.any():
            continue
        inputs = images[near]
        bounds, found, exact = trace.bounds, run(inputs).double(), run(inputs.double())
        error = bounds.error.constant + bounds.error.slope * ((inputs.double() - CENTRE).norm(dim=1) + 0.1)
        assert bounds.interval.lo <= float(found.min()), seed
        assert float(found.max()) <= bounds.interval.hi, seed
        assert bool(((found - exact).norm(dim=1) <= error).all()), seed
        for size in (1e-4, 0.1):
            moved = (inputs + size * steps[near]).double()
            apart = (moved - inputs.double()).norm(dim=1)
            change = (run(moved) - exact).norm(dim=1)
            # Float64 rounds by less than the bound of either precision.
            assert bool((change <= bounds.lipschitz * apart * (1 + 1e-9) + 2 * error).all()), seed
    assert followed >= 40
