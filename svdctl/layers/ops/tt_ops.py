"""Tensor-train convolutions."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from svdctl.config.base import Config
from svdctl.config.model_config import ConvInit, LayerConfig
from svdctl.layers.layer_ops import LayerOps, register_layer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from svdctl.layers.layer_bounds import Gain
    from svdctl.layers.layer_ops import ConvFactory
    from svdctl.layers.stiefel import Method
    from svdctl.spectral.convolution import Convolution
    from svdctl.spectral.power_iteration import FactoredOperators


class Free(Config):
    """Frames are ordinary weights."""

    kind: Literal["free"] = "free"


class Penalty(Config):
    """Frames are drawn towards orthonormal columns by a term of the loss (the paper's way)."""

    kind: Literal["penalty"] = "penalty"
    weight: Annotated[float, Field(gt=0)] = 1e5
    """Weight k of the penalty that keeps frames orthonormal. It is `k / count * sum(||U^T U - I||_F^2)`."""
    count: Literal["paper", "entries"] = "paper"
    """`paper`: twice the squared output rank of each layer; `entries`: the entries of all Gram matrices."""


class Retract(Config):
    """Frames are made orthonormal after every step; the rest moves into the core, momentum carried along."""

    kind: Literal["retract"] = "retract"
    method: Literal["polar", "qr"] = "polar"
    """Which orthonormal frame takes the place of one: the nearest (`polar`), or that of a QR factorisation."""


class Parametrize(Config):
    """Frames are orthonormal by torch's orthogonal parametrization."""

    kind: Literal["parametrize"] = "parametrize"


Frames = Annotated[Free | Penalty | Retract | Parametrize, Field(discriminator="kind")]


def _form(rank: object) -> str:
    return "each" if isinstance(rank, list | tuple) else "one"


# Tagged, so that a fault is told of the form that was written and not of both.
Ranks = Annotated[
    Annotated[PositiveInt, Tag("one")] | Annotated[tuple[PositiveInt, ...], Tag("each")], Discriminator(_form)
]


class RankedConfig(LayerConfig):
    """Of layers between two frames."""

    rank: Ranks | None = None
    """One rank for all layers, or for LipConvNet one for each stage and one for the last convolution."""
    frames: Frames = Retract()


class TT(RankedConfig):
    """Tensor-train convolutions: 1x1, core, 1x1."""

    kind: Literal["tt"] = "tt"
    rank_scale: Annotated[float, Field(gt=0, le=1)] | None = None
    """Ranks as a share of each layer's widths, instead of `rank`."""
    compress_first: bool = True
    """Off: the first convolution stays as it is."""
    init: ConvInit | None = None
    """Start every layer anew in this way. Absent: the network's own way."""

    @model_validator(mode="after")
    def _one_rank(self) -> Self:
        if (self.rank is None) == (self.rank_scale is None):
            raise ValueError("TT layers need exactly one of `layer.rank` and `layer.rank_scale`")
        return self


class FramedOps(LayerOps):
    """What layers between two frames have in common."""

    def faults(self, config: RankedConfig, *, groups: int) -> list[str]:
        if not isinstance(config.rank, tuple) or len(config.rank) == groups > 1:
            return []
        if groups == 1:
            return ["`layer.rank`: a rank for each group of layers belongs to LipConvNet; give one rank"]
        return [
            f"`layer.rank`: {groups} ranks are needed, one for each stage and one for the last convolution, not "
            f"{len(config.rank)}; or give one rank for all"
        ]

    def text(self, config: Any) -> str:
        ranks = config.rank if isinstance(config.rank, tuple) else (config.rank,)
        rank = f"rank{'s' if isinstance(config.rank, tuple) else ''} {', '.join(map(str, ranks))}"
        return f"{config.kind.upper()} convolutions, {rank}, frames: {config.frames.kind}"

    def frames(self, layer: Any) -> "list[Tensor]":
        return [frame for frame in (layer.frame_in, layer.frame_out) if frame is not None]

    def rank(self, layer: Any) -> tuple[int, int] | None:
        rank_in, rank_out = layer.rank
        return rank_in, rank_out

    def retract_(
        self, layers: Sequence[Any], method: "Method", optimizer: "torch.optim.Optimizer | None"
    ) -> "Tensor | None":
        """Make frames orthonormal; returns the largest defect `||U^T U - I||_F` (0-d), None without frames."""
        raise NotImplementedError  # each type has its own use for what is left of a frame

    def after_optimizer_step_(
        self, layers: Sequence[Any], *, step: int, optimizer: "torch.optim.Optimizer | None"
    ) -> "Tensor | None":
        import torch

        retracted = [layer for layer in layers if self.retracts(layer)]
        methods = dict.fromkeys(layer.retraction for layer in retracted)
        defects = [
            self.retract_([layer for layer in retracted if layer.retraction == method], method, optimizer)
            for method in methods
        ]
        found = [defect for defect in defects if defect is not None]
        return torch.stack(found).max() if len(found) > 1 else next(iter(found), None)

    def due(self, layers: Sequence[Any], step: int) -> tuple[str, ...] | None:
        # torch's QR on a GPU may wait for the host, whatever the library behind it.
        return None if any(self.retracts(layer) and layer.retraction == "qr" for layer in layers) else ()

    def retracts(self, layer: Any) -> bool:
        return layer.frames_kind == "retract" and layer.has_frames

    def retract_by_qr_(self, layers: Sequence[Any]) -> None:
        for layer in layers:
            layer.retraction = "qr"

    def penalty(self, layers: Sequence[Any]) -> "list[tuple[Tensor, int, float]]":
        import torch

        from svdctl.layers.stiefel import gram_defect
        from svdctl.spectral.stacks import stacked

        shares = []
        penalized = [layer for layer in layers if layer.frames_kind == "penalty" and layer.has_frames]
        for weight in dict.fromkeys(layer.penalty_weight for layer in penalized):
            alike = [layer for layer in penalized if layer.penalty_weight == weight]
            frames = [frame for layer in alike for frame in self.frames(layer)]
            sums = [gram_defect(stack).square().sum() for _, (stack,) in stacked(frames)]
            shares.append((torch.stack(sums).sum(), sum(map(_count, alike)), weight))
        return shares


def _count(layer: Any) -> int:
    rank_in, rank_out = layer.rank
    return 2 * rank_out**2 if layer.penalty_count == "paper" else rank_in**2 + rank_out**2


def keep_frames_(layer: Any, frames: Frames) -> None:
    """Set how a layer's frames are kept orthonormal."""
    if isinstance(frames, Retract):
        layer.retraction = frames.method
    elif isinstance(frames, Penalty):
        layer.penalty_weight, layer.penalty_count = frames.weight, frames.count


def rank_of(config: RankedConfig, group: int) -> int | None:
    """Return the rank of the layers of a group."""
    return config.rank[group] if isinstance(config.rank, tuple) else config.rank


@register_layer
class TTOps(FramedOps):
    """`TTConv1d`, `TTConv2d`, `TTConv3d`."""

    kind = "tt"
    config = TT
    modules = tuple(f"svdctl.layers.tt:TTConv{axes}d" for axes in (1, 2, 3))

    def factory(self, config: TT, *, group: int, model: Config) -> "ConvFactory":
        from svdctl.layers.tt import TTConv2d

        share, rank = config.rank_scale, rank_of(config, group)

        def make(in_channels: int, out_channels: int, kernel_size: int, **settings: Any) -> TTConv2d:
            ranks = rank if share is None else (max(1, int(share * in_channels)), max(1, int(share * out_channels)))
            assert ranks is not None
            kind = config.frames.kind
            layer = TTConv2d(in_channels, out_channels, kernel_size, rank=ranks, frames=kind, **settings)
            keep_frames_(layer, config.frames)
            return layer

        return make

    def start_as_paper_(self, layer: Any) -> None:
        layer.start_as_paper_()
        if layer.bias is not None:
            # Of torch's fan-in of the core in that code's layout (r_in, kh, kw, r_out).
            limit = 1 / math.sqrt(math.prod(layer.kernel_size) * layer.rank[1])
            layer.bias.uniform_(-limit, limit)

    def compresses_first(self, config: TT) -> bool:
        return config.compress_first

    def uncompressed(self, config: TT) -> str:
        return "standard"

    def text(self, config: Any) -> str:
        if config.rank_scale is None:
            return super().text(config)
        return f"TT convolutions, ranks {config.rank_scale} of the widths, frames: {config.frames.kind}"

    def operator(self, layer: Any) -> "Convolution":
        import torch

        # Half precision would round what the frames are moved into.
        return _strided(layer, layer.small_kernel().to(torch.promote_types(layer.core.dtype, torch.float32)))

    def exact_operator(self, layer: Any) -> "tuple[Convolution, float]":
        return self.exact_operators([layer])[0]

    def exact_operators(self, layers: Sequence[Any]) -> "list[tuple[Convolution, float]]":
        from svdctl.layers.tt_exact import exact_kernels

        read = zip(layers, exact_kernels(layers), strict=True)
        return [(_strided(layer, kernel), error) for layer, (kernel, error) in read]

    def factored_operators(self, layers: Sequence[Any]) -> "FactoredOperators":
        from dataclasses import replace

        import torch

        from svdctl.spectral.power_iteration import FactoredOperators

        found = FactoredOperators.of([self.core_operator(layer) for layer in layers])
        if not layers[0].has_frames or layers[0].frames_kind in ("retract", "parametrize"):
            return found
        dtype = found.conv.kernel.dtype
        sides = ([layer.frame_in for layer in layers], [layer.frame_out for layer in layers])
        stacks = [torch.stack([frame.detach() for frame in frames]).to(dtype) for frames in sides]
        gram_in, gram_out = (torch.bmm(stack.mT, stack) for stack in stacks)
        return replace(found, gram_in=gram_in, gram_out=gram_out)

    def core_operator(self, layer: Any) -> "Convolution":
        return _strided(layer, layer.core.detach())

    def tensors(self, layer: Any, optimizer: "torch.optim.Optimizer | None" = None) -> "list[Tensor]":
        from svdctl.layers.stiefel import MEANS

        found = [layer.core, *([] if layer.frames_kind == "parametrize" else self.frames(layer))]
        states = [] if optimizer is None else [optimizer.state.get(tensor, {}) for tensor in found]
        return found + [state[key] for state in states for key in MEANS if state.get(key) is not None]

    def write_(
        self, layers: Sequence[Any], convs: "Sequence[Convolution]", optimizer: "torch.optim.Optimizer | None" = None
    ) -> None:
        from svdctl.layers.tt import set_small_kernels_

        set_small_kernels_(layers, [conv.weight for conv in convs], optimizer)

    def retract_(
        self, layers: Sequence[Any], method: "Method", optimizer: "torch.optim.Optimizer | None"
    ) -> "Tensor | None":
        from svdctl.layers.tt import retract_tt_layers_

        return retract_tt_layers_(layers, method, optimizer)

    def before_compiling_(self, layers: Sequence[Any], sizes: Sequence[tuple[int, ...]], *, batch: int) -> None:
        for layer, size in zip(layers, sizes, strict=True):
            layer.choose_contraction_((batch, layer.in_channels, *size))

    def gain(self, layer: Any, *, tolerance: float | None = None) -> "Gain":
        from svdctl.layers.tt_bounds import tt_gain

        return tt_gain(layer, tolerance)

    def plain(self, layer: Any, size: tuple[int, ...] | None = None) -> "nn.Module":
        from svdctl.layers.plain_layers import plain_tt

        return plain_tt(layer, size)

    def shape(self, layer: Any) -> tuple[int, ...]:
        return (layer.out_channels, layer.in_channels, *layer.kernel_size)

    def shape_text(self, layer: Any) -> str:
        return f"{super().shape_text(layer)}, rank {layer.rank[1]} x {layer.rank[0]}"


def _strided(layer: Any, kernel: "Tensor") -> "Convolution":
    from svdctl.spectral.convolution import Convolution

    return Convolution.make(kernel, stride=layer.stride, dilation=layer.dilation)
