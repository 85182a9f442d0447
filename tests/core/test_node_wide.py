"""Wide tasks on a node: their slots, their workers, and those who must wait for them."""

from __future__ import annotations

import math
from collections import deque

import pytest

from hpcpool.core.node import Node
from hpcpool.core.orders import (
    Crashed,
    End,
    Ended,
    EndWorker,
    Give,
    Hopeless,
    Order,
    RetireWorker,
    StartWideWorker,
    StartWorker,
)
from hpcpool.core.starts import START_FAILURE_LIMIT
from hpcpool.core.wide_tasks import WideTasks
from hpcpool.core.worker import Worker


def arrive(node: Node, *tasks: int, now: float = 0.0, **widths: int) -> list[Order]:
    """Tasks come; `t3=2`: and the third takes two slots."""
    wide = {int(name[1:]): width for name, width in widths.items()}
    return node.arrived([(task, 0.0) for task in (*tasks, *wide)], now, widths=wide)


def busy(slots: int, count: int) -> Node:
    """A node whose workers 1, 2, ... run tasks 1, 2, ..."""
    node = Node(slots)
    assert arrive(node, *range(1, count + 1)) == [StartWorker(number) for number in range(1, count + 1)]
    for number in range(1, count + 1):
        assert node.worker_ready(number, 0.0) == [Give(number, number)]
    return node


def end(node: Node, number: int, task: int, now: float = 1.0) -> list[Order]:
    assert node.finished(number, task, 1.0, now)
    return node.refill(now)


def test_a_wide_task_has_a_worker_started_for_it_that_leaves_with_it():
    node = Node(4)
    assert arrive(node, t1=3) == [StartWideWorker(1, 1)]
    assert node.slots_of(1) == (0, 1, 2)
    assert node.worker_ready(1, 0.1) == [Give(1, 1)]
    assert end(node, 1, 1) == [RetireWorker(1)]
    assert node.worker_ended(1, [], 1.1) == []


def test_it_waits_until_so_many_slots_have_no_running_call():
    node = busy(2, 2)
    assert arrive(node, t3=2) == []
    assert end(node, 1, 1) == []
    assert end(node, 2, 2) == [StartWideWorker(3, 3)]


def test_nobody_takes_the_slots_that_it_waits_for():
    node = busy(2, 2)
    arrive(node, t3=2)
    assert arrive(node, 4) == []
    assert end(node, 1, 1) == []
    assert end(node, 2, 2) == [StartWideWorker(3, 3)]
    assert node.worker_ready(3, 1.0) == [Give(3, 3)]
    assert end(node, 3, 3, 2.0) == [RetireWorker(3)]
    (given,) = node.worker_ended(3, [], 2.1)
    assert given in (Give(1, 4), Give(2, 4))


def test_idle_workers_rest_while_it_has_their_slots_and_serve_again_when_it_has_gone():
    node = busy(2, 2)
    end(node, 1, 1)
    end(node, 2, 2)
    assert arrive(node, t3=2) == [StartWideWorker(3, 3)]
    assert node.worker_ready(3, 1.0) == [Give(3, 3)]
    assert arrive(node, 4, 5) == []
    end(node, 3, 3)
    given = node.worker_ended(3, [], 2.0)
    assert sorted(order.worker for order in given if isinstance(order, Give)) == [1, 2]
    assert len(given) == 2


def test_others_run_on_the_slots_that_are_left():
    node = busy(3, 3)
    for number in (1, 2, 3):
        end(node, number, number)
    assert arrive(node, t4=2) == [StartWideWorker(4, 4)]
    assert node.slots_of(4) == (0, 1)
    (given,) = arrive(node, 5, 6)
    assert given == Give(3, 5)
    assert node.slots_of(3) == (2,)


def test_the_slots_of_a_leaving_worker_are_not_free_before_it_has_gone():
    node = Node(1)
    arrive(node, t1=1)
    node.worker_ready(1, 0.0)
    assert end(node, 1, 1) == [RetireWorker(1)]
    assert arrive(node, 2, now=1.0) == []
    assert node.worker_ended(1, [], 1.1) == [StartWorker(2)]


def test_one_that_is_cancelled_before_its_worker_is_up_has_it_ended():
    node = Node(2)
    arrive(node, t1=2)
    assert node.cancelled(1, 0.0) == [EndWorker(1)]
    assert node.worker_ended(1, [], 0.1) == []
    assert arrive(node, 2) == [StartWorker(2)]


def test_one_that_is_killed_before_its_worker_is_up_has_it_ended():
    node = Node(2)
    arrive(node, t1=2)
    assert node.killed(1, 0.0) == [EndWorker(1), Ended(1, End.KILLED)]
    assert node.worker_ended(1, [], 0.1) == []


def test_one_that_waits_can_be_cancelled_and_makes_room():
    node = busy(1, 1)
    assert arrive(node, t2=1) == []
    assert arrive(node, 3) == []
    assert node.cancelled(2, 0.0) == []
    assert end(node, 1, 1) == [Give(1, 3)]


def test_what_is_withdrawn_includes_wide_ones_that_have_not_begun():
    node = busy(3, 1)
    arrive(node, t2=1)
    arrive(node, t3=2)
    assert node.withdraw() != []
    given_up, orders = node.withdrawn(2, 0.0)
    assert given_up == [3]
    assert EndWorker(2) not in orders


def test_when_its_worker_dies_at_the_start_it_gets_another_but_not_for_ever():
    node = Node(2)
    assert arrive(node, t1=2) == [StartWideWorker(1, 1)]
    for number in range(1, START_FAILURE_LIMIT):
        assert node.worker_ended(number, [], 0.0) == [StartWideWorker(number + 1, 1)]
    assert node.worker_ended(START_FAILURE_LIMIT, [], 0.0) == [Hopeless(START_FAILURE_LIMIT)]


def test_when_there_is_no_room_for_its_worker_it_is_tried_again():
    node = Node(2)
    arrive(node, t1=2)
    node.not_started(1, 0.0)
    assert node.tick_at < math.inf
    assert node.tick(node.tick_at)[0] == StartWideWorker(2, 1)


def test_a_crash_is_its_own_and_leaves_the_slots():
    node = Node(2)
    arrive(node, t1=2)
    node.worker_ready(1, 0.0)
    assert node.worker_ended(1, [], 0.5) == [Crashed(1, 1)]
    assert arrive(node, t2=2) == [StartWideWorker(2, 2)]


def test_a_call_that_its_worker_never_read_is_not_lost():
    node = Node(2)
    arrive(node, t1=2)
    node.worker_ready(1, 0.0)
    assert node.worker_ended(1, [1], 0.5) == [StartWideWorker(2, 1)]


def test_a_dead_workers_replacement_has_its_slot():
    node = busy(3, 3)
    assert node.worker_ended(2, [], 0.5) == [Crashed(2, 2)]
    assert arrive(node, 4) == [StartWorker(4)]
    assert node.slots_of(4) == (1,)


def test_it_takes_slots_without_a_worker_rather_than_those_of_an_idle_one():
    node = busy(4, 1)
    end(node, 1, 1)
    assert arrive(node, t2=3) == [StartWideWorker(2, 2)]
    assert node.slots_of(2) == (1, 2, 3)
    assert arrive(node, 3) == [Give(1, 3)], "which can serve meanwhile"


def test_two_calls_on_one_slot_leave_less_room_than_there_are_free_slots():
    """A worker that runs its last call, and the one in its place."""
    wide = WideTasks(3)
    workers = [Worker(number, (slot,), given=deque([number])) for number, slot in ((1, 0), (2, 1), (3, 1))]
    wide.claim(9, 1)
    assert wide.next(workers) is None
    workers[2].given.clear()
    assert wide.next(workers) == (9, (2,))


@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_a_wide_task_that_is_given_up_lets_those_begin_that_have_waited_for_it(how):
    node = busy(2, 2)
    assert arrive(node, t3=2) == []
    assert arrive(node, 4, 5) == []
    assert end(node, 1, 1) == []
    ended = [Ended(3, End.KILLED)] if how == "killed" else []
    assert getattr(node, how)(3, 1.0) == [*ended, Give(1, 4)]
