from __future__ import annotations

import calendar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcpool.providers.times import duration_s, epoch_s, whole_minutes


def utc(*date: int) -> float:
    return float(calendar.timegm((*date, 0, 0, 0)[:6]))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("72:00:00", 259200), ("00:05:00", 300), ("1:02:03:04", 93784), ("3600", 3600), ("10:30", 630), (" 5 ", 5)],
)
def test_durations_are_read_in_all_forms(text, seconds):
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "N/A", "1:2:3:4:5", "-1", "1.5", "1h", "12:", "٣:00", "9" * 10])
def test_what_is_no_duration_is_none(text):
    assert duration_s(text) is None


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("Sat Apr 20 01:36:59 2013", utc(2013, 4, 20, 1, 36, 59)),
        ("Tue May  7 09:31:21 2019", utc(2019, 5, 7, 9, 31, 21)),
        ("Thu Jan 01 00:01:00 1970 +0000 (UTC)", 60.0),
        ("Nov 29 18:27:00 2026 L", utc(2026, 11, 29, 18, 27)),
        ("1649348640 (Thu Apr 07 12:24:00 EDT 2022)", 1649348640.0),
    ],
)
def test_dates_are_read_as_utc(text, date):
    assert epoch_s(text) == date


@pytest.mark.parametrize(
    ("text", "now", "date"),
    [
        ("Feb  2 07:48 L", utc(2026, 2, 2), utc(2026, 2, 2, 7, 48)),
        ("Jan  1 00:10 L", utc(2026, 12, 31, 23, 50), utc(2027, 1, 1, 0, 10)),
        ("Dec 31 23:50 L", utc(2027, 1, 1, 0, 10), utc(2026, 12, 31, 23, 50)),
    ],
)
def test_a_date_without_a_year_is_the_nearest_one(text, now, date):
    assert epoch_s(text, now) == date


@pytest.mark.parametrize("text", ["", "-", "N/A", "Feb  2 07:48", "Fév  2 07:48:00 2026", "Feb 99 07:48:00 2026", "12"])
def test_what_is_no_date_is_none(text):
    assert epoch_s(text) is None


@given(st.text(), st.none() | st.floats(0, 4e9))
@settings(deadline=None)
def test_no_text_makes_the_readers_raise(text, now):
    assert duration_s(text) is None or duration_s(text) >= 0
    assert epoch_s(text, now) is None or isinstance(epoch_s(text, now), float)


@pytest.mark.parametrize(("seconds", "minutes"), [(0.5, 1), (60, 1), (61, 2), (5400, 90)])
def test_minutes_are_rounded_up(seconds, minutes):
    assert whole_minutes(seconds) == minutes
