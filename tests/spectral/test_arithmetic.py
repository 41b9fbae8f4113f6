"""`exact_arithmetic` sets every precision switch, whatever was set before, in every thread, and gives it back."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from svdctl.spectral.exact_arithmetic import default_dtype_of, exact_arithmetic, float32_is_exact
from svdctl.spectral.frequency_cells import cover
from svdctl.spectral.parallel_map import parallel_map

CPU = torch.device("cpu")
MATMUL = torch.backends.cuda.matmul
has_fp32_precision = hasattr(torch.backends.cudnn, "fp32_precision")
NEW = [
    (torch.backends, "fp32_precision"),
    (torch.backends.cudnn, "fp32_precision"),
    (MATMUL, "fp32_precision"),
    *(
        (getattr(backend, kind, None), "fp32_precision")
        for backend, kinds in (
            (torch.backends.cudnn, ("conv", "rnn")),
            (torch.backends.mkldnn, ("matmul", "conv", "rnn")),
        )
        for kind in kinds
    ),
]
NEW = [(owner, name) for owner, name in NEW if has_fp32_precision and owner is not None]
OLD = [
    (torch.backends.mkldnn, "enabled"),
    (torch.backends.cudnn, "enabled"),
    (MATMUL, "allow_fp16_reduced_precision_reduction"),
    (MATMUL, "allow_bf16_reduced_precision_reduction"),
    (MATMUL, "allow_fp16_accumulation"),
]


def flushes() -> bool:
    return float(torch.tensor(torch.finfo(torch.float32).tiny, dtype=torch.float32) * 0.5) == 0


def said(read: Callable[[], Any]) -> Any:
    """What is read, or that reading it raises: torch does so where old and new switches contradict each other."""
    try:
        return read()
    except RuntimeError:
        return RuntimeError


def state() -> list[Any]:
    tf32 = [torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32, lambda: MATMUL.allow_tf32]
    return [
        *(said(read) for read in tf32),
        *(getattr(owner, name) for owner, name in NEW + OLD),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        flushes(),
    ]


def put(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


SETTINGS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "tf32 by the old switch": put(MATMUL, "allow_tf32", True),
    "no tf32 in cudnn": put(torch.backends.cudnn, "allow_tf32", False),
    "half sums": put(MATMUL, "allow_bf16_reduced_precision_reduction", True),
    "no half sums": put(MATMUL, "allow_fp16_reduced_precision_reduction", False),
    "half accumulation": put(MATMUL, "allow_fp16_accumulation", True),
    "no oneDNN": put(torch.backends.mkldnn, "enabled", False),
    "flushed": lambda: torch.set_flush_denormal(True),
    "half by default": lambda: torch.set_default_dtype(torch.float16),
}
if has_fp32_precision:
    SETTINGS |= {
        "everything tf32": put(torch.backends, "fp32_precision", "tf32"),
        "everything bf16": put(torch.backends, "fp32_precision", "bf16"),
        "oneDNN bf16": put(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
        "oneDNN conv tf32": put(torch.backends.mkldnn.conv, "fp32_precision", "tf32"),
        "cuBLAS tf32": put(MATMUL, "fp32_precision", "tf32"),
        "cuDNN conv ieee": put(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    }


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    before = [getattr(owner, name) for owner, name in OLD]
    yield
    torch.set_flush_denormal(False)
    torch.set_default_dtype(torch.float32)
    torch.set_autocast_enabled("cuda", False)
    for (owner, name), value in zip(OLD, before, strict=True):
        setattr(owner, name, value)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    if has_fp32_precision:
        # What torch begins with: cuDNN's own are tf32, all others inherit.
        for backend, kind in [("generic", "all"), *((b, k) for b in ("cuda", "mkldnn") for k in ("all", "matmul"))]:
            torch._C._set_fp32_precision_setter(backend, kind, "none")
        for kind in ("conv", "rnn"):
            torch._C._set_fp32_precision_setter("mkldnn", kind, "none")


@pytest.mark.parametrize("second", ["nothing", "high", "no tf32 in cudnn", "everything tf32", "oneDNN bf16"])
@pytest.mark.parametrize("first", SETTINGS)
def test_every_switch_is_set_and_given_back(first: str, second: str) -> None:
    if second not in SETTINGS:
        pytest.skip("this torch has no fp32_precision")
    SETTINGS[first]()
    SETTINGS[second]()
    torch.set_autocast_enabled("cuda", True)
    before = state()
    with torch.autocast("cpu", torch.bfloat16), exact_arithmetic():
        assert float32_is_exact(CPU)
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
        assert not MATMUL.allow_tf32
        assert all(getattr(owner, name) == "ieee" for owner, name in NEW)
        assert not any(getattr(owner, name) for owner, name in OLD if owner is MATMUL)
        assert not torch.backends.mkldnn.enabled
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cuda")
        assert not flushes()
        assert torch.get_default_dtype() == torch.float64
        inside = state()
        with exact_arithmetic(torch.float32, direct_convolutions=True):
            assert torch.get_default_dtype() == torch.float32
            assert not torch.backends.cudnn.enabled
        assert state() == inside
    assert state() == before


def test_settings_that_are_inherited_stay_inherited() -> None:
    if not has_fp32_precision:
        pytest.skip("this torch has no fp32_precision")
    with exact_arithmetic():
        pass
    torch.backends.fp32_precision = "tf32"
    assert MATMUL.fp32_precision == torch.backends.mkldnn.matmul.fp32_precision == "tf32"


def test_given_back_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    before = state()
    with pytest.raises(ZeroDivisionError), exact_arithmetic(direct_convolutions=True):
        _ = 1 / 0
    assert state() == before


@pytest.mark.parametrize(
    ("setting", "exact"), [("nothing", True), ("high", False), ("medium", False), ("oneDNN bf16", False)]
)
def test_the_predicate_reads_old_and_new_switches(setting: str, exact: bool) -> None:
    if setting not in SETTINGS:
        pytest.skip("this torch has no fp32_precision")
    SETTINGS[setting]()
    assert float32_is_exact(CPU) == exact
    assert not float32_is_exact(torch.device("cuda"))


def test_the_last_of_several_threads_gives_it_back() -> None:
    torch.set_float32_matmul_precision("medium")
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        torch.set_flush_denormal(True)  # of this thread alone
        with exact_arithmetic():
            entered.set()
            leave.wait(60)
            seen.extend([torch.get_float32_matmul_precision(), flushes()])

    thread = threading.Thread(target=other)
    with exact_arithmetic():
        thread.start()
        assert entered.wait(60)
    assert torch.get_float32_matmul_precision() == "highest"
    leave.set()
    thread.join()
    assert seen == ["highest", False]
    assert torch.get_float32_matmul_precision() == "medium"


def test_threads_of_torch_that_flush_are_left_out() -> None:
    # torch's own threads take over the setting of the thread that starts them, and keep it.
    script = """
import torch
torch.set_num_threads(2)
torch.set_flush_denormal(True)
numbers = torch.full((1 << 17,), torch.finfo(torch.float32).tiny)
numbers * 2
torch.set_flush_denormal(False)
from svdctl.spectral.exact_arithmetic import exact_arithmetic
outside = bool((numbers * 0.5 == 0).any())
with exact_arithmetic():
    inside = bool((numbers * 0.5 == 0).any())
print(outside, inside, torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["False", "2"], done


def test_threads_of_svdctl_that_flush_do_not_flush_inside() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)  # a pool that no other test uses
    try:
        torch.set_flush_denormal(True)
        assert parallel_map(lambda _: flushes(), range(6)) == [True] * 6
        with exact_arithmetic():
            assert parallel_map(lambda _: flushes(), range(6)) == [False] * 6
        assert parallel_map(lambda _: flushes(), range(6)) == [True] * 6
    finally:
        torch.set_num_threads(before)


def test_the_default_dtype_stays_until_the_last_thread_leaves() -> None:
    entered, leave = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with exact_arithmetic():
            entered.set()
            leave.wait(30)
            seen.append(torch.get_default_dtype())

    thread = threading.Thread(target=other)
    with exact_arithmetic():
        thread.start()
        assert entered.wait(30)
        with exact_arithmetic(torch.float32):
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float64
    # The first that entered has left.
    leave.set()
    thread.join()
    assert seen == [torch.float64]
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_centres_of_cells_are_exact_whatever_the_default_dtype(dtype: torch.dtype) -> None:
    with default_dtype_of(dtype):
        cells = cover((3, 3), 0.4)
        halved = cells.halved()
    assert halved.centres.dtype == torch.float64
    apart = (halved.centres.view(-1, 4, 2) - cells.centres[:, None]).abs()
    assert float((apart.sum(2) - cells.radius / 2).abs().max()) < 1e-15
