"""A counter of the operations that a device would be given: kernels to launch, or near to it, without a device."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FREE = (
    "detach", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "unbind", "lift_fresh",
    "promote_types", "_record_function_enter_new", "_record_function_exit",
)  # fmt: skip
"""Operations without a kernel that torch does not mark as views."""


class DispatchedOperations(TorchDispatchMode):
    """Counts operations but for views, `detach` and `empty`; `_foreach_` ones, which loop on a CPU, once a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in FREE:
            lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], torch.Tensor)]
            self.counts[name] += len(lists[0]) if name.startswith("_foreach_") else 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Return the number of all operations."""
        return self.counts.total()
