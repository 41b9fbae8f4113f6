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
            layer, given = _made(conv, parts)
        except (ValueError, IndexError, KeyError) as error:
            raise CheckpointError(
                f"{where}: the parts of {name} do not fit its place in the network; use another copy"
            ) from error
        model.set_submodule(name, layer)
        state |= {f"{name}.{leaf}": tensor for leaf, tensor in given.items()}
        if not isinstance(layer, TTConv2d):
            factor = skew_factor(parts, _FILTER if isinstance(layer, SOC) else "K2", PAPER_VECTORS)
            if isinstance(factor, str):
                raise CheckpointError(f"{where}: {name} cannot be run: {factor}; use another copy")
            remaining.append(_scaling(layer if isinstance(layer, SOC) else layer.core, factor))
    return remaining


_FILTER = "random_conv_filter"
_LEAVES = ("K1", "K2", "K3", _FILTER, *PAPER_VECTORS)


def _made(conv: nn.Conv2d, parts: State) -> tuple[TTConv2d | SOC | SOTT, State]:
    """Return the layer in the place of a convolution, which is square, and its tensors by svdctl's names."""
    size, stride, bias = conv.kernel_size[0], conv.stride[0], conv.bias is not None
    widths = (conv.in_channels, conv.out_channels)
    if _FILTER in parts:
        return SOC(*widths, size, stride=stride, bias=bias), _core(parts[_FILTER])
    is_skew = "u1" in parts
    core = parts["K2"] if is_skew else parts["K2"].permute(3, 0, 1, 2).contiguous()
    if ("K1" in parts) != ("K3" in parts):
        raise KeyError("K1" if "K3" in parts else "K3")
    if "K1" in parts:
        frame_in, frame_out = parts["K1"], parts["K3"].mT.contiguous()
    else:
        inner = widths if is_skew else (core.shape[1], core.shape[0])
        frame_in, frame_out = (torch.eye(width, device="cpu") for width in inner)
    (*inputs, rank_in), (*outputs, rank_out) = frame_in.shape, frame_out.shape
    if (*inputs, *outputs) != widths or min(rank_in, rank_out) < 1:
        raise ValueError(frame_in.shape)
    layer: TTConv2d | SOTT
    if is_skew:
        layer = SOTT(*widths, size, rank=(rank_in, rank_out), stride=stride, bias=bias, frames="penalty")
        given = {f"core.{leaf}": tensor for leaf, tensor in _core(core).items()}
        if "K1" in parts and not layer.has_frames:
            raise ValueError(frame_in.shape)  # square frames around a whole core: the code leaves them out
    else:
        if (rank_out, rank_in) != core.shape[:2] or not core.numel():
            raise ValueError(core.shape)
        taps, padding = (core.shape[2], core.shape[3]), int(conv.padding[0])
        layer = TTConv2d(
            *widths, taps, rank=(rank_in, rank_out), stride=stride, padding=padding, bias=bias, frames="penalty"
        )
        given = {"core": core}
        if not layer.has_frames:
            given["core"] = torch.einsum("ob,bahw,ia->oihw", frame_out, core, frame_in)
    if layer.has_frames:
        given |= {"frame_in": frame_in, "frame_out": frame_out}
    return layer, given


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
