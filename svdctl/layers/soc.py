"""SOC, the skew orthogonal convolution: the exponential of a skew-symmetric convolution (Singla and Feizi 2021)."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.errors import ShapeError
from svdctl.layers.normalized_skew import normalized_skew
from svdctl.layers.recomputed_series import recomputed_series
from svdctl.layers.skew import exponential_matrix, exponential_series, power_step, skew_part, space_to_depth, unfoldings
from svdctl.spectral.convolution import is_count

_WARM_UP = 50


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast; on the meta device, which has none, one that does nothing."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class SOC(nn.Module):
    """Convolution that is orthogonal but for the cut of its series, for images of even sides when it strides.

    The free kernel M has `max(out_channels, stride^2 in_channels)` channels on both sides. Its skew part, divided by
    the smallest norm of its unfoldings and multiplied by `scale`, is exponentiated. Stride 2 turns space into channels
    first; missing channels are zeros, superfluous ones are dropped.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: odd; of a square, both sides may be given.
        stride: 1 or more.
        bias: add a bias `(O,)`.
        train_terms: last power of the series in training mode.
        eval_terms: the same in evaluation mode.
        scale: factor on the skew kernel; 0.7, or 1 for a 1x1 kernel, if not given.
        checkpoint_activations: compute the powers again in the backward pass instead of keeping them.

    Raises:
        ShapeError: an even kernel, or no channel, stride or term; of a call, sides that the stride does not divide.

    >>> import torch
    >>> layer = svdctl.SOC(4, 8, 3, stride=2).eval()
    >>> x = torch.randn(1, 4, 8, 8)
    >>> layer(x).shape
    torch.Size([1, 8, 4, 4])
    >>> bool(layer(x).norm() <= 1.001 * x.norm())
    True
    """

    right1: Tensor
    right2: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        stride: int = 1,
        bias: bool = True,
        train_terms: int = 5,
        eval_terms: int = 12,
        scale: float | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        counts = (in_channels, out_channels, stride, train_terms, eval_terms)
        if not all(map(is_count, counts)):
            raise ShapeError(
                "a SOC layer needs whole numbers of at least one channel, a stride and a term of its series, not "
                f"in_channels={in_channels!r}, out_channels={out_channels!r}, stride={stride!r}, "
                f"train_terms={train_terms!r}, eval_terms={eval_terms!r}"
            )
        if isinstance(kernel_size, tuple | list) and len(kernel_size) == 2 and kernel_size[0] == kernel_size[1]:
            kernel_size = kernel_size[0]
        if not is_count(kernel_size) or isinstance(kernel_size, tuple):
            raise ShapeError(f"the kernel of a SOC layer is square, its size one odd number, not {kernel_size!r}")
        if kernel_size % 2 == 0:
            raise ShapeError(
                f"a SOC kernel has an odd size, or it could not be skew; use 1, 3, 5, ..., not {kernel_size}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = kernel_size, stride
        self.train_terms, self.eval_terms = train_terms, eval_terms
        self.scale = (1.0 if kernel_size == 1 else 0.7) if scale is None else scale
        self.checkpoint_activations = checkpoint_activations
        width = self.width
        self.kernel = nn.Parameter(torch.randn(width, width, kernel_size, kernel_size) / math.sqrt(width))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)
        self.register_buffer("right1", F.normalize(torch.randn(width * kernel_size**2), dim=0))
        self.register_buffer("right2", F.normalize(torch.randn(width * kernel_size), dim=0))
        self.refine_norm_estimate_(_WARM_UP)

    @property
    def width(self) -> int:
        """Return the channels of the skew convolution."""
        return max(self.out_channels, self.stride**2 * self.in_channels)

    def series_terms(self, training: bool) -> int:
        """Return the last power of the series."""
        return self.train_terms if training else self.eval_terms

    @torch.no_grad()
    def refine_norm_estimate_(self, steps: int = _WARM_UP) -> None:
        """Take power steps for the norms of the unfoldings; a training loop does so at times, as every 200 steps."""
        if self.kernel.is_meta:
            return  # shapes alone have no norms
        for matrix, right in zip(unfoldings(skew_part(self.kernel)), (self.right1, self.right2), strict=True):
            right.copy_(power_step(matrix, right, steps)[1])

    def skew_kernel(self) -> Tensor:
        """Return the kernel `(c, c, k, k)` that the forward pass exponentiates, detached; exactly skew."""
        return self._generator(update=False).detach()

    def _generator(self, update: bool) -> Tensor:
        """Return the normalised skew kernel, in the parameters' precision even under autocast."""
        with full_precision(self.kernel.device):
            skew = skew_part(self.kernel)
            norms = []
            for matrix, right in zip(unfoldings(skew), (self.right1, self.right2), strict=True):
                with torch.no_grad():
                    left, found = power_step(matrix, right, 1)
                    if update:
                        right.copy_(found)
                # Constant vectors, clones: the buffers change while the backward pass is still to come.
                norms.append(left.clone() @ (matrix @ found.clone()))
            smallest = torch.minimum(*norms).clamp_min(torch.finfo(skew.dtype).tiny)
            return normalized_skew(skew, smallest, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self._generator(update=self.training)
        if self.stride > 1:
            x = space_to_depth(x, self.stride)
        terms = self.series_terms(self.training)
        # One matrix for all pixels, where there are more of them than channels; else its series at each of them.
        if self.kernel_size == 1 and x[:, 0].numel() > self.width:
            with full_precision(kernel.device):
                matrix = exponential_matrix(kernel[:, :, 0, 0], terms)[: self.out_channels, : x.shape[1]]
            return F.conv2d(x, matrix[:, :, None, None], self.bias)
        if self.checkpoint_activations and self.training and torch.is_grad_enabled():
            # The vectors have moved already, outside of what is computed twice.
            y = recomputed_series(x, kernel, terms, self.out_channels)
        else:
            y = exponential_series(x, kernel, terms, self.out_channels)
        assert isinstance(y, Tensor)
        return y if self.bias is None else y + self.bias[:, None, None]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"terms={self.train_terms}/{self.eval_terms}, scale={self.scale}"
        )


class FixedSOC(nn.Module):
    """What a SOC layer computes in evaluation mode, its normalised kernel (1x1: its exponential) computed once."""

    stands_for = "SOC"
    kernel: Tensor
    bias: Tensor | None

    @torch.no_grad()
    def __init__(self, layer: SOC) -> None:
        super().__init__()
        self.stride, self.terms, self.outputs = layer.stride, layer.series_terms(training=False), layer.out_channels
        kernel = layer.skew_kernel()
        self.is_matrix = kernel.shape[-1] == 1
        if self.is_matrix:
            inputs = layer.in_channels * layer.stride**2
            kernel = exponential_matrix(kernel[:, :, 0, 0], self.terms)[: self.outputs, :inputs, None, None].clone()
        self.register_buffer("kernel", kernel)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = space_to_depth(x, self.stride)
        if self.is_matrix:
            return F.conv2d(x, self.kernel, self.bias)
        y = exponential_series(x, self.kernel, self.terms, self.outputs)
        return y if self.bias is None else y + self.bias[:, None, None]
