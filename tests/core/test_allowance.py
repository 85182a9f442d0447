from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcpool.core.allowance import Allowance

NOW = 1000.0


def test_a_burst_is_allowed_and_then_one_each_period():
    allowance = Allowance(burst=3, period_s=2.0)
    assert allowance.left(NOW) == 3
    for _ in range(3):
        allowance.take(NOW)
    assert allowance.left(NOW) == 0
    assert allowance.next_at(NOW) == NOW + 2
    assert allowance.left(NOW + 1.9) == 0
    assert allowance.left(NOW + 2) == 1


def test_what_was_not_used_is_not_saved_beyond_a_burst():
    allowance = Allowance(burst=3, period_s=2.0)
    allowance.take(NOW)
    assert allowance.left(NOW + 10_000) == 3
    assert allowance.next_at(NOW + 10_000) == NOW + 10_002


@given(steps=st.lists(st.floats(0, 20), max_size=200))
def test_in_no_stretch_of_time_are_there_more_than_the_burst_and_one_each_period(steps):
    allowance = Allowance(burst=5, period_s=2.0)
    now, taken = 0.0, 0
    for step in steps:
        now += step
        while allowance.left(now):
            allowance.take(now)
            taken += 1
    assert taken <= 5 + now / 2.0 + 1e-6
