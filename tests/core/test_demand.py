from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcpool.core.demand import Demand, Room, share_out


def test_without_tasks_nothing_is_wanted():
    assert share_out([], [Room("a", 0, 8)]) == {"a": 0}


def test_all_tasks_are_wanted_of_the_only_pool_whatever_its_room():
    assert share_out([Demand(1000)], [Room("a", 0, 8)]) == {"a": 1000}


def test_tasks_that_both_pools_could_run_are_counted_once():
    assert share_out([Demand(4)], [Room("a", 0, 8), Room("b", 0, 8)]) == {"a": 4, "b": 0}


def test_what_the_first_pool_has_no_room_for_is_wanted_of_the_second():
    assert share_out([Demand(12)], [Room("a", 0, 8), Room("b", 0, 8)]) == {"a": 8, "b": 4}


def test_blocks_that_there_are_come_before_new_ones():
    assert share_out([Demand(4)], [Room("a", 0, 8), Room("b", 4, 8)]) == {"a": 0, "b": 4}


def test_what_nobody_has_room_for_is_wanted_of_the_first():
    assert share_out([Demand(100)], [Room("a", 0, 8), Room("b", 0, 8)]) == {"a": 92, "b": 8}


def test_a_pool_whose_blocks_fail_is_asked_last():
    assert share_out([Demand(4)], [Room("a", 0, 8, is_failing=True), Room("b", 0, 8)]) == {"a": 0, "b": 4}


def test_those_with_the_least_choice_choose_first():
    demands = [Demand(8), Demand(2, slots_per_task=4, pools=frozenset("a"))]
    assert share_out(demands, [Room("a", 0, 8), Room("b", 0, 8)]) == {"a": 8, "b": 8}


def test_what_no_pool_can_run_is_wanted_of_none():
    assert share_out([Demand(8, pools=frozenset("c"))], [Room("a", 0, 8)]) == {"a": 0}


def test_blocks_that_end_too_early_for_a_task_are_no_room_for_it():
    room = Room("a", 4, 8, slots_left=((2, 300.0), (2, 3000.0)))
    assert share_out([Demand(1, time_s=200.0)], [room]) == {"a": 1}
    # One of the blocks is there, and does not help.
    assert share_out([Demand(2, time_s=400.0)], [room]) == {"a": 4}
    assert share_out([Demand(3, time_s=400.0)], [room]) == {"a": 5}
    assert share_out([Demand(3, time_s=400.0), Demand(2)], [room]) == {"a": 7}


def test_a_task_too_long_for_the_blocks_of_one_pool_may_have_those_of_another():
    rooms = [Room("a", 2, 2, slots_left=((2, 300.0),)), Room("b", 0, 8)]
    assert share_out([Demand(2, time_s=400.0)], rooms) == {"a": 2, "b": 2}


@given(
    demands=st.lists(st.builds(Demand, st.integers(0, 100), st.integers(1, 8), st.none()), max_size=5),
    rooms=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans()), min_size=1, max_size=4),
)
def test_every_slot_is_wanted_exactly_once(demands, rooms):
    pools = [Room(str(n), now, now + more, is_failing) for n, (now, more, is_failing) in enumerate(rooms)]
    wanted = share_out(demands, pools)
    assert sum(wanted.values()) == sum(demand.tasks * demand.slots_per_task for demand in demands)
    assert min(wanted.values()) >= 0
