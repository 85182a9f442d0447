"""Tasks that are held while what they need is carried: no slot waits for them, and none where they could run."""

from __future__ import annotations

import pytest

from hpcpool.core.leases import Dropped
from hpcpool.core.needs import Needs, Shape
from hpcpool.core.scheduler import Scheduler
from tests.core.schedulers import A, B, leases, scheduler, submit


@pytest.fixture
def held() -> Scheduler:
    """Task 1 keeps home A busy; 2 and 3 are held, and would run there."""
    made = scheduler(a=(1, 1), b=(2, 2))
    submit(made, 1, 2, 3, home=A)
    assert leases(made) == {A: [1], B: [2, 3]}
    made.hold(2, is_at_home=True)
    made.hold(3, is_at_home=True)
    return made


def test_the_slot_that_a_held_task_would_have_had_does_other_work(held):
    submit(held, 4, 5, 6)
    assert leases(held) == {B: [4, 5]}
    assert (held.backlog, held.pending) == (3, 6)
    assert held.manager_of(2) is None


def test_a_held_task_runs_at_home_as_soon_as_there_is_room(held):
    submit(held, 4)
    held.finished(A, 1)
    assert leases(held) == {A: [2], B: [4]}
    held.finished(A, 2)
    assert leases(held) == {A: [3]}
    held.resume([2, 3])
    assert leases(held) == {}
    assert held.finished(A, 3)
    assert (held.backlog, held.pending) == (0, 1)


def test_when_what_they_need_has_come_held_tasks_go_first_in_order_and_anywhere(held):
    submit(held, 4, 5)
    held.resume([2, 3])
    assert leases(held) == {B: [2, 3]}


def test_a_task_that_could_run_nowhere_waits_until_it_is_resumed():
    made = scheduler(a=(1, 1), b=(1, 1))
    submit(made, 1, home=A)
    assert leases(made) == {A: [1]}
    made.hold(1, is_at_home=False)
    assert leases(made) == {}
    made.resume([1])
    assert leases(made) == {A: [1]}


def test_held_tasks_are_not_sent_ahead():
    made = scheduler(a=(1, 9), b=(2, 9))
    submit(made, 1, 2, 3, home=A)
    made.dispatch()
    made.hold(2, is_at_home=True)
    made.hold(3, is_at_home=True)
    assert leases(made) == {}
    assert made.share() == []


def test_a_held_task_can_be_cancelled_and_killed(held):
    assert (held.cancelled(2), held.kill(3)) == (None, None)
    held.resume([2, 3])
    held.finished(A, 1)
    assert leases(held) == {}
    assert (held.backlog, held.pending) == (0, 0)


def test_held_tasks_are_withdrawn(held):
    assert held.withdraw(2) == [3]
    assert (held.backlog, held.pending) == (1, 2)
    held.finished(A, 1)
    assert leases(held) == {A: [2]}


def test_a_held_task_whose_home_is_lost_waits_for_its_turn_elsewhere(held):
    assert held.manager_lost(A) == []
    assert leases(held) == {B: [1]}
    held.resume([3, 2])
    assert leases(held) == {B: [3]}


def test_late_words_of_the_manager_that_had_it_change_nothing(held):
    assert not held.finished(B, 2)
    assert not held.crashed(B, 2)
    assert held.returned(B, [2, 3]) == []
    assert held.manager_lost(B) == []
    held.finished(A, 1)
    assert leases(held) == {A: [2]}


def test_a_held_call_of_several_slots_leaves_them_and_waits_in_its_line_again():
    made = Scheduler(3, True)
    made.manager_joined(A, 4, 4, shape=Shape(4))
    made.submitted(1, 0, 1, Needs(cores=3), home=A)
    assert leases(made) == {A: [1]}
    made.hold(1, is_at_home=True)
    submit(made, *range(2, 6))
    assert leases(made) == {A: [2, 3, 4, 5]}
    for task in range(2, 6):
        made.finished(A, task)
    assert leases(made) == {}
    made.resume([1])
    assert leases(made) == {A: [1]}


def test_a_held_task_that_was_lost_before_still_counts_that():
    made = Scheduler(0, True)
    made.manager_joined(A, 1, 1)
    submit(made, 1, home=A)
    made.dispatch()
    made.hold(1, is_at_home=True)
    assert leases(made) == {A: [1]}
    assert [type(dropped) for dropped in made.manager_lost(A)] == [Dropped]
