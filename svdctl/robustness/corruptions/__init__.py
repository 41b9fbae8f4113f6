"""The 19 corruptions of CIFAR-C for images of any size: batched, seeded by each image's content, uint8 in and out.

Names come without torch; the rest is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from svdctl.config.corruptions import (
    BENCHMARK,
    CLEAN,
    CORRUPTIONS,
    NOTES,
    SEVERITIES,
    corruption_name,
    nearest_corruption,
    read_corruption_list,
)

if TYPE_CHECKING:
    from svdctl.robustness.corruptions.registry import corrupt
    from svdctl.robustness.corruptions.sheet import contact_sheet

__all__ = [
    "BENCHMARK",
    "CLEAN",
    "CORRUPTIONS",
    "NOTES",
    "SEVERITIES",
    "contact_sheet",
    "corrupt",
    "corruption_name",
    "nearest_corruption",
    "read_corruption_list",
]

_HOME = {
    "contact_sheet": "svdctl.robustness.corruptions.sheet",
    "corrupt": "svdctl.robustness.corruptions.registry",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'svdctl.robustness.corruptions' has no attribute {name!r}")
