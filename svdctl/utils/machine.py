"""The machine in words, to stand beside figures that were measured on it."""

import os
import platform
from typing import TYPE_CHECKING

from svdctl.utils.files import read_text

if TYPE_CHECKING:
    import torch


def processor() -> str:
    """Return the model of the CPU, else its architecture."""
    try:
        lines = read_text("/proc/cpuinfo", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*models, platform.processor(), platform.machine()]), "unknown processor")


def machine(device: "torch.device | None" = None) -> str:
    """Return the device or CPU, number of CPUs and of torch's threads, version of torch."""
    import torch

    name = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else processor()
    threads = torch.get_num_threads()
    shown = f"{threads} thread{'s' * (threads != 1)}"
    return f"{name}, {os.cpu_count()} CPUs, {shown}, torch {torch.__version__}"
