"""Walltimes as users write them for batch systems, and as batch systems want them; pure."""

from __future__ import annotations

import math
import numbers
import re

from hpcpool.errors import ConfigError

VALID = "'HH:MM:SS', 'DAYS-HH:MM:SS', or seconds as a number"

#: Shorter forms are refused: "30" is half an hour for Slurm and 30 s for PBS, "1:30" 90 s for Slurm and 90 min for LSF.
_FORM = re.compile(r"(?:(\d{1,4})-)?(\d{1,5}):([0-5]\d):([0-5]\d)", re.ASCII)
_DAY_S, _HOUR_S, _MINUTE_S = 86400, 3600, 60


def seconds_of(walltime: str | float) -> float:
    """Return the seconds of a walltime: "HH:MM:SS", "DAYS-HH:MM:SS", or a number of seconds.

    >>> seconds_of("00:30:00"), seconds_of("1-12:00:00"), seconds_of(90)
    (1800.0, 129600.0, 90.0)

    Raises:
        ConfigError: it is none of these, or not more than 0.
    """
    seconds = _from_text(walltime) if isinstance(walltime, str) else _from_number(walltime)
    if seconds is None or not 0 < seconds < math.inf:
        raise ConfigError(f"walltime is {walltime!r}; valid: {VALID}")
    return seconds


def _from_number(seconds: object) -> float | None:
    if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real):
        return None
    try:
        return float(seconds)
    except OverflowError:
        return None


def _from_text(text: str) -> float | None:
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(days * _DAY_S + hours * _HOUR_S + minutes * _MINUTE_S + seconds)


def hours_minutes_seconds(seconds: float) -> str:
    """Return seconds, rounded up, as HH:MM:SS; the hours may be more than 24.

    >>> hours_minutes_seconds(90_000.5)
    '25:00:01'
    """
    whole = math.ceil(seconds)
    return f"{whole // _HOUR_S:02d}:{whole % _HOUR_S // _MINUTE_S:02d}:{whole % _MINUTE_S:02d}"
