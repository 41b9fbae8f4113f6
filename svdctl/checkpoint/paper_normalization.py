"""Means and standard deviations of the channels in the paper's code."""

from typing import Any

HALF: dict[str, Any] = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
NORMALIZE: dict[str, dict[str, Any]] = {
    "cifar10": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "cifar100": {"mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]},
}
LIPCONV_NORMALIZE: dict[str, Any] = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2507, 0.2507, 0.2507]}
