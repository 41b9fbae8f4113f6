"""The one limit of what reading a file of weights, or all files of a folder, may cost, in proportion to their size."""

from svdctl.errors import CheckpointError

FLOOR = 64 * 2**20
"""Bytes of objects that any file may ask for: what an interpreter with torch holds before it reads anything is more."""
PER_BYTE = 64
"""Bytes of objects for each byte of a file. The densest that torch.save writes are lists of small numbers, 8 to 16
bytes of memory for 1 or 2 of the file, and optimisers' entries without numbers, some 40 for each; what is shared and
enlarges itself, as a string that is encoded again and again, has no bound but this one."""


class WorkLimit:
    """Count what one file, or several that are read together, asks for, before it is made.

    Args:
        size: of all files, in bytes.
        where: the file that is being read, for messages; of several, whoever reads them sets it.
    """

    def __init__(self, size: int, where: str) -> None:
        self.left, self.where = FLOOR + PER_BYTE * size, where

    def spend(self, count: int) -> None:
        """Take bytes of memory, or steps of work of about as many, from what is left.

        Raises:
            CheckpointError: nothing is left.
        """
        self.left -= count
        if self.left < 0:
            raise CheckpointError(
                f"{self.where} asks for far more memory or work than a file of its size needs; "
                "in the process that made it, torch.save(model.state_dict(), 'weights.pt') writes the weights alone"
            )
