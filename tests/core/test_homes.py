"""Tasks whose arguments are at one node go there, and no slot is idle for that."""

from __future__ import annotations

import pytest

from hpcpool.core.homes import PATIENCE
from hpcpool.core.leases import Batch, Request
from hpcpool.core.needs import Needs, Shape
from hpcpool.core.scheduler import Scheduler
from tests.core.counting import count_calls
from tests.core.schedulers import A, B, C, leases, scheduler, submit


def test_a_task_goes_to_its_home_whoever_else_is_free():
    made = scheduler(a=(1, 1), b=(1, 1), c=(1, 1))
    submit(made, 1, home=C)
    assert leases(made) == {C: [1]}


def test_tasks_of_several_homes_all_go_home_in_whatever_order_they_came():
    made = scheduler(a=(2, 2), b=(2, 2))
    submit(made, 1, 3, home=B)
    submit(made, 2, 4, home=A)
    assert leases(made) == {A: [2, 4], B: [1, 3]}


def test_a_task_whose_home_is_full_runs_elsewhere_rather_than_leave_a_slot_idle():
    made = scheduler(a=(1, 1), b=(2, 2))
    submit(made, 1, 2, 3, home=A)
    assert leases(made) == {A: [1], B: [2, 3]}


def test_of_what_waits_a_free_manager_takes_what_is_at_home_there():
    made = scheduler(a=(1, 1), b=(1, 1))
    submit(made, 1, 2)
    made.dispatch()
    submit(made, 3, 4, home=B)
    submit(made, 5, 6, home=A)
    made.finished(made.manager_of(1), 1)
    freed = B if made.manager_of(2) == A else A
    assert leases(made) == {freed: [3 if freed == B else 5]}


def test_what_has_no_home_is_not_overtaken():
    made = scheduler(a=(1, 1))
    submit(made, 1)
    submit(made, 2, home=A)
    assert leases(made) == {A: [1]}


def test_a_higher_priority_goes_before_what_is_at_home():
    made = scheduler(a=(1, 1), b=(1, 1))
    submit(made, 1, 2, home=A)
    submit(made, 3, home=B, priority=1)
    made.manager_lost(B)
    assert leases(made) == {A: [3]}


def test_the_first_is_overtaken_by_what_is_at_home_elsewhere_only_so_often():
    made = scheduler(a=(1, 1), b=(1, 1))
    submit(made, 1)
    submit(made, 2, home=B)
    made.dispatch()
    assert (made.manager_of(1), made.manager_of(2)) == (A, B)
    submit(made, 3, home=B)
    running = 1
    for task in range(10, 10 + PATIENCE):
        submit(made, task, home=A)
        made.finished(A, running)
        assert leases(made) == {A: [task]}
        running = task
    submit(made, 1000, home=A)
    made.finished(A, running)
    assert leases(made) == {A: [3]}


def test_tasks_go_ahead_to_their_home_too():
    made = scheduler(a=(1, 3), b=(1, 3))
    submit(made, 1, 2)
    made.dispatch()
    submit(made, 3, 4, home=B)
    assert leases(made) == {B: [3, 4]}


def test_an_idle_manager_is_given_what_waits_at_a_home_that_is_busy():
    made = scheduler(a=(1, 3), b=(1, 3))
    submit(made, 1, home=B)
    submit(made, 2)
    made.dispatch()
    submit(made, 3, home=B)
    assert leases(made) == {B: [3]}
    made.finished(A, 2)
    assert made.share() == [Request(B, 1)]
    made.returned(B, [3])
    assert leases(made) == {A: [3]}


def test_the_tasks_of_a_home_that_is_lost_run_elsewhere_and_once():
    made = scheduler(a=(1, 1), b=(2, 2))
    submit(made, 1, 2, 3, home=B)
    assert leases(made) == {B: [1, 2], A: [3]}
    made.manager_lost(B)
    assert leases(made) == {}
    made.finished(A, 3)
    assert leases(made) == {A: [1]}
    made.finished(A, 1)
    assert leases(made) == {A: [2]}
    made.finished(A, 2)
    assert (made.backlog, made.pending) == (0, 0)


def test_what_is_cancelled_or_killed_in_the_queue_does_not_go_home():
    made = scheduler()
    submit(made, 1, 2, 3, home=A)
    made.cancelled(1)
    made.kill(2)
    made.manager_joined(A, 3, 3)
    assert leases(made) == {A: [3]}


def test_a_call_of_several_slots_goes_to_its_home_if_there_is_room():
    made = Scheduler(3, True)
    for name in (A, B, C):
        made.manager_joined(name, 4, 4, shape=Shape(4))
    for task in (1, 2):
        made.submitted(task, 0, 1, Needs(cores=3), home=C)
    assert made.dispatch() == [Batch(C, [1]), Batch(A, [2])]


@pytest.mark.parametrize("homes", [2, 64])
def test_the_cost_of_a_task_with_a_home_does_not_grow_with_their_number(homes):
    made = scheduler(**{f"m{n}": (4, 4) for n in range(homes)})
    for task in range(64):
        submit(made, task, home=b"m%d" % (task % homes))

    def lease_and_finish() -> None:
        for _ in range(32):
            for batch in made.dispatch():
                for task in batch.tasks:
                    made.finished(batch.manager, task)

    assert count_calls(lease_and_finish) < 64 * 60


def test_all_tasks_run_once_whatever_their_homes_are():
    made = scheduler(a=(2, 4), b=(1, 2), c=(3, 3))
    for task in range(300):
        submit(made, task, home=(None, A, B, C, b"gone")[task * 7 % 5], priority=task % 3)
    done: list[int] = []
    while made.pending:
        for batch in made.dispatch():
            for task in batch.tasks:
                made.finished(batch.manager, task)
                done.append(task)
    assert sorted(done) == list(range(300))
    assert made.backlog == 0
    assert not made._homes


def test_one_that_went_home_past_others_and_came_back_is_queued_once_when_blocks_turn_out_to_end():
    made = Scheduler(3, True)
    made.manager_joined(A, 1, 1, block="a-1")
    made.submitted(1, 0, 1, time_s=60.0, home=B)
    made.submitted(2, 0, 1, time_s=60.0, home=A)
    assert leases(made) == {A: [2]}
    made.returned(A, [2])
    made.block_ends("a-1", 1000.0, "", 0.0)
    assert made.backlog == 2
    for task in (2, 1):
        assert leases(made) == {A: [task]}
        made.finished(A, task)
    assert made.backlog == 0
