"""Singular values of convolutional networks: read, bounded and controlled.

Names are loaded on first use, so that `import svdctl` costs nothing until torch is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svdctl.checkpoint import load
    from svdctl.layers.tensorize import tensorize_
    from svdctl.layers.tt import TTConv2d

__all__ = ["TTConv2d", "load", "tensorize_"]

_HOME = {"TTConv2d": "svdctl.layers.tt", "load": "svdctl.checkpoint", "tensorize_": "svdctl.layers.tensorize"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'svdctl' has no attribute {name!r}")
