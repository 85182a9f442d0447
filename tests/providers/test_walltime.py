from __future__ import annotations

import pytest
from hypothesis import given, strategies

from hpcpool.errors import ConfigError
from hpcpool.providers.walltime import hours_minutes_seconds, seconds_of


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [
        ("00:30:00", 1800),
        ("48:00:00", 172800),
        ("0:00:01", 1),
        ("1-00:00:00", 86400),
        ("1-02:03:04", 93784),
        (30, 30),
        (0.5, 0.5),
    ],
)
def test_a_walltime_is_hours_minutes_and_seconds_or_a_number_of_seconds(walltime, seconds):
    assert seconds_of(walltime) == seconds


@pytest.mark.parametrize(
    "walltime",
    [
        *("", "0", "00:00:00", "-1", "1h", "1:2:3:4", "1-", "1-1-1", "00:60:00", " 00:30:00"),
        # Minutes here, seconds or hours there, depending on the batch system.
        *("30", "1:30", "1-0", "1-2:03"),
        *("\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT ONE}"),
        *(0, -1, float("inf"), float("nan"), True, None, [], 10**400),
    ],
)
def test_what_is_no_walltime_is_refused_with_what_is(walltime):
    with pytest.raises(ConfigError, match=r"^walltime is .*; valid: 'HH:MM:SS'"):
        seconds_of(walltime)


@given(strategies.text())
def test_any_text_is_a_walltime_or_refused(text):
    try:
        assert seconds_of(text) > 0
    except ConfigError:
        pass


@given(strategies.integers(1, 10**7))
def test_what_is_written_is_read_back(seconds):
    assert seconds_of(hours_minutes_seconds(seconds)) == seconds
