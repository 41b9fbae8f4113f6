"""Which way to the singular values of many matrices is the fastest: a table of measured times, and what follows of it.

A GPU multiplies fast and diagonalises slowly: where matrices are small, or the host has many cores, the host is faster.
"""

from typing import Literal

import torch

# The least side of matrices from which a GPU's own routine, which takes them one by one, finds their values in less
# time than the host, by the host's threads, the last one for any more. Milliseconds for one of many complex matrices
# in float64, of 160 and of 320 rows:
#   eigenvalues on an H200: 1.46 and 3.2; on the host, 16 threads: 0.64 and 8.1; 1 thread: 2.0 and 12.3.
#   singular values by SVD on an H200 (float32): 6.2 and 17; on the host, 1 thread: 3.0 and 20.9.
_FROM_SIDE = {
    "eigenvalues": {1: 128, 2: 192, 3: 224},
    "svd": {1: 288, 2: 320, 3: 352},
}
# The least number of entries of all matrices together from which a GPU finds the eigenvalues of all of them at once
# (`spectral/tridiagonal.py`) in less time than the host, by the host's threads, the last one for any more. On an H200
# that takes 47 ms for 4,000 matrices of 64 rows, 136 for 2,000 of 160, 115 for 130 and 254 for 2,700 of 192, 165 for
# 520 of 320, 374 for 136 of 640: some 0.56 ms for each row of one matrix, whatever their number, and little more. One
# matrix takes the host, 16 threads, 0.03, 0.26, 0.33, 1.1 and 8.3 ms; 1 thread 0.2, 1.7, 3.2, 8.3.
_FROM_ENTRIES = dict(
    enumerate((1_300_000, 2_500_000, 3_500_000, 5_000_000, 6_000_000, 7_000_000, 8_500_000, 10_000_000), 1)
)
# The least number of matrices from which that takes less time than the GPU's own routine: both grow with the side.
_FROM_COUNT = 64


def device_for_values(
    side: int,
    device: torch.device,
    *,
    by: Literal["eigenvalues", "svd"] = "eigenvalues",
    count: int = 1,
    threads: int | None = None,
) -> torch.device:
    """Return where the values of many matrices are found in the least time: their own device, or the host.

    Args:
        side: the smaller one of the matrices.
        device: where they are.
        by: eigenvalues of their Gram matrices, or an SVD.
        count: how many matrices are computed at once, at least.
        threads: of the host; those that torch may use, if not given.
    """

    def least(table: dict[int, int]) -> int:
        return table[min(threads or torch.get_num_threads(), max(table))]

    many = by == "eigenvalues" and bisection_is_faster(count, device) and count * side**2 >= least(_FROM_ENTRIES)
    return device if device.type == "cpu" or many or side >= least(_FROM_SIDE[by]) else torch.device("cpu")


def bisection_is_faster(count: int, device: torch.device) -> bool:
    """Return whether the eigenvalues of so many matrices take less time at once than by the device's own routine.

    On a CPU (complex matrices of 32 to 320 rows, one thread) never: three times as long and more.
    """
    return device.type not in ("cpu", "meta") and count >= _FROM_COUNT


def launches_dominate(device: torch.device) -> bool:
    """Return whether the number of operations and reads tells the time of proofs, not the work in them: off the CPU."""
    return device.type != "cpu"


def few_batches_are_faster(device: torch.device) -> bool:
    """Return whether few large batches, of many layers, are the fastest: each operation costs time whatever its size.

    On a CPU small pieces stay in its cache.
    """
    return device.type != "cpu"


def products_are_faster(device: torch.device) -> bool:
    """Return whether some thirty products of matrices take less time than one eigendecomposition of each.

    On a GPU a tenth of it; on a CPU (complex matrices of 32 to 320 rows, one thread) twice to four times as much.
    """
    return device.type not in ("cpu", "meta")
