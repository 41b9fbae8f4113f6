"""A limit on the address space of a process (`ulimit -v`): whether torch can be imported within it.

Within too small a one the import fails without naming memory, or aborts the process, where nothing of Python can tell.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from svdctl.errors import UsageError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_GIGABYTE = 10**9
_BESIDE = 0.6 * _GIGABYTE
"""Bytes beside the libraries: Python, its packages, the stacks of threads, a small network; measured."""
_TRIAL = "import torch; torch.nn.Conv2d(3, 8, 3)(torch.randn(8, 3, 32, 32)).sum().backward()"
_SIGNS = ("memory", "bad_alloc", "failed to map segment", "failed to create thread", "resource temporarily unavailable")


def require_address_space() -> None:
    """Try, in a process of its own, a small computation by torch, where a limit may be too small for it.

    Raises:
        UsageError: it fails.
    """
    if resource is None or "torch" in sys.modules:
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return
    needed = _library_bytes() + _BESIDE
    if limit < 2 * needed and not _is_enough():
        raise UsageError(
            f"torch needs about {needed / _GIGABYTE:.1f} GB of address space here, and the limit is "
            f"{limit / _GIGABYTE:.1f} GB; raise it (`ulimit -v unlimited`), or run where there is none"
        )


def _library_bytes() -> int:
    """Return the size of the shared libraries that a training maps, as far as they lie where pip puts them."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return 0
    torch = Path(spec.origin).parent
    places = (torch / "lib", *torch.parent.glob("nvidia/*/lib"), torch.parent / "triton/_C")
    files = {file.resolve() for place in places for file in place.glob("*.so*")}
    # cuDNN has its kernels in libraries of their own, which only GPUs need.
    return sum(file.stat().st_size for file in files if not file.name.startswith("libcudnn_"))


def _is_enough() -> bool:
    """Return whether torch can compute within this process's limit; also where it fails for another reason."""
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", _TRIAL], capture_output=True, text=True, errors="replace", check=False
        )
    except (OSError, MemoryError):
        return False
    if ended.returncode == 0:
        return True
    return ended.returncode > 0 and not any(sign in ended.stderr.lower() for sign in _SIGNS)
