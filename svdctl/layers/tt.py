"""Tensor-train convolutions: a small core between two matrices with orthonormal columns, the frames."""

import copy
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.errors import ShapeError
from svdctl.layers.stiefel import (
    QR_ROUNDINGS,
    Method,
    Retraction,
    mean_gradients,
    parametrize_frames_,
    positive_factor,
    random_frame,
    retractions,
    tangent_parts,
)
from svdctl.layers.stored_weight import computed_weight, why_not_as_stored
from svdctl.layers.tt_fit import fitted_frames
from svdctl.spectral.bounds import taps_norm
from svdctl.spectral.convolution import Convolution, is_count
from svdctl.spectral.exact_arithmetic import exact_products
from svdctl.spectral.stacks import in_stacks

PenaltyCount = Literal["paper", "entries"]
"""What the penalty is divided by: `paper`, twice the squared output rank of each layer; `entries`, the entries of all
Gram matrices."""
FramesKind = Literal["free", "penalty", "retract", "parametrize"]


class TTConv(nn.Module):
    """Convolution with kernel `K[o, i] = sum_ab frame_out[o, b] core[b, a] frame_in[i, a]`, on `axes` spatial axes.

    With orthonormal frames its non-zero singular values are those of the core (Senderovich et al. 2022, Theorem 1).
    When the rank reaches both widths the frames are absent and the core is the kernel.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: one number, or one for each axis.
        rank: largest rank of both sides, or (rank_in, rank_out); cut to the widths.
        stride, padding, dilation: as in torch's convolution; `padding="same"` is stored as the number that it is.
        bias: add a bias of shape `(O,)`.
        frames: how frames are kept; `parametrize` is built in here, the other ways are applied by the training loop.

    Raises:
        ShapeError: what no such layer has.
    """

    axes: ClassVar[int]
    """Number of spatial axes."""
    ordinary: ClassVar[type[nn.Conv1d | nn.Conv2d | nn.Conv3d]]
    """Torch's convolution on as many axes."""
    convolve: ClassVar[Callable[..., Tensor]]
    """Torch's function on as many axes."""
    frame_in: Tensor | None
    frame_out: Tensor | None
    bias: Tensor | None
    retraction: Method = "polar"
    """Retraction that keeps the frames on the Stiefel manifold."""
    penalty_weight: float = 1e5
    """Weight of the penalty on the frames' distance from orthonormal ones, which `svdctl.Controller.penalty` adds to
    the loss, with `frames="penalty"`. 1e5 is the paper's, for its loss and learning rates; at larger ones it diverges.
    """
    penalty_count: PenaltyCount = "paper"
    contraction: tuple[bool, bool] | None = None
    """Whether `forward` applies (frame_in, frame_out) on their own; None: chosen at each call by the input's shape."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        *,
        rank: int | tuple[int, int],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        bias: bool = True,
        frames: FramesKind = "retract",
    ) -> None:
        super().__init__()
        ranks = rank_pair(rank)
        if not is_count(in_channels) or not is_count(out_channels):
            raise ShapeError(
                "a TT layer has a whole number of channels, at least one channel on each side, not "
                f"{in_channels!r} and {out_channels!r}"
            )
        require_frames_kind(frames)
        self.in_channels, self.out_channels = in_channels, out_channels
        settings = (kernel_size, stride, dilation)
        self.kernel_size, self.stride, self.dilation = (_each(given, self.axes) for given in settings)
        self.padding = self._widths(padding) if isinstance(padding, str) else _each(padding, self.axes)
        if min(*self.stride, *self.dilation, *self.kernel_size) < 1 or min(self.padding) < 0:
            raise ShapeError(
                f"kernel {self.kernel_size}, stride {self.stride} and dilation {self.dilation} are at least 1, "
                f"padding {self.padding} at least 0"
            )
        self.frames_kind = frames
        rank_in, rank_out = min(ranks[0], in_channels), min(ranks[1], out_channels)
        whole = rank_in == in_channels and rank_out == out_channels
        self.has_frames = not whole
        self.core = nn.Parameter(torch.empty(rank_out, rank_in, *self.kernel_size))
        self.register_parameter("frame_in", None if whole else nn.Parameter(torch.empty(in_channels, rank_in)))
        self.register_parameter("frame_out", None if whole else nn.Parameter(torch.empty(out_channels, rank_out)))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()
        if frames == "parametrize" and not whole:
            parametrize_frames_(self)

    def _widths(self, padding: str) -> tuple[int, ...]:
        """Return the zeros on each side of each axis that torch's word for them means."""
        if padding == "valid":
            return (0,) * self.axes
        if padding != "same":
            raise ShapeError(
                f"a TT layer takes one whole number or one for each of its {self.axes} axes as padding, or 'same' or "
                f"'valid', not {padding!r}"
            )
        totals = [step * (taps - 1) for step, taps in zip(self.dilation, self.kernel_size, strict=True)]
        if set(self.stride) != {1} or any(total % 2 for total in totals):
            raise ShapeError(
                f"padding='same' of a TT layer needs stride 1 and as many zeros on both sides, not stride "
                f"{self.stride} with a kernel of {self.kernel_size}; give the padding as numbers"
            )
        return tuple(total // 2 for total in totals)

    @property
    def rank(self) -> tuple[int, int]:
        """Return (rank_in, rank_out)."""
        return self.core.shape[1], self.core.shape[0]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw random frames, and a core that gives the layer the output variance of Kaiming normal with fan-out."""
        taps = math.prod(self.kernel_size)
        rank_in, rank_out = self.rank
        # The kernel has O I entries of mean square core^2 r_out r_in / (O I).
        share = self.out_channels * self.in_channels / (rank_out * rank_in)
        self.core.normal_(0, math.sqrt(2 / (self.out_channels * taps) * share))
        if self.frame_in is not None and self.frame_out is not None:
            self.frame_in.copy_(random_frame(self.in_channels, rank_in))
            self.frame_out.copy_(random_frame(self.out_channels, rank_out))
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def start_as_paper_(
        self, start: Callable[[Tensor], object] = nn.init.orthogonal_, *, with_frames: bool = False
    ) -> None:
        """Draw the core as the paper's public code does: by a function of torch on its layout `(r_in, kh, kw, r_out)`.

        Args:
            start: the function, as `torch.nn.init.orthogonal_`.
            with_frames: draw the frames `(I, r_in)` and `(r_out, O)` too. Those that are retracted are made orthonormal
                again, the rest moved into the core; parametrised ones stay.
        """
        if self.core.is_meta:
            return
        (rank_in, rank_out), like = self.rank, self.core.detach()
        core = like.new_empty(rank_in, *self.kernel_size, rank_out)
        start(core)
        self.core.copy_(core.permute(3, 0, 1, 2))
        if not with_frames or self.frames_kind == "parametrize" or self.frame_in is None or self.frame_out is None:
            return
        start(self.frame_in)
        frame_out = like.new_empty(rank_out, self.out_channels)
        start(frame_out)
        self.frame_out.copy_(frame_out.T)
        if self.frames_kind == "retract":
            self.retract_("qr", dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        if self.frame_in is None or self.frame_out is None:
            return self.convolve(x, self.core, self.bias, self.stride, self.padding, self.dilation)
        core: Tensor = self.core
        apart_in, apart_out = self._cheapest(x.shape) if self.contraction is None else self.contraction
        if apart_in:
            x = self.convolve(x, self.pointwise(self.frame_in.T))
        else:
            core = torch.einsum("ba...,ia->bi...", core, self.frame_in)
        if apart_out:
            x = self.convolve(x, core, None, self.stride, self.padding, self.dilation)
            return self.convolve(x, self.pointwise(self.frame_out), self.bias)
        core = torch.einsum("ob,bi...->oi...", self.frame_out, core)
        return self.convolve(x, core, self.bias, self.stride, self.padding, self.dilation)

    def pointwise(self, frame: Tensor) -> Tensor:
        """Return a matrix `(O, I)` as a kernel of one tap."""
        return frame[(..., *(None,) * self.axes)]

    def contracted(self) -> Tensor:
        """Return the kernel `(O, I, *k)`."""
        if self.frame_in is None or self.frame_out is None:
            return self.core
        return torch.einsum("ob,ba...,ia->oi...", self.frame_out, self.core, self.frame_in)

    def choose_contraction_(self, shape: tuple[int, ...]) -> None:
        """Have all calls of `forward` do what is fastest for an input of this shape, `(*, I, *size)`."""
        self.contraction = self._cheapest(torch.Size(shape))

    def _cheapest(self, shape: torch.Size) -> tuple[bool, bool]:
        """Return whether to apply (frame_in, frame_out) on their own, not contracted into the core: the faster."""
        taps = math.prod(self.kernel_size)
        rank_in, rank_out = self.rank
        inputs = outputs = math.prod(shape[: -1 - self.axes])
        for length, step in zip(shape[-self.axes :], self.stride, strict=True):
            inputs, outputs = inputs * length, outputs * (length // step)

        def work(apart: tuple[bool, bool]) -> int:
            side_in = rank_in if apart[0] else self.in_channels
            side_out = rank_out if apart[1] else self.out_channels
            total = outputs * taps * side_in * side_out
            total += inputs * self.in_channels * rank_in if apart[0] else taps * self.in_channels * rank_in * rank_out
            total += outputs * rank_out * self.out_channels if apart[1] else taps * side_in * rank_out * side_out
            return total

        # Not `min(..., key=work)`, which torch.compile of torch 2.8 does not follow.
        choices = ((True, True), (False, True), (True, False), (False, False))
        works = [work(apart) for apart in choices]
        return choices[works.index(min(works))]

    @torch.no_grad()
    def small_kernel(self, *, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return a kernel `(r_out, r_in, *k)` with the layer's non-zero singular values, orthonormal frames or not.

        The frames' QR factors are moved into it; with orthonormal frames it is the core, up to signs. Without frames it
        is the core as it is.

        Args:
            dtype: in which it is computed and returned; frames that are nearly dependent need float64.
        """
        if self.frame_in is None or self.frame_out is None:
            return self.core.detach()
        r_in, r_out = (positive_factor(frame.detach().to(dtype)) for frame in (self.frame_in, self.frame_out))
        return torch.einsum("cb,ba...,da->cd...", r_out, self.core.detach().to(dtype), r_in)

    @torch.no_grad()
    def exact_kernel(self) -> tuple[Tensor, float]:
        """Return `small_kernel` in float64, and a bound of the difference between the layer's norm and this kernel's.

        docs/theory.md, "Tensor-train layers", has the proof.
        """
        kernel = self.small_kernel()
        if self.frame_in is None or self.frame_out is None:
            return kernel, 0.0
        error = QR_ROUNDINGS * max(self.frame_in.numel(), self.frame_out.numel()) * 2.0**-53
        norms = math.prod(
            float(torch.linalg.vector_norm(frame.detach(), dtype=torch.float64))
            for frame in (self.frame_in, self.frame_out)
        )
        total = error / (1 - error) * norms * taps_norm(self.core.detach()[None]) * (1 + 1e-10)
        if not math.isfinite(total):
            raise ShapeError("the TT layer's frames or core are not finite, or too large for float64; it has no bound")
        return kernel, total

    @torch.no_grad()
    def set_small_kernel(self, kernel: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Make `kernel` the one that `small_kernel` reads: frames become their Q factors."""
        set_small_kernels_([self], [kernel], optimizer)

    def retract_(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make both frames orthonormal; the rest moves into the core, so the operator stays.

        By `polar` nothing waits for the host.

        Args:
            method: `polar` or `qr`.
            optimizer: whose momentum is carried along.
            dtype: in which it is computed. The frames' own, and float32 of half precision, if not given: enough where
                they are nearly orthonormal.
        """
        retract_tt_layers_([self], method, optimizer, dtype=dtype)

    @classmethod
    @torch.no_grad()
    @exact_products()
    def from_conv(
        cls, conv: nn.Module, rank: int | tuple[int, int], *, frames: FramesKind = "retract"
    ) -> tuple[Self, float]:
        """Return the layer of this rank nearest to a trained convolution, and its relative error in Frobenius norm.

        Of half precision it is computed in float32; the error is that of the layer as it is stored.

        Raises:
            ShapeError: a convolution on another number of axes, one that need not compute with its weight, or one that
                no such layer can be: grouped, or padded otherwise than with zeros by a number.
        """
        if not isinstance(conv, cls.ordinary):
            raise ShapeError(f"a {cls.__name__} is made of a {cls.ordinary.__name__}, not of a {type(conv).__name__}")
        reason = why_not_as_stored(conv, cls.ordinary)
        if reason is not None:
            raise ShapeError(f"the convolution cannot be converted: {reason}")
        if conv.groups != 1:
            raise ShapeError(
                f"a convolution with {conv.groups} groups has no TT form here; convert it to groups=1 first"
            )
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise ShapeError(
                "TT layers pad with zeros by a number; a convolution with another padding cannot be converted"
            )
        if frames == "parametrize" and conv.weight.dtype.itemsize < 4:
            raise ShapeError(
                "torch's orthogonal parametrization has no half precision; convert the layer with .float(), or retract"
            )
        geometry = {name: _each(getattr(conv, name), cls.axes) for name in ("stride", "padding", "dilation")}
        size, bias = _each(conv.kernel_size, cls.axes), conv.bias is not None
        stored = computed_weight(conv)
        Convolution.make(stored)  # raises a ShapeError of a weight that has no values
        if not bool(stored.isfinite().all()):
            raise ShapeError("its weight holds numbers that are not finite, and no TT layer is nearest to it")
        if tuple(stored.shape) != (conv.out_channels, conv.in_channels, *size):
            raise ShapeError(
                f"its weight has shape {tuple(stored.shape)}, and {conv.in_channels} to {conv.out_channels} channels "
                f"by a kernel of {size} need {(conv.out_channels, conv.in_channels, *size)}"
            )
        layer = cls(conv.in_channels, conv.out_channels, size, rank=rank, bias=bias, frames=frames, **geometry)
        kernel = stored.to(torch.promote_types(stored.dtype, torch.float32))
        layer.to(kernel.device, kernel.dtype)
        if layer.has_frames:
            frame_in, frame_out = fitted_frames(kernel, *layer.rank)
            if frames == "parametrize":
                layer.frame_in, layer.frame_out = frame_in, frame_out
            else:
                layer.frame_in, layer.frame_out = nn.Parameter(frame_in), nn.Parameter(frame_out)
            # A parametrised frame may come back as another basis of the same span: take the core for what it is.
            actual_in, actual_out = layer.frame_in, layer.frame_out
            layer.core.copy_(torch.einsum("oi...,ob,ia->ba...", kernel, actual_out, actual_in))
        else:
            layer.core.copy_(kernel)
        if conv.bias is not None and layer.bias is not None:
            layer.bias.copy_(conv.bias)
        layer.to(stored.dtype).requires_grad_(conv.weight.requires_grad).train(conv.training)
        rounded = copy.deepcopy(layer).to(kernel.dtype).contracted()
        error = (rounded - kernel).norm() / kernel.norm().clamp_min(torch.finfo(kernel.dtype).tiny)
        return layer, float(error)

    @torch.no_grad()
    @exact_products()
    def to_conv(self) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """Return the same operator as torch's convolution on as many axes."""
        return ordinary_conv(self.ordinary, self.contracted(), self.bias, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}, "
            f"stride={self.stride}, padding={self.padding}, frames={self.frames_kind!r}"
        )


class TTConv1d(TTConv):
    """Tensor-train convolution of `(N, I, L)`; the arguments are those of `TTConv2d`.

    >>> layer = svdctl.TTConv1d(64, 128, 5, rank=16, padding=2)
    >>> len(svdctl.singular_values(layer, 8))  # 8 frequencies, 16 values each
    128
    """

    axes = 1
    ordinary = nn.Conv1d
    convolve = staticmethod(F.conv1d)


class TTConv2d(TTConv):
    """Tensor-train convolution of `(N, I, H, W)`, with kernel `sum_ab frame_out[o, b] core[b, a] frame_in[i, a]`.

    With orthonormal frames its non-zero singular values are those of the core (Senderovich et al. 2022, Theorem 1).
    When the rank reaches both widths the frames are absent and the core is the kernel.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: one number, or (kh, kw).
        rank: largest rank of both sides, or (rank_in, rank_out); cut to the widths.
        stride, padding, dilation: as in `torch.nn.Conv2d`; `padding="same"` is stored as the number that it is.
        bias: add a bias of shape `(O,)`.
        frames: how frames are kept; `parametrize` is built in here, the other ways are applied by the training loop.
            Of `penalty` the attribute `penalty_weight` is the weight in the loss: 1e5, the paper's for its own loss and
            learning rates. SGD diverges by it at larger rates, as 0.05; lower it then, or take `retract`.
            Weight decay leaves those of `parametrize` orthonormal, and pulls them to those that they started from.

    >>> layer = svdctl.TTConv2d(64, 128, 3, rank=16, padding=1)
    >>> len(svdctl.singular_values(layer, 8))  # 8 * 8 frequencies, 16 values each
    1024
    """

    axes = 2
    ordinary = nn.Conv2d
    convolve = staticmethod(F.conv2d)


class TTConv3d(TTConv):
    """Tensor-train convolution of `(N, I, D, H, W)`; the arguments are those of `TTConv2d`.

    >>> layer = svdctl.TTConv3d(64, 128, 3, rank=16, padding=1)
    >>> len(svdctl.singular_values(layer, 4))  # 4 * 4 * 4 frequencies, 16 values each
    1024
    """

    axes = 3
    ordinary = nn.Conv3d
    convolve = staticmethod(F.conv3d)


def ordinary_conv(
    kind: type[nn.Conv1d | nn.Conv2d | nn.Conv3d], kernel: Tensor, bias: Tensor | None, *geometry: tuple[int, ...]
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """Return torch's convolution by copies of a kernel `(O, I, *k)` and a bias; no random number is drawn.

    Args:
        kind: its class.
        kernel, bias: what it computes with.
        geometry: its stride, padding and dilation, as far as they are not torch's defaults.
    """
    outputs, inputs, *taps = kernel.shape
    make: Callable[..., nn.Conv1d | nn.Conv2d | nn.Conv3d] = kind
    conv = make(inputs, outputs, tuple(taps), *geometry, bias=bias is not None, device="meta")
    conv.weight = nn.Parameter(kernel.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


@torch.no_grad()
@exact_products()
def set_small_kernels_(
    layers: Sequence[TTConv], kernels: Sequence[Tensor], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Do what `set_small_kernel` does for all layers at once, frames of one shape in stacks."""
    _orthonormalize_(layers, "qr", optimizer, dtype=torch.float64, keep_cores=False)
    cores: list[Tensor] = []
    sources: list[Tensor] = []
    for layer, kernel in zip(layers, kernels, strict=True):
        if layer.frames_kind == "parametrize" and layer.frame_in is not None and layer.frame_out is not None:
            # These frames cannot be written and are orthonormal to rounding: Q = U R^-1 with R near the identity.
            frames = (frame.detach().to(kernel.dtype) for frame in (layer.frame_in, layer.frame_out))
            r_in, r_out = map(positive_factor, frames)
            kernel = torch.einsum("bc,cd...,ad->ba...", torch.linalg.inv(r_out), kernel, torch.linalg.inv(r_in))
        cores.append(layer.core)
        sources.append(kernel)
    torch._foreach_copy_(cores, sources)


@torch.no_grad()
@exact_products()
def retract_tt_layers_(
    layers: Sequence[TTConv],
    method: Method,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Do what `retract_` does for all layers at once, frames and cores of one shape in stacks.

    Returns:
        The largest defect `||U^T U - I||_F` of the frames (0-d); None without frames that can be written.
    """
    found = _orthonormalize_(layers, method, optimizer, dtype=dtype)
    return torch.stack([kept.defect for kept in found]).max().float() if found else None


def _orthonormalize_(
    layers: Sequence[TTConv],
    method: Method,
    optimizer: torch.optim.Optimizer | None,
    *,
    dtype: torch.dtype | None,
    keep_cores: bool = True,
) -> list[Retraction]:
    """Make frames orthonormal, and return how each was changed; a core that is written next need not be moved."""
    framed = [
        (layer.core, layer.frame_out, layer.frame_in)
        for layer in layers
        if layer.frames_kind != "parametrize" and layer.frame_in is not None and layer.frame_out is not None
    ]
    if not framed:
        return []
    frames = [frame for _, *pair in framed for frame in pair]
    found = retractions(frames, method, dtype=dtype)
    # Each tensor with the matrices that move it; for means of gradients see the note of stiefel.py.
    moved: list[tuple[Tensor, Tensor, Tensor]] = []
    turned: list[tuple[Tensor, Tensor, Tensor]] = []
    for (core, *pair), out, into in zip(framed, found[::2], found[1::2], strict=True):
        if keep_cores:
            moved.append((core, out.factor, into.factor))
        moved += [(mean, out.inverse.mT, into.inverse.mT) for mean in mean_gradients(optimizer, core)]
        for frame, kept in zip(pair, (out, into), strict=True):
            turned += [(mean, kept.factor.mT, kept.frame) for mean in mean_gradients(optimizer, frame)]
    targets, sources = list(frames), [kept.frame for kept in found]
    for rows, work in ((moved, _between), (turned, _behind)):
        if rows:
            columns = list(zip(*rows, strict=True))
            wide = [tensor.detach().to(factor.dtype) for tensor, factor, *_ in rows]
            targets += columns[0]
            sources += [result for (result,) in in_stacks(work, wide, *columns[1:])]
    torch._foreach_copy_(targets, sources)
    return found


def _between(cores: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor]:
    """Return `sum_ba left[c, b] core[b, a] right[d, a]` of stacks `(L, b, a, *k)`, `(L, c, b)` and `(L, d, a)`."""
    half = torch.bmm(left, cores.flatten(2)).unflatten(2, (cores.shape[2], -1)).transpose(1, 2)
    whole = torch.bmm(right, half.flatten(2)).unflatten(2, (left.shape[1], -1)).transpose(1, 2)
    return (whole.unflatten(3, cores.shape[3:]),)


def _behind(means: Tensor, factors: Tensor, frames: Tensor) -> tuple[Tensor]:
    """Return the tangent parts of `means factors` of stacks `(L, n, r)`, `(L, r, r)` and `(L, n, r)`."""
    return (tangent_parts(torch.bmm(means, factors), frames),)


def rank_pair(rank: int | tuple[int, int]) -> tuple[int, int]:
    """Return (rank_in, rank_out).

    Raises:
        ShapeError: they are not whole numbers from 1 on.
    """
    ranks = rank if isinstance(rank, tuple) else (rank, rank)
    if len(ranks) != 2 or not all(map(is_count, ranks)):
        raise ShapeError(f"a TT rank is a whole number and at least 1, not {rank!r}")
    return int(ranks[0]), int(ranks[1])


def require_frames_kind(frames: object) -> None:
    """Raise a ShapeError if this is no way to keep frames."""
    if frames not in get_args(FramesKind):
        raise ShapeError(f"frames are kept by one of {', '.join(get_args(FramesKind))}, not {frames!r}")


def _each(value: Any, axes: int) -> tuple[int, ...]:
    given = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    if len(given) != axes or not all(isinstance(number, numbers.Integral) for number in given):
        raise ShapeError(f"a TT layer takes one whole number or one for each of its {axes} axes, not {value!r}")
    return tuple(map(int, given))
