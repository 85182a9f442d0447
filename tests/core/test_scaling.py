from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from hpcpool.core.scaling import BlockView, Plan, PoolSnapshot, Stage, plan

NOW = 1000.0
IDLE = PoolSnapshot(init_blocks=0, min_blocks=0, max_blocks=10)


def pool(**changes: object) -> PoolSnapshot:
    return replace(IDLE, **changes)  # type: ignore[arg-type]


def blocks(*stages: Stage, submitted_at: float = 0.0, idle_since: float | None = None) -> tuple[BlockView, ...]:
    return tuple(
        BlockView(f"b{n}", stage, idle_since if stage is Stage.SERVING else None, submitted_at + n)
        for n, stage in enumerate(stages)
    )


SERVING = Stage.SERVING
QUEUED = Stage.QUEUED


# Out


def test_without_work_nothing_is_started():
    assert plan(IDLE, NOW) == Plan()


def test_the_first_blocks_start_before_there_is_work():
    assert plan(pool(init_blocks=3), NOW) == Plan(3)
    assert plan(pool(init_blocks=3, blocks=blocks(SERVING), started=1), NOW) == Plan(2)


def test_the_first_blocks_are_not_started_again_when_they_have_ended():
    assert plan(pool(init_blocks=3, started=3), NOW) == Plan()


def test_there_are_never_fewer_blocks_than_asked_for():
    assert plan(pool(min_blocks=2, started=5, blocks=blocks(SERVING)), NOW) == Plan(1)


def test_work_starts_one_block_while_nobody_knows_how_much_a_block_can_do():
    assert plan(pool(wanted_slots=1000), NOW) == Plan(1)
    assert plan(pool(wanted_slots=1000, blocks=blocks(QUEUED), started=1), NOW) == Plan()


def test_then_there_are_as_many_blocks_as_the_work_has_use_for():
    one = pool(slots_per_block=8, blocks=blocks(SERVING), started=1)
    assert plan(replace(one, wanted_slots=16), NOW) == Plan(1)
    assert plan(replace(one, wanted_slots=17), NOW) == Plan(2)


@pytest.mark.parametrize(("parallelism", "wanted"), [(1.0, 10), (0.5, 5), (0.51, 6), (0.01, 1), (0.0, 1)])
def test_parallelism_is_the_share_of_slots_that_is_asked_for(parallelism, wanted):
    assert plan(pool(wanted_slots=10, slots_per_block=1, parallelism=parallelism), NOW) == Plan(wanted)


def test_there_are_never_more_blocks_than_allowed():
    four = pool(wanted_slots=10**9, slots_per_block=1, blocks=blocks(*[SERVING] * 4), started=4)
    assert plan(four, NOW) == Plan(6)
    assert plan(pool(init_blocks=20, min_blocks=20), NOW) == Plan(10)


def test_a_block_that_is_ending_is_replaced_only_where_there_is_a_place():
    ending = pool(wanted_slots=2, slots_per_block=1, blocks=blocks(Stage.ENDING, SERVING), started=2)
    assert plan(ending, NOW) == Plan(1)
    assert plan(replace(ending, max_blocks=2), NOW) == Plan()


def test_no_more_are_asked_for_than_the_batch_system_bears():
    many = pool(wanted_slots=8, slots_per_block=1, allowance=3, allowance_at=NOW + 2)
    assert plan(many, NOW) == Plan(3, ask_again_at=NOW + 2)
    assert plan(replace(many, allowance=0), NOW) == Plan(0, ask_again_at=NOW + 2)
    assert plan(replace(many, allowance=8), NOW) == Plan(8)


# Failures


def test_after_one_failure_one_block_starts_at_once():
    assert plan(pool(min_blocks=5, failures=1, failed_at=NOW), NOW) == Plan(1)


@pytest.mark.parametrize("stage", [QUEUED, Stage.STARTING])
def test_after_a_failure_the_next_block_waits_until_the_one_before_has_proved_itself(stage):
    failed = pool(min_blocks=5, failures=1, failed_at=NOW)
    assert plan(replace(failed, blocks=blocks(stage)), NOW + 1) == Plan()
    assert plan(replace(failed, blocks=blocks(SERVING)), NOW + 1) == Plan(1)


def test_the_second_failure_in_a_row_is_followed_by_a_pause():
    failed = pool(min_blocks=5, failures=2, failed_at=NOW, back_off_s=0.2)
    assert plan(failed, NOW + 0.1) == Plan(ask_again_at=NOW + 0.2)
    assert plan(failed, NOW + 0.2) == Plan(1)


def test_a_pause_holds_up_nothing_if_nothing_is_missing():
    assert plan(pool(min_blocks=1, blocks=blocks(SERVING), failures=5, failed_at=NOW), NOW) == Plan()


@given(failures=st.integers(2, 100_000))
def test_pauses_grow_up_to_a_limit_however_many_failures_there_were(failures):
    def pause_s(failures: int) -> float:
        ask_again_at = plan(pool(min_blocks=1, failures=failures, failed_at=0.0), 0.0).ask_again_at
        assert ask_again_at is not None
        return ask_again_at

    assert pause_s(failures + 1) == min(IDLE.back_off_limit_s, 2 * pause_s(failures))


# In


def test_blocks_are_kept_where_none_is_ever_given_back():
    assert plan(pool(blocks=blocks(SERVING, QUEUED, idle_since=0.0)), NOW) == Plan()


def test_an_idle_block_is_given_back_after_its_time():
    idle = pool(max_idle_time_s=120.0, started=1, blocks=blocks(SERVING, idle_since=NOW))
    assert plan(idle, NOW + 119) == Plan(ask_again_at=NOW + 120)
    assert plan(idle, NOW + 120) == Plan(retire=("b0",))


def test_those_that_have_been_idle_longest_go_first_and_as_many_stay_as_are_asked_for():
    three = tuple(BlockView(f"b{n}", SERVING, idle_since=NOW - 300 + at) for n, at in enumerate((20, 0, 10)))
    idle = pool(max_idle_time_s=120.0, started=3, blocks=three)
    assert plan(replace(idle, min_blocks=2), NOW).retire == ("b1",)
    assert plan(replace(idle, min_blocks=1), NOW).retire == ("b1", "b2")


def test_a_block_with_work_is_never_given_back():
    busy = pool(max_idle_time_s=1.0, started=2, blocks=blocks(SERVING, SERVING), slots_per_block=4, wanted_slots=1)
    assert plan(busy, NOW) == Plan()


def test_blocks_in_the_queue_are_cancelled_some_time_after_the_work_has_vanished_the_newest_first():
    three = pool(max_idle_time_s=120.0, started=3, blocks=blocks(QUEUED, QUEUED, QUEUED), surplus_since=NOW)
    assert plan(three, NOW + 119) == Plan(ask_again_at=NOW + 120)
    assert plan(three, NOW + 120) == Plan(cancel=("b2", "b1", "b0"))
    assert plan(replace(three, min_blocks=2), NOW + 120) == Plan(cancel=("b2",))


def test_a_block_that_was_asked_for_a_moment_ago_is_not_cancelled_although_there_have_long_been_too_many():
    fresh = blocks(QUEUED, submitted_at=NOW)
    decision = plan(pool(max_idle_time_s=120.0, started=1, blocks=fresh, surplus_since=NOW - 1000), NOW)
    assert decision == Plan(ask_again_at=NOW + 120)


def test_a_block_that_starts_is_not_cancelled_before_it_has_had_its_chance():
    starting = pool(max_idle_time_s=1.0, started=1, blocks=blocks(Stage.STARTING), surplus_since=0.0)
    assert plan(starting, NOW) == Plan()


# Orders of the user


def test_the_user_s_number_counts_in_place_of_all_others_but_the_most():
    assert plan(pool(ordered=4, init_blocks=1, min_blocks=1), NOW) == Plan(4)
    assert plan(pool(ordered=40), NOW) == Plan(10)
    assert plan(pool(ordered=0, min_blocks=1, wanted_slots=10), NOW) == Plan()


def test_an_order_is_carried_out_at_once_queued_blocks_first_then_idle_ones_then_those_with_work():
    views = (
        BlockView("busy", SERVING, None, 0.0),
        BlockView("idle", SERVING, NOW, 1.0),
        BlockView("queued", QUEUED, None, 2.0),
    )
    for ordered, cancel, retire in [
        (2, ("queued",), ()),
        (1, ("queued",), ("idle",)),
        (0, ("queued",), ("idle", "busy")),
    ]:
        expected = Plan(cancel=cancel, retire=retire, is_ordered=True)
        assert plan(pool(ordered=ordered, blocks=views, started=3), NOW) == expected


@given(
    stages=st.lists(st.sampled_from(Stage), max_size=12),
    limits=st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12)),
    slots=st.none() | st.integers(1, 300),
    wanted=st.integers(0, 10_000),
    failures=st.integers(0, 3),
    waited_s=st.floats(0, 300),
    max_idle=st.none() | st.floats(1, 200),
    ordered=st.none() | st.integers(0, 12),
    allowance=st.none() | st.integers(0, 5),
)
def test_whatever_the_numbers(stages, limits, slots, wanted, failures, waited_s, max_idle, ordered, allowance):
    init_blocks, min_blocks, max_blocks = limits
    now = NOW + waited_s
    snapshot = PoolSnapshot(
        init_blocks=init_blocks,
        min_blocks=min_blocks,
        max_blocks=max_blocks,
        max_idle_time_s=max_idle,
        ordered=ordered,
        blocks=blocks(*stages, idle_since=NOW),
        started=len(stages),
        slots_per_block=slots,
        wanted_slots=wanted,
        surplus_since=NOW,
        failures=failures,
        failed_at=NOW,
        allowance=allowance,
        allowance_at=now + 1,
    )
    decision = plan(snapshot, now)
    given_back = {*decision.cancel, *decision.retire}
    assert decision.start >= 0
    assert decision.start == 0 or len(stages) + decision.start <= max_blocks
    assert not failures or decision.start <= 1
    assert allowance is None or decision.start <= allowance
    assert not (decision.start and given_back)
    assert decision.ask_again_at is None or decision.ask_again_at > now
    assert len(given_back) == len(decision.cancel) + len(decision.retire)
    if ordered is None:
        assert not given_back or snapshot.useful - len(given_back) >= min(min_blocks, max_blocks)
        assert max_idle is not None or not given_back
