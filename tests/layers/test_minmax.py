"""MinMax: its values, and derivatives that are permutations."""

import pytest
import torch

from svdctl.errors import ShapeError
from svdctl.layers.minmax import MinMax


def test_minimum_and_maximum_of_the_halves() -> None:
    x = torch.tensor([1.0, -2.0, 0.5, 3.0, -4.0, 0.5]).reshape(1, 6, 1, 1)
    assert MinMax()(x).flatten().tolist() == [1.0, -4.0, 0.5, 3.0, -2.0, 0.5]


def test_gradient_is_permuted_even_where_members_are_equal() -> None:
    torch.manual_seed(0)
    x = torch.randint(-2, 3, (4, 6, 3, 2)).float().requires_grad_()
    gradient = torch.randn(4, 6, 3, 2)
    y = MinMax()(x)
    assert (x[:, :3] == x[:, 3:]).any()
    y.backward(gradient)
    first, second = gradient.chunk(2, 1)
    pairs = torch.stack(x.grad.chunk(2, 1)).sort(0).values
    assert torch.equal(pairs, torch.stack((first, second)).sort(0).values)
    products = (x.grad * x.detach()).chunk(2, 1), (gradient * y.detach()).chunk(2, 1)
    assert torch.equal(sum(products[0]), sum(products[1]))


def test_derivatives_of_all_kinds() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MinMax(), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(MinMax(), x)
    assert torch.equal(torch.func.jacrev(MinMax())(x), torch.func.jacfwd(MinMax())(x))
    assert torch.equal(torch.vmap(MinMax())(x[:, None])[:, 0], MinMax()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_numbers_and_halves(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.finfo(dtype).max, -torch.inf, 1.0, torch.inf], dtype=dtype).reshape(1, 4, 1, 1)
    x.requires_grad_()
    y = MinMax()(x)
    assert torch.equal(y.flatten(), x.detach().flatten()[[2, 1, 0, 3]])
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype).reshape(1, 4, 1, 1))
    assert x.grad.flatten().tolist() == [3.0, 2.0, 1.0, 4.0]


def test_odd_widths_are_refused() -> None:
    with pytest.raises(ShapeError, match="pairs channels"):
        MinMax()(torch.zeros(1, 3, 2, 2))
