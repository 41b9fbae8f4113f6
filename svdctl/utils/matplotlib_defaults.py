"""matplotlib with the settings that it ships with: no file in the current folder and no variable changes a picture.

A `matplotlibrc` can have TeX typeset every text, and with it run what its preamble says.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any


@contextmanager
def _in_its_folder() -> Iterator[None]:
    """Make the folder of matplotlib's defaults the current one: when imported, it reads its settings from there."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    try:
        os.chdir(Path(found.origin).parent / "mpl-data")
        yield
    finally:
        os.fchdir(here)
        os.close(here)


with _in_its_folder():
    import matplotlib
    from matplotlib import colormaps
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation
    from matplotlib.ticker import (
        FixedLocator,
        LogFormatter,
        MaxNLocator,
        NullFormatter,
        NullLocator,
        PercentFormatter,
        ScalarFormatter,
    )
    from matplotlib.transforms import offset_copy

__all__ = [
    "Annotation",
    "Artist",
    "Axes",
    "Figure",
    "FixedLocator",
    "Legend",
    "Line2D",
    "LogFormatter",
    "LogNorm",
    "MaxNLocator",
    "NullFormatter",
    "NullLocator",
    "PercentFormatter",
    "ScalarFormatter",
    "SubFigure",
    "colormaps",
    "offset_copy",
    "with_defaults",
]


@contextmanager
def with_defaults(settings: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Draw and write with matplotlib's defaults, whatever the process has set, and never with TeX.

    Args:
        settings: others than the defaults, by name.
    """
    defaults: dict[Any, Any] = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(defaults | dict(settings) | {"text.usetex": False}):
        yield
