"""Which radii a network's certificates are counted at."""

from typing import Annotated

from pydantic import Field, PositiveFloat

from svdctl.config.base import Config


class Certificate(Config):
    """Certified accuracy is measured while training; radii are l2 distances in 255ths of a pixel's range."""

    epsilon: PositiveFloat = 36.0
    """Radius of certified accuracy while training, in 255ths. It chooses the best epoch too."""
    radii: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (36.0, 72.0, 108.0, 255.0)
    """The radii of the table at the end."""
