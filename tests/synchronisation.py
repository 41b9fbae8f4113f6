"""A detector of host synchronisation that needs no GPU: what would wait for a device when there is one."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    torch.ops.aten._local_scalar_dense.default,  # item(), float(), bool(), tolist()
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.repeat_interleave.Tensor,
    torch.ops.aten._linalg_check_errors.default,  # inv, solve, cholesky, but not their _ex forms
    torch.ops.aten._linalg_eigh.default,
    torch.ops.aten._linalg_svd.default,
    torch.ops.aten.linalg_eig.default,
    torch.ops.aten.linalg_matrix_exp.default,  # chooses its degree by the norm
}


class NoHostReads(TorchDispatchMode):
    """Raises where a value or a size would have to come from the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in WAITS or by_mask:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))
