"""Lengths of time as a person reads them."""


def duration(seconds: float) -> str:
    """Return seconds as `2:03`, from an hour on as `1:02:03`, from a day on as `62 h (2.6 days)`.

    >>> from svdctl.utils.duration import duration
    >>> duration(123), duration(3723), duration(62 * 3600)
    ('2:03', '1:02:03', '62 h (2.6 days)')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return estimated(seconds / 3600)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def estimated(hours: float) -> str:
    """Return an estimate of hours in the unit that suits it: `4 s`, `2.3 min`, `18 min`, `5.2 h`, `62 h (2.6 days)`.

    >>> from svdctl.utils.duration import estimated
    >>> estimated(0.001), estimated(0.038), estimated(0.3), estimated(5.21), estimated(62.4)
    ('4 s', '2.3 min', '18 min', '5.2 h', '62 h (2.6 days)')
    """
    if hours >= 24:
        return f"{hours:,.0f} h ({hours / 24:,.1f} days)"
    if hours >= 1:
        return f"{hours:.1f} h"
    minutes = 60 * hours
    return f"{minutes:.{int(minutes < 10)}f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"
