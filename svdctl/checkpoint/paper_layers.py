"""Layers of the paper's public code put into svdctl's networks: TT, SOC and SOTT in the place of convolutions."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdctl.checkpoint.stored_skew import PAPER_VECTORS, skew_factor
from svdctl.errors import CheckpointError
from svdctl.layers.skew import skew_part
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.tt import TTConv2d

State = dict[str, Tensor]


def fit_layers(model: nn.Module, state: State, where: str) -> list[Callable[[], None]]:
    """Exchange the convolutions of `model` and rename in `state`, both in place, where the file has another layer.

    Returns:
        What remains to be called once the weights are loaded.

    Raises:
        CheckpointError: parts that do not fit each other or the network.
    """
    remaining = []
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]:
        parts = {leaf: state[f"{name}.{leaf}"] for leaf in _LEAVES if f"{name}.{leaf}" in state}
        if not parts:
            continue
        for leaf in parts:
            del state[f"{name}.{leaf}"]
        conv = cast(nn.Conv2d, model.get_submodule(name))
        try:
            layer, given = _skew(conv, parts) if "u1" in parts else _tt(conv, parts)
        except (ValueError, IndexError, KeyError) as error:
            raise CheckpointError(
                f"{where}: the parts of {name} do not fit its place in the network; use another copy"
            ) from error
        model.set_submodule(name, layer)
        state |= {f"{name}.{leaf}": tensor for leaf, tensor in given.items()}
        if not isinstance(layer, TTConv2d):
            factor = skew_factor(parts, "random_conv_filter" if isinstance(layer, SOC) else "K2", PAPER_VECTORS)
            if isinstance(factor, str):
                raise CheckpointError(f"{where}: {name} cannot be run: {factor}; use another copy")
            remaining.append(_scaling(layer if isinstance(layer, SOC) else layer.core, factor))
    return remaining


_LEAVES = ("K1", "K2", "K3", "random_conv_filter", *PAPER_VECTORS)


def _tt(conv: nn.Conv2d, parts: State) -> tuple[TTConv2d, State]:
    core = parts["K2"].permute(3, 0, 1, 2).contiguous()
    frame_in, frame_out = _frames(parts, core.shape[1], core.shape[0])
    rank = _check(conv, frame_in, frame_out)
    if rank != (core.shape[1], core.shape[0]) or not core.numel():
        raise ValueError(rank)
    layer = TTConv2d(
        conv.in_channels,
        conv.out_channels,
        (core.shape[2], core.shape[3]),
        rank=rank,
        stride=(conv.stride[0], conv.stride[1]),
        padding=(int(conv.padding[0]), int(conv.padding[1])),
        bias=conv.bias is not None,
        frames="penalty",
    )
    if layer.has_frames:
        return layer, {"core": core, "frame_in": frame_in, "frame_out": frame_out}
    return layer, {"core": torch.einsum("ob,bahw,ia->oihw", frame_out, core, frame_in)}


def _skew(conv: nn.Conv2d, parts: State) -> tuple[SOC | SOTT, State]:
    size, stride, bias = conv.kernel_size[0], conv.stride[0], conv.bias is not None
    if "random_conv_filter" in parts:
        soc = SOC(conv.in_channels, conv.out_channels, size, stride=stride, bias=bias)
        return soc, _core(parts["random_conv_filter"])
    frame_in, frame_out = _frames(parts, conv.in_channels, conv.out_channels)
    rank = _check(conv, frame_in, frame_out)
    sott = SOTT(conv.in_channels, conv.out_channels, size, rank=rank, stride=stride, bias=bias, frames="penalty")
    given = {f"core.{leaf}": tensor for leaf, tensor in _core(parts["K2"]).items()}
    if sott.has_frames:
        given |= {"frame_in": frame_in, "frame_out": frame_out}
    elif "K1" in parts:
        raise ValueError(rank)  # square frames around a whole core: the code leaves them out
    return sott, given


def _frames(parts: State, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    if ("K1" in parts) != ("K3" in parts):
        raise KeyError("K1" if "K3" in parts else "K3")
    if "K1" not in parts:
        return torch.eye(inputs, device="cpu"), torch.eye(outputs, device="cpu")
    return parts["K1"], parts["K3"].mT.contiguous()


def _check(conv: nn.Conv2d, frame_in: Tensor, frame_out: Tensor) -> tuple[int, int]:
    if (frame_in.shape[0], frame_out.shape[0]) != (conv.in_channels, conv.out_channels):
        raise ValueError(frame_in.shape)
    rank = (frame_in.shape[1], frame_out.shape[1])
    if min(rank) < 1 or frame_in.ndim != 2 or frame_out.ndim != 2:
        raise ValueError(rank)
    return rank


def _core(kernel: Tensor) -> State:
    """Return the free kernel and start vectors of svdctl's power steps; those of the file are of other unfoldings."""
    width, _, rows, columns = kernel.shape
    generator = torch.Generator().manual_seed(0)
    lengths = {"right1": width * rows * columns, "right2": width * columns}
    return {"kernel": kernel} | {
        name: F.normalize(torch.randn(length, generator=generator, device="cpu"), dim=0)
        for name, length in lengths.items()
    }


def _scaling(layer: SOC, factor: float) -> Callable[[], None]:
    def settle() -> None:
        """Let svdctl's own norms, which are nearer to the truth, give the kernel that the file was run with."""
        layer.refine_norm_estimate_()
        layer.scale = 1.0
        with torch.no_grad():
            norm = skew_part(layer.kernel).norm() / layer.skew_kernel().norm()
        layer.scale = factor * float(norm)

    return settle
