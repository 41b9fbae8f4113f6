"""Functions that move, copy, average or pick entries, and those that only look at shapes."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from svdctl.certificates.error_bounds import Affine, Arithmetic
from svdctl.certificates.op_rules import Call, Image, Like, Number, Setting, rule
from svdctl.certificates.traced_tensor import Traced


@rule(
    "flatten unflatten reshape view ravel squeeze unsqueeze permute transpose swapaxes swapdims movedim moveaxis t T "
    "mT flip roll rot90 getitem narrow select index_select chunk split split_with_sizes tensor_split unbind "
    "expand broadcast_to repeat repeat_interleave tile unfold pixel_shuffle pixel_unshuffle channel_shuffle "
    "gather take take_along_dim masked_select diagonal diag tril triu"
)
def _copies(call: Call, x: Image, *rest: Setting, **more: Setting) -> Any:
    results = call.non_negative(1, "copies")
    for result in (results,) if isinstance(results, Traced) else results:
        if _share_memory(result, x):
            result.origin = call.tracer.origin(x).of_views([result.value], "entry")
    return results


@rule("masked_fill")
def _masked_fill(call: Call, x: Image, mask: Setting, value: Number) -> Traced:
    return call.elementwise(1.0, levels=(value,), interval=call.interval(x).hull(call.interval(value)))


@rule("fold", spaces=[F])
def _fold(call: Call, x: Image, output_size: Setting, kernel_size: Setting, *rest: Setting, **more: Setting) -> Any:
    taps = kernel_size**2 if isinstance(kernel_size, int) else math.prod(kernel_size)
    return call.non_negative(taps, "overlap")


@rule("view_as reshape_as expand_as")
def _copies_as(call: Call, x: Image, other: Like) -> Any:
    return call.non_negative(1, "copies")


@rule("detach contiguous clone cpu cuda float double")
def _same(call: Call, x: Image, *rest: Setting, **more: Setting) -> Traced:
    result = call.unary(x, call.run(), 1.0, None, "copies", interval=call.interval(x))
    assert result.bounds is not None
    result.bounds = replace(result.bounds, readout=call.tracer.bounds(x).readout)
    if _share_memory(result, x):
        result.origin = call.tracer.origin(x)
    return result


def _share_memory(first: Traced, second: Traced) -> bool:
    return first.value.untyped_storage().data_ptr() == second.value.untyped_storage().data_ptr()


@rule("data", spaces=[Tensor])
def _data(call: Call, x: Image) -> Traced:
    return _same(call, x)


@rule("type_as to")
def _converted(call: Call, x: Image, *rest: Like, **more: Like) -> Traced:
    return _same(call, x)


@rule("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout")
def _dropout(call: Call, x: Image, p: Number = 0.5, training: Literal[True, False] = True) -> Traced:
    if training:
        raise call.unknown("in training mode (its result is random)")
    return _same(call, x)


@rule("pad")
def _pad(call: Call, x: Image, pad: Setting, mode: Setting = "constant", value: Number = 0.0) -> Any:
    if mode != "constant":
        return call.non_negative(1, "padding")
    output = call.run()

    def edge(_size: Affine, arithmetic: Arithmetic) -> Affine:
        return Affine(math.sqrt(output.numel()) * call.rounding([value], arithmetic))

    return call.unary(x, output, 1.0, edge, "padding", interval=call.interval(x).hull(call.interval(value)))


@rule("mean sum")
def _mean(call: Call, x: Image, dim: Setting = None, keepdim: Setting = False, *, dtype: Setting = None) -> Any:
    return call.non_negative(x.value.numel() // max(call.run().numel(), 1), "pooling")


@rule("avg_pool1d avg_pool2d avg_pool3d")
def _average_pooling(
    call: Call,
    x: Image,
    kernel_size: Setting,
    stride: Setting = None,
    padding: Setting = 0,
    ceil_mode: Setting = False,
    count_include_pad: Setting = True,
    divisor_override: Number = 1.0,
) -> Any:
    if divisor_override < 0:
        raise call.unknown("with a divisor below 0")
    axes = int(call.name[-2])
    sizes = [kernel_size] * axes if isinstance(kernel_size, int) else list(kernel_size)
    terms = min(math.prod(sizes * (axes // len(sizes))), x.value.numel())
    # A divisor rounds, even one single entry.
    return call.non_negative(terms if divisor_override == 1 else max(terms, 2), "pooling")


@rule("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d")
def _adaptive_average_pooling(call: Call, x: Image, output_size: Setting) -> Any:
    axes = axes_of(call, x.value, call.run())
    return call.non_negative(math.prod(-(-size // cells) + 1 for size, cells in axes), "pooling")


@rule("max_pool1d max_pool2d max_pool3d")
def _max_pooling(
    call: Call,
    x: Image,
    kernel_size: Setting,
    stride: Setting = None,
    padding: Setting = 0,
    dilation: Setting = 1,
    ceil_mode: Setting = False,
    return_indices: Literal[False] = False,
) -> Traced:
    """Bound a maximum: its squared change is at most the sum of squares over its window; entries lie in `overlap`."""
    output = call.run()
    overlap = window_overlap(axes_of(call, x.value, output), kernel_size, stride or kernel_size, padding, dilation)
    return call.unary(x, output, math.sqrt(overlap), None, "pooling", interval=call.interval(x))


def window_overlap(
    axes: Sequence[tuple[int, int]], kernel: Any, stride: Any, padding: Any = 0, dilation: Any = 1
) -> int:
    """Return the largest number of windows that an entry lies in; `axes` as in `axes_of`."""
    overlap = 1
    for axis, (size, cells) in enumerate(axes):
        k, s, p, d = (
            value if isinstance(value, int) else value[axis % len(value)]
            for value in (kernel, stride, padding, dilation)
        )
        windows = Counter(cell * s - p + tap * d for cell in range(cells) for tap in range(k))
        overlap *= max(windows[place] for place in range(size))
    return overlap


@rule("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", spaces=[F])
def _adaptive_max_pooling(call: Call, x: Image, output_size: Setting, return_indices: Literal[False] = False) -> Traced:
    output = call.run()
    overlap = 1
    for size, cells in axes_of(call, x.value, output):
        starts = range(cells)
        windows = Counter(at for c in starts for at in range(c * size // cells, -(-(c + 1) * size // cells)))
        overlap *= max(windows.values(), default=0)
    return call.unary(x, output, math.sqrt(overlap), None, "pooling", interval=call.interval(x))


def axes_of(call: Call, before: Tensor, after: Tensor) -> list[tuple[int, int]]:
    """Return (size, pooled size) of each spatial axis; the function's name ends in their number."""
    axes = int(call.name[-2])
    return list(zip(before.shape[-axes:], after.shape[-axes:], strict=True))


@rule(
    "size dim ndimension numel nelement stride is_contiguous is_floating_point is_complex element_size get_device "
    "storage_offset len shape dtype device ndim layout is_cuda is_cpu is_mkldnn is_sparse is_quantized is_meta "
    "requires_grad is_leaf itemsize zeros_like ones_like new_zeros new_ones"
)
def _shape(call: Call, x: Image, *rest: Setting, **more: Setting) -> Any:
    """Return what does not depend on the image's numbers, as a constant; also of what has no bounds."""
    args = (x.value if value is x else value for value in call.args)
    return call.func(*args, **{key: x.value if value is x else value for key, value in call.kwargs.items()})


@rule("repr")
def _text(call: Call, x: Image, **more: Setting) -> str:
    """Return a text without numbers, which control flow could follow."""
    return f"tensor(..., size={tuple(x.value.shape)}, dtype={x.value.dtype})"


@rule("new_full")
def _new_full(call: Call, x: Image, size: Setting, fill_value: Number, **more: Setting) -> Any:
    return call.run()


@rule("full_like")
def _full_like(call: Call, x: Image, fill_value: Number, **more: Setting) -> Any:
    return call.run()
