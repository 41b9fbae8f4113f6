"""Show figures with few digits so that what is said of them stays true: bounds rounded up, what is reached down."""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

_LONGEST = 400  # digits of a number in float64, decimals included


def number(value: float | None, digits: int = 4) -> str:
    """Return that many figures, or a dash."""
    if value is None:
        return "-"
    return "inf" if math.isinf(value) else f"{value:.{digits}g}"


def at_most(value: float | None, digits: int = 4) -> str:
    """Return that many figures of a bound, rounded up, or a dash; of one a little above a round number more of them.

    >>> from svdctl.utils.rounded_figures import at_most
    >>> at_most(2.34512), at_most(4.000051), at_most(4.0)
    ('2.346', '4.000051', '4')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    nearest = number(value, digits)
    if float(nearest) < value and len(nearest.replace(".", "").strip("0")) <= 2:
        digits += 3
    return f"{float(Context(digits, ROUND_CEILING).create_decimal_from_float(value)):.{digits}g}"


def at_least(value: float | None, digits: int = 4) -> str:
    """Return that many figures of what is reached, rounded down, or a dash.

    >>> from svdctl.utils.rounded_figures import at_least
    >>> at_least(2.34578), at_least(3.99999), at_least(4.0)
    ('2.345', '3.999', '4')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{float(Context(digits, ROUND_FLOOR).create_decimal_from_float(value)):.{digits}g}"


def with_decimals(value: float, decimals: int, *, up: bool) -> str:
    """Return so many decimals of a bound, rounded up, or of what is reached, rounded down, for columns of one width.

    >>> from svdctl.utils.rounded_figures import with_decimals
    >>> with_decimals(4.000051, 4, up=True), with_decimals(3.99999, 4, up=False)
    ('4.0001', '3.9999')
    """
    if not math.isfinite(value):
        return number(value)
    rounding = ROUND_CEILING if up else ROUND_FLOOR
    return f"{Decimal(value).quantize(Decimal(1).scaleb(-decimals), rounding, Context(_LONGEST)):f}"


def exact(value: float) -> str:
    """Return a number with six digits where they say it, else with all.

    >>> from svdctl.utils.rounded_figures import exact
    >>> exact(36.0), exact(35.9999999)
    ('36', '35.9999999')
    """
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
