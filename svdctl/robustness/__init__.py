"""What a network withstands: corruptions, calibration, attacks.

Names are loaded on first use: those of the corruptions come without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svdctl.config.corruptions import BENCHMARK, CORRUPTIONS, read_corruption_list
    from svdctl.robustness.corruptions.registry import corrupt
    from svdctl.robustness.corruptions.sheet import contact_sheet

__all__ = ["BENCHMARK", "CORRUPTIONS", "contact_sheet", "corrupt", "read_corruption_list"]

_HOME = {
    "BENCHMARK": "svdctl.config.corruptions",
    "CORRUPTIONS": "svdctl.config.corruptions",
    "contact_sheet": "svdctl.robustness.corruptions.sheet",
    "corrupt": "svdctl.robustness.corruptions.registry",
    "read_corruption_list": "svdctl.config.corruptions",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'svdctl.robustness' has no attribute {name!r}")
