"""The norm of a layer as it runs, with its padding and on its input size: a lower bound by Lanczos steps.

For any vector x, `|A x| / |x|` is a lower bound of the norm; Lanczos steps on `A^T A` choose x well. Together with the
bound for every size it makes a bracket. The operator is never formed: `A x` is the layer's forward pass, `A^T y` its
derivative.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


def padded_norm(operator: Operator, input_shape: tuple[int, ...], *, like: Tensor, steps: int = 16) -> Tensor:
    """Return a lower bound, close to it, of the norm of a linear operator: a number in float64, which is not read.

    Args:
        operator: maps `(1, *input_shape)` linearly, without bias, in the precision of its argument.
        input_shape: shape of one input without the batch axis.
        like: a tensor on the device to use.
        steps: passes forth and back.
    """
    generator = torch.Generator().manual_seed(0)
    # The search may round as it likes: what it found is measured in float64.
    start = torch.randn(1, *input_shape, generator=generator, dtype=torch.float32).to(like.device)
    with torch.no_grad():
        scale = operator(start.double()).abs().amax()
        scale = torch.where(scale > 0, scale, 1.0)

    def normal(vectors: Tensor) -> Tensor:
        with torch.enable_grad():
            x = vectors.reshape(start.shape).requires_grad_()
            image = operator(x)
            # Squares of large and small gains over- and underflow in float32.
            (back,) = torch.autograd.grad(image, x, image.detach() / scale)
        # Of gains that float32 does not hold nothing is found, and the bound below is that of some vector.
        return (back / scale).nan_to_num(0.0, 0.0, 0.0).flatten(1)

    best = lanczos(normal, start.flatten(1), steps)[1].reshape(start.shape).double()
    with torch.no_grad():
        image, size = operator(best), best.norm()
        largest = image.abs().amax().clamp_min(torch.finfo(image.dtype).tiny)
        reached = (image / largest).norm() * largest
        # Of an operator that is zero there is no best vector. Rounding of one pass in float64, generously.
        return torch.where(size > 0, reached / size, 0.0) * (1 - 1e-10)


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the largest Ritz values `(B,)` and unit vectors `(B, n)` of symmetric operators, orthogonalised in full.

    Args:
        product: applies the operators to vectors `(B, n)`.
        start: vectors `(B, n)`.
        steps: products.
    """
    steps = min(steps, start.shape[-1])
    info = torch.finfo(start.dtype)
    basis = torch.empty(len(start), steps, start.shape[-1], dtype=start.dtype, device=start.device)
    torch.mul(start, _norms(start).clamp_min(info.tiny).reciprocal(), out=basis[:, 0])
    diagonal, beside = [], []
    for step in range(steps):
        image = product(basis[:, step])
        span = basis[:, : step + 1]
        shares = _shares(span, image)
        diagonal.append(shares[:, -1])
        if step + 1 == steps:
            break
        # Twice: one pass leaves what rounding adds.
        residual = torch.baddbmm(image[..., None], span.mT, shares, alpha=-1)[..., 0]
        residual = torch.baddbmm(residual[..., None], span.mT, _shares(span, residual), alpha=-1)[..., 0]
        length = _norms(residual)
        # Where the space is exhausted, rounding alone is left: no direction of it, or values would be made up.
        is_new = length > info.eps**0.5 * _norms(image)
        torch.mul(residual, is_new / length.clamp_min(info.tiny), out=basis[:, step + 1])
        beside.append(length * is_new)
    projected = torch.diag_embed(torch.cat(diagonal, -1))
    if beside:
        projected = projected + torch.diag_embed(torch.cat(beside, -1), offset=-1)
    values, coordinates = torch.linalg.eigh(projected)  # reads what is below the diagonal alone
    found = torch.bmm(basis.mT, coordinates[..., -1:])[..., 0]
    return values[:, -1], found / _norms(found).clamp_min(info.tiny)


def _shares(span: Tensor, vectors: Tensor) -> Tensor:
    """Return the coordinates `(B, k, 1)` of vectors `(B, n)` along orthonormal ones `(B, k, n)`."""
    return torch.bmm(span, vectors[..., None])


def _norms(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
