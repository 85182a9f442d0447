from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpool.core.scaling import BACK_OFF_LIMIT_S, BACK_OFF_S, Plan, PoolSnapshot, plan

NOW = 1000.0
IDLE = PoolSnapshot(
    init_blocks=0,
    min_blocks=0,
    max_blocks=10,
    alive=0,
    started=0,
    slots_per_block=None,
    pending=0,
    failures=0,
    failed_at=0.0,
)


def pool(**changes: object) -> PoolSnapshot:
    return replace(IDLE, **changes)  # type: ignore[arg-type]


def test_without_work_nothing_is_started():
    assert plan(IDLE, NOW) == Plan(0)


def test_the_first_blocks_start_before_there_is_work():
    assert plan(pool(init_blocks=3), NOW) == Plan(3)
    assert plan(pool(init_blocks=3, alive=1, started=1), NOW) == Plan(2)


def test_the_first_blocks_are_not_started_again_when_they_have_ended():
    assert plan(pool(init_blocks=3, started=3), NOW) == Plan(0)


def test_there_are_never_fewer_blocks_than_asked_for():
    assert plan(pool(min_blocks=2, started=5, alive=1), NOW) == Plan(1)


def test_work_starts_one_block_while_nobody_knows_how_much_a_block_can_do():
    assert plan(pool(pending=1000), NOW) == Plan(1)
    assert plan(pool(pending=1000, alive=1, started=1), NOW) == Plan(0)


def test_then_there_are_as_many_blocks_as_the_work_has_use_for():
    assert plan(pool(pending=16, slots_per_block=8, alive=1, started=1), NOW) == Plan(1)
    assert plan(pool(pending=17, slots_per_block=8, alive=1, started=1), NOW) == Plan(2)


def test_there_are_never_more_blocks_than_allowed():
    assert plan(pool(pending=10**9, slots_per_block=1, alive=4, started=4), NOW) == Plan(6)
    assert plan(pool(init_blocks=20, min_blocks=20), NOW) == Plan(10)


def test_too_many_blocks_are_left_to_end_by_themselves():
    assert plan(pool(alive=5, started=5, pending=1, slots_per_block=1), NOW) == Plan(0)


def test_after_one_failure_one_block_starts_at_once():
    assert plan(pool(min_blocks=5, failures=1, failed_at=NOW), NOW) == Plan(1)


def test_after_a_failure_the_next_block_waits_until_the_one_before_has_proved_itself():
    failed = pool(min_blocks=5, failures=1, failed_at=NOW, alive=1)
    assert plan(replace(failed, starting=1), NOW + 1) == Plan(0)
    assert plan(failed, NOW + 1) == Plan(1)


def test_the_second_failure_in_a_row_is_followed_by_a_pause():
    failed = pool(min_blocks=5, failures=2, failed_at=NOW)
    assert plan(failed, NOW + BACK_OFF_S / 2) == Plan(0, ask_again_at=NOW + BACK_OFF_S)
    assert plan(failed, NOW + BACK_OFF_S) == Plan(1)


def test_a_pause_holds_up_nothing_if_nothing_is_missing():
    assert plan(pool(min_blocks=1, alive=1, failures=5, failed_at=NOW), NOW) == Plan(0)


@given(failures=st.integers(2, 100_000))
def test_pauses_grow_up_to_a_limit_however_many_failures_there_were(failures):
    def pause_s(failures: int) -> float:
        ask_again_at = plan(pool(min_blocks=1, failures=failures, failed_at=0.0), 0.0).ask_again_at
        assert ask_again_at is not None
        return ask_again_at

    assert pause_s(failures + 1) == min(BACK_OFF_LIMIT_S, 2 * pause_s(failures))


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
@given(
    init_blocks=st.integers(0, 20),
    min_blocks=st.integers(0, 20),
    max_blocks=st.integers(1, 20),
    alive=st.integers(0, 30),
    starting=st.integers(0, 5),
    slots=st.none() | st.integers(1, 300),
    pending=st.integers(0, 10_000),
    waited_s=st.floats(0, 100),
)
def test_whatever_the_numbers(failures, init_blocks, min_blocks, max_blocks, alive, starting, slots, pending, waited_s):
    snapshot = PoolSnapshot(
        init_blocks, min_blocks, max_blocks, alive, alive, slots, pending, failures, NOW, min(starting, alive)
    )
    decision = plan(snapshot, NOW + waited_s)
    assert decision.start >= 0
    assert decision.start == 0 or alive + decision.start <= max_blocks
    assert not failures or decision.start <= 1
    assert decision.ask_again_at is None or (decision.start == 0 and decision.ask_again_at > NOW + waited_s)
    if not failures and alive < min(min_blocks, max_blocks):
        assert alive + decision.start >= min(min_blocks, max_blocks)
    if not failures and pending and alive == 0:
        assert decision.start >= 1
