"""Functions that move, copy, average or pick entries, and those that only look at shapes."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from svdctl.certify.rules import Call, rule
from svdctl.certify.trace import Traced


@rule(
    "flatten", "unflatten", "reshape", "view", "ravel", "squeeze", "unsqueeze", "permute", "transpose", "swapaxes",
    "swapdims", "movedim", "moveaxis", "t", "T", "mT", "flip", "roll", "rot90", "getitem", "narrow", "select",
    "index_select", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "expand", "broadcast_to", "repeat",
    "repeat_interleave", "tile", "unfold", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
)  # fmt: skip
def _copies(call: Call) -> Any:
    return call.non_negative(1, "copies")


@rule("view_as", "reshape_as", "expand_as")
def _copies_as(call: Call) -> Any:
    call.args = (call.args[0], *call.plain(call.args[1:]))
    call.kwargs = call.plain(call.kwargs)
    return _copies(call)


@rule("detach", "contiguous", "clone", "to", "type_as", "cpu", "cuda", "float", "double")
def _same(call: Call) -> Traced:
    call.args = (call.args[0], *call.plain(call.args[1:]))
    x = call.source()
    result = call.through(x, call.run(), 1.0, None, "copies")
    assert result.facts is not None
    result.facts = replace(result.facts, readout=x.tracer.facts(x).readout)
    return result


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout")
def _dropout(call: Call) -> Traced:
    if call.argument(2, "training", call.kwargs.get("train", True)):
        raise call.unknown("in training mode (its result is random)")
    return _same(call)


@rule("pad")
def _pad(call: Call) -> Any:
    if call.argument(2, "mode", "constant") != "constant":
        return call.non_negative(1, "padding")
    return call.through(call.source(), call.run(), 1.0, None, "padding")


@rule("interpolate")
def _interpolate(call: Call) -> Any:
    if call.argument(3, "mode", "nearest") not in ("nearest", "nearest-exact"):
        raise call.unknown(f"with mode {call.argument(3, 'mode')!r}")
    return call.non_negative(1, "copies")


@rule("mean", "sum")
def _mean(call: Call) -> Any:
    x = call.source()
    return call.non_negative(x.value.numel() // max(call.run().numel(), 1), "pooling")


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _average_pooling(call: Call) -> Any:
    x, kernel = call.source(), call.argument(1, "kernel_size")
    if float(call.argument(6, "divisor_override", None) or 1) < 0:
        raise call.unknown("with a divisor below 0")
    axes = int(call.name[-2])
    sizes = [kernel] * axes if isinstance(kernel, int) else list(kernel) * (axes if len(kernel) == 1 else 1)
    return call.non_negative(min(math.prod(sizes), x.value.numel()), "pooling")


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive_average_pooling(call: Call) -> Any:
    axes = _axes(call, call.source().value, call.run())
    return call.non_negative(math.prod(-(-size // cells) + 1 for size, cells in axes), "pooling")


@rule("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pooling(call: Call) -> Traced:
    """`|max over a window - ...|^2` is at most the sum of squares over it, and an entry lies in `overlap` windows."""
    if call.argument(6, "return_indices", False):
        raise call.unknown("with return_indices")
    x, output = call.source(), call.run()
    kernel, dilation, padding = (
        call.argument(1, "kernel_size"),
        call.argument(4, "dilation", 1),
        call.argument(3, "padding", 0),
    )
    stride = call.argument(2, "stride") or kernel
    overlap = 1
    for axis, (size, cells) in enumerate(_axes(call, x.value, output)):
        k, s, p, d = (
            value if isinstance(value, int) else value[axis % len(value)]
            for value in (kernel, stride, padding, dilation)
        )
        counts = [0] * size
        for cell in range(cells):
            for tap in range(k):
                at = cell * s - p + tap * d
                if 0 <= at < size:
                    counts[at] += 1
        overlap *= max(counts)
    return call.through(x, output, math.sqrt(overlap), None, "pooling")


@rule("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pooling(call: Call) -> Traced:
    if call.argument(2, "return_indices", False):
        raise call.unknown("with return_indices")
    x, output = call.source(), call.run()
    overlap = 1
    for size, cells in _axes(call, x.value, output):
        counts = [0] * size
        for cell in range(cells):
            for at in range(cell * size // cells, -(-(cell + 1) * size // cells)):
                counts[at] += 1
        overlap *= max(counts)
    return call.through(x, output, math.sqrt(overlap), None, "pooling")


@rule("amax", "amin")
def _extremes(call: Call) -> Traced:
    return call.through(call.source(), call.run(), 1.0, None, "pooling")


def _axes(call: Call, before: Tensor, after: Tensor) -> list[tuple[int, int]]:
    """(size, pooled size) of each spatial axis; the function's name ends in their number."""
    axes = int(call.name[-2])
    return list(zip(before.shape[-axes:], after.shape[-axes:], strict=True))


@rule(
    "size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "is_complex",
    "element_size", "get_device", "storage_offset", "len", "repr", "shape", "dtype", "device", "ndim", "layout",
    "is_cuda", "is_cpu", "is_mkldnn", "is_sparse", "is_quantized", "is_meta", "requires_grad", "is_leaf", "itemsize",
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full",
)  # fmt: skip
def _shape(call: Call) -> Any:
    """What does not depend on the image's numbers: the result is a constant."""
    return call.run()
