from __future__ import annotations

import math
import random
from collections import deque

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from hpcpool.core import node as node_module
from hpcpool.core import starts
from hpcpool.core.node import Node
from hpcpool.core.orders import (
    Crashed,
    End,
    Ended,
    EndWorker,
    Give,
    Hopeless,
    ReportStarted,
    RetireWorker,
    Run,
    StartWorker,
    TakeBack,
)
from tests.core.node_simulation import Fate, SimulatedNode

START_FAILURE_LIMIT = starts.START_FAILURE_LIMIT


def ready_node(slots: int = 1, max_tasks_per_child: int | None = None, mean_s: float | None = None) -> Node:
    """A node whose workers 1, 2, ... are up at time 0; with `mean_s`, tasks have been measured to take so long."""
    node = Node(slots, max_tasks_per_child)
    orders = node.arrived([(10_000 + n, 0.0) for n in range(slots)], 0.0)
    assert orders == [StartWorker(n + 1) for n in range(slots)]
    for number in range(1, slots + 1):
        (given,) = node.worker_ready(number, 0.0)
        assert given == Give(number, 9_999 + number)
    for number in range(slots, 0, -1):
        assert node.finished(number, 9_999 + number, 1.0 if mean_s is None else mean_s, 0.0)
    assert node.tick(0.0) == []
    return node


def arrive(node: Node, *tasks: int, now: float = 0.0, timeout_s: float = 0.0):
    return node.arrived([(task, timeout_s) for task in tasks], now)


# -- giving


def test_the_first_worker_starts_before_the_first_task_comes():
    assert Node(4).warm_up() == [StartWorker(1)]


def test_no_more_workers_start_than_there_are_slots_or_tasks():
    node = Node(3)
    assert arrive(node, 1, 2) == [StartWorker(1), StartWorker(2)]
    assert arrive(node, 3, 4, 5) == [StartWorker(3)]


def test_a_task_goes_to_the_worker_that_became_idle_last():
    node = ready_node(2)
    assert arrive(node, 1) == [Give(1, 1)]
    assert arrive(node, 2) == [Give(2, 2)]
    node.finished(1, 1, 1.0, 0.5)
    node.finished(2, 2, 1.0, 0.6)
    assert node.refill(0.6) == []
    assert arrive(node, 3, now=1.0) == [Give(2, 3)]


def test_nothing_is_given_ahead_before_a_task_was_measured():
    node = Node(1)
    arrive(node, 1, 2)
    assert node.worker_ready(1, 0.0) == [Give(1, 1)]
    assert node.limit == 1


def test_nothing_is_given_ahead_while_tasks_are_long():
    node = ready_node(1, mean_s=0.1)
    assert arrive(node, 1, 2) == [Give(1, 1)]


def test_short_tasks_are_given_ahead_to_all_workers_in_turn():
    node = ready_node(2, mean_s=0.00125)
    orders = arrive(node, *range(1, 20))
    assert orders == [Give(number, task) for task in range(1, 11) for number in [2 - task % 2]]


def test_a_worker_is_given_more_when_half_of_its_tasks_are_done():
    node = ready_node(1, mean_s=0.00125)
    assert arrive(node, *range(1, 10)) == [Give(1, task) for task in range(1, 6)]
    for task in (1, 2):
        assert node.finished(1, task, 0.00125, 0.0)
        assert node.refill(0.0) == []
    assert node.finished(1, 3, 0.00125, 0.0)
    assert node.refill(0.0) == [Give(1, 6), Give(1, 7), Give(1, 8)]


def test_a_node_takes_more_tasks_the_shorter_they_are():
    limits = [ready_node(2, mean_s=mean_s).limit for mean_s in (5.0, 0.1, 0.005, 0.001, 0.0)]
    assert limits[0] == 2
    assert limits == sorted(limits)
    assert limits[-1] == 2 * 257


def test_an_outcome_that_nobody_can_have_sent_is_not_wanted():
    node = ready_node(1)
    arrive(node, 1)
    assert not node.finished(1, 2, 0.1, 0.1)
    assert node.finished(1, 1, 0.1, 0.1)
    assert not node.finished(1, 1, 0.1, 0.1)


# -- long tasks


def test_a_task_that_nobody_waits_behind_is_looked_at_when_it_is_worth_a_report():
    node = ready_node(1)
    arrive(node, 1, now=5.0)
    assert node.tick_at == pytest.approx(5.02)


def test_a_task_that_comes_behind_a_running_one_is_not_forgotten_there():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, now=5.0)
    assert node.tick_at == pytest.approx(5.02)
    assert arrive(node, 2, now=5.005) == [Give(1, 2)]
    assert node.tick_at == pytest.approx(5.015)
    assert node.tick(5.015) == [TakeBack(1)]


def test_what_waits_behind_a_task_that_turns_out_long_is_taken_back():
    node = ready_node(1, mean_s=0.001)
    assert len(arrive(node, 1, 2, 3, now=5.0)) == 3
    assert node.tick_at == pytest.approx(5.015)
    assert node.tick(5.0151) == [TakeBack(1)]
    assert node.taken_back(1, [2, 3], 5.0151) == []
    assert node.finished(1, 1, 9.0, 14.0)
    assert node.refill(14.0) == [Give(1, 2)]


def test_nothing_is_given_behind_a_task_that_has_turned_out_long():
    node = ready_node(2, mean_s=0.0001)
    arrive(node, 1, now=5.0)
    (started,) = node.tick(5.03)
    assert started == ReportStarted([Run(1, 1, 5.0)])
    given = arrive(node, 2, 3, 4, now=6.0)
    assert {order.worker for order in given} == {2}


def test_work_is_taken_from_the_fullest_worker_for_an_idle_one():
    node = ready_node(2, mean_s=0.0005)
    arrive(node, *range(1, 9), now=5.0)
    for task in (2, 4, 6, 8):
        assert node.finished(2, task, 0.0005, 5.001)
    assert node.refill(5.001) == [TakeBack(1)]
    assert node.taken_back(1, [3, 5, 7], 5.001) == [Give(2, 3), Give(1, 5), Give(2, 7)]


def test_little_work_is_not_moved():
    node = ready_node(2, mean_s=0.0001)
    arrive(node, 1, 2, 3, 4, now=5.0)
    for task in (2, 4):
        assert node.finished(2, task, 0.0001, 5.001)
    assert node.refill(5.001) == []
    assert node.tick(5.0151) == [TakeBack(1)]


def test_work_is_not_moved_to_a_spare_worker():
    """A worker that is idle because all slots are taken (it replaces one that runs its last call) has no room."""
    node = Node(1, max_tasks_per_child=5)
    arrive(node, 1)
    node.worker_ready(1, 0.0)
    node.finished(1, 1, 0.0005, 0.0)
    orders = arrive(node, 2, 3, 4, 5, now=0.0)
    assert orders[-1] == StartWorker(2)
    assert node.worker_ready(2, 0.001) == []
    assert node.finished(1, 2, 0.0005, 0.002)
    assert node.refill(0.002) == []


def test_a_worker_is_given_tasks_ahead_again_after_some_were_taken_back():
    node = ready_node(1, mean_s=0.001)
    assert len(arrive(node, 1, 2, 3)) == 3
    assert node.cancelled(2, 0.0) == [TakeBack(1)]
    assert node.taken_back(1, [2, 3], 0.0) == [Give(1, 3)]


def test_so_is_a_full_one():
    node = ready_node(1, mean_s=0.0025)
    assert len(arrive(node, 1, 2, 3, 4, now=5.0)) == 3
    node.cancelled(2, 5.0)
    assert node.taken_back(1, [2, 3], 5.0) == [Give(1, 3), Give(1, 4)]


def test_a_slot_is_not_used_again_before_its_worker_has_gone():
    node = ready_node(3, mean_s=0.1)
    given = {order.task: order.worker for order in arrive(node, 1, 2, 3)}
    assert node.killed(1, 0.0) == [EndWorker(given[1])]
    assert arrive(node, 4, 5) == [StartWorker(4)]
    for done in ((2, 3), (4, 5)):
        for task in done:
            assert node.finished(given[task], task, 0.1, 0.0)
        given |= {order.task: order.worker for order in node.refill(0.0)}
    assert node.worker_ready(4, 0.0) == []
    assert [order.worker for order in arrive(node, 6, 7)] == [given[5], given[4]]
    assert arrive(node, 8) == []
    assert node.worker_ended(given[1], [], 0.0) == [Ended(1, End.KILLED), Give(4, 8)]


def test_a_new_worker_has_a_slot_that_nobody_else_has_rather_than_that_of_one_that_is_being_ended():
    node = Node(2)
    assert arrive(node, 1) == [StartWorker(1)]
    assert node.worker_ready(1, 0.0) == [Give(1, 1)]
    assert node.killed(1, 0.0) == [EndWorker(1)]
    assert node.finished(1, 1, 0.1, 0.0)
    assert arrive(node, 2) == [StartWorker(2)]
    assert node.slots_of(2) == (1,)
    assert node.worker_ready(2, 0.0) == [Give(2, 2)]


def test_nothing_is_taken_back_for_a_worker_that_may_have_no_task_yet():
    node = ready_node(2, mean_s=0.001)
    given = {order.task: order.worker for order in arrive(node, 1, 2)}
    assert node.killed(2, 0.0) == [EndWorker(given[2])]
    assert StartWorker(3) in arrive(node, *range(3, 30))
    assert node.finished(given[2], 2, 0.001, 0.0)
    assert node.worker_ready(3, 0.0) == []
    while node.give_back(100):
        continue
    assert node.refill(0.0) == []
    assert TakeBack(given[1]) in node.worker_ended(given[2], [], 0.0) + node.refill(0.0)


def test_a_task_that_could_not_be_taken_back_begins_when_those_before_it_are_gone():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2, now=5.0)
    node.cancelled(1, 5.0)
    assert node.taken_back(1, [1], 5.008) == []
    assert node.tick(5.021) == []
    assert node.tick(5.0281) == [ReportStarted([Run(2, 1, 5.008)])]


def test_the_newest_tasks_of_a_worker_are_those_that_it_was_given_last():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2, 3)
    assert [node.newest_of(1, count) for count in range(3)] == [[], [3], [2, 3]]


# -- reporting, time limits


def test_a_running_task_is_reported_once_and_only_after_a_while():
    node = ready_node(2)
    arrive(node, 1, now=5.0)
    assert node.tick(5.011) == []
    assert node.tick_at == pytest.approx(5.02)
    assert node.tick(5.021) == [ReportStarted([Run(1, 1, 5.0)])]
    assert node.tick_at == math.inf
    arrive(node, 2, now=6.0)
    assert node.tick(6.011) == []
    assert node.tick(6.021) == [ReportStarted([Run(2, 2, 6.0)])]


def test_a_short_task_is_never_reported():
    node = ready_node(1)
    arrive(node, 1, 2, now=5.0)
    node.finished(1, 1, 0.019, 5.019)
    node.refill(5.019)
    assert node.tick(5.02) == []


def test_a_task_beyond_its_time_is_ended_and_nothing_else():
    node = ready_node(1, mean_s=0.001)
    node.arrived([(1, 0.5), (2, 0.0)], 5.0)
    node.tick(5.0151)
    node.taken_back(1, [2], 5.0151)
    assert node.tick(5.03) == [ReportStarted([Run(1, 1, 5.0)])]
    assert node.tick_at == pytest.approx(5.5)
    assert node.tick(5.5) == [EndWorker(1)]
    assert node.tick_at == math.inf
    assert node.worker_ended(1, [], 5.6) == [Ended(1, End.TIMED_OUT), StartWorker(2)]
    assert node.worker_ready(2, 5.7) == [Give(2, 2)]


def test_the_time_of_a_task_begins_when_the_one_before_it_has_ended():
    node = ready_node(1, mean_s=0.0001)
    node.arrived([(1, 0.0), (2, 0.005)], 5.0)
    node.finished(1, 1, 0.008, 5.008)
    assert node.tick_at == pytest.approx(5.013)
    assert node.tick(5.0129) == []
    assert node.tick_at == pytest.approx(5.013)
    assert node.tick(5.0131) == [EndWorker(1)]


def test_a_timed_out_task_that_its_worker_never_read_runs_elsewhere():
    node = ready_node(1)
    arrive(node, 1, timeout_s=0.5)
    assert node.tick(0.5) == [EndWorker(1)]
    assert node.worker_ended(1, [1], 0.6) == [StartWorker(2)]
    assert node.worker_ready(2, 0.7) == [Give(2, 1)]
    assert node.tick_at == pytest.approx(0.72)
    assert node.tick(1.21) == [EndWorker(2)]


def test_a_task_that_finishes_in_spite_of_everything_has_finished():
    node = ready_node(1)
    arrive(node, 1, timeout_s=0.5)
    assert node.tick(0.5) == [EndWorker(1)]
    assert node.finished(1, 1, 0.5, 0.501)
    assert arrive(node, 2, now=0.502) == [StartWorker(2)]
    assert node.worker_ended(1, [], 0.503) == []
    assert node.worker_ready(2, 0.6) == [Give(2, 2)]


# -- cancelling


def test_a_cancelled_task_that_waits_is_gone():
    node = ready_node(1)
    arrive(node, 1, 2, 3)
    assert node.cancelled(2, 0.0) == []
    node.finished(1, 1, 0.1, 0.1)
    assert node.refill(0.1) == [Give(1, 3)]


def test_a_cancelled_task_in_a_workers_hands_is_taken_back():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2, 3)
    assert node.cancelled(2, 0.0) == [TakeBack(1)]
    assert node.taken_back(1, [2, 3], 0.0) == [Give(1, 3)]


def test_a_cancelled_task_that_has_just_begun_may_finish_soon_unheard():
    node = ready_node(1)
    arrive(node, 1, now=5.0)
    assert node.cancelled(1, 5.001) == []
    assert node.tick(5.0199) == []
    assert not node.finished(1, 1, 0.0199, 5.0199)
    assert node.tick(5.03) == []


def test_a_cancelled_task_that_runs_on_is_ended_unheard():
    node = ready_node(1)
    arrive(node, 1, now=5.0)
    assert node.cancelled(1, 5.001) == []
    assert node.tick(5.0105) == []
    assert node.tick_at == pytest.approx(5.02)
    assert node.tick(5.021) == [EndWorker(1)]
    assert node.worker_ended(1, [], 5.03) == []


def test_a_cancelled_task_that_was_reported_is_ended_at_once():
    node = ready_node(1)
    arrive(node, 1, now=5.0)
    node.tick(5.021)
    assert node.cancelled(1, 6.0) == []
    assert node.tick_at == 6.0
    assert node.tick(6.0) == [EndWorker(1)]


def test_cancelling_what_is_not_here_leaves_no_trace():
    node = ready_node(1)
    assert node.cancelled(7, 0.0) == []
    assert node.killed(7, 0.0) == []
    assert arrive(node, 7) == [Give(1, 7)]
    assert node.finished(1, 7, 0.1, 0.1)


def test_a_task_that_was_cancelled_and_has_come_again_is_wanted():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2)
    node.cancelled(1, 0.0)
    node.cancelled(2, 0.0)
    node.taken_back(1, [2], 0.0)
    assert not node.finished(1, 1, 0.001, 0.001)
    arrive(node, 1, 2, now=0.002)
    assert node.finished(1, 1, 0.001, 0.003)
    assert node.finished(1, 2, 0.001, 0.004)


# -- killing


def test_a_killed_task_that_waits_is_ended():
    node = ready_node(1)
    arrive(node, 1, 2)
    assert node.killed(2, 0.0) == [Ended(2, End.KILLED)]
    assert node.killed(2, 0.0) == []


def test_a_killed_task_in_a_workers_hands_is_ended_once():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2, 3)
    assert node.killed(2, 0.0) == [TakeBack(1), Ended(2, End.KILLED)]
    assert node.killed(2, 0.0) == []
    assert node.taken_back(1, [2, 3], 0.0) == [Give(1, 3)]


def test_a_killed_task_that_runs_is_ended_and_its_followers_run_elsewhere():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2)
    assert node.killed(1, 0.0) == [TakeBack(1), EndWorker(1)]
    assert node.killed(1, 0.0) == []
    assert node.taken_back(1, [2], 0.0) == [StartWorker(2)]
    assert node.worker_ended(1, [], 0.1) == [Ended(1, End.KILLED)]
    assert node.worker_ready(2, 0.2) == [Give(2, 2)]


def test_a_killed_task_that_its_worker_never_read_does_not_come_back():
    node = ready_node(1)
    arrive(node, 1)
    assert node.killed(1, 0.0) == [EndWorker(1)]
    assert node.worker_ended(1, [1], 0.1) == [Ended(1, End.KILLED)]
    assert arrive(node, 2, now=0.2) == [StartWorker(2)]
    assert node.worker_ready(2, 0.3) == [Give(2, 2)]


def test_a_task_that_began_behind_a_killed_one_is_not_to_blame():
    """The first one's outcome was on its way when its worker was ended, and the second was being run by then."""
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2)
    assert node.killed(1, 0.0) == [TakeBack(1), EndWorker(1)]
    assert node.taken_back(1, [], 0.0) == []
    assert node.finished(1, 1, 0.001, 0.001)
    assert node.worker_ended(1, [], 0.002) == [StartWorker(2)]
    assert node.worker_ready(2, 0.1) == [Give(2, 2)]


def test_such_a_task_can_be_killed_itself():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2)
    node.killed(1, 0.0)
    node.taken_back(1, [], 0.0)
    assert node.finished(1, 1, 0.001, 0.001)
    assert Ended(2, End.KILLED) in node.killed(2, 0.0)
    assert node.worker_ended(1, [], 0.002) == []


def test_a_worker_that_is_being_ended_is_given_nothing():
    node = ready_node(1)
    arrive(node, 1)
    assert node.killed(1, 0.0) == [EndWorker(1)]
    assert node.finished(1, 1, 0.1, 0.1)
    assert arrive(node, 2, now=0.1) == [StartWorker(2)]


def test_a_worker_whose_tasks_were_all_unread_is_given_nothing_when_it_is_being_ended():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2)
    assert node.killed(1, 0.0) == [TakeBack(1), EndWorker(1)]
    assert node.taken_back(1, [1, 2], 0.0) == [Ended(1, End.KILLED), StartWorker(2)]
    assert node.worker_ended(1, [], 0.1) == []


# -- dying


def test_a_dead_worker_fails_the_task_that_it_ran_and_no_other():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2, 3)
    assert node.worker_ended(1, [2, 3], 0.1) == [Crashed(1, 1), StartWorker(2)]
    assert node.worker_ready(2, 0.2) == [Give(2, 2), Give(2, 3)]


def test_tasks_lost_in_a_dead_workers_channel_run_elsewhere():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2, 3)
    assert node.worker_ended(1, [], 0.1) == [Crashed(1, 1), StartWorker(2)]
    assert node.worker_ready(2, 0.2) == [Give(2, 2), Give(2, 3)]
    node.finished(2, 2, 0.001, 0.3)
    node.finished(2, 3, 0.001, 0.3)
    assert node._behind == node._active == 0


def test_a_worker_that_dies_before_it_reads_its_task_fails_nothing():
    node = ready_node(1)
    arrive(node, 1)
    assert node.worker_ended(1, [1], 0.1) == [StartWorker(2)]


def test_the_death_of_idle_workers_breaks_nothing():
    node = ready_node(1)
    for number in range(1, 2 * START_FAILURE_LIMIT):
        assert node.worker_ended(number, [], 0.0) == []
        assert arrive(node, number) == [StartWorker(number + 1)]
        assert node.worker_ready(number + 1, 0.0) == [Give(number + 1, number)]
        assert node.finished(number + 1, number, 1.0, 1.0)


def test_a_cancelled_task_that_kills_its_worker_is_not_reported():
    node = ready_node(1)
    arrive(node, 1)
    node.cancelled(1, 0.0)
    assert node.worker_ended(1, [], 0.1) == []


def test_workers_that_cannot_start_break_the_pool():
    node = Node(1)
    assert arrive(node, 1) == [StartWorker(1)]
    for number in range(1, START_FAILURE_LIMIT):
        assert node.worker_ended(number, [], 0.0) == [StartWorker(number + 1)]
    assert node.worker_ended(START_FAILURE_LIMIT, [], 0.0) == [Hopeless(START_FAILURE_LIMIT)]


def test_a_worker_that_starts_in_between_gives_hope():
    node = Node(2)
    arrive(node, 1, 2)
    number = 2
    for _ in range(3):
        for _ in range(START_FAILURE_LIMIT - 1):
            orders = node.worker_ended(number, [], 0.0)
            (number,) = [order.worker for order in orders if isinstance(order, StartWorker)]
        node.worker_ready(number, 0.0)
        (task,) = node._workers[number].given
        orders = node.worker_ended(number, [], 0.0)
        assert Crashed(number, task) in orders
        (number,) = [order.worker for order in [*orders, *arrive(node, task)] if isinstance(order, StartWorker)]


def test_workers_that_die_before_they_read_a_call_break_the_pool():
    """Else a call would go from one such worker to the next for ever."""
    node = Node(1)
    arrive(node, 1)
    for number in range(1, START_FAILURE_LIMIT):
        assert node.worker_ready(number, 0.0) == [Give(number, 1)]
        assert node.worker_ended(number, [1], 0.0) == [StartWorker(number + 1)]
    node.worker_ready(START_FAILURE_LIMIT, 0.0)
    assert node.worker_ended(START_FAILURE_LIMIT, [1], 0.0) == [Hopeless(START_FAILURE_LIMIT)]


def test_a_call_that_was_read_in_between_gives_hope():
    node = Node(1)
    arrive(node, 1)
    for number in range(1, 4 * START_FAILURE_LIMIT):
        node.worker_ready(number, 0.0)
        has_read = number % (START_FAILURE_LIMIT - 1) == 0
        orders = [*node.worker_ended(number, [] if has_read else [1], 0.0), *(arrive(node, 1) if has_read else [])]
        assert orders == [*([Crashed(number, 1)] if has_read else []), StartWorker(number + 1)]


# -- max_tasks_per_child


def test_a_worker_runs_its_calls_and_leaves_when_its_replacement_is_up():
    node = Node(1, max_tasks_per_child=2)
    arrive(node, 1, 2, 3)
    assert node.worker_ready(1, 0.0) == [Give(1, 1)]
    node.finished(1, 1, 1.0, 1.0)
    assert node.refill(1.0) == [Give(1, 2), StartWorker(2)]
    node.finished(1, 2, 1.0, 2.0)
    assert node.refill(2.0) == []
    assert node.worker_ready(2, 3.0) == [RetireWorker(1), Give(2, 3)]
    assert node.worker_ended(1, [], 3.1) == []


def test_a_replacement_starts_while_the_last_call_runs_even_if_nothing_waits():
    node = Node(1, max_tasks_per_child=1)
    arrive(node, 1)
    assert node.worker_ready(1, 0.0) == [Give(1, 1), StartWorker(2)]
    assert node.worker_ready(2, 0.5) == []
    node.finished(1, 1, 1.0, 1.0)
    assert node.refill(1.0) == [RetireWorker(1)]


def test_calls_that_were_taken_back_do_not_count():
    node = Node(1, max_tasks_per_child=4)
    arrive(node, 1)
    node.worker_ready(1, 0.0)
    node.finished(1, 1, 0.001, 0.0)
    assert Give(1, 4) in arrive(node, 2, 3, 4)
    assert node.tick(0.0151) == [TakeBack(1)]
    assert node.taken_back(1, [3, 4], 0.0151) == []
    for task in (2, 3, 4):
        assert node.finished(1, task, 10.0, 20.0 + task)
        (given,) = [order for order in node.refill(20.0 + task) if isinstance(order, Give)] or [None]
        assert given is None or given.worker == 1


def test_a_worker_that_does_not_leave_is_ended():
    node = Node(1, max_tasks_per_child=1)
    arrive(node, 1)
    node.worker_ready(1, 0.0)
    node.worker_ready(2, 0.5)
    assert node.tick(0.9) == [ReportStarted([Run(1, 1, 0.0)])]
    node.finished(1, 1, 1.0, 1.0)
    assert node.refill(1.0) == [RetireWorker(1)]
    assert node.tick_at == 1.0 + node_module.LEAVE_S
    assert node.tick(1.5) == []
    assert node.tick_at == 1.0 + node_module.LEAVE_S
    assert node.tick(node.tick_at) == [EndWorker(1)]
    assert node.tick_at == math.inf
    assert node.worker_ended(1, [], 6.1) == []


def test_workers_that_take_long_to_leave_do_not_pile_up():
    node = Node(1, max_tasks_per_child=1)
    orders = node.arrived([(task, 0.0) for task in range(1, 20)], 0.0)
    for _ in range(10):
        started = [order.worker for order in orders if isinstance(order, StartWorker)]
        orders = [order for number in started for order in node.worker_ready(number, 0.0)]
        for order in list(orders):
            if isinstance(order, Give):
                assert node.finished(order.worker, order.task, 1.0, 0.0)
                orders += node.refill(0.0)
    leaving = [worker.number for worker in node._workers.values() if worker.leaving]
    assert len(leaving) == 2
    assert len(node._workers) <= 4
    assert StartWorker(max(node._workers) + 1) in node.worker_ended(leaving[0], [], 0.0)


# -- handing back, withdrawing


def test_the_newest_unstarted_tasks_are_handed_back():
    node = ready_node(1)
    arrive(node, 1, 2, 3, 4)
    assert node.give_back(2) == [4, 3]
    node.finished(1, 1, 1.0, 1.0)
    assert node.refill(1.0) == [Give(1, 2)]
    assert node.give_back(5) == []


def test_what_is_owed_is_paid_when_it_comes_back_from_behind_a_long_task():
    node = ready_node(1, mean_s=0.001)
    arrive(node, 1, 2, 3)
    assert node.give_back(2) == []
    assert node.pay_back() == []
    assert node.tick(0.0151) == [TakeBack(1)]
    assert node.taken_back(1, [2, 3], 0.0151) == []
    assert node.pay_back() == [3, 2]
    assert node.pay_back() == []


def test_nothing_is_owed_to_one_who_sends_more():
    node = ready_node(1)
    arrive(node, 1)
    assert node.give_back(2) == []
    arrive(node, 2, 3)
    assert node.pay_back() == []


def test_a_task_handed_back_and_come_again_has_its_new_time_limit():
    node = ready_node(1)
    arrive(node, 1)
    arrive(node, 2, timeout_s=0.5)
    assert node.give_back(1) == [2]
    arrive(node, 2)
    node.finished(1, 1, 1.0, 1.0)
    node.refill(1.0)
    node.tick(1.021)
    assert node.tick_at == math.inf


def test_all_that_does_not_run_is_withdrawn_but_for_the_oldest():
    node = ready_node(1, mean_s=0.0005)
    arrive(node, 1, 2, 3, 4)
    assert node.withdraw() == [TakeBack(1)]
    assert node.taken_back(1, [3, 4], 0.0) == []
    assert node.withdrawn(3, 0.0) == ([4], [Give(1, 3)])
    assert node.finished(1, 1, 0.001, 0.0)
    assert node.finished(1, 2, 0.001, 0.0)
    assert node.finished(1, 3, 0.001, 0.0)
    assert node.refill(0.0) == []


# -- anything


RUN_TIMES_S = {
    "tiny": (1e-6, 1e-5),
    "short": (1e-4, 1e-3),
    "medium": (0.002, 0.015),
    "long": (0.05, 2.0),
}


class NodeMachine(RuleBasedStateMachine):
    """Anything may happen to a node in any order; `SimulatedNode.judge` says what must never come of it."""

    @initialize(
        slots=st.integers(1, 4), max_tasks=st.sampled_from([None, None, 1, 2, 7]), seed=st.integers(0, 2**32 - 1)
    )
    def begin(self, slots, max_tasks, seed):
        self.sim = SimulatedNode(slots, max_tasks, seed)
        self.random = random.Random(seed + 1)
        self.next_task = 1

    @rule(count=st.integers(1, 40), kinds=st.lists(st.sampled_from(sorted(RUN_TIMES_S)), min_size=1, max_size=2))
    def tasks_arrive(self, count, kinds):
        fates = []
        for _ in range(count):
            run_s = self.random.uniform(*RUN_TIMES_S[self.random.choice(kinds)])
            chance = self.random.random
            fates.append(
                Fate(
                    self.next_task,
                    run_s,
                    timeout_s=self.random.choice([0.001, 0.03, 0.5]) if chance() < 0.1 else 0.0,
                    crashes=chance() < 0.03,
                )
            )
            self.next_task += 1
        self.sim.arrive(fates)

    @rule(width=st.integers(1, 4), data=st.data())
    def a_wide_task_arrives(self, width, data):
        claimed = sum(self.sim.fates[task].width for task in self.sim.here)
        assume(claimed + width <= self.sim.slots)
        kind = data.draw(st.sampled_from(sorted(RUN_TIMES_S)))
        chance = self.random.random
        fate = Fate(
            self.next_task,
            self.random.uniform(*RUN_TIMES_S[kind]),
            timeout_s=0.03 if chance() < 0.1 else 0.0,
            width=width,
            crashes=chance() < 0.1,
        )
        self.next_task += 1
        self.sim.arrive([fate])

    @rule(duration_s=st.sampled_from([0.0, 1e-4, 1e-3, 0.01, 0.02, 0.1, 1.0]))
    def time_passes(self, duration_s):
        self.sim.advance(duration_s)

    @precondition(lambda self: self.sim.fates)
    @rule(count=st.integers(1, 5))
    def tasks_are_cancelled(self, count):
        for _ in range(count):
            self.sim.cancel(self.any_task())

    @precondition(lambda self: self.sim.fates)
    @rule()
    def a_task_is_killed(self):
        self.sim.kill(self.any_task())

    @rule(count=st.integers(1, 50))
    def tasks_are_asked_back(self, count):
        self.sim.give_back(count)

    @precondition(lambda self: self.sim.fates)
    @rule(data=st.data())
    def tasks_that_ended_come_again(self, data):
        again = [
            Fate(fate.task, fate.run_s, fate.timeout_s)
            for fate in self.sim.fates.values()
            if fate.task not in self.sim.here and fate.ends != ["cancelled"] and not fate.width
        ]
        assume(again)
        self.sim.arrive(data.draw(st.lists(st.sampled_from(again), min_size=1, max_size=5, unique_by=lambda f: f.task)))

    @rule(share=st.floats(0, 1))
    def what_does_not_run_is_withdrawn(self, share):
        self.sim.withdraw(int(share * self.next_task))

    @precondition(lambda self: any(w.is_idle or w.running is not None for w in self.sim.workers.values()))
    @rule()
    def a_worker_dies_by_itself(self):
        self.sim.kill_from_outside(
            self.random.choice([w for w in self.sim.workers.values() if w.is_idle or w.running is not None])
        )

    @precondition(lambda self: self.sim.failed_starts < 2)
    @rule()
    def a_worker_fails_to_start(self):
        self.sim.failing_starts = 1

    def any_task(self):
        # The newest are likelier to be here still.
        tasks = list(self.sim.fates)
        return tasks[-min(len(tasks), 1 + int(self.random.expovariate(1 / 20)))]

    def teardown(self):
        if not hasattr(self, "sim"):
            return
        self.sim.failing_starts = 0
        self.sim.run_to_the_end()
        assert self.sim.hopeless == 0
        assert {task: fate.ends for task, fate in self.sim.fates.items() if len(fate.ends) != 1} == {}
        assert self.sim.here == set()
        assert not any(worker.retired or worker.doomed for worker in self.sim.workers.values())


NodeMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
TestNodeAgainstItsPromises = NodeMachine.TestCase


# -- no room for a worker


def test_where_there_is_no_room_for_a_worker_those_there_are_go_on_and_it_is_tried_again():
    node = Node(2)
    assert node.arrived([(1, 0.0), (2, 0.0)], 0.0) == [StartWorker(1), StartWorker(2)]
    assert node.worker_ready(1, 0.0) == [Give(1, 1)]
    assert node.not_started(2, 0.0) == []
    assert node.finished(1, 1, 0.5, 0.5)
    assert node.refill(0.5) == [Give(1, 2)]
    assert node.tick(0.9) == [ReportStarted([Run(2, 1, 0.5)])]
    assert node.tick_at == pytest.approx(1.0)
    arrive(node, 3, now=0.95)
    assert node.tick(1.0) == [StartWorker(3)]
    assert node.worker_ready(3, 1.1) == [Give(3, 3)]


def test_where_there_is_never_room_for_a_first_worker_it_is_hopeless():
    node = Node(1)
    assert arrive(node, 1) == [StartWorker(1)]
    for number in range(1, START_FAILURE_LIMIT):
        assert node.not_started(number, float(number)) == []
        assert node.tick(number + 1.0) == [StartWorker(number + 1)]
    assert node.not_started(START_FAILURE_LIMIT, 9.0) == [Hopeless(START_FAILURE_LIMIT)]


def test_an_outcome_of_a_task_that_is_not_the_first_is_not_lost():
    node = ready_node(1, mean_s=0.0001)
    assert arrive(node, 1, 2) == [Give(1, 1), Give(1, 2)]
    assert node.finished(1, 2, 0.0001, 0.0)
    assert node.finished(1, 1, 0.0001, 0.0)
    assert not node.finished(1, 1, 0.0001, 0.0)


def test_where_it_is_hopeless_no_more_workers_are_started():
    node = Node(4)
    orders = arrive(node, 1, 2, 3, 4)
    numbers = deque(order.worker for order in orders)
    for _ in range(50):
        if not numbers:
            break
        orders = node.worker_ended(numbers.popleft(), [], 0.0) + node.refill(0.0)
        numbers += [order.worker for order in orders if isinstance(order, StartWorker)]
    assert not numbers
