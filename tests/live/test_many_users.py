"""Pools inside calls, several pools at once, many threads on one pool; and a pool that nobody uses."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import psutil
import pytest

from hpcpool import HPCPoolExecutor
from hpcpool.errors import WorkerCrashed
from tests.live import calls
from tests.live.processes import PATIENCE_S, Pool, executor, is_alive, role, stopped, until

pytestmark = pytest.mark.live


def use_a_pool(depth: int) -> list[int]:
    from hpcpool import HPCPoolExecutor

    with HPCPoolExecutor(1) as inner:
        if depth:
            return [os.getpid(), *inner.submit(use_a_pool, depth - 1).result(PATIENCE_S)]
        return [os.getpid(), inner.submit(os.getpid).result(PATIENCE_S)]


def test_a_pool_inside_a_call_inside_a_call():
    with executor(2) as pool:
        futures = [pool.submit(use_a_pool, 1) for _ in range(2)]
        pids = [pid for future in futures for pid in future.result(PATIENCE_S * 2)]
        assert len(set(pids)) == 6
        until(lambda: not any(map(is_alive, [pids[1], pids[2], pids[4], pids[5]])))


def leave_a_pool(started) -> None:
    from hpcpool import HPCPoolExecutor

    inner = HPCPoolExecutor(1)
    inner.submit(calls.run_forever, started)
    while not started.exists():
        time.sleep(0.005)
    calls.note(started.with_name("outer"), "runs")
    time.sleep(calls.FOREVER_S)


@pytest.mark.parametrize("end", ["kill", "crash", "timeout"])
def test_a_pool_inside_a_call_ends_with_the_call(end, tmp_path):
    with executor(1) as pool:
        processes = Pool.of(pool)
        fork_server = processes.fork_server
        with stopped(fork_server) if end == "timeout" else nullcontext():  # it ends calls that have taken too long
            future = pool.options(timeout=1.0 if end == "timeout" else None).submit(leave_a_pool, tmp_path / "runs")
            until((tmp_path / "outer").exists)
            inner = [p for worker in processes.workers for p in worker.children(recursive=True)]
        assert {role(process) for process in inner} >= {"interchange", "fork-server"}
        if end == "kill":
            until(future.running)
            future.kill()
        elif end == "crash":
            (outer,) = [worker for worker in processes.workers if worker.ppid() == fork_server.pid]
            outer.kill()
        assert future.exception(PATIENCE_S) is not None
        until(lambda: not any(process.is_running() and is_alive(process.pid) for process in inner))
        assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8


def test_several_pools_at_once():
    pools = [HPCPoolExecutor(1) for _ in range(4)]
    futures = [pool.submit(os.getpid) for pool in pools]
    pids = [future.result(PATIENCE_S) for future in futures]
    assert len(set(pids)) == 4
    crash = pools[0].submit(os._exit, 1)
    assert isinstance(crash.exception(PATIENCE_S), WorkerCrashed)
    chained = pools[0].submit(abs, -1)
    for pool in pools[1:]:
        chained = pool.submit(pow, chained, 1)  # the future of another pool
    assert chained.result(PATIENCE_S) == 1
    for pool in reversed(pools):
        pool.shutdown()
    assert not any(map(is_alive, pids))


def test_submission_from_many_threads(tmp_path):
    log = tmp_path / "log"
    with executor(2) as pool, ThreadPoolExecutor(16) as threads:
        start = threading.Barrier(16)

        def use(thread: int) -> list[str]:
            start.wait()
            futures = [pool.submit(calls.note, log, f"{thread} {n}") for n in range(60)]
            futures[7].cancel()
            return [future.result(PATIENCE_S) for future in futures if not future.cancelled()]

        names = [name for names in threads.map(use, range(16)) for name in names]
    written = Counter(log.read_text().splitlines())
    assert max(written.values()) == 1
    assert set(names) <= set(written)
    assert len(names) >= 16 * 59


def test_threads_that_start_a_pool_together_start_one():
    with HPCPoolExecutor(1) as pool, ThreadPoolExecutor(8) as threads:
        start = threading.Barrier(8)

        def use(n: int) -> int:
            start.wait()
            return pool.submit(pow, 2, n).result(PATIENCE_S)

        assert list(threads.map(use, range(8))) == [2**n for n in range(8)]
        assert len(Pool.of(pool).of_role("fork-server")) == 1
        assert sum(role(child) == "interchange" for child in psutil.Process().children()) == 1


@pytest.mark.once
def test_an_idle_pool_uses_no_cpu(tmp_path):
    gate, started = tmp_path / "gate", [tmp_path / f"started-{number}" for number in range(4)]
    with executor(4) as pool:
        futures = [pool.submit(calls.wait_for, gate, path) for path in started]
        until(lambda: all(path.exists() for path in started), "each worker has a call")
        gate.touch()
        for future in futures:
            future.result(PATIENCE_S)
        processes = Pool.of(pool).all()
        assert len(processes) >= 2 + 4
        # What the last results have set in motion comes to rest first.
        until(lambda: wakes(processes, 0.2) == 0)
        assert wakes(processes, 2.0) <= 2 * len(processes)


def wakes(processes: list[psutil.Process], seconds: float) -> int:
    """How often any of them (all threads) has gone to sleep again in this time: whoever polls does nothing else."""
    before = count(processes)
    time.sleep(seconds)
    return count(processes) - before


def count(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        for thread in process.threads():
            with open(f"/proc/{process.pid}/task/{thread.id}/status", encoding="ascii") as file:
                total += sum(int(line.split()[1]) for line in file if "ctxt_switches" in line)
    return total
