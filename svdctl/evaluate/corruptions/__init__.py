"""The 19 corruptions of CIFAR-C for images of any size: batched, seeded by each image's content, uint8 in and out.

Names come without torch; the rest is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from svdctl.config.corruption_names import (
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
    from svdctl.evaluate.corruptions.corruption_functions import corrupt
    from svdctl.evaluate.corruptions.corruption_sheet import contact_sheet

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
    "contact_sheet": "svdctl.evaluate.corruptions.corruption_sheet",
    "corrupt": "svdctl.evaluate.corruptions.corruption_functions",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'svdctl.evaluate.corruptions' has no attribute {name!r}")
