"""Functions that move, copy, average or pick entries, and those that only look at shapes."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from svdctl.certificates.error_bounds import Affine, Arithmetic
from svdctl.certificates.op_rules import IMAGE, LIKE, NUMBER, SETTING, Call, one_of, rule
from svdctl.certificates.traced_tensor import Traced

POOLED = {"x": IMAGE, "kernel_size": SETTING, "stride": SETTING, "padding": SETTING}


@rule(
    "flatten", "unflatten", "reshape", "view", "ravel", "squeeze", "unsqueeze", "permute", "transpose", "swapaxes",
    "swapdims", "movedim", "moveaxis", "t", "T", "mT", "flip", "roll", "rot90", "getitem", "narrow", "select",
    "index_select", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "expand", "broadcast_to", "repeat",
    "repeat_interleave", "tile", "unfold", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    takes={"x|tensor": IMAGE}, rest=SETTING,
)  # fmt: skip
def _copies(call: Call) -> Any:
    return call.non_negative(1, "copies")


@rule("view_as", "reshape_as", "expand_as", takes={"x": IMAGE, "other": LIKE})
def _copies_as(call: Call) -> Any:
    return call.non_negative(1, "copies")


@rule("type_as", takes={"x": IMAGE, "other": LIKE})
@rule("to", takes={"x": IMAGE}, rest=LIKE)
@rule("detach", "contiguous", "clone", "cpu", "cuda", "float", "double", takes={"x": IMAGE}, rest=SETTING)
def _same(call: Call) -> Traced:
    result = call.unary(call.x, call.run(), 1.0, None, "copies")
    assert result.bounds is not None
    result.bounds = replace(result.bounds, readout=call.tracer.bounds(call.x).readout)
    return result


@rule(
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout",
    takes={"x": IMAGE, "p": NUMBER, "training|train": one_of(True, False)},
)  # fmt: skip
def _dropout(call: Call) -> Traced:
    if call["training"] is not False:
        raise call.unknown("in training mode (its result is random)")
    return _same(call)


@rule("pad", takes={"x": IMAGE, "pad": SETTING, "mode": SETTING, "value": NUMBER})
def _pad(call: Call) -> Any:
    if (call["mode"] or "constant") != "constant":
        return call.non_negative(1, "padding")
    output = call.run()

    def edge(_size: Affine, arithmetic: Arithmetic) -> Affine:
        return Affine(math.sqrt(output.numel()) * call.rounding([call["value"]], arithmetic))

    return call.unary(call.x, output, 1.0, edge, "padding")


@rule(
    "interpolate",
    takes={
        "x": IMAGE,
        "size": SETTING,
        "scale_factor": SETTING,
        "mode": one_of("nearest", "nearest-exact"),
        "align_corners": one_of(None),
        "recompute_scale_factor": SETTING,
        "antialias": one_of(False),
    },
)
def _interpolate(call: Call) -> Any:
    return call.non_negative(1, "copies")


@rule("mean", "sum", takes={"x": IMAGE, "dim|axis": SETTING, "keepdim|keepdims": SETTING, "*dtype": SETTING})
def _mean(call: Call) -> Any:
    return call.non_negative(call.x.value.numel() // max(call.run().numel(), 1), "pooling")


@rule(
    "avg_pool1d", "avg_pool2d", "avg_pool3d",
    takes=POOLED | {"ceil_mode": SETTING, "count_include_pad": SETTING, "divisor_override": NUMBER},
)  # fmt: skip
def _average_pooling(call: Call) -> Any:
    kernel = call["kernel_size"]
    if call.get("divisor_override", 1) < 0:
        raise call.unknown("with a divisor below 0")
    axes = int(call.name[-2])
    sizes = [kernel] * axes if isinstance(kernel, int) else list(kernel) * (axes if len(kernel) == 1 else 1)
    return call.non_negative(min(math.prod(sizes), call.x.value.numel()), "pooling")


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", takes={"x": IMAGE, "output_size": SETTING})
def _adaptive_average_pooling(call: Call) -> Any:
    axes = _axes(call, call.x.value, call.run())
    return call.non_negative(math.prod(-(-size // cells) + 1 for size, cells in axes), "pooling")


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d",
    takes=POOLED | {"dilation": SETTING, "ceil_mode": SETTING, "return_indices": one_of(False)},
)  # fmt: skip
def _max_pooling(call: Call) -> Traced:
    """`|max over a window - ...|^2` is at most the sum of squares over it, and an entry lies in `overlap` windows."""
    x, output, kernel = call.x, call.run(), call["kernel_size"]
    stride, padding, dilation = call["stride"] or kernel, call["padding"] or 0, call["dilation"] or 1
    overlap = 1
    for axis, (size, cells) in enumerate(_axes(call, x.value, output)):
        k, s, p, d = (
            value if isinstance(value, int) else value[axis % len(value)]
            for value in (kernel, stride, padding, dilation)
        )
        windows = Counter(cell * s - p + tap * d for cell in range(cells) for tap in range(k))
        overlap *= max(windows[place] for place in range(size))
    return call.unary(x, output, math.sqrt(overlap), None, "pooling")


@rule(
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    takes={"x": IMAGE, "output_size": SETTING, "return_indices": one_of(False)}, spaces=[F],
)  # fmt: skip
def _adaptive_max_pooling(call: Call) -> Traced:
    x, output = call.x, call.run()
    overlap = 1
    for size, cells in _axes(call, x.value, output):
        starts = range(cells)
        windows = Counter(at for c in starts for at in range(c * size // cells, -(-(c + 1) * size // cells)))
        overlap *= max(windows.values(), default=0)
    return call.unary(x, output, math.sqrt(overlap), None, "pooling")


@rule("amax", "amin", takes={"x": IMAGE, "dim": SETTING, "keepdim": SETTING})
def _extremes(call: Call) -> Traced:
    return call.unary(call.x, call.run(), 1.0, None, "pooling")


def _axes(call: Call, before: Tensor, after: Tensor) -> list[tuple[int, int]]:
    """Return (size, pooled size) of each spatial axis; the function's name ends in their number."""
    axes = int(call.name[-2])
    return list(zip(before.shape[-axes:], after.shape[-axes:], strict=True))


@rule("new_full", takes={"x": IMAGE, "size": SETTING, "fill_value": NUMBER}, rest=SETTING)
@rule("full_like", takes={"x": IMAGE, "fill_value": NUMBER}, rest=SETTING)
@rule(
    "size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "is_complex",
    "element_size", "get_device", "storage_offset", "len", "repr", "shape", "dtype", "device", "ndim", "layout",
    "is_cuda", "is_cpu", "is_mkldnn", "is_sparse", "is_quantized", "is_meta", "requires_grad", "is_leaf", "itemsize",
    "zeros_like", "ones_like", "new_zeros", "new_ones",
    takes={"x": IMAGE}, rest=SETTING,
)  # fmt: skip
def _shape(call: Call) -> Any:
    """Return what does not depend on the image's numbers, as a constant."""
    return call.run()
