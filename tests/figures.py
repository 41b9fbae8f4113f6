"""What is drawn of a figure: every text with the place it takes, so that tests find those that collide or are cut."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from unittest.mock import patch

from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

_TOUCHING = 0.5
"""Pixels of 130 an inch by which places may overlap: letters are narrower than their places."""


@dataclass(frozen=True)
class DrawnText:
    """A line of text, and its place in pixels from the lower left corner of the figure."""

    text: str
    place: Bbox


def drawn_texts(figure: Figure, dpi: int = 130) -> list[DrawnText]:
    """Return every line of text that is drawn of a figure, as in a PNG of so many pixels an inch.

    Texts within the picture alone are found: tick labels beyond the limits of their axis, and those of hidden axes,
    are not drawn.
    """
    found: list[DrawnText] = []
    real = RendererAgg.draw_text

    def noted(renderer: RendererAgg, gc, x, y, s, prop, angle, ismath=False, mtext=None) -> None:  # type: ignore[no-untyped-def]
        width, height, descent = renderer.get_text_width_height_descent(s, prop, ismath)
        # y counts from the top; texts that stand upright are turned around the left end of their base line.
        base = renderer.height - y
        across, up = (width, height) if angle % 180 == 0 else (height, width)
        left, low = (x, base - descent) if angle % 180 == 0 else (x - height + descent, base)
        if s.strip():
            found.append(DrawnText(s, Bbox.from_bounds(left, low, across, up)))
        real(renderer, gc, x, y, s, prop, angle, ismath, mtext)

    before = figure.dpi
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    try:
        canvas.draw()  # the layout settles at the first drawing
        with patch.object(RendererAgg, "draw_text", noted):
            canvas.draw()
    finally:
        figure.set_dpi(before)
    return found


def faults_of(figure: Figure, dpi: int = 130) -> list[str]:
    """Return a line for each pair of texts that overlap, and for each text that the canvas cuts."""
    texts = drawn_texts(figure, dpi)
    assert texts, "nothing is written"
    return [*_cut(texts, figure.get_figwidth() * dpi, figure.get_figheight() * dpi), *_overlapping(texts)]


def _cut(texts: list[DrawnText], width: float, height: float) -> Iterator[str]:
    for one in texts:
        if one.place.x0 < -1 or one.place.y0 < -1 or one.place.x1 > width + 1 or one.place.y1 > height + 1:
            yield f"{one.text!r} is cut: {_told(one.place)} in {width:.0f} x {height:.0f}"


def _overlapping(texts: list[DrawnText]) -> Iterator[str]:
    for one, other in combinations(texts, 2):
        common = Bbox.intersection(one.place, other.place)
        if common is not None and min(common.width, common.height) > _TOUCHING:
            yield f"{one.text!r} and {other.text!r} overlap: {_told(common)}"


def _told(place: Bbox) -> str:
    return f"x {place.x0:.0f} to {place.x1:.0f}, y {place.y0:.0f} to {place.y1:.0f}"
