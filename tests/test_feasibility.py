"""What no node pool can ever run is an error where it is asked for."""

from __future__ import annotations

import pytest

from hpcpool import Config, HPCPoolExecutor, NodePool
from hpcpool.apps import python_app
from hpcpool.providers import SlurmProvider

CONFIG = Config(
    NodePool(name="cpu", workers_per_node=4, cores_per_worker=2, memory_per_worker="4GB"),
    NodePool(name="gpu", accelerators=("0,1", "2,3"), labels=("fast",)),
)


@pytest.mark.parametrize(
    ("needs", "problem"),
    [
        ({"pool": "gpus"}, r"no node pool 'gpus'; did you mean 'gpu'\? \(names and labels: cpu, gpu, fast\)"),
        ({"gpus": 5}, r"no node can run a call with gpus=5: node pool 'cpu' \(.*accelerators on each node: 0.*'gpu'"),
        ({"gpus": 1, "pool": "cpu"}, "no node can run a call with gpus=1, pool='cpu': node pool 'cpu'"),
        ({"cores": 9, "pool": "cpu"}, "workers on each node: 4, cores for each: 2"),
        ({"memory": "17GB", "pool": "cpu"}, "memory=17 GB.*memory for each: 4 GB"),
        ({"cores": 99, "pool": "fast"}, "cores=99, pool='fast': node pool 'gpu'"),
        ({"nodes": 2}, "nodes=2.*nodes in a block: 1"),
    ],
)
def test_what_no_pool_can_run_is_refused_with_what_there_is(needs, problem):
    executor = HPCPoolExecutor(CONFIG)
    with pytest.raises(ValueError, match=problem):
        executor.options(**needs)


@pytest.mark.parametrize(
    "needs",
    [
        {"gpus": 4},
        {"cores": 8},
        {"memory": "16GB"},
        {"nodes": 1},
        {"ranks": 100},
        {"pool": "gpu", "gpus": 2},
        {"pool": "fast"},
    ],
)
def test_what_may_run_is_not_refused(needs):
    HPCPoolExecutor(CONFIG).options(**needs)


def test_workers_given_to_the_executor_count():
    with pytest.raises(ValueError, match="workers on each node: 2"):
        HPCPoolExecutor(2).options(cores=3)
    HPCPoolExecutor(3).options(cores=3)


def test_views_build_on_each_other():
    view = HPCPoolExecutor(CONFIG).options(gpus=2)
    with pytest.raises(ValueError, match="gpus=2, pool='cpu'"):
        view.options(pool="cpu")


def test_an_app_is_refused_at_its_call():
    @python_app(executor=HPCPoolExecutor(2), cores=3)
    def add(a: int, b: int) -> int:
        return a + b

    with pytest.raises(ValueError, match="cores=3"):
        add(1, 2)


@pytest.mark.parametrize(
    "pool",
    [
        NodePool(SlurmProvider(), walltime="00:30:00"),
        NodePool(SlurmProvider(walltime="00:30:00")),
    ],
)
def test_a_call_that_may_run_longer_than_any_block_is_refused(pool):
    executor = HPCPoolExecutor(pool)
    with pytest.raises(ValueError, match=r"no node can run a call with time_request=1801: .*that a block lasts: 1800"):
        executor.options(time_request=1801)
    with pytest.raises(ValueError, match=r"no node can run a call with timeout=1801: .*that a block lasts: 1800"):
        executor.options(timeout=1801)
    with pytest.raises(ValueError, match="with cores=1, timeout=1801: "):
        executor.options(timeout=1801, cores=1)
    executor.options(time_request=60, timeout=1801)  # how long it is expected to run says more
    executor.options(timeout=1800)
