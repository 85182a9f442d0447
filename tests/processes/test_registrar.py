from __future__ import annotations

import pytest

from hpcpool import Config, NodePool
from hpcpool.core.needs import Shape
from hpcpool.core.offer import Offer
from hpcpool.processes.offers import offer_of
from hpcpool.processes.registrar import TooSmall, in_words, limits_threads, needs_of, pool_of, welcome_of
from hpcpool.providers import LocalProvider, SlurmProvider
from hpcpool.wire.messages import Register, Setup, Task

GB = 10**9
NODE = Register("big-0", "n1", 1, 16, 64 * GB)
SETUP = Setup(0, "fork", 0, b"")


def welcome(setup: Setup = SETUP, **options: object):
    return welcome_of(Config(NodePool(), NodePool(name="big", **options)), setup, NODE)  # type: ignore[arg-type]


def test_a_node_is_divided_as_its_pool_says():
    told, shape = welcome(cores_per_worker=4, memory_per_worker="20GB", accelerators=("0,1", "2,3"))
    assert shape == Shape(2, 4, 20 * GB, 4, 2)
    assert (told.workers, told.shape, told.accelerators) == (2, shape, ("0,1", "2,3"))


def test_workers_given_to_the_executor_go_before_those_of_the_pool():
    assert welcome(Setup(3, "fork", 0, b""), workers_per_node=7)[1].slots == 3
    assert welcome(workers_per_node=7)[1].slots == 7
    assert welcome()[1].slots == 16


def test_a_node_without_room_for_a_worker_is_refused_with_what_it_lacks():
    with pytest.raises(TooSmall, match="n1 has 16 cores and 64 GB, too little .*'big' with cores_per_worker=32; ask"):
        welcome(cores_per_worker=32)
    with pytest.raises(TooSmall, match="memory_per_worker=65 GB"):
        welcome(memory_per_worker="65GB")


def test_a_node_with_fewer_accelerators_than_its_pool_says_is_refused():
    config = Config(NodePool(name="big", accelerators=3))
    for known, has in ((2, "2 accelerators"), (1, "1 accelerator"), (0, "0 accelerators")):
        node = Register("big-0", "n1", 1, 16, 64 * GB, known)
        with pytest.raises(TooSmall, match=f"n1 lets this job use {has}, .*'big' says accelerators=3; "):
            welcome_of(config, SETUP, node)
    for enough_or_unknown in (3, 4, -1):
        welcome_of(config, SETUP, Register("big-0", "n1", 1, 16, 64 * GB, enough_or_unknown))
    named = Config(NodePool(name="big", accelerators=("0,1", "2")))
    welcome_of(named, SETUP, Register("big-0", "n1", 1, 16, 64 * GB, 1))  # who names them knows them


def test_what_a_node_has_is_told_in_the_log():
    assert in_words(NODE) == "16 cores, 64 GB"
    assert in_words(Register("big-0", "n1", 1, 2, 8 * GB, 4)) == "2 cores, 8 GB, 4 accelerators"


def test_the_pool_of_a_block_is_found_by_its_name():
    config = Config(NodePool(name="a"), NodePool(name="a-1", workers_per_node=3))
    assert pool_of(config, "a-1-12").name == "a-1"
    assert pool_of(config, "a-1").name == "a"


def test_on_this_machine_libraries_are_left_alone_unless_workers_have_been_given_cores():
    assert not limits_threads(NodePool())
    assert not limits_threads(NodePool(workers_per_node=2))
    assert limits_threads(NodePool(cores_per_worker=2))
    assert limits_threads(NodePool(cpu_affinity="block"))
    assert limits_threads(NodePool(SlurmProvider()))
    assert isinstance(NodePool().provider, LocalProvider)


def test_an_offer_has_what_the_pool_says():
    pool = NodePool(name="p", cores_per_worker=2, memory_per_worker="1GB", accelerators=("0,1", "2"), nodes_per_block=1)
    assert offer_of(pool) == Offer("p", None, 2, GB, (2, 1), 1)
    assert offer_of(NodePool(accelerators=3), 4) == Offer("default", 4, 1, None, (1, 1, 1), 1)


def test_a_timeout_tells_how_long_a_task_runs_if_nothing_else_does():
    assert needs_of(Task(1, b"", timeout_s=5.0)) == (None, 5.0)
    needs, time_s = needs_of(Task(1, b"", timeout_s=5.0, needs=(1, 0, 0, 0, 0, "", 3.0)))
    assert needs is not None
    assert time_s == 3.0
    assert needs_of(Task(1, b"", timeout_s=5.0, needs=(1, 0, 0, 0, 0, "", 0.0)))[1] == 5.0
