from __future__ import annotations

import random

import pytest

from hpcpool.core.dependencies import Dependencies


def test_a_task_is_ready_when_the_last_of_its_dependencies_is_done():
    graph: Dependencies[str, str] = Dependencies()
    graph.add("task", ["a", "b"])
    assert len(graph) == 1
    assert graph.done("a") == []
    assert graph.done("b") == ["task"]
    assert len(graph) == 0


def test_tasks_become_ready_in_the_order_in_which_they_were_added():
    graph: Dependencies[str, int] = Dependencies()
    for task in (3, 1, 2):
        graph.add(task, ["a"])
    assert graph.dependents("a") == [3, 1, 2]
    assert graph.done("a") == [3, 1, 2]


def test_the_same_dependency_twice_is_one():
    graph: Dependencies[str, str] = Dependencies()
    graph.add("task", ["a", "a"])
    assert graph.done("a") == ["task"]


def test_adding_a_task_tells_what_nobody_waited_for_before():
    graph: Dependencies[str, str] = Dependencies()
    assert sorted(graph.add("one", ["a", "b"])) == ["a", "b"]
    assert graph.add("two", ["a"]) == []
    assert graph.add("three", ["b", "c"]) == ["c"]
    graph.done("a")
    assert graph.add("four", ["a"]) == ["a"]


def test_what_nobody_waits_for_makes_nothing_ready():
    graph: Dependencies[str, str] = Dependencies()
    assert graph.done("a") == []
    assert graph.dependents("a") == []


def test_a_dependency_is_done_once():
    graph: Dependencies[str, str] = Dependencies()
    graph.add("task", ["a"])
    assert graph.done("a") == ["task"]
    assert graph.done("a") == []


def test_a_removed_task_does_not_become_ready():
    graph: Dependencies[str, str] = Dependencies()
    graph.add("gone", ["a", "b"])
    graph.add("stays", ["a"])
    assert graph.remove("gone")
    assert not graph.remove("gone")
    assert graph.dependents("b") == []
    assert graph.done("a") == ["stays"]


def test_a_task_that_waits_for_nothing_cannot_be_added():
    graph: Dependencies[str, str] = Dependencies()
    with pytest.raises(ValueError, match="waits for nothing"):
        graph.add("task", [])


def test_a_task_can_be_a_dependency_itself():
    graph: Dependencies[int, int] = Dependencies()
    graph.add(2, [1])
    graph.add(3, [2, 1])
    assert graph.done(1) == [2]
    assert graph.done(2) == [3]


def test_a_long_chain_is_no_different():
    graph: Dependencies[int, int] = Dependencies()
    length = 100_000
    for task in range(1, length):
        graph.add(task, [task - 1])
    for task in range(length - 1):
        assert graph.done(task) == [task + 1]
    assert len(graph) == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_random_graph_runs_in_an_order_that_respects_every_dependency_and_leaves_nothing(seed):
    chance = random.Random(seed)
    graph: Dependencies[int, int] = Dependencies()
    waits_for = {task: chance.sample(range(task), min(task, chance.randint(0, 5))) for task in range(200)}
    ready = []
    for task, dependencies in waits_for.items():
        if dependencies:
            graph.add(task, dependencies)
        else:
            ready.append(task)
    removed = {task for task in waits_for if waits_for[task] and chance.random() < 0.1}
    for task in removed:
        assert graph.remove(task)
    done: set[int] = set()
    while ready:
        task = ready.pop(chance.randrange(len(ready)))
        assert set(waits_for[task]) <= done
        assert task not in done
        assert task not in removed
        done.add(task)
        ready += graph.done(task)
    never = {task for task in waits_for if task not in done}
    assert len(graph) == len(never - removed)
    assert all(not done.issuperset(waits_for[task]) for task in never - removed)
    for task in never - removed:
        graph.remove(task)
    assert graph._dependents == graph._missing == {}
