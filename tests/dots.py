"""Dots in place of the PNG files that matplotlib lays out and draws: two take as long as 30 steps of training."""

from base64 import b64decode
from typing import Any

looked_at = False
"""Whether pictures are drawn, for tests that look at them: those marked `drawn`."""
DOT = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")


def put() -> None:
    """Change matplotlib in this process, and in those that are forked from it."""
    from matplotlib.figure import Figure

    real = Figure.savefig

    def savefig(figure: Figure, file: Any, *given: Any, **options: Any) -> None:
        if looked_at or options.get("format") != "png":
            real(figure, file, *given, **options)
        else:
            file.write(DOT)

    Figure.savefig = savefig  # type: ignore[method-assign]
