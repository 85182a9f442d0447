"""Dates and durations as batch systems print them; pure, and free of the locale and time zone of this machine."""

from __future__ import annotations

import calendar
import math
import re

#: Of `ctime`, in the C locale that commands run in; `time.strptime` would read the names of this process's locale.
_MONTHS = {
    name: number for number, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1)
}
_DATE = re.compile(r"(?:[A-Z][a-z]{2} +)?([A-Z][a-z]{2}) +(\d{1,2}) +(\d{1,2}):(\d{2})(?::(\d{2}))?(?: +(\d{4}))?")
#: What a clock can show: `calendar` would take anything, and return a date in another year.
_MOST = (31, 23, 59, 60)
_HALF_A_YEAR_S = 365.25 * 86400 / 2


def whole_minutes(seconds: float) -> int:
    """Return a duration in minutes, rounded up, at least 1: the unit of LSF and Cobalt."""
    return max(1, math.ceil(seconds / 60))


def duration_s(text: str) -> float | None:
    """Return the seconds of SS, MM:SS, HH:MM:SS or DD:HH:MM:SS; None for anything else.

    >>> duration_s("72:00:00"), duration_s("3600"), duration_s("N/A")
    (259200.0, 3600.0, None)
    """
    parts = text.strip().split(":")
    if len(parts) > 4 or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        return None
    units = (1, 60, 3600, 86400)
    return float(sum(int(part) * unit for part, unit in zip(reversed(parts), units, strict=False)))


def epoch_s(text: str, now: float | None = None) -> float | None:
    """Return the seconds since the epoch of a date in UTC as `ctime` writes it, or of plain seconds since the epoch.

    Args:
        text: "Sat Apr 20 01:36:59 2013"; weekday and seconds may be missing, and the year if `now` is given.
        now: about when it was written (seconds since the epoch): a date without a year is the nearest one.

    Returns:
        None for anything else.

    >>> epoch_s("Thu Jan  1 00:01:00 1970"), epoch_s("1649348639 (Thu Apr 07 12:23:59 EDT 2022)"), epoch_s("N/A")
    (60.0, 1649348639.0, None)
    """
    text = text.strip()
    if plain := re.match(r"[0-9]{9,11}(?![0-9:])", text):
        return float(plain[0])
    date = _DATE.match(text)
    if date is None or date[1] not in _MONTHS:
        return None
    day, hour, minute, second = (int(date[group] or 0) for group in (2, 3, 4, 5))
    if any(value > most for value, most in zip((day, hour, minute, second), _MOST, strict=True)):
        return None
    month = _MONTHS[date[1]]
    if date[6]:
        return _utc(int(date[6]), month, day, hour, minute, second)
    if now is None:
        return None
    this_year = 1970 + int(now // (2 * _HALF_A_YEAR_S))
    candidates = [_utc(year, month, day, hour, minute, second) for year in range(this_year - 1, this_year + 2)]
    return min(candidates, key=lambda candidate: abs(candidate - now))


def _utc(year: int, month: int, day: int, hour: int, minute: int, second: int) -> float:
    return float(calendar.timegm((max(1, year), month, max(1, day), hour, minute, second)))
