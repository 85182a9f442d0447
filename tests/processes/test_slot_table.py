from __future__ import annotations

import pytest

from hpcpool.core.needs import Needs, Shape
from hpcpool.core.slots import DEVICE_VARIABLES, THREAD_VARIABLES
from hpcpool.processes.slot_table import SlotTable
from hpcpool.wire.messages import Nodes, Task, Welcome


def table(shape: Shape, environ: dict[str, str] | None = None, **given: object) -> SlotTable:
    welcome = Welcome(shape.slots, "fork", 0, b"", 1.0, 5.0, shape, **given)  # type: ignore[arg-type]
    return SlotTable(welcome, "node7", [4, 5, 6, 7], environ or {})


def task(number: int = 1, **needs: int) -> Task:
    return Task(number, b"", needs=Needs(**needs) if needs else None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("needs", "expected"),
    [({}, None), ({"cores": 2}, None), ({"cores": 3}, 2), ({"nodes": 1}, 2), ({"ranks": 4}, 2), ({"nodes": 3}, 2)],
)
def test_a_task_that_takes_more_than_a_slot_has_a_worker_of_its_own(needs, expected):
    assert table(Shape(2, cores_per_slot=2)).width_of(task(**needs)) == expected


def test_a_whole_node_of_one_slot_is_its_own():
    assert table(Shape(1)).width_of(task(nodes=1)) == 1


def test_on_the_plain_pool_workers_get_nothing():
    assert table(Shape(4)).gear([2]) == ((), {})


def test_workers_are_bound_and_told():
    slots = table(Shape(2, 2, 0, 2, 1), affinity="block", accelerators=2, limits_threads=True)
    expected = dict.fromkeys(THREAD_VARIABLES, "2") | dict.fromkeys(DEVICE_VARIABLES, "1")
    assert slots.gear([1]) == ((6, 7), expected)


def test_a_wide_task_has_all_of_its_slots():
    slots = table(Shape(2, 2, 0, 2, 1), affinity="alternating", accelerators=("GPU-a", "GPU-b"))
    expected = dict.fromkeys(THREAD_VARIABLES, "4") | dict.fromkeys(DEVICE_VARIABLES, "GPU-a,GPU-b")
    assert slots.own_gear([0, 1], task(cores=4)) == ((4, 5, 6, 7), expected)


def test_what_the_user_says_of_threads_holds():
    slots = table(Shape(2, 2), {"OMP_NUM_THREADS": "7"}, limits_threads=True)
    for _, environment in (slots.gear([0]), slots.own_gear([0, 1], task(cores=4))):
        assert "OMP_NUM_THREADS" not in environment
        assert "MKL_NUM_THREADS" in environment


def test_a_number_of_accelerators_are_those_that_the_batch_system_has_allotted():
    slots = table(Shape(2, 1, 0, 2, 1), {"CUDA_VISIBLE_DEVICES": "3,5"}, accelerators=2)
    assert slots.gear([1])[1] == dict.fromkeys(DEVICE_VARIABLES, "5")


def test_a_call_of_whole_nodes_is_told_their_names():
    slots = table(Shape(4))
    assert slots.own_gear([0, 1, 2, 3], task(nodes=1))[1]["HPCPOOL_NODES"] == "node7"
    slots.note_nodes(Nodes(1, ["node7", "node9"]), {1})
    environment = slots.own_gear([0, 1, 2, 3], task(nodes=2, ranks=4))[1]
    assert environment["HPCPOOL_NODES"] == "node7,node9"
    assert environment["HPCPOOL_RANKS"] == "4"
    assert environment["OMP_NUM_THREADS"] == "2", "eight cores for four processes"


def test_the_nodes_of_tasks_that_have_gone_are_forgotten():
    slots = table(Shape(1))
    slots.note_nodes(Nodes(1, ["a", "b"]), {1})
    slots.note_nodes(Nodes(2, ["c", "d"]), {2})
    assert slots.own_gear([0], task(1, nodes=2))[1]["HPCPOOL_NODES"] == "node7"
    assert slots.own_gear([0], task(2, nodes=2))[1]["HPCPOOL_NODES"] == "c,d"
