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
        return in_hours(seconds / 3600)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def in_hours(hours: float) -> str:
    """Return an estimate of hours as `0.034 h`, `5.2 h` or, from a day on, `62 h (2.6 days)`.

    >>> from svdctl.utils.duration import in_hours
    >>> in_hours(0.034), in_hours(5.21), in_hours(62.4)
    ('0.034 h', '5.2 h', '62 h (2.6 days)')
    """
    if hours < 24:
        return f"{hours:.1f} h" if hours >= 1 else f"{hours:.3f} h"
    return f"{hours:,.0f} h ({hours / 24:,.1f} days)"
