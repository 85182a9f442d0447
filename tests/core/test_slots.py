from __future__ import annotations

from itertools import combinations

import pytest

from hpcpool.core.slots import (
    DEVICE_VARIABLES,
    THREAD_VARIABLES,
    Slot,
    choose,
    device_ids,
    divide,
    environment,
    together,
)


def cores(affinity: str, slots: int = 2, each: int = 2, usable: tuple[int, ...] = (0, 1, 2, 3, 4, 5)):
    return [slot.cores for slot in divide(slots, each, usable, affinity, ())]


def test_without_an_affinity_nobody_is_bound():
    assert cores("none") == [(), ()]


def test_slots_are_bound_in_the_way_that_is_asked_for():
    assert cores("block") == [(0, 1), (2, 3)]
    assert cores("block-reverse") == [(4, 5), (2, 3)]
    assert cores("alternating") == [(0, 2), (1, 3)]


def test_only_cores_that_may_be_used_are_used():
    assert cores("block", usable=(3, 5, 8, 9)) == [(3, 5), (8, 9)]


@pytest.mark.parametrize("affinity", ["block", "block-reverse", "alternating"])
def test_slots_overlap_only_where_there_are_too_few_cores(affinity):
    for slots in range(1, 6):
        for each in range(1, 4):
            for count in range(1, 16):
                bound = cores(affinity, slots, each, tuple(range(10, 10 + count)))
                assert all(len(own) == min(each, count) or slots * each > count for own in bound)
                assert all(own and set(own) <= set(range(10, 10 + count)) for own in bound)
                if slots * each <= count:
                    assert sum(map(len, bound)) == len(set().union(*bound)) == slots * each


def devices(slots: int, *groups: str):
    return [slot.accelerators for slot in divide(slots, 1, (0,), "none", groups)]


def test_accelerators_are_divided_evenly():
    assert devices(2, "0", "1") == [("0",), ("1",)]
    assert devices(2, "0", "1", "2", "3") == [("0", "1"), ("2", "3")]
    assert devices(4, "0", "1") == [("0",), ("0",), ("1",), ("1",)]
    assert devices(2, "0", "1", "2") == [("0",), ("1", "2")]
    assert devices(2, "0,1", "2,3") == [("0", "1"), ("2", "3")]
    assert devices(2) == [(), ()]


def test_every_accelerator_is_somebodys_and_nobody_is_without():
    for slots in range(1, 9):
        for count in range(1, 9):
            parts = devices(slots, *map(str, range(count)))
            assert all(parts)
            assert set().union(*parts) == set(map(str, range(count)))
            assert count < slots or sum(map(len, parts)) == count


def test_a_number_of_accelerators_means_those_that_the_batch_system_has_allotted():
    assert device_ids(2, None) == ("0", "1")
    assert device_ids(2, "") == ("0", "1")
    assert device_ids(2, "4, 6,7") == ("4", "6")
    assert device_ids(2, "GPU-5f1c") == ("0", "1")
    assert device_ids(("a", "b,c"), "4,6") == ("a", "b,c")
    assert device_ids(0, "1") == ()


def test_slots_together_have_all_that_each_has():
    assert together([Slot((2, 3), ("1",)), Slot((0, 1), ("1",)), Slot((), ("0",))]) == Slot((0, 1, 2, 3), ("1", "0"))


def test_a_wide_call_gets_neighbours_that_begin_at_a_multiple_of_its_width():
    assert choose({0, 1, 2, 3}, 2) == (0, 1)
    assert choose({1, 2, 3}, 2) == (2, 3)
    assert choose({1, 2, 4}, 2) == (1, 2)
    assert choose({0, 2, 5}, 2) == (0, 2)


def test_a_wide_call_gets_as_many_free_slots_as_it_needs():
    for count in range(1, 7):
        for free in combinations(range(6), count):
            for width in range(1, count + 1):
                chosen = choose(set(free), width)
                assert len(set(chosen)) == width
                assert set(chosen) <= set(free)


def test_the_environment_tells_libraries_of_threads_and_devices():
    assert environment(Slot(), None) == {}
    assert environment(Slot(), 4) == dict.fromkeys(THREAD_VARIABLES, "4")
    assert environment(Slot(accelerators=("0", "1")), None) == dict.fromkeys(DEVICE_VARIABLES, "0,1")
