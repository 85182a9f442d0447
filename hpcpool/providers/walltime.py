"""Walltimes as users write them for batch systems, and as batch systems want them; pure."""

from __future__ import annotations

import math
import numbers
import re

from hpcpool.errors import ConfigError

VALID = "'HH:MM:SS', 'DAYS-HH:MM:SS', or minutes as a number"

_FORM = re.compile(r"(?:(?P<days>\d{1,4})-)?(?P<parts>\d{1,9}(?::\d{1,2}){0,2})", re.ASCII)
_DAY_S, _HOUR_S, _MINUTE_S = 86400, 3600, 60


def seconds_of(walltime: str | float) -> float:
    """Return the seconds of a walltime: text in Slurm's forms, or a number of minutes.

    The forms are "minutes", "minutes:seconds", "hours:minutes:seconds", "days-hours", "days-hours:minutes" and
    "days-hours:minutes:seconds" (https://slurm.schedmd.com/sbatch.html#OPT_time).

    >>> seconds_of("00:30:00"), seconds_of("1-12"), seconds_of(90)
    (1800.0, 129600.0, 5400.0)

    Raises:
        ConfigError: it is none of these, or not more than 0.
    """
    seconds = _from_text(walltime) if isinstance(walltime, str) else _from_minutes(walltime)
    if seconds is None or not 0 < seconds < math.inf:
        raise ConfigError(f"walltime is {walltime!r}; valid: {VALID}")
    return seconds


def _from_minutes(minutes: object) -> float | None:
    if isinstance(minutes, bool) or not isinstance(minutes, numbers.Real):
        return None
    try:
        return float(minutes) * _MINUTE_S
    except OverflowError:
        return None


def _from_text(text: str) -> float | None:
    match = _FORM.fullmatch(text.strip())
    if match is None:
        return None
    parts = [int(part) for part in match["parts"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 1:
        hours, minutes, seconds = 0, parts[0], 0
    else:
        hours, minutes, seconds = [0, *parts][-3:]
    return float(int(match["days"] or 0) * _DAY_S + hours * _HOUR_S + minutes * _MINUTE_S + seconds)


def hours_minutes_seconds(seconds: float) -> str:
    """Return seconds, rounded up, as HH:MM:SS; the hours may be more than 24.

    >>> hours_minutes_seconds(90_000.5)
    '25:00:01'
    """
    whole = math.ceil(seconds)
    return f"{whole // _HOUR_S:02d}:{whole % _HOUR_S // _MINUTE_S:02d}:{whole % _MINUTE_S:02d}"
