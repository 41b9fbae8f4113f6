"""The first lines of a command: what runs and on what, printed before torch is imported, which takes seconds."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from svdctl.utils.escapes import one_line
from svdctl.utils.printable import hanging, print_line
from svdctl.utils.table import width_of


def say_opening(
    command: str, work: str, lines: Iterable[str] = (), *, stream: Literal["stdout", "stderr"] = "stderr"
) -> None:
    """Print what a command does, before it imports torch: `svdctl eval-robust: accuracy and ece of 2 checkpoints`.

    Call it once the flags are known to be right and before anything imports torch; it imports nothing heavy itself.
    Where several processes run the command, only the first one prints. Names in the texts are escaped here.

    Args:
        command: its name, `eval-robust`.
        work: what it does, with the names that the user gave; no full stop.
        lines: further facts, a line each, as `device   cpu`; `device_line` makes the one on the device.
        stream: stdout for what is the command's result, else stderr.
    """
    if is_first_process():
        shown_on = getattr(sys, stream)
        width = width_of(shown_on)
        for line in (f"svdctl {command}: {work}", *lines):
            for part in hanging(one_line(line), width):
                print_line(part, shown_on)


def is_first_process() -> bool:
    """Return whether this is the only process of a command, or the first of those that torchrun or SLURM started."""
    ranks = [
        ("LOCAL_RANK", "SLURM_LOCALID"),
        ("NODE_RANK", "GROUP_RANK", "SLURM_NODEID"),
    ]
    return all(next((os.environ[name] for name in names if name in os.environ), "0") == "0" for names in ranks)


def device_line(accelerator: str, precision: str = "32", *further: str) -> str:
    """Return the line about the device as far as it is known without torch.

    Args:
        accelerator: what was asked for: `auto`, `cpu`, `cuda`, ...
        precision: format of numbers.
        further: other facts: `capture off`, `2 processes`.
    """
    device = accelerator
    if accelerator == "auto":
        device = "a GPU if torch finds one, else the CPU" if may_have_gpu() else "cpu (no GPU is found)"
    return f"device   {', '.join([device, f'precision {precision}', *further])}"


def may_have_gpu() -> bool:
    """Return whether a GPU may be there that torch can use: on Linux the files of its driver tell, without torch."""
    if sys.platform == "darwin":
        return False  # MPS has no float64, in which singular values are bounded
    if sys.platform != "linux":
        return True
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/dri")
    return any(Path(file).exists() for file in drivers)
