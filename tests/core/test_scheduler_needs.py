"""Tasks that need something: lines, reservations, whole nodes, pools, time."""

from __future__ import annotations

import math

import pytest

from hpcpool.core.leases import Batch, Dropped, Reason, Request
from hpcpool.core.needs import NO_NEEDS, Needs, Shape
from hpcpool.core.placement import GRACE_S, Asked
from hpcpool.core.scheduler import DRAIN_S, Scheduler
from tests.core.schedulers import A, B, C, D, leases, submit


def scheduler(*pools: str, **slots: int) -> Scheduler:
    """A scheduler with managers of so many slots, which take twice as many tasks; all of one block."""
    made = Scheduler(3, True, pools)
    for name, count in slots.items():
        join(made, name.encode(), count)
    return made


def join(made: Scheduler, name: bytes, slots: int, pool: str = "default", block: str = "b-0", **shape: int) -> None:
    made.manager_joined(name, slots, 2 * slots, pool, block, Shape(slots, **shape))


# -- wide tasks


def test_a_wide_task_goes_where_it_has_room():
    made = scheduler(a=2, b=4)
    submit(made, 1, cores=3)
    assert leases(made) == {B: [1]}
    assert (made.backlog, made.pending, made.manager_of(1)) == (0, 1, B)


def test_a_wide_task_takes_as_many_slots_as_it_needs():
    made = scheduler(a=4)
    submit(made, 1, cores=3)
    submit(made, *range(2, 12))
    # One slot is left, and one task goes ahead to it.
    assert leases(made) == {A: [1, 2, 3]}
    assert made.finished(A, 1)
    assert leases(made) == {A: [4, 5, 6, 7, 8, 9]}


def test_nothing_goes_ahead_to_slots_that_a_wide_task_has():
    made = scheduler(a=4)
    submit(made, 1, cores=4)
    submit(made, 2)
    assert leases(made) == {A: [1]}
    made.finished(A, 1)
    assert leases(made) == {A: [2]}


def test_a_wide_task_is_never_sent_ahead():
    made = scheduler(a=4)
    submit(made, 1, 2, cores=3)
    assert leases(made) == {A: [1]}
    made.finished(A, 1)
    assert leases(made) == {A: [2]}


def test_tasks_of_different_widths_run_beside_each_other():
    made = scheduler(a=6)
    submit(made, 1, cores=3)
    submit(made, 2, cores=2)
    submit(made, 3, cores=2)
    submit(made, 4)
    assert leases(made) == {A: [1, 2]}, "the last slot is kept for the third"
    made.finished(A, 2)
    assert leases(made) == {A: [3, 4]}


def test_a_wide_task_that_fits_nowhere_has_a_manager_reserved_and_so_never_starves():
    made = scheduler(a=2)
    submit(made, 1, 2)
    made.dispatch()
    submit(made, 3, cores=2)
    submit(made, *range(4, 10))
    assert leases(made) == {}
    made.finished(A, 1)
    assert leases(made) == {}
    made.finished(A, 2)
    assert leases(made) == {A: [3]}
    made.finished(A, 3)
    assert leases(made) == {A: [4, 5, 6, 7]}


def test_others_are_not_held_up_by_a_reservation():
    made = scheduler(a=2, b=1)
    submit(made, 1, 2, 3)
    made.dispatch()
    submit(made, 4, cores=2)
    submit(made, 5, 6, 7)
    assert leases(made) == {B: [5]}
    for task in (1, 2, 3, 5):
        made.finished(made.manager_of(task), task)
    assert leases(made) == {A: [4], B: [6, 7]}


def test_the_manager_that_needs_to_free_the_fewest_slots_is_reserved():
    made = scheduler(a=4, b=4)
    submit(made, *range(8))
    held = leases(made)
    made.finished(A, held[A][0])
    made.finished(B, held[B][0])
    made.finished(B, held[B][1])
    submit(made, 100, cores=3)
    submit(made, 101, 102)
    assert leases(made) == {A: [101, 102]}
    made.finished(B, held[B][2])
    assert leases(made) == {B: [100]}


def test_what_a_reserved_manager_has_not_started_is_asked_back():
    made = scheduler(a=2)
    submit(made, 1, 2, 3, 4)
    made.dispatch()
    submit(made, 5, cores=2)
    assert not made.has_requests
    assert leases(made) == {}
    assert made.has_requests
    assert made.share() == [Request(A, 4)]
    assert made.share() == []
    assert made.returned(A, [4, 3]) == []
    assert leases(made) == {}
    made.finished(A, 1)
    made.finished(A, 2)
    assert leases(made) == {A: [5]}
    made.finished(A, 5)
    assert leases(made) == {A: [3, 4]}


def test_a_wide_task_takes_room_that_comes_elsewhere_before_its_reserved_manager_is_free():
    made = scheduler(a=2, b=2)
    submit(made, *range(1, 5))
    held = leases(made)
    submit(made, 9, cores=2)
    made.dispatch()
    reserved = next(iter(made._managers.reserved))
    other = B if reserved == A else A
    for task in held[other]:
        made.finished(other, task)
    assert leases(made) == {other: [9]}
    assert not made._managers.reserved


@pytest.mark.parametrize("end", ["cancelled", "killed", "withdrawn"])
def test_a_reservation_ends_with_the_task_that_it_is_for(end):
    made = scheduler(a=2)
    submit(made, 1, 2)
    made.dispatch()
    submit(made, 3, cores=2)
    made.dispatch()
    made.finished(A, 1)
    {"cancelled": made.cancelled, "killed": made.kill, "withdrawn": lambda task: made.withdraw(task - 1)}[end](3)
    submit(made, 4)
    assert leases(made) == {A: [4]}
    assert (made.backlog, made.pending) == (0, 2)


def test_when_the_reserved_manager_is_lost_another_is_reserved():
    made = scheduler(a=2, b=3)
    submit(made, *range(1, 6))
    made.dispatch()
    submit(made, 9, cores=2)
    made.dispatch()
    (first,) = made._managers.reserved
    made.manager_lost(first)
    made.dispatch()  # what was lost came first, and is leased first
    made.dispatch()
    (other,) = made._managers.reserved
    for task in list(made._managers.by_name[other].leases):
        made.finished(other, task)
    assert 9 in leases(made)[other]


def test_a_wide_task_waits_for_a_manager_that_is_large_enough():
    made = scheduler(a=2)
    submit(made, 1, cores=3)
    submit(made, 2)
    assert leases(made) == {A: [2]}
    join(made, B, 3)
    assert leases(made) == {B: [1]}


def test_the_width_depends_on_the_node():
    made = scheduler()
    join(made, A, 4, cores_per_slot=1)
    join(made, B, 2, cores_per_slot=8)
    submit(made, 1, 2, 3, cores=4)
    held = leases(made)
    assert held == {A: [1], B: [2, 3]}
    submit(made, 4)
    assert leases(made) == {B: [4]}, "narrow ones are sent ahead like any other"


def test_tasks_of_one_line_keep_their_order():
    made = scheduler()
    submit(made, 1, 2, cores=2)
    submit(made, 3, cores=2, priority=1)
    join(made, A, 2)
    order = []
    for _ in range(3):
        (batch,) = made.dispatch()
        order += batch.tasks
        made.finished(A, batch.tasks[0])
    assert order == [3, 1, 2]


# -- the order of service


def test_what_came_before_a_wide_task_is_leased_before_it():
    made = scheduler()
    submit(made, 1)
    submit(made, 2, cores=2)
    submit(made, 3)
    join(made, A, 2)
    assert leases(made) == {A: [1, 3]} or leases(made) == {}
    assert made.manager_of(1) == A


def test_a_higher_priority_goes_before_wide_tasks():
    made = scheduler()
    submit(made, 1, cores=2)
    submit(made, 2, priority=1)
    join(made, A, 2)
    assert made.dispatch()[0].tasks[0] == 2
    assert made.manager_of(1) is None


def test_a_wide_task_of_higher_priority_goes_before_others():
    made = scheduler()
    submit(made, *range(1, 5))
    submit(made, 5, cores=2, priority=1)
    join(made, A, 2)
    assert leases(made) == {A: [5]}


def test_a_reserved_manager_serves_higher_priorities():
    made = scheduler(a=3)
    submit(made, 1, 2, 3)
    made.dispatch()
    submit(made, 4, cores=3)
    made.dispatch()
    made.finished(A, 1)
    submit(made, 5)
    submit(made, 6, priority=1)
    assert leases(made) == {A: [6]}
    submit(made, 7, cores=2, priority=2)
    made.finished(A, 2)
    assert leases(made) == {}
    made.finished(A, 3)
    assert leases(made) == {A: [7]}
    made.finished(A, 6)
    made.finished(A, 7)
    assert leases(made) == {A: [4]}


def test_a_reservation_is_taken_over_by_a_higher_priority():
    made = scheduler(a=4)
    submit(made, *range(1, 5))
    made.dispatch()
    submit(made, 5, cores=4)
    made.dispatch()
    submit(made, 6, cores=3, priority=1)
    made.dispatch()
    for task in (1, 2, 3):
        made.finished(A, task)
    assert leases(made) == {A: [6]}
    made.finished(A, 4)
    made.finished(A, 6)
    assert leases(made) == {A: [5]}


def test_tasks_of_a_higher_priority_are_not_asked_back():
    made = scheduler(a=1)
    submit(made, 1, 2, priority=1)
    made.dispatch()
    submit(made, 3, cores=1, nodes=1)
    made.dispatch()
    assert made.share() == []


def test_narrow_tasks_of_a_line_are_not_starved_by_what_goes_ahead():
    made = scheduler(a=1)
    submit(made, 1, 2)
    made.dispatch()
    submit(made, 3, pool="default")
    submit(made, *range(4, 50))
    ran = []
    for _ in range(3):
        ran += [task for batch in made.dispatch() for task in batch.tasks]
        made.finished(A, min(made._managers.by_name[A].leases))
    assert ran == [3, 4]


# -- pools


def test_a_task_goes_to_the_pool_that_it_asks_for():
    made = scheduler("default", "gpu", a=4)
    submit(made, 1, pool="gpu")
    submit(made, 2, gpus=1)
    submit(made, 3)
    assert leases(made) == {A: [3]}
    join(made, B, 2, "gpu", "gpu-0", gpus=2, gpus_per_slot=1)
    assert leases(made) == {B: [1, 2]}


def test_tasks_that_only_their_holder_can_run_are_not_asked_back_again_and_again():
    made = scheduler("default", "gpu", a=1)
    join(made, B, 2, "gpu", "gpu-0")
    submit(made, 1, 2, pool="default")
    assert leases(made) == {A: [1, 2]}
    assert made.share() == []
    submit(made, 3, 4, 5)
    made.finished(A, 1)
    made.dispatch()
    made.share()
    for _ in range(5):
        for name, wanted in made.share():
            made.returned(name, list(made._managers.by_name[name].leases)[-wanted:])
        made.dispatch()
    assert made.share() == []


# -- whole nodes


def nodes(count: int, slots: int = 2, block: str = "b-0", first: int = 0) -> dict[bytes, int]:
    return {b"%s/%d" % (block.encode(), number + first): slots for number in range(count)}


def test_a_task_of_several_nodes_gets_nodes_of_one_block():
    made = scheduler()
    join(made, A, 2, block="b-0")
    join(made, B, 2, block="b-1")
    submit(made, 1, nodes=2)
    assert leases(made) == {}
    join(made, C, 2, block="b-1")
    assert leases(made) == {B: [1]}
    assert set(made.company_of(1)) == {B, C}
    submit(made, 2, 3, 4)
    assert leases(made) == {A: [2, 3, 4]}
    made.finished(B, 1)
    submit(made, 5, 6)
    assert {name for name, _ in made.dispatch()} == {B, C}


def test_whole_nodes_must_be_empty_and_are_kept_free_until_they_are():
    made = scheduler(a=2, b=2, c=2)
    submit(made, *range(1, 4))
    held = leases(made)
    assert set(held) == {A, B, C}
    submit(made, 10, nodes=2)
    made.dispatch()
    reserved = set(made._managers.reserved)
    assert len(reserved) == 2
    submit(made, *range(11, 20))
    assert set(leases(made)) == {A, B, C} - reserved
    for name in reserved:
        made.finished(name, held[name][0])
    batch = next(batch for batch in made.dispatch() if 10 in batch.tasks)
    assert set(made.company_of(10)) == reserved
    assert batch.manager in reserved


def test_ranks_alone_are_a_whole_node():
    made = scheduler(a=2)
    submit(made, 1)
    made.dispatch()
    submit(made, 2, ranks=8)
    assert leases(made) == {}
    made.finished(A, 1)
    assert leases(made) == {A: [2]}
    assert made.company_of(2) == (A,)


def test_a_task_that_loses_one_of_its_nodes_is_ended_and_runs_elsewhere():
    made = scheduler(a=1, b=1)
    submit(made, 1, nodes=2)
    (batch,) = made.dispatch()
    first, second = made.company_of(1)
    assert batch.manager == first
    assert made.manager_lost(second) == []
    assert made.orders_to_kill() == [(first, 1)]
    assert made.orders_to_kill() == []
    assert made.dispatch() == []
    assert made.recalled(first, 1) == []
    assert made.recalled(first, 1) is None
    assert (made.manager_of(1), made.backlog, made.reruns(1)) == (None, 1, 1)
    join(made, C, 1)
    (batch,) = made.dispatch()
    assert set(made.company_of(1)) == {first, C}


def test_a_task_that_finishes_although_it_has_lost_a_node_has_finished():
    made = scheduler(a=1, b=1)
    submit(made, 1, nodes=2)
    made.dispatch()
    first, second = made.company_of(1)
    made.manager_lost(second)
    assert made.finished(first, 1)
    assert made.pending == 0
    submit(made, 2)
    assert leases(made) == {first: [2]}


def test_a_task_that_loses_its_first_node_leaves_the_others():
    made = scheduler(a=1, b=1)
    submit(made, 1, nodes=2)
    made.dispatch()
    first, second = made.company_of(1)
    assert made.manager_lost(first) == []
    assert made.orders_to_kill() == []
    submit(made, 2)
    assert leases(made) == {second: [2]}
    assert made.backlog == 1


def test_a_task_that_has_lost_all_of_its_nodes_is_ended_again_when_it_loses_one_the_next_time():
    made = scheduler(a=1, b=1)
    submit(made, 1, nodes=2)
    made.dispatch()
    first, second = made.company_of(1)
    made.manager_lost(second)
    made.manager_lost(first)
    made.orders_to_kill()
    join(made, C, 1)
    join(made, D, 1)
    made.dispatch()
    first, second = made.company_of(1)
    assert made.recalled(first, 1) is None
    made.manager_lost(second)
    assert made.orders_to_kill() == [(first, 1)]


def test_a_block_that_takes_all_nodes_of_a_task_along_is_one_loss():
    made = scheduler(a=1, b=1, c=1, d=1)
    submit(made, 1, nodes=4)
    made.dispatch()
    for manager in reversed(made.company_of(1)):
        assert made.manager_lost(manager) == []
    assert (made.backlog, made.reruns(1)) == (1, 1)


def test_the_loss_of_both_nodes_is_the_loss_of_the_task():
    made = scheduler(a=1, b=1)
    submit(made, 1, nodes=2)
    made.dispatch()
    first, second = made.company_of(1)
    made.manager_lost(second)
    assert made.manager_lost(first) == []
    assert made.backlog == 1
    assert made.recalled(first, 1) is None


def test_a_task_is_lost_for_good_after_too_many_lost_nodes():
    made = Scheduler(0, True)
    join(made, A, 1)
    join(made, B, 1)
    submit(made, 1, nodes=2)
    made.dispatch()
    first, second = made.company_of(1)
    made.manager_lost(second)
    assert made.recalled(first, 1) == [Dropped(1, Reason.LOST)]
    assert made.pending == 0


# -- time


def test_a_task_is_not_started_where_too_little_time_is_left():
    made = scheduler(a=1)
    join(made, B, 1, block="b-1")
    made.block_ends("b-0", 1000.0, "default", 0.0)
    made.block_ends("b-1", 5000.0, "default", 0.0)
    submit(made, 1, time_s=1000.0 - GRACE_S)
    submit(made, 2, time_s=1000.0 - GRACE_S + 1)
    submit(made, 3, 4, time_s=6000.0)
    assert leases(made, now=0.0) == {A: [1], B: [2]}
    assert leases(made, now=1.0) == {}
    join(made, C, 2, block="b-2")
    assert leases(made, now=1.0) == {C: [3, 4]}


def test_an_end_that_is_learnt_late_holds_for_tasks_that_wait_and_for_managers_that_come():
    made = scheduler()
    submit(made, 1, time_s=100.0)
    submit(made, 2)
    made.block_ends("b-0", 50.0, "default", 0.0)
    join(made, A, 2)
    assert leases(made, now=0.0) == {A: [2]}
    assert made.backlog == 1
    join(made, B, 2, block="b-1")
    assert leases(made, now=0.0) == {B: [1]}


def test_without_an_end_tasks_with_a_time_are_like_any_other():
    made = scheduler(a=1)
    submit(made, 1, 2, time_s=1e9)
    assert leases(made) == {A: [1, 2]}
    assert not made._placement._lines


def test_a_short_task_passes_a_long_one_that_finds_no_manager():
    made = scheduler(a=1)
    made.block_ends("b-0", 100.0, "default", 0.0)
    submit(made, 1, time_s=1000.0)
    submit(made, 2, time_s=10.0)
    submit(made, 3, time_s=60.0)
    assert leases(made, now=0.0) == {A: [2, 3]}


def test_before_its_end_a_manager_gets_nothing_new_and_gives_back_what_it_has_not_started():
    made = scheduler(a=1)
    made.block_ends("b-0", 100.0, "default", 0.0)
    assert made.wake_at == 100.0 - DRAIN_S
    submit(made, 1, 2, 3)
    assert leases(made, now=0.0) == {A: [1, 2]}
    assert leases(made, now=100.0 - DRAIN_S) == {}
    assert made.wake_at == math.inf
    assert made.share() == [Request(A, 2)]
    assert made.returned(A, [2]) == []
    made.finished(A, 1)
    assert leases(made, now=95.0) == {}
    join(made, B, 1, block="b-1")
    assert leases(made, now=96.0) == {B: [2, 3]}


def test_a_manager_that_drains_is_not_kept_for_a_wide_task():
    made = scheduler(a=2)
    join(made, B, 2, block="b-1")
    made.block_ends("b-0", 100.0, "default", 0.0)
    submit(made, 1, 2, 3, 4)
    held = leases(made, now=0.0)
    made.finished(A, held[A][0])
    submit(made, 9, cores=2)
    made.dispatch(1.0)
    assert set(made._managers.reserved) == {A}
    made.dispatch(95.0)
    assert set(made._managers.reserved) == {B}


def test_a_reservation_ends_when_too_little_time_is_left():
    made = scheduler(a=2)
    made.block_ends("b-0", 100.0, "default", 0.0)
    submit(made, 1, 2)
    made.dispatch(0.0)
    submit(made, 9, cores=2, time_s=60.0)
    made.dispatch(1.0)
    assert set(made._managers.reserved) == {A}
    submit(made, 10)
    made.finished(A, 1)
    assert leases(made, now=50.0) == {A: [10]}


def test_an_expected_loss_is_free_of_charge():
    made = Scheduler(0, True)
    for number in range(5):
        join(made, b"%d" % number, 1)
    submit(made, 1)
    for _ in range(5):
        (batch,) = made.dispatch()
        assert made.manager_lost(batch.manager, is_expected=True) == []
    assert made.reruns(1) == 5, "told all the same: each may have begun it"


def test_a_loss_at_the_end_that_was_told_is_expected():
    made = Scheduler(0, True)
    join(made, A, 1)
    made.block_ends("b-0", 100.0, "default", 0.0)
    submit(made, 1)
    made.dispatch(0.0)
    made.dispatch(95.0)
    assert made.manager_lost(A) == []
    assert (made.backlog, made.reruns(1)) == (1, 1)


def test_a_manager_that_takes_no_more_tasks_gets_none_and_is_not_kept_free():
    made = scheduler("default", a=2, b=2)
    submit(made, 1, 2, 3, 4)
    held = leases(made)
    made.finished(A, held[A][0])
    submit(made, 9, cores=2)
    made.dispatch()
    assert set(made._managers.reserved) == {A}
    made.capacity_changed(A, 0, 0)
    made.dispatch()
    assert set(made._managers.reserved) == {B}
    assert made.held_by(A) == 1
    assert not made.has_unavailable


def test_who_has_not_answered_is_asked_for_the_rest_afterwards():
    made = scheduler(a=1)
    submit(made, 1, 2)
    made.dispatch()
    join(made, B, 1)
    assert made.share() == [Request(A, 1)]
    submit(made, 3, nodes=2)
    made.dispatch()
    assert made.share() == []
    assert made.has_requests
    made.returned(A, [])
    assert made.share() == [Request(A, 2)]


def test_what_must_not_run_twice_is_lost_even_if_that_was_expected():
    made = Scheduler(3, False)
    join(made, A, 1)
    submit(made, 1)
    made.dispatch()
    assert made.manager_lost(A, is_expected=True) == [Dropped(1, Reason.LOST)]


def test_a_task_goes_to_any_pool_of_its_label():
    made = Scheduler(3, True, ("cpu", "big", "bigger"), labels={"bigmem": ("big", "bigger"), "big": ("big",)})
    join(made, A, 4, "cpu", "cpu-0")
    submit(made, 1, pool="bigmem")
    submit(made, 2, pool="big")
    assert leases(made) == {}
    assert {request.pools for request in made.asked() if request.pools} == {
        frozenset({"big", "bigger"}),
        frozenset({"big"}),
    }
    join(made, B, 1, "bigger", "bigger-0")
    assert leases(made) == {B: [1]}
    submit(made, 3, cores=2, pool="bigmem")
    assert not made.has_unavailable
    join(made, C, 1, "big", "big-0")
    assert made.unavailable() == [Dropped(3, Reason.UNAVAILABLE)]


# -- what can never run


def test_a_task_that_no_node_can_run_is_given_up_when_all_pools_are_known():
    made = scheduler("default", "gpu")
    submit(made, 1, 2, gpus=3)
    submit(made, 3)
    join(made, A, 2)
    assert not made.has_unavailable
    join(made, B, 2, "gpu", "gpu-0", gpus=2, gpus_per_slot=1)
    assert made.has_unavailable
    assert made.unavailable() == [Dropped(1, Reason.UNAVAILABLE), Dropped(2, Reason.UNAVAILABLE)]
    assert not made.has_unavailable
    assert (made.backlog, made.pending) == (1, 1)
    assert "'gpu': 2 slots" in made.offered()


def test_a_task_that_comes_later_is_given_up_at_once():
    made = scheduler("default", a=2)
    submit(made, 1, cores=3)
    assert made.unavailable() == [Dropped(1, Reason.UNAVAILABLE)]
    submit(made, 2, cores=2)
    assert made.unavailable() == []


def test_only_the_pool_that_is_asked_for_counts():
    made = scheduler("default", "big", a=2)
    submit(made, 1, cores=3, pool="default")
    submit(made, 2, cores=3, pool="big")
    assert made.unavailable() == [Dropped(1, Reason.UNAVAILABLE)]
    join(made, B, 3, "big", "big-0")
    assert leases(made) == {B: [2]}


def test_a_task_that_could_run_if_its_node_came_back_waits():
    made = scheduler("default", a=4)
    submit(made, 1, cores=4)
    made.dispatch()
    made.manager_lost(A)
    join(made, B, 2)
    assert made.dispatch() == []
    assert not made.has_unavailable
    join(made, C, 4)
    assert made.dispatch() == [Batch(C, [1])]


def test_what_unfinished_tasks_ask_for_is_told_in_slots_and_pools():
    made = scheduler("default", "gpu", "later", a=4)
    join(made, B, 2, "gpu", "gpu-0", cores_per_slot=4, gpus=2, gpus_per_slot=1)
    submit(made, 1, 2)
    submit(made, 3, cores=3)
    made.dispatch()
    assert made.manager_of(3) is not None
    submit(made, 4, 5, cores=4, gpus=2, pool="gpu")
    submit(made, 6, cores=5)
    submit(made, 7, nodes=3, pool="default")
    assert sorted(made.asked(), key=lambda asked: (asked.tasks, asked.slots_per_task)) == [
        Asked(1, 2, frozenset({"gpu", "later"})),
        Asked(1, 3, frozenset({"default", "gpu", "later"})),
        Asked(1, 12, frozenset({"default"})),
        Asked(2),
        Asked(2, 2, frozenset({"gpu"})),
    ]
    assert sum(asked.tasks for asked in made.asked()) == made.pending


def test_what_waits_is_told_by_needs():
    made = scheduler()
    submit(made, 1, 2)
    submit(made, 3, cores=4)
    submit(made, 4, 5, pool="gpu", gpus=1)
    assert made.waiting() == [(NO_NEEDS, 2), (Needs(cores=4), 1), (Needs(gpus=1, pool="gpu"), 2)]
    assert made.backlog == 5
    assert D not in made._managers.by_name


def test_a_task_that_runs_longer_than_any_block_lasts_is_given_up_when_that_is_known():
    made = scheduler("default", a=2)
    submit(made, 1, time_s=400.0)
    submit(made, 2, cores=2, time_s=290.0)
    assert not made.has_unavailable
    made.block_ends("b-0", 1300.0, "default", 1000.0)
    assert made.unavailable() == [Dropped(1, Reason.UNAVAILABLE)]
    assert leases(made, 1000.0) == {A: [2]}
    submit(made, 3, time_s=300.0)
    assert made.unavailable() == [Dropped(3, Reason.UNAVAILABLE)]
    assert "calls of up to 295 s" in made.offered(), "a call must get there, and its outcome back"


def test_what_there_is_can_be_told_before_a_node_has_come():
    made = scheduler("default")
    made.block_ends("b-0", 1300.0, "default", 1000.0)
    assert made.offered() == "nodes of 'default', for calls of up to 295 s"


def test_a_task_too_long_for_what_is_left_of_a_block_waits_for_the_next_one():
    made = scheduler("default", a=2)
    made.block_ends("b-0", 1300.0, "default", 1000.0)
    made.block_ends("b-0", 1300.0, "default", 1200.0)
    submit(made, 1, time_s=200.0)
    assert not made.has_unavailable
    assert leases(made, 1200.0) == {}


def test_a_task_is_not_too_long_while_some_pool_that_could_run_it_has_shown_no_end():
    made = scheduler("short", "long")
    join(made, A, 2, "short", "short-0")
    made.block_ends("short-0", 1300.0, "short", 1000.0)
    submit(made, 1, time_s=400.0)
    submit(made, 2, time_s=400.0, pool="short")
    submit(made, 3, time_s=400.0, cores=3)
    assert made.unavailable() == [Dropped(2, Reason.UNAVAILABLE)]
    join(made, B, 2, "long", "long-0")
    assert made.unavailable() == [Dropped(3, Reason.UNAVAILABLE)], "it is too wide for both"
    assert leases(made, 1000.0) == {B: [1]}


def test_a_task_too_long_for_the_pool_that_is_wide_enough_is_given_up():
    made = scheduler("short", "narrow")
    join(made, A, 4, "short", "short-0")
    join(made, B, 1, "narrow", "narrow-0")
    submit(made, 1, time_s=400.0, cores=4)
    made.block_ends("short-0", 1300.0, "short", 1000.0)
    assert made.unavailable() == [Dropped(1, Reason.UNAVAILABLE)]


def test_what_waits_says_how_long_it_will_run():
    made = scheduler("default", a=1)
    submit(made, 1, cores=1)
    submit(made, 2, cores=1, time_s=50.0)
    made.block_ends("b-0", 100.0, "default", 0.0)
    made.dispatch(60.0)
    assert [(asked.tasks, asked.time_s) for asked in made.asked()] == [(1, 50.0), (1, 0.0)]
