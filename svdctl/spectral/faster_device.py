"""Which way to the singular values of many matrices is the fastest: a table of measured times, and what follows of it.

A GPU multiplies fast and diagonalises slowly: where matrices are small, or the host has many cores, the host is faster.
"""

from typing import Literal

import torch

# The least side of matrices from which a GPU finds their values in less time than the host, by the host's threads, the
# last one for any more. Milliseconds for one of many complex matrices in float64, of 160 and of 320 rows:
#   eigenvalues on an H200: 1.46 and 3.2; on the host, 16 threads: 0.64 and 8.1; 1 thread: 2.0 and 12.3.
#   singular values by SVD on an H200 (float32): 6.2 and 17; on the host, 1 thread: 3.0 and 20.9.
_FROM_SIDE = {
    "eigenvalues": {1: 128, 2: 192, 3: 224},
    "svd": {1: 288, 2: 320, 3: 352},
}


def device_for_values(
    side: int, device: torch.device, *, by: Literal["eigenvalues", "svd"] = "eigenvalues", threads: int | None = None
) -> torch.device:
    """Return where the values of many matrices are found in the least time: their own device, or the host.

    Args:
        side: the smaller one of the matrices.
        device: where they are.
        by: eigenvalues of their Gram matrices, or an SVD.
        threads: of the host; those that torch may use, if not given.
    """
    table = _FROM_SIDE[by]
    least = table[min(threads or torch.get_num_threads(), max(table))]
    return device if device.type == "cpu" or side >= least else torch.device("cpu")


def launches_dominate(device: torch.device) -> bool:
    """Return whether the number of operations and reads tells the time of proofs, not the work in them: off the CPU."""
    return device.type != "cpu"


def products_are_faster(device: torch.device) -> bool:
    """Return whether some thirty products of matrices take less time than one eigendecomposition of each.

    On a GPU a tenth of it; on a CPU (complex matrices of 32 to 320 rows, one thread) twice to four times as much.
    """
    return device.type not in ("cpu", "meta")
