from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpool.core.priority_queue import PriorityQueue
from tests.core.counting import count_calls


def drained(queue: PriorityQueue[object]) -> list[object]:
    items = []
    while queue:
        items.append(queue.pop())
    return items


def filled(*items: tuple[object, int]) -> PriorityQueue[object]:
    queue: PriorityQueue[object] = PriorityQueue()
    for item, priority in items:
        queue.push(item, priority)
    return queue


def test_an_empty_queue_is_false_and_gives_nothing():
    queue = filled()
    assert not queue
    with pytest.raises(IndexError):
        queue.pop()


def test_the_highest_priority_comes_first_and_equals_come_in_order():
    assert drained(filled(("a", 0), ("b", 5), ("c", 0), ("d", -3), ("e", 5))) == ["b", "e", "a", "c", "d"]


def test_an_item_can_be_put_in_front_of_its_equals_but_not_of_its_betters():
    queue = filled(("a", 0), ("b", 1))
    queue.push("c", 0, first=True)
    queue.push("d", 2, first=True)
    assert drained(queue) == ["d", "b", "c", "a"]


def test_a_priority_that_has_run_out_can_come_again():
    queue = filled(("a", 1))
    assert queue.pop() == "a"
    assert not queue
    queue.push("b", 1)
    assert drained(queue) == ["b"]


def test_only_what_is_kept_stays():
    queue = filled((1, 0), (2, 0), (3, 1), (4, 2), (5, 0))
    queue.keep(lambda item: item in (2, 4, 5))
    assert drained(queue) == [4, 2, 5]
    queue.push(6, 1)
    queue.keep(lambda item: False)
    assert not queue


@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()) | st.sampled_from(["pop", "keep"])))
def test_it_behaves_like_a_sorted_list(steps):
    queue: PriorityQueue[int] = PriorityQueue()
    model: list[tuple[int, int]] = []
    for number, step in enumerate(steps):
        if step == "pop":
            if model:
                assert queue.pop() == model.pop(0)[1]
        elif step == "keep":
            queue.keep(lambda item: item % 3 != 0)
            model = [(priority, item) for priority, item in model if item % 3 != 0]
        else:
            priority, first = step
            ahead = sum(1 for other, _ in model if other >= priority + first)
            model.insert(ahead, (priority, number))
            queue.push(number, priority, first=first)
        assert bool(queue) == bool(model)
    assert drained(queue) == [item for _, item in model]


def test_the_cost_does_not_grow_with_the_length():
    def cost(length: int) -> int:
        queue = filled(*((number, number % 5) for number in range(length)))
        return count_calls(lambda: (queue.push(0, 3), queue.push(0, 3, first=True), queue.pop()))

    assert cost(10) == cost(10_000)
