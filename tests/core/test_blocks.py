from __future__ import annotations

import pytest
from msgspec.structs import replace

from hpcpool.core.block_orders import (
    BlockEnds,
    BlockOver,
    Cancel,
    Hopeless,
    Order,
    Phase,
    Retire,
    Sight,
    Submit,
    Taken,
    Warned,
)
from hpcpool.core.blocks import BATCH, LOCAL, Blocks, Limits
from hpcpool.core.demand import Demand

NOW = 1000.0
WORK = [Demand(100)]
QUEUED = Sight(Phase.QUEUED, reason="Priority")
RUNNING = Sight(Phase.RUNNING)
DIED = Sight(Phase.FAILED, exit_code=3, reason="FAILED", stderr_tail="no such module")
LIMITS = Limits("a", init_blocks=1, max_blocks=4, slots_per_block=2, max_idle_time_s=120.0, pace=LOCAL)


def some(*limits: Limits, **changes: object) -> Blocks:
    pools = limits or (replace(LIMITS, **changes),)  # type: ignore[arg-type]
    return Blocks(pools, start_failure_limit=3, start_timeout_s=60.0, start_warning_s=30.0)


def serving(blocks: Blocks, now: float = NOW, work: list[Demand] = WORK) -> list[str]:
    """All blocks that are wanted are asked for, and serve."""
    names = submit(blocks, blocks.look(work, now), now)
    for name in names:
        blocks.seen(name, RUNNING, now)
        blocks.manager_came(name, 2)
    return names


def submit(blocks: Blocks, orders: list[Order], now: float = NOW) -> list[str]:
    names = [order.block for order in orders if isinstance(order, Submit)]
    for name in names:
        blocks.submitted(name, f"job-{name}", now)
    return names


# Starting


def test_blocks_are_named_after_their_pool_and_numbered():
    blocks = some(init_blocks=2)
    assert blocks.look([], NOW) == [Submit("a", "a-0"), Submit("a", "a-1")]
    assert blocks.look([], NOW) == []


def test_a_batch_system_is_asked_for_ten_blocks_at_once_and_then_for_one_at_a_time():
    blocks = some(init_blocks=12, max_blocks=12, pace=BATCH)
    assert len(blocks.look([], NOW)) == 10
    assert blocks.next_look_at() == NOW + BATCH.period_s
    assert len(blocks.look([], NOW + BATCH.period_s)) == 1


def test_work_that_two_pools_could_do_is_given_to_the_first():
    blocks = some(replace(LIMITS, init_blocks=0), replace(LIMITS, pool="b", init_blocks=0))
    assert blocks.look([Demand(6)], NOW) == [Submit("a", f"a-{n}") for n in range(3)]
    assert blocks.look([Demand(12)], NOW) == [Submit("a", "a-3"), Submit("b", "b-0"), Submit("b", "b-1")]


# Failures


def test_a_block_that_dies_is_replaced_and_the_reason_is_kept():
    blocks = some()
    (name,) = submit(blocks, blocks.look([], NOW))
    blocks.seen(name, RUNNING, NOW)
    assert blocks.seen(name, DIED, NOW + 1) == [BlockOver("a-0", "FAILED", is_expected=False)]
    assert blocks.look([Demand(1)], NOW + 1) == [Submit("a", "a-1")]
    assert "block a-0 (job job-a-0) failed, FAILED, exit code 3; its stderr ends with:\nno such mod" in blocks.told()


def test_the_pool_is_hopeless_after_some_failures_in_a_row_with_the_last_one_s_words():
    blocks = some()
    now = NOW
    for attempt in range(3):
        (name,) = submit(blocks, blocks.look([Demand(1)], now), now)
        orders = blocks.seen(name, DIED, now)
        now += 100.0
        if attempt < 2:
            assert not any(isinstance(order, Hopeless) for order in orders)
    (hopeless,) = [order for order in orders if isinstance(order, Hopeless)]
    assert "3 blocks in a row failed to start" in hopeless.reason
    assert "exit code 3; its stderr ends with:\nno such module" in hopeless.reason
    assert blocks.is_stopping


def test_refusals_make_it_hopeless_too_in_the_batch_system_s_words():
    blocks = some(pace=BATCH)
    now = NOW
    for _ in range(3):
        order = blocks.look([Demand(1)], now)[0]
        orders = blocks.refused(order.block, "invalid partition", now)
        now += 100.0
    assert orders[0] == BlockOver("a-2", "invalid partition", is_expected=False)
    assert isinstance(orders[1], Hopeless)
    assert orders[1].reason.endswith("The last: block a-2 was refused: invalid partition")


def test_an_outage_is_waited_for_however_long_it_lasts():
    blocks = some(pace=BATCH)
    now, submissions = NOW, 0
    while now < NOW + 3600:
        for order in blocks.look([Demand(1)], now):
            if isinstance(order, Submit):
                submissions += 1
                orders = blocks.refused(order.block, "cannot reach the controller", now, is_outage=True)
                assert [type(order) for order in orders] == [BlockOver]
        now = blocks.next_look_at() or now + 1
    assert not blocks.is_stopping
    assert 8 <= submissions <= 16, "a pause that grows to ten minutes"


def test_failures_do_not_break_a_pool_that_has_other_blocks_which_serve():
    blocks = some(min_blocks=2, init_blocks=2)
    first, second = submit(blocks, blocks.look([Demand(4)], NOW))
    blocks.manager_came(first, 2)
    now = NOW
    for _ in range(10):
        assert not any(isinstance(order, Hopeless) for order in blocks.seen(second, DIED, now))
        now += 100.0
        (second,) = submit(blocks, blocks.look([Demand(4)], now), now)


def test_the_work_of_a_pool_whose_blocks_fail_goes_to_another():
    blocks = some(LIMITS, replace(LIMITS, pool="b", init_blocks=0))
    now = NOW
    for _ in range(3):
        (name,) = submit(blocks, blocks.look([Demand(1)], now), now)
        assert not any(isinstance(order, Hopeless) for order in blocks.seen(name, DIED, now))
        now += 100.0
    assert blocks.look([Demand(1)], now) == [Submit("b", "b-0")]


@pytest.mark.parametrize(
    ("lived_s", "serves", "failures"), [(11.0, True, 0), (9.0, True, 2), (11.0, False, 2)], ids=["long", "short", "not"]
)
def test_failures_are_forgotten_when_a_later_block_has_served_for_a_while(lived_s, serves, failures):
    blocks = some()
    now = NOW
    for _ in range(2):
        (name,) = submit(blocks, blocks.look([Demand(1)], now), now)
        blocks.seen(name, DIED, now)
        now += 100.0
    (name,) = submit(blocks, blocks.look([Demand(1)], now), now)
    if serves:
        blocks.manager_came(name, 2)
    blocks.look([Demand(1)], now + lived_s)
    assert blocks._pools["a"].failures == failures


def test_a_block_that_runs_without_a_manager_is_cancelled_and_has_failed():
    blocks = some()
    (name,) = submit(blocks, blocks.look([Demand(1)], NOW))
    assert blocks.look([Demand(1)], NOW + 1000) == [Warned(blocks_waits(1000, name, "queued"))]
    blocks.seen(name, RUNNING, NOW + 1000)
    assert blocks.next_look_at() == NOW + 1060
    assert blocks.look([Demand(1)], NOW + 1059) == []
    assert blocks.look([Demand(1)], NOW + 1060) == [Cancel(name), Submit("a", "a-1")]
    blocks.seen(name, Sight(Phase.ENDED), NOW + 1061)
    assert "It ran, but no manager came within 60 s" in blocks.told()


def blocks_waits(waited_s: int, name: str, state: str) -> str:
    return f"1 calls wait and no worker has come in {waited_s} s: block {name} (job job-{name}) is {state}"


def test_a_block_that_will_not_start_is_told_of_at_once_and_given_up_after_a_while():
    blocks = some()
    held = Sight(Phase.QUEUED, reason="JobHeldUser", is_stuck=True)
    (name,) = submit(blocks, blocks.look([], NOW))
    (warned,) = blocks.seen(name, held, NOW)
    assert warned == Warned(
        "block a-0 (job job-a-0) is queued: JobHeldUser. It will not start as it is, and is cancelled in 60 s"
    )
    assert blocks.seen(name, held, NOW + 30) == []
    assert blocks.look([], NOW + 59) == []
    assert blocks.look([], NOW + 60) == [Cancel(name)]
    blocks.seen(name, Sight(Phase.ENDED, reason="cancelled"), NOW + 61)
    assert blocks._pools["a"].start_failures == 1
    assert "it would not start: JobHeldUser" in blocks.told()


def test_a_block_that_is_released_in_time_is_not_given_up():
    blocks = some()
    (name,) = submit(blocks, blocks.look([], NOW))
    blocks.seen(name, Sight(Phase.QUEUED, reason="JobHeldUser", is_stuck=True), NOW)
    blocks.seen(name, QUEUED, NOW + 30)
    assert blocks.look([], NOW + 10_000) == []


def test_a_block_that_waits_in_the_queue_for_days_is_not_late():
    blocks = some()
    (name,) = submit(blocks, blocks.look([Demand(1)], NOW))
    blocks.seen(name, QUEUED, NOW)
    assert not any(isinstance(order, Cancel) for order in blocks.look([Demand(1)], NOW + 10**6))


def test_a_block_whose_managers_have_gone_but_which_goes_on_is_cancelled_and_replaced():
    blocks = some()
    (name,) = serving(blocks, work=[Demand(1)])
    blocks.manager_left(name, NOW + 50)
    assert blocks.look([Demand(1)], NOW + 50) == [Submit("a", "a-1")]
    assert Cancel(name) not in blocks.look([Demand(1)], NOW + 79)
    assert Cancel(name) in blocks.look([Demand(1)], NOW + 80)


def test_a_block_of_several_nodes_serves_until_the_last_of_its_managers_has_gone():
    blocks = some(nodes_per_block=2)
    (name,) = serving(blocks, work=[Demand(1)])
    blocks.manager_came(name, 2)
    blocks.manager_left(name, NOW + 50)
    assert blocks.look([Demand(1)], NOW + 100) == []


def test_a_block_serves_on_when_another_of_its_managers_comes_after_the_first_has_gone():
    """The nodes of a block start at different times; or it was put back into the queue between two looks at it."""
    blocks = some(nodes_per_block=2)
    (name,) = serving(blocks, work=[Demand(1)])
    blocks.manager_left(name, NOW + 5)
    blocks.manager_came(name, 2)
    assert blocks.look([Demand(1)], NOW + 100) == []


def test_a_manager_that_comes_late_does_not_save_a_block_that_is_being_ended():
    blocks = some(nodes_per_block=2)
    (name,) = serving(blocks, work=[Demand(1)])
    assert blocks.lost(name, NOW + 5) == [Cancel(name)]
    blocks.manager_came(name, 2)
    assert Cancel(name) in blocks.look([Demand(1)], NOW + 100)


# What is taken away


def test_a_block_whose_walltime_is_over_is_no_failure_and_is_replaced_if_there_is_work():
    blocks = some()
    (name,) = serving(blocks, work=[Demand(1)])
    ends = replace(RUNNING, ends_at=NOW + 5)
    assert blocks.seen(name, ends, NOW) == [BlockEnds(name, NOW + 5)]
    assert blocks.seen(name, ends, NOW + 1) == [], "it is told once"
    (over,) = blocks.seen(name, DIED, NOW + 5)
    assert over.is_expected
    assert blocks._pools["a"].failures == 0
    assert blocks.look([Demand(1)], NOW + 5) == [Submit("a", "a-1")]
    assert blocks.look([], NOW + 5) == []


@pytest.mark.parametrize("taken", Taken)
def test_the_batch_system_may_say_itself_that_it_took_a_block_away(taken):
    blocks = some()
    (name,) = serving(blocks, work=[Demand(1)])
    (over,) = blocks.seen(name, replace(DIED, taken=taken), NOW + 1)
    assert over.is_expected
    assert taken.value in over.reason
    assert blocks._pools["a"].failures == 0


def test_a_block_that_no_manager_came_from_until_its_walltime_was_over_has_failed():
    blocks = some()
    (name,) = submit(blocks, blocks.look([Demand(1)], NOW))
    blocks.seen(name, replace(DIED, taken=Taken.WALLTIME), NOW + 10)
    assert blocks._pools["a"].start_failures == 1


def test_a_block_that_is_put_back_into_the_queue_starts_anew():
    blocks = some()
    (name,) = serving(blocks, work=[Demand(1)])
    blocks.manager_left(name, NOW + 50)
    blocks.seen(name, QUEUED, NOW + 51)
    assert blocks.look([Demand(1)], NOW + 51) == []
    assert blocks.look([Demand(1)], NOW + 1000) == [Warned(blocks_waits(949, name, "queued: Priority"))]


# What is not known


def test_what_is_not_known_counts_as_alive():
    blocks = some(max_blocks=1)
    (name,) = submit(blocks, blocks.look(WORK, NOW))
    blocks.seen(name, QUEUED, NOW)
    for hour in range(24):
        blocks.seen(name, Sight(Phase.UNKNOWN, reason="squeue: timeout"), NOW + 3600 * hour)
        assert not any(isinstance(order, Submit) for order in blocks.look(WORK, NOW + 3600 * hour))


def test_what_was_known_before_an_outage_still_counts():
    blocks = some()
    (name,) = submit(blocks, blocks.look([], NOW))
    blocks.seen(name, replace(RUNNING, ends_at=NOW + 500), NOW)
    blocks.seen(name, Sight(Phase.UNKNOWN, reason="squeue: timeout"), NOW + 30)
    assert blocks.blocks[name].ends_at == NOW + 500
    assert "is running, as far as is known, but no manager has come: squeue: timeout" in blocks.told()
    assert blocks.look([], NOW + 59) == []
    assert blocks.look([], NOW + 60) == [Cancel(name)], "it has run for a minute without a manager"


def test_a_queued_block_is_not_given_back_while_it_may_run():
    blocks = some()
    (name,) = submit(blocks, blocks.look([Demand(1)], NOW))
    blocks.seen(name, Sight(Phase.UNKNOWN), NOW)
    assert blocks.look([], NOW) == []
    assert blocks.look([], NOW + 1000) == []
    blocks.seen(name, QUEUED, NOW + 1000)
    assert blocks.look([], NOW + 1000) == [Cancel(name)]


# Giving back


def test_an_idle_block_is_asked_to_retire_once_and_is_no_failure():
    blocks = some()
    (name,) = serving(blocks, work=[Demand(1)])
    blocks.idle(name, NOW)
    assert blocks.look([], NOW) == []
    assert blocks.next_look_at() == NOW + 120
    assert blocks.look([], NOW + 120) == [Retire(name, is_ordered=False)]
    assert blocks.look([], NOW + 121) == []
    blocks.retired(name, NOW + 121)
    blocks.manager_left(name, NOW + 121)
    assert blocks.seen(name, Sight(Phase.ENDED), NOW + 122) == [BlockOver(name, "ended", is_expected=True)]
    assert blocks.look([], NOW + 122) == []


def test_a_block_that_got_work_in_the_last_moment_stays():
    blocks = some()
    (name,) = serving(blocks, work=[Demand(1)])
    blocks.idle(name, NOW)
    blocks.look([], NOW)
    assert blocks.look([], NOW + 120) == [Retire(name, is_ordered=False)]
    blocks.kept(name)
    assert blocks.look([Demand(1)], NOW + 120) == []
    blocks.idle(name, NOW + 130)
    assert blocks.look([], NOW + 250) == [Retire(name, is_ordered=False)]


def test_a_block_that_has_retired_but_does_not_end_is_cancelled():
    blocks = some()
    (name,) = serving(blocks, work=[Demand(1)])
    blocks.idle(name, NOW)
    blocks.look([], NOW + 120)
    blocks.retired(name, NOW + 120)
    assert blocks.look([], NOW + 134) == []
    assert blocks.look([], NOW + 135) == [Cancel(name)]


def test_what_the_user_orders_is_done_at_once_until_further_notice():
    blocks = some()
    names = serving(blocks)
    assert len(names) == 4
    blocks.ordered("a", 3)
    (retire,) = blocks.look(WORK, NOW)
    assert isinstance(retire, Retire)
    assert retire.is_ordered
    blocks.retired(retire.block, NOW)
    blocks.seen(retire.block, Sight(Phase.ENDED), NOW)
    assert blocks.look(WORK, NOW) == []
    blocks.ordered("a", None)
    assert blocks.look(WORK, NOW) == [Submit("a", "a-4")]


def test_a_pool_that_rests_by_order_finishes_what_waits_when_no_more_calls_come():
    blocks = some()
    blocks.ordered("a", 0)
    assert blocks.look(WORK, NOW) == []
    blocks.resume()
    assert Submit("a", "a-0") in blocks.look(WORK, NOW)


@pytest.mark.parametrize("limits", [{"init_blocks": 2}, {"init_blocks": 0, "min_blocks": 1}])
def test_a_pool_that_rests_by_order_starts_nothing_at_the_end_if_nothing_waits(limits):
    blocks = some(**limits)
    blocks.ordered("a", 0)
    blocks.resume()
    assert blocks.look([], NOW) == []


def test_an_order_of_some_blocks_holds_to_the_end():
    blocks = some()
    blocks.ordered("a", 1)
    blocks.resume()
    assert blocks.look(WORK, NOW) == [Submit("a", "a-0")]


# The user is told


def test_one_warning_tells_in_what_state_the_blocks_are_when_no_worker_comes():
    blocks = some()
    (name,) = submit(blocks, blocks.look([Demand(1)], NOW))
    blocks.seen(name, QUEUED, NOW)
    assert blocks.next_look_at() == NOW + 30
    assert blocks.look([Demand(1)], NOW + 29) == []
    assert blocks.look([Demand(1)], NOW + 30) == [Warned(blocks_waits(30, name, "queued: Priority"))]
    assert blocks.look([Demand(1)], NOW + 1000) == []


def test_the_next_lack_of_workers_is_told_again():
    blocks = some()
    (name,) = submit(blocks, blocks.look([Demand(1)], NOW))
    assert blocks.look([Demand(1)], NOW + 30)
    blocks.manager_came(name, 2)
    blocks.look([Demand(1)], NOW + 40)
    blocks.seen(name, DIED, NOW + 100)
    blocks.look([Demand(1)], NOW + 100)
    assert [type(order) for order in blocks.look([Demand(1)], NOW + 130)] == [Warned]


# The end


def test_at_the_end_blocks_that_never_served_are_cancelled_at_once_the_others_after_some_time():
    blocks = some(init_blocks=2)
    first, second = submit(blocks, blocks.look([], NOW))
    blocks.manager_came(first, 2)
    assert blocks.stop(10.0, NOW) == [Cancel(second)]
    assert blocks.seen(second, Sight(Phase.ENDED), NOW + 1) == [BlockOver(second, "ended", is_expected=True)]
    assert not blocks.is_over(NOW + 9)
    assert blocks.look([], NOW + 9) == []
    assert blocks.look([], NOW + 10) == [Cancel(first)]
    assert blocks.look([], NOW + 11) == [Cancel(first)]
    blocks.seen(first, Sight(Phase.ENDED), NOW + 12)
    assert blocks.is_over(NOW + 12)


def test_blocks_that_do_not_end_are_left_alone_after_a_while():
    blocks = some()
    (name,) = submit(blocks, blocks.look([], NOW))
    blocks.stop(0.0, NOW)
    blocks.look([], NOW)
    assert not blocks.is_over(NOW + 4)
    assert blocks.is_over(NOW + 5)
    assert list(blocks.blocks) == [name]


def test_a_block_that_is_being_submitted_at_the_end_is_cancelled_when_its_job_is_known():
    blocks = some()
    (order,) = blocks.look([], NOW)
    assert blocks.stop(0.0, NOW) == []
    assert blocks.submitted(order.block, "17", NOW + 1) == [Cancel(order.block)]


def test_nothing_is_started_after_the_end():
    blocks = some(min_blocks=1)
    blocks.stop(10.0, NOW)
    assert blocks.look(WORK, NOW) == []
    assert blocks.is_over(NOW)


def test_a_task_that_no_block_has_time_for_gets_one_more_and_not_again_and_again():
    blocks = some(slots_per_block=1)
    (first,) = serving(blocks, work=[Demand(1)])
    blocks.seen(first, replace(RUNNING, ends_at=NOW + 300.0), NOW)
    assert blocks.look([Demand(1, time_s=200.0)], NOW) == []
    long = [Demand(1, time_s=400.0)]
    (second,) = submit(blocks, blocks.look(long, NOW))
    assert blocks.look(long, NOW + 1) == []
    blocks.seen(second, replace(RUNNING, ends_at=NOW + 600.0), NOW + 1)
    assert blocks.look(long, NOW + 2) == []


def full(**changes: object) -> tuple[Blocks, str]:
    """A node pool that may have one block, and has it: it is idle, runs for 1000 s, and 400 s have passed."""
    blocks = some(slots_per_block=1, max_blocks=1, max_idle_time_s=60.0, **changes)
    (name,) = serving(blocks, work=[Demand(1)])
    blocks.seen(name, replace(RUNNING, ends_at=NOW + 1000.0), NOW)
    blocks.idle(name, NOW + 400.0)
    return blocks, name


def test_an_idle_block_makes_room_for_one_that_has_time_for_what_waits():
    blocks, name = full()
    long = [Demand(1, time_s=900.0)]
    assert blocks.look(long, NOW + 401.0) == []
    assert blocks.next_look_at() == NOW + 460.0
    assert blocks.look(long, NOW + 460.0) == [Retire(name, is_ordered=False)]
    assert blocks.look(long, NOW + 461.0) == []
    blocks.retired(name, NOW + 461.0)
    blocks.seen(name, replace(RUNNING, phase=Phase.ENDED), NOW + 470.0)
    assert isinstance(blocks.look(long, NOW + 470.0)[0], Submit)


@pytest.mark.parametrize(
    "work",
    [
        [Demand(1, time_s=500.0)],  # it has the time
        [Demand(1, time_s=999.0)],  # another would not have it either
        [Demand(1), Demand(1, time_s=900.0, pools=frozenset("b"))],  # that is not for this pool
        [Demand(5)],  # nobody knows how long it runs
    ],
)
def test_it_does_not_where_that_would_be_of_no_use(work):
    blocks, _ = full()
    assert blocks.look(work, NOW + 460.0) == []


def test_it_does_not_where_another_block_can_be_had_besides():
    blocks, name = some(slots_per_block=1, max_blocks=2, max_idle_time_s=60.0), "a-0"
    serving(blocks, work=[Demand(1)])
    blocks.seen(name, replace(RUNNING, ends_at=NOW + 1000.0), NOW)
    blocks.idle(name, NOW + 400.0)
    assert [type(order) for order in blocks.look([Demand(1, time_s=900.0)], NOW + 460.0)] == [Submit]


def test_nor_a_block_that_is_never_to_be_given_back_or_that_the_user_has_ordered():
    blocks, _ = full()
    blocks.ordered("a", 1)
    assert blocks.look([Demand(1, time_s=900.0)], NOW + 460.0) == []
    kept = some(slots_per_block=1, max_blocks=1, max_idle_time_s=None)
    (name,) = serving(kept, work=[Demand(1)])
    kept.seen(name, replace(RUNNING, ends_at=NOW + 1000.0), NOW)
    kept.idle(name, NOW + 400.0)
    assert kept.look([Demand(1, time_s=900.0)], NOW + 460.0) == []
