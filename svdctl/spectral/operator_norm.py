"""The norm of a layer as it runs, with its padding and on its input size: a lower bound by Lanczos steps.

For any vector x, `|A x| / |x|` is a lower bound of the norm; Lanczos steps on `A^T A` choose x well. Together with the
bound for every size it makes a bracket. The operator is never formed: `A x` is the layer's forward pass, `A^T y` its
derivative.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from svdctl.spectral.lower_bounds import lanczos

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

    def normal(vectors: Tensor) -> Tensor:
        with torch.enable_grad():
            x = vectors.reshape(start.shape).requires_grad_()
            image = operator(x)
            (back,) = torch.autograd.grad(image, x, image.detach())
        return back.flatten(1)

    best = lanczos(normal, start.flatten(1), steps)[1].reshape(start.shape).double()
    with torch.no_grad():
        reached, size = operator(best).norm(), best.norm()
        # Of an operator that is zero there is no best vector. Rounding of one pass in float64, generously.
        return torch.where(size > 0, reached / size, 0.0) * (1 - 1e-10)
