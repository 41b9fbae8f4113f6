"""A convolution as mathematics: a kernel with its stride and dilation, free of any module.

Norms are computed of one normal form, the polyphase kernel: strides become channels, and for norms over all input sizes
dilations disappear. docs/theory.md, "The operator", has the proofs.
"""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from svdctl.errors import ShapeError
from svdctl.utils.printable import shown


@dataclass(frozen=True)
class Convolution:
    """A kernel with stride and dilation, free of any module; `make` makes one of a weight in torch's layout.

    Args:
        kernel: `(G, O, I, *k)` of G groups.
        stride, dilation: one number for each of the d spatial axes.
        transposed: stands for the adjoint of that convolution: the same singular values, reached from the other side.

    >>> import torch
    >>> conv = svdctl.Convolution.make(torch.ones(1, 1, 2), stride=2)
    >>> svdctl.spectral_norm_bound(conv).upper < 1.5
    True
    """

    kernel: Tensor
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False

    def __post_init__(self) -> None:
        axes, dtype = self.kernel.ndim - 3, self.kernel.dtype
        if axes < 1 or len(self.stride) != axes or len(self.dilation) != axes:
            raise ShapeError(
                f"a kernel (G, O, I, *k) of shape {tuple(self.kernel.shape)}, stride {self.stride} and dilation "
                f"{self.dilation} are of no convolution; Convolution.make takes a kernel in torch's layout"
            )
        if not dtype.is_floating_point or dtype.itemsize < 4:
            raise ShapeError(f"a kernel holds real numbers in float32 or float64, not {dtype}; convert it by .float()")

    @classmethod
    def make(
        cls,
        kernel: Tensor,
        *,
        stride: int | tuple[int, ...] = 1,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        transposed: bool = False,
    ) -> Self:
        """Return the convolution by a kernel in torch's layout: `(O, I/g, *k)`, or `(I, O/g, *k)` of a transposed one.

        A transposed convolution is the adjoint of the convolution with the same weight, so its singular values are
        those of that one.
        """
        axes = kernel.ndim - 2
        if axes < 1:
            raise ShapeError(f"a convolution's kernel has at least three axes, not shape {tuple(kernel.shape)}")
        if not kernel.dtype.is_floating_point:
            raise ShapeError(f"a kernel holds real floating-point numbers, not {kernel.dtype}; convert it by .float()")
        if kernel.layout is not torch.strided:
            raise ShapeError(f"a kernel is a dense tensor, not {kernel.layout}; convert it by .to_dense()")
        if kernel.is_meta:
            raise ShapeError("weights on the meta device have no values yet; load them first")
        if torch._C._functorch.is_functorch_wrapped_tensor(kernel):
            raise ShapeError(
                "a kernel inside torch.func (vmap, grad, ...) has no numbers that could be read; call this outside, on "
                "each kernel"
            )
        if is_freed(kernel):
            raise ShapeError(f"the memory of a kernel {FREED}")
        if kernel.numel() == 0:
            raise ShapeError(f"a kernel of shape {tuple(kernel.shape)} has no entries, and no singular values")
        if not is_count(groups) or kernel.shape[0] % groups:
            raise ShapeError(f"{kernel.shape[0]} channels do not divide into {groups!r} groups")
        # A half-precision kernel is exact in float32, its singular values are not in its own precision.
        kernel = kernel.float() if kernel.itemsize < 4 else kernel
        grouped = kernel.reshape(groups, kernel.shape[0] // groups, *kernel.shape[1:])
        return cls(grouped, per_axis(stride, axes), per_axis(dilation, axes), transposed)

    @property
    def axes(self) -> int:
        """Return the number of spatial axes."""
        return self.kernel.ndim - 3

    @property
    def taps(self) -> tuple[int, ...]:
        """Return the kernel size along each spatial axis."""
        return tuple(self.kernel.shape[3:])

    @property
    def weight(self) -> Tensor:
        """Return the kernel in torch's layout, `(G O, I, *k)`."""
        return self.kernel.flatten(0, 1)

    def with_kernel(self, kernel: Tensor) -> Self:
        """Return the same convolution with another kernel `(G, O, I, *k)`."""
        return replace(self, kernel=kernel)

    @property
    def reduced_stride(self) -> tuple[int, ...]:
        """Return the stride of the convolution of equal norm that has no dilation."""
        return tuple(s // math.gcd(s, d) for s, d in zip(self.stride, self.dilation, strict=True))

    def polyphase(self) -> Tensor:
        """Return the stride-1 kernel `(G, O, I * prod(s), *k')` of equal norm, its taps past the support zero."""
        kernel = self.kernel
        for axis, step in enumerate(self.reduced_stride):
            if step == 1:
                continue
            kernel = kernel.movedim(3 + axis, -1)
            kernel = torch.nn.functional.pad(kernel, (0, -kernel.shape[-1] % step))
            kernel = kernel.unflatten(-1, (-1, step)).movedim(-1, 3).flatten(2, 3).movedim(-1, 3 + axis)
        return kernel

    @property
    def polyphase_shape(self) -> tuple[int, ...]:
        """Return the shape of `polyphase`."""
        groups, out, channels, *taps = self.kernel.shape
        steps = self.reduced_stride
        return groups, out, channels * math.prod(steps), *(-(-k // s) for k, s in zip(taps, steps, strict=True))

    def support(self) -> Tensor:
        """Return `(1, 1, I * prod(s), *k')`: ones on the taps that the kernel has, zeros elsewhere."""
        return self.with_kernel(torch.ones_like(self.kernel[:1, :1])).polyphase()

    def from_polyphase(self, kernel: Tensor) -> Self:
        """Return the convolution whose polyphase kernel is `kernel`, taps past the support dropped."""
        for axis, (step, taps) in reversed(list(enumerate(zip(self.reduced_stride, self.taps, strict=True)))):
            if step == 1:
                continue
            kernel = kernel.movedim(3 + axis, -1).unflatten(2, (-1, step)).movedim(3, -1).flatten(-2)
            kernel = kernel[..., :taps].movedim(-1, 3 + axis)
        return self.with_kernel(kernel.contiguous())


FREED = (
    "was freed (sharded training, as by FSDP, does so between passes); gather the parameters first, as by "
    "FSDP.summon_full_params or unshard()"
)
"""What to say of a tensor that `is_freed`."""


def is_freed(tensor: Tensor) -> bool:
    """Return whether the storage of an ordinary tensor has fewer bytes than its entries take."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
        return False
    last = tensor.storage_offset() + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() < (last + 1) * tensor.itemsize


def per_axis(value: int | Iterable[int], axes: int, what: str = "stride and dilation need") -> tuple[int, ...]:
    """Return one number for each axis.

    Raises:
        ShapeError: another count of them, or others than whole numbers from 1; `what` begins the sentence.
    """
    values = tuple(value) if isinstance(value, Iterable) else (value,) * axes
    if len(values) != axes or not all(is_count(number) and number < 2**31 for number in values):
        raise ShapeError(f"{what} {axes} positive numbers, not {shown(value)}")
    return values


def is_count(number: object) -> bool:
    """Return whether something is a whole number from 1 on."""
    try:
        return operator.index(number) >= 1  # type: ignore[arg-type]
    except TypeError:
        return False
