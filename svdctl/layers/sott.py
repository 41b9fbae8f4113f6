"""SOTT, the tensor-train form of SOC: a skew orthogonal core between two frames (Senderovich et al. 2022).

Note, retraction. A TT layer moves the factor P of a retracted frame into its core. An orthogonal core cannot take it:
the frame is replaced by the nearest frame, and the operator changes by as little as P differs from the identity. The
optimiser's mean gradient is projected onto the tangent space there, `m - U sym(U^T m)`, since only that part can move a
frame; kept whole, it would push against the retraction at every step.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.errors import ShapeError
from svdctl.layers.soc import SOC
from svdctl.layers.stiefel import Method, mean_gradients, parametrize_frames_, random_frame, retractions, tangent_parts
from svdctl.layers.tt import FramesKind, PenaltyCount
from svdctl.spectral.convolution import is_count
from svdctl.spectral.stacks import in_stacks


class SOTT(nn.Module):
    """`frame_out SOC(frame_in^T x)`: with orthonormal frames a contraction, orthogonal on the frames' range.

    When the rank reaches both widths the frames are absent and the core alone is left.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: odd.
        rank: largest rank of both sides, or (rank_in, rank_out); cut to the widths.
        stride: of the core.
        bias: add a bias `(O,)`.
        frames: how frames are kept; `parametrize` is built in here, the other ways are applied by the training loop.
        train_terms, eval_terms, scale, checkpoint_activations: of the core, as in `SOC`.

    Raises:
        ShapeError: a rank below 1, or what `SOC` refuses.

    >>> import torch
    >>> layer = svdctl.SOTT(16, 32, 3, rank=8).eval()
    >>> layer(torch.randn(1, 16, 8, 8)).shape
    torch.Size([1, 32, 8, 8])
    >>> svdctl.lipschitz_bound(layer, (16, 8, 8)).value < 1.001
    True
    """

    frame_in: Tensor | None
    frame_out: Tensor | None
    bias: Tensor | None
    retraction: Method = "polar"
    penalty_weight: float = 1e5
    penalty_count: PenaltyCount = "paper"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        rank: int | tuple[int, int],
        stride: int = 1,
        bias: bool = True,
        frames: FramesKind = "retract",
        train_terms: int = 5,
        eval_terms: int = 12,
        scale: float | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        ranks = rank if isinstance(rank, tuple) else (rank, rank)
        if len(ranks) != 2 or not all(map(is_count, ranks)):
            raise ShapeError(
                f"a SOTT rank is a whole number and at least 1, not {rank!r}; use SOC layers for no compression"
            )
        if not is_count(in_channels) or not is_count(out_channels):
            raise ShapeError(
                "a SOTT layer has a whole number of at least one channel on each side, not "
                f"{in_channels!r} and {out_channels!r}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.frames_kind = stride, frames
        rank_in, rank_out = min(ranks[0], in_channels), min(ranks[1], out_channels)
        self.rank = (rank_in, rank_out)
        self.has_frames = (rank_in, rank_out) != (in_channels, out_channels)
        self.core = SOC(
            rank_in,
            rank_out,
            kernel_size,
            stride=stride,
            bias=False,
            train_terms=train_terms,
            eval_terms=eval_terms,
            scale=scale,
            checkpoint_activations=checkpoint_activations,
        )
        self.kernel_size = self.core.kernel_size
        whole = not self.has_frames
        self.register_parameter("frame_in", None if whole else nn.Parameter(random_frame(in_channels, rank_in)))
        self.register_parameter("frame_out", None if whole else nn.Parameter(random_frame(out_channels, rank_out)))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)
        if frames == "parametrize" and self.has_frames:
            parametrize_frames_(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.frame_in is None or self.frame_out is None:
            y = self.core(x)
            assert isinstance(y, Tensor)
            return y if self.bias is None else y + self.bias[:, None, None]
        y = self.core(F.conv2d(x, self.frame_in.T[:, :, None, None]))
        return F.conv2d(y, self.frame_out[:, :, None, None], self.bias)

    def retract_(self, method: Method, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Replace both frames by their nearest frames (`polar`, with no host sync) or Q factors; see the note above."""
        retract_sott_layers_([self], method, optimizer)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, rank={self.rank}, frames={self.frames_kind!r}"


@torch.no_grad()
def retract_sott_layers_(
    layers: Sequence[SOTT], method: Method, optimizer: torch.optim.Optimizer | None = None
) -> Tensor | None:
    """Do what `SOTT.retract_` does for all layers at once, frames of one shape in stacks.

    Returns:
        The largest defect `||U^T U - I||_F` of the frames (0-d); None without frames that can be written.
    """
    pairs = [(layer.frame_in, layer.frame_out) for layer in layers if layer.frames_kind != "parametrize"]
    frames = [frame for pair in pairs for frame in pair if frame is not None]
    if not frames:
        return None
    found = retractions(frames, method)
    targets, sources = list(frames), [kept.frame for kept in found]
    rows = [
        (mean, kept.frame)
        for frame, kept in zip(frames, found, strict=True)
        for mean in mean_gradients(optimizer, frame)
    ]
    if rows:
        means, bases = zip(*rows, strict=True)
        wide = [mean.to(base.dtype) for mean, base in rows]
        targets += means
        sources += [result for (result,) in in_stacks(lambda *stacks: (tangent_parts(*stacks),), wide, bases)]
    torch._foreach_copy_(targets, sources)
    return torch.stack([kept.defect for kept in found]).max().float()
