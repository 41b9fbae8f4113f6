"""Dots in place of the pictures that matplotlib lays out and draws: two take as long as 30 steps of training."""

from base64 import b64decode
from typing import Any

looked_at = False
"""Whether pictures are drawn, for tests that look at them: those marked `drawn`."""
DOTS = {
    "png": b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt" viewBox="0 0 1 1" version="1.1"></svg>',
}
"""One of each format."""


def put() -> None:
    """Change matplotlib in this process, and in those that are forked from it."""
    from matplotlib.figure import Figure

    real = Figure.savefig

    def savefig(figure: Figure, file: Any, *given: Any, **options: Any) -> None:
        dot = DOTS.get(options.get("format", ""))
        if looked_at or dot is None:
            real(figure, file, *given, **options)
        else:
            file.write(dot)

    Figure.savefig = savefig  # type: ignore[method-assign]
