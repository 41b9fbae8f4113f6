"""Floating-point arithmetic as the proofs presume it: every switch of torch that trades precision for speed is off.

What is switched off, and given back as it was found:
- TF32 and bfloat16 products in float32 (cuBLAS, cuDNN, oneDNN), by the old switches and by `fp32_precision`;
- reduced precision sums of float16 and bfloat16 products;
- oneDNN, which environment variables can turn to bfloat16, and NNPACK, which takes Winograd's and FFT convolutions;
- autocast, on every kind of device, and the flushing of subnormal numbers to zero: both belong to a thread.
"""

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

# Outer settings first: an inner one that says "none" reads as the one around it.
_FP32_PRECISIONS = (
    ("generic", "all"),
    *((backend, kind) for kind in ("all", "matmul", "conv", "rnn") for backend in ("cuda", "mkldnn")),
)
_REDUCED = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
_DEVICES = ("cpu", "cuda", "xpu", "mps", "hpu")
# torch splits element-wise work into pieces of this size.
_GRAIN = 32768

# Private: the public attributes do not separate inherited settings from own ones, and torch 2.8 has none of them.
_read_fp32: Callable[[str, str], str] | None = getattr(torch._C, "_get_fp32_precision_getter", None)
_write_fp32: Callable[[str, str, str], object] | None = getattr(torch._C, "_set_fp32_precision_setter", None)


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute products in each tensor's own precision: without TF32, bfloat16 products, reduced sums and autocast.

    It is what reading, controlling and retracting layers asks for, and cheap enough for every training step. Proofs
    ask for `exact_arithmetic`. Settings of the process are made by the first that enters, in whatever thread, and given
    back by the last that leaves; autocast is turned off in each thread that enters. Where the meta device, which has no
    numbers, is the default one, the CPU takes its place.
    """
    with ExitStack() as stack:
        stack.enter_context(_SWITCHES)
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def exact_arithmetic(
    default_dtype: torch.dtype = torch.float64, *, direct_convolutions: bool = False
) -> Iterator[None]:
    """Compute with IEEE arithmetic in each tensor's own precision, whatever the caller's settings are.

    Settings are made and given back as by `exact_products`; subnormal numbers are a setting of each thread, too.

    Args:
        default_dtype: torch's default dtype inside.
        direct_convolutions: also leave cuDNN unused: in float32 it may convolve by Winograd's algorithm or by FFT,
            whose error is larger. In float64 it never does.
    """
    with ExitStack() as stack:
        stack.enter_context(exact_products())
        if direct_convolutions:
            stack.enter_context(_CUDNN)
        stack.enter_context(_subnormal_numbers())
        stack.enter_context(default_dtype_of(default_dtype))
        yield


def float32_is_exact(device: torch.device) -> bool:
    """Return whether float32 products are sure to be in float32, as inside of `exact_arithmetic` on a CPU."""
    if device.type != "cpu":
        return False
    if _read_fp32 is not None and _read_fp32("mkldnn", "matmul") not in ("none", "ieee"):
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the old and the new switches contradict each other
        return False


@contextmanager
def _changed(write: Callable[[Any], object], before: Any, inside: Any) -> Iterator[None]:
    """Set a switch of torch, and give it back as it was."""
    write(inside)
    try:
        yield
    finally:
        write(before)


@dataclass(eq=False)
class _Asked:
    """A default dtype that one body asks for."""

    dtype: torch.dtype


class _DefaultDtypes:
    """The default dtypes that bodies ask for, in whatever threads: torch has one for the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: list[_Asked] = []
        self._outside = torch.float32

    @contextmanager
    def inside(self, dtype: torch.dtype) -> Iterator[None]:
        """Hold it for one body: that of the last one that entered and has not left holds."""
        mine = _Asked(dtype)
        with self._lock:
            if not self._asked:
                self._outside = torch.get_default_dtype()
            self._asked.append(mine)
            torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            with self._lock:
                self._asked.remove(mine)
                torch.set_default_dtype(self._asked[-1].dtype if self._asked else self._outside)


_DEFAULT_DTYPES = _DefaultDtypes()


def default_dtype_of(dtype: torch.dtype) -> AbstractContextManager[None]:
    """Make `dtype` torch's default inside, also while other threads enter and leave with the same."""
    return _DEFAULT_DTYPES.inside(dtype)


class _Shared:
    """A setting of the whole process, made by the first that enters and taken back by the last that leaves."""

    def __init__(self, setting: Callable[[], AbstractContextManager[None]]) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._inside = 0
        self._made = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._made.enter_context(self._setting())
            self._inside += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._made.close()


@contextmanager
def _switches() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    switches: list[tuple[Callable[[Any], object], Any]] = [
        (torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled()),
        (torch._C._set_nnpack_enabled, torch._C._get_nnpack_enabled()),
        (partial(setattr, matmul, "allow_fp16_accumulation"), matmul.allow_fp16_accumulation),
    ]
    for name in _REDUCED:
        before, split = getattr(matmul, name), getattr(matmul, f"{name}_split_k", None)
        switches.append((partial(setattr, matmul, name), before if split is None else (before, split)))
    if torch.xpu.is_available():
        switches.append((torch._C._set_onednn_allow_tf32, bool(torch._C._get_onednn_allow_tf32())))
    with ExitStack() as stack:
        for write, before in switches:
            stack.enter_context(_changed(write, before, False))
        stack.enter_context(_ieee_float32())
        yield


@contextmanager
def _ieee_float32() -> Iterator[None]:
    """Allow no TF32 and no bfloat16 in float32 products, by old and new switches alike: mixtures of them raise."""
    own = []
    if _read_fp32 is not None and _write_fp32 is not None:
        for key in _FP32_PRECISIONS:
            own.append(_read_fp32(*key))
            _write_fp32(*key, "none")
    matmul, cudnn = torch.get_float32_matmul_precision(), _old_cudnn_switch()
    try:
        torch.set_float32_matmul_precision("highest")
        torch._C._set_cudnn_allow_tf32(False)
        _set_fp32(["ieee"] * len(own))
        yield
    finally:
        # Old ones first: they write new ones too.
        torch.set_float32_matmul_precision(matmul)
        torch._C._set_cudnn_allow_tf32(cudnn)
        _set_fp32(own)


def _old_cudnn_switch() -> bool:
    if _write_fp32 is None:
        return torch._C._get_cudnn_allow_tf32()
    for kind in ("conv", "rnn"):
        _write_fp32("cuda", kind, "tf32")
    try:
        return torch._C._get_cudnn_allow_tf32()
    except RuntimeError:  # it contradicts the new ones, which say yes
        return False


def _set_fp32(values: list[str]) -> None:
    if _write_fp32 is not None:
        for key, value in zip(_FP32_PRECISIONS, values, strict=True):
            _write_fp32(*key, value)


def _without_cudnn() -> AbstractContextManager[None]:
    return _changed(torch._C._set_cudnn_enabled, torch._C._get_cudnn_enabled(), False)


_SWITCHES, _CUDNN = _Shared(_switches), _Shared(_without_cudnn)


@contextmanager
def _subnormal_numbers() -> Iterator[None]:
    """Do not flush subnormal numbers to zero, in this thread and in those that torch splits its work over.

    The latter took over the setting of the thread that started them, and nothing can change it there: if they flush,
    work is not split.
    """
    flushes, threads, outermost = _flushes(), torch.get_num_threads(), not is_exact_here()
    if flushes:
        torch.set_flush_denormal(False)
    # Read by numpy, which counts as no wait for a device.
    splits = outermost and threads > 1 and (_probe(threads) * 0.5).numpy().min() == 0
    if splits:
        torch.set_num_threads(1)
    _here.inside = True
    try:
        yield
    finally:
        _here.inside = not outermost
        if splits:
            torch.set_num_threads(threads)
        if flushes:
            torch.set_flush_denormal(True)


_here = threading.local()


def is_exact_here() -> bool:
    """Return whether this thread is inside of `exact_arithmetic`."""
    return getattr(_here, "inside", False)


def _flushes() -> bool:
    """Return whether this thread flushes subnormal numbers to zero; torch has no function that reads it."""
    return math.prod((sys.float_info.min, 0.5)) == 0.0


@lru_cache(maxsize=4)
def _probe(threads: int) -> Tensor:
    """Return numbers some of whose halves are subnormal, a few for every thread: such halves are slow."""
    numbers = torch.ones(threads * _GRAIN, dtype=torch.float32, device="cpu")
    numbers[:: _GRAIN // 4] = torch.finfo(torch.float32).tiny
    return numbers
