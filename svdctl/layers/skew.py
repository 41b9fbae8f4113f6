"""Skew-symmetric convolutions and their exponentials, as functions of kernels `(c, c, k, k)`, k odd.

Note 1, skew. Under zero padding by k // 2 the transpose of a convolution has the kernel with channels exchanged and
taps reversed. So `(M - flip-transpose M) / 2` is exactly skew, floating point included, and its exponential orthogonal
(Singla and Feizi 2021).

Note 2, four norms that are two. The norm of a convolution is at most `k` times the norm of any of the unfoldings
`(o, i p q)`, `(o p, i q)`, `(o q, i p)`, `(o p q, i)`. Of a skew kernel the first and the last are each other's
negative transposes with reversed taps, and so are the middle ones: two norms tell all four.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from svdctl.errors import ShapeError


def skew_part(kernel: Tensor) -> Tensor:
    """Return `(M - flip-transpose M) / 2` of kernels `(c, c, k, k)`."""
    return (kernel - kernel.transpose(0, 1).flip((-2, -1))) / 2


def unfoldings(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return matrices `(c, c k k)` and `(c k, c k)` whose norms are those of all four unfoldings of a skew kernel."""
    return kernel.flatten(1), kernel.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)


def space_to_depth(x: Tensor, stride: int) -> Tensor:
    """Bring `(N, C, H, W)` to `(N, C s^2, H / s, W / s)`, as `pixel_unshuffle`, which forgets to do so for N = 0.

    Raises:
        ShapeError: sides that the stride does not divide.
    """
    count, channels, height, width = x.shape
    if height % stride or width % stride:
        raise ShapeError(
            f"a skew orthogonal layer of stride {stride} takes images whose sides are divisible by {stride}, not "
            f"{height}x{width}; pad or crop them"
        )
    parts = x.reshape(count, channels, height // stride, stride, width // stride, stride)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(count, channels * stride**2, height // stride, width // stride)


def power_step(matrix: Tensor, right: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
    """Return left and right unit vectors after some power steps from `right`."""
    left = matrix @ right
    for step in range(steps):
        left = F.normalize(left if step == 0 else matrix @ right, dim=0)
        right = F.normalize(matrix.T @ left, dim=0)
    return left, right


def series_kernel(kernel: Tensor, power: int, terms: int, inputs: int, outputs: int) -> Tensor:
    """Return the kernel from one power of the series to the next: over `power`, without channels not needed.

    Args:
        kernel: `(c, c, k, k)`.
        power: 1 to `terms`.
        terms: last power.
        inputs: channels of the first power's input.
        outputs: channels of the last power that are kept.
    """
    part = kernel[:, :inputs] if power == 1 else kernel
    part = part[:outputs] if power == terms else part
    return part / power if power > 1 else part


def exponential_series(x: Tensor, kernel: Tensor, terms: int, outputs: int) -> Tensor:
    """Return `sum_{i <= terms} J^i x / i!` for a skew convolution J under zero padding, channels padded and cut.

    Args:
        x: `(N, inputs, H, W)`; the missing channels up to c are zeros, and are never made.
        kernel: `(c, c, k, k)`.
        terms: last power.
        outputs: channels of the result `(N, outputs, H, W)`, the first ones.
    """
    inputs, padding = x.shape[1], kernel.shape[-1] // 2
    total = x[:, :outputs]
    if outputs > inputs:
        total = F.pad(total, (0, 0, 0, 0, 0, outputs - inputs))
    power = x
    for i in range(1, terms + 1):
        power = F.conv2d(power, series_kernel(kernel, i, terms, inputs, outputs), padding=padding)
        # In place only outside the compiler: that of torch 2.11 loses the gradients of an autograd function doing so.
        if i == 1 or torch.compiler.is_compiling():
            total = total + power[:, :outputs]
        else:
            total += power[:, :outputs]
    return total


def exponential_matrix(matrix: Tensor, terms: int) -> Tensor:
    """Return `sum_{i <= terms} J^i / i!` of a matrix, by Horner's rule."""
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    total = identity
    for i in range(terms, 0, -1):
        total = identity + (matrix / i) @ total
    return total
