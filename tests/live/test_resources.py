"""Calls get what they ask for: slots, cores, devices, whole nodes; and what nobody has is said."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from hpcpool import BrokenPool, Config, HPCPoolExecutor, NodePool, ResourcesUnavailable, WorkerCrashed
from hpcpool.core.slots import DEVICE_VARIABLES, THREAD_VARIABLES
from hpcpool.processes.cores import usable_core_numbers
from hpcpool.providers import LocalProvider
from tests.live import calls, twins
from tests.live.processes import PATIENCE_S, Pool, executor, is_alive, until, until_heard

pytestmark = [pytest.mark.live, pytest.mark.once]

CORES = usable_core_numbers()


def look_around() -> tuple[int, list[int], dict[str, str]]:
    """The worker's process id, cores, and what its environment says of threads, devices and nodes."""
    names = [*THREAD_VARIABLES, *DEVICE_VARIABLES, "HPCPOOL_NODES", "HPCPOOL_RANKS"]
    return (
        os.getpid(),
        sorted(os.sched_getaffinity(0)),
        {name: os.environ[name] for name in names if name in os.environ},
    )


def look_and_wait(gate: Path, started: Path) -> tuple[int, list[int], dict[str, str]]:
    calls.wait_for(gate, started)
    return look_around()


def everybody(pool: HPCPoolExecutor, count: int, folder: Path) -> list[tuple[int, list[int], dict[str, str]]]:
    """What each of so many workers sees."""
    gate = folder / "everybody"
    looks = [pool.submit(look_and_wait, gate, folder / f"started-{number}") for number in range(count)]
    until(lambda: all((folder / f"started-{number}").exists() for number in range(count)))
    gate.touch()
    return [look.result(PATIENCE_S) for look in looks]


@pytest.fixture(autouse=True)
def _no_word_of_threads_or_devices(monkeypatch):
    for name in (*THREAD_VARIABLES, *DEVICE_VARIABLES):
        monkeypatch.delenv(name, raising=False)


def test_without_options_a_call_sees_what_the_program_sees():
    with executor(2) as pool:
        _, cores, environment = pool.submit(look_around).result(PATIENCE_S)
        assert (cores, environment) == (CORES, {})


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_are_bound_to_cores_of_their_own_and_their_libraries_told(start_method, tmp_path):
    node_pool = NodePool(workers_per_node=len(CORES), cpu_affinity="block")
    with executor(node_pool, multiprocessing.get_context(start_method)) as pool:
        seen = everybody(pool, len(CORES), tmp_path)
        assert sorted(cores for _, cores, _ in seen) == [[core] for core in CORES]
        assert all(environment == dict.fromkeys(THREAD_VARIABLES, "1") for _, _, environment in seen)


def test_what_the_user_says_of_threads_holds(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with executor(NodePool(workers_per_node=2, cores_per_worker=2)) as pool:
        _, _, environment = pool.submit(look_around).result(PATIENCE_S)
        assert environment == dict.fromkeys(THREAD_VARIABLES, "2") | {"OMP_NUM_THREADS": "3"}


def test_each_worker_sees_its_own_accelerator(tmp_path):
    with executor(NodePool(workers_per_node=2, accelerators=2)) as pool:
        seen = everybody(pool, 2, tmp_path)
        assert sorted(environment["CUDA_VISIBLE_DEVICES"] for _, _, environment in seen) == ["0", "1"]
        assert all(len({environment[name] for name in DEVICE_VARIABLES}) == 1 for _, _, environment in seen)
        _, _, both = pool.options(gpus=2).submit(look_around).result(PATIENCE_S)
        assert both["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_the_replacement_of_a_dead_worker_has_its_slot(tmp_path):
    with executor(NodePool(workers_per_node=2, accelerators=("GPU-a", "GPU-b"))) as pool:
        seen = everybody(pool, 2, tmp_path)
        dead, _, environment = seen[0]
        os.kill(dead, signal.SIGKILL)
        until(lambda: not is_alive(dead))
        (tmp_path / "everybody").unlink()
        for number in range(2):
            (tmp_path / f"started-{number}").unlink()
        again = everybody(pool, 2, tmp_path)
        assert sorted(one["CUDA_VISIBLE_DEVICES"] for _, _, one in again) == ["GPU-a", "GPU-b"]
        assert dead not in {pid for pid, _, _ in again}
        assert environment["CUDA_VISIBLE_DEVICES"] in {"GPU-a", "GPU-b"}


def test_a_wide_call_has_a_worker_of_its_own_that_leaves_with_it():
    with executor(NodePool(workers_per_node=4, accelerators=4)) as pool:
        usual = pool.submit(os.getpid).result(PATIENCE_S)
        pid, _, environment = pool.options(cores=3).submit(look_around).result(PATIENCE_S)
        assert pid != usual
        assert environment["OMP_NUM_THREADS"] == "3"
        assert len(environment["CUDA_VISIBLE_DEVICES"].split(",")) == 3
        until(lambda: not is_alive(pid))
        assert pool.submit(os.getpid).result(PATIENCE_S) == usual


def test_no_more_runs_beside_a_wide_call_than_there_are_slots(tmp_path):
    wide_gate, gate = tmp_path / "wide", tmp_path / "gate"
    with executor(4) as pool:
        wide = pool.options(cores=3).submit(calls.wait_for, wide_gate, tmp_path / "wide-started")
        until((tmp_path / "wide-started").exists)
        others = [pool.submit(calls.wait_for, gate, tmp_path / f"started-{number}") for number in range(4)]
        until(lambda: any(tmp_path.glob("started-*")) and any(other.running() for other in others))
        second = pool.options(cores=2).submit(calls.wait_for, gate, tmp_path / "second-started")
        until_heard(pool)  # else the others take all slots when the wide one ends
        assert len(list(tmp_path.glob("started-*"))) == 1
        assert not (tmp_path / "second-started").exists()
        wide_gate.touch()
        wide.result(PATIENCE_S)
        until((tmp_path / "second-started").exists)
        until(lambda: len(list(tmp_path.glob("started-*"))) == 2)
        assert sum(other.running() for other in others) <= 2
        gate.touch()
        for future in (*others, second):
            future.result(PATIENCE_S)


def test_a_stream_of_short_calls_does_not_starve_a_wide_one():
    with executor(2) as pool:
        short = [pool.submit(time.sleep, 0.002) for _ in range(300)]
        wide = pool.options(cores=2).submit(look_around)
        later = [pool.submit(time.sleep, 0.002) for _ in range(1000)]
        for future in (wide, *short, *later):
            future.result(PATIENCE_S)
        assert wide.info.ended_at < later[-1].info.started_at


def test_wide_and_other_calls_in_any_order_all_end():
    with executor(NodePool(workers_per_node=3)) as pool:
        futures = [
            pool.options(cores=1 + number % 3, priority=number % 2).submit(pow, number, 2) for number in range(60)
        ]
        futures += [pool.submit(pow, number, 2) for number in range(60, 120)]
        assert [future.result(PATIENCE_S) for future in futures] == [number**2 for number in range(120)]


def test_a_wide_call_that_dies_times_out_or_is_killed_leaves_its_slots():
    with executor(2) as pool:
        wide = pool.options(cores=2)
        assert isinstance(wide.submit(calls.leave, 3).exception(PATIENCE_S), WorkerCrashed)
        with pytest.raises(TimeoutError):
            wide.options(timeout=0.1).submit(time.sleep, calls.FOREVER_S).result(PATIENCE_S)
        killed = wide.submit(time.sleep, calls.FOREVER_S)
        until(killed.running)
        assert killed.kill()
        cancelled = wide.submit(time.sleep, calls.FOREVER_S)
        cancelled.cancel()
        assert wide.submit(abs, -1).result(PATIENCE_S) == 1
        assert list(pool.map(abs, range(10))) == list(range(10))
        assert wide.options(crash_limit=2).submit(calls.leave, 3).exception(PATIENCE_S) is not None


def test_what_no_node_has_fails_the_call_alone_and_says_what_there_is():
    with executor(NodePool(name="small")) as pool:
        too_much = pool.options(cores=100_000, name="greedy").submit(abs, 1)
        with pytest.raises(
            ResourcesUnavailable, match=r"^greedy needs cores=100000, and .* nodes of 'small': \d+ slot"
        ):
            too_much.result(PATIENCE_S)
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1
        with pytest.raises(ValueError, match="gpus=1"):
            pool.options(gpus=1)


def test_a_node_that_is_too_small_for_a_worker_breaks_the_pool_and_says_so():
    for own_process in (False, True):
        node_pool = NodePool(LocalProvider(own_process=own_process), cores_per_worker=100_000)
        with (
            HPCPoolExecutor(node_pool) as pool,
            pytest.raises(BrokenPool, match="too little for one worker of node po"),
        ):
            pool.submit(abs, 1).result(PATIENCE_S)


def test_a_call_runs_in_the_pool_that_it_asks_for_by_its_name_or_a_label():
    config = Config(
        NodePool(name="a", workers_per_node=1), NodePool(name="b", workers_per_node=1, accelerators=1, labels=("gpu",))
    )
    with executor(config) as pool:
        for name, has_devices in (("a", False), ("b", True), ("gpu", True)):
            seen = list(pool.options(pool=name).map(lambda _: look_around(), range(20)))
            assert {"CUDA_VISIBLE_DEVICES" in environment for _, _, environment in seen} == {has_devices}


# -- whole nodes


@pytest.fixture
def twin_nodes(monkeypatch, tmp_path) -> NodePool:
    twins.install(monkeypatch, tmp_path / "site")
    return NodePool(twins.TwinsProvider(), workers_per_node=2, nodes_per_block=2)


def managers(pool: HPCPoolExecutor) -> list[psutil.Process]:
    return [process for process in Pool.below(os.getpid()).of_role("manager") if process.name() != "bash"]


def test_a_call_of_several_nodes_has_them_alone_and_knows_their_names(twin_nodes, tmp_path):
    gate = tmp_path / "gate"
    with executor(twin_nodes) as pool:
        until(lambda: len(managers(pool)) == 2)
        big = pool.options(nodes=2, ranks=8).submit(look_and_wait, gate, tmp_path / "big")
        until((tmp_path / "big").exists)
        others = [pool.submit(calls.note, tmp_path / "notes", f"{number}\n") for number in range(8)]
        until(lambda: big.running())
        assert not (tmp_path / "notes").exists()
        gate.touch()
        _, _, environment = big.result(PATIENCE_S)
        assert len(environment["HPCPOOL_NODES"].split(",")) == 2
        assert environment["HPCPOOL_RANKS"] == "8"
        for future in others:
            future.result(PATIENCE_S)


def test_a_call_that_loses_one_of_its_nodes_is_ended_there_and_waits_for_others(twin_nodes, tmp_path):
    with executor(twin_nodes.replace(max_blocks=2)) as pool:
        until(lambda: len(managers(pool)) == 2)
        big = pool.options(nodes=2).submit(look_and_wait, tmp_path / "gate", tmp_path / "big")
        until((tmp_path / "big").exists)
        first = managers(pool)
        worker = int((tmp_path / "big").read_text() or 0)
        holder = next(m for m in first if any(child.pid == worker for child in m.children(recursive=True)))
        (other,) = [manager for manager in first if manager != holder]
        other.terminate()
        until(lambda: not is_alive(worker))
        assert is_alive(holder.pid)
        assert not big.done()
        assert big.kill()
