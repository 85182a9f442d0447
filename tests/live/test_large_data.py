"""Large arguments and results in shared memory: nobody sees another's changes, and nothing is left, whoever dies."""

from __future__ import annotations

import fcntl
import os
import pickle
import random
import signal
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from hpcpool import BrokenPool, WorkerCrashed
from hpcpool.wire import segment_files
from hpcpool.wire.segments import SegmentStore
from tests.live import calls, large
from tests.live.large import LARGE
from tests.live.processes import PATIENCE_S, Pool, executor, is_alive, kill, own_manager, until
from tests.live.scripts import script, with_own_manager
from tests.live.test_client_death import FOREVER, until_nothing_is_left

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def lasting_pool():
    """For what ends no process: a pool of its own for each size would be most of the work."""
    with executor(2) as pool:
        yield pool


@pytest.fixture
def pool():
    with executor(2) as pool:
        yield pool
        pool.shutdown(wait=False)
        pool.kill_workers()  # a test that has failed may have left calls that wait for it


def held(pool, folder: str = "shm") -> list[str]:
    """The segments of a pool that are in use."""
    directory = Path(pool._client.store.run_directory) / folder
    return [path.name for path in directory.iterdir() if path.name not in ("free", "lock", "run")]


def until_none_is_held(pool) -> None:
    until(lambda: not held(pool), "no segment is held")


SIZES = [0, 1, 1024, 16 * 1024, 128 * 1024 - 8, 128 * 1024, 512 * 1024, LARGE, 8 * LARGE]


@pytest.mark.parametrize("size", SIZES)
def test_arrays_of_any_size_come_back_as_they_went(size, lasting_pool):
    array = np.arange(size // 8, dtype=np.float64)
    kept = array.copy()
    result = lasting_pool.submit(large.double, array).result(PATIENCE_S)
    assert np.array_equal(result, kept * 2)
    assert np.array_equal(array, kept), "a call changes its own copy"
    assert result.flags.writeable
    result[:] = 0
    del result
    until_none_is_held(lasting_pool)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [bytes, bytearray, str])
def test_bytes_and_text_of_any_size_come_back_as_they_went(kind, size, lasting_pool):
    value = "x" * size if kind is str else kind(os.urandom(size))
    result = lasting_pool.submit(large.echo, value).result(PATIENCE_S)
    assert result == value
    assert type(result) is kind
    until_none_is_held(lasting_pool)


def test_a_call_sees_what_was_submitted_not_what_was_changed_later(pool, tmp_path):
    array = large.ones()
    future = pool.submit(large.wait_with, array, tmp_path / "gate", tmp_path / "runs")
    until((tmp_path / "runs").exists)
    array[:] = 0
    (tmp_path / "gate").touch()
    assert future.result(PATIENCE_S) == LARGE / 8


def test_calls_that_share_a_result_do_not_see_each_others_changes(pool):
    first = pool.submit(large.ones)
    doubled = [pool.submit(large.double, first) for _ in range(6)]
    mine = first.result(PATIENCE_S)
    mine[:] = 7
    assert [large.total(future.result(PATIENCE_S)) for future in doubled] == [LARGE / 8 * 2] * 6
    assert pool.submit(large.total, first).result(PATIENCE_S) == LARGE / 8
    del first, mine, doubled
    until_none_is_held(pool)


@pytest.mark.parametrize("seed", range(3))
def test_memory_that_is_used_again_shows_nothing_of_the_call_before(seed, pool):
    chance = random.Random(seed)
    in_flight: list[tuple[Any, float, str]] = []
    kept: list[tuple[Any, float]] = []
    for number in range(150):
        array = np.full(chance.choice([LARGE // 16, LARGE // 8, LARGE // 3, LARGE]), float(number))
        how = "fork" if number == 75 else chance.choice(["change", "echo", "keep", "half"])
        in_flight.append((pool.submit(large.use, array, float(number), how), number, how))
        array[:] = -1.0
        if len(in_flight) == 4:
            future, sent, how = in_flight.pop(0)
            kept.append((future.result(PATIENCE_S), sent + (how == "change")))
            del future
        if len(kept) == 6:
            for result, expected in kept:
                assert (result == expected).all()
            chance.choice(kept)[0][:] = -2.0  # a result is the caller's own
            kept.clear()
            del result


def test_what_a_worker_puts_aside_stays_as_it_was(tmp_path):
    with executor(1) as pool:
        pool.submit(large.put_aside, large.ones()).result(PATIENCE_S)
        for _ in range(5):
            pool.submit(large.total, np.zeros(LARGE // 8)).result(PATIENCE_S)
        assert pool.submit(large.total_aside).result(PATIENCE_S) == LARGE / 8


def test_what_a_child_of_a_call_looks_at_stays_as_it_was(pool, tmp_path):
    pool.submit(large.fork_and_look, large.ones(), tmp_path / "gate", tmp_path / "report").result(PATIENCE_S)
    for _ in range(5):
        pool.submit(large.total, np.zeros(LARGE // 8)).result(PATIENCE_S)
    (tmp_path / "gate").touch()
    until((tmp_path / "report").exists)
    assert float((tmp_path / "report").read_text()) == LARGE / 8


def test_a_child_that_returns_from_its_call_makes_no_result(pool):
    for _ in range(10):
        assert (pool.submit(large.fork_and_return).result(PATIENCE_S) == 2.0).all()


def test_what_calls_of_a_pool_that_breaks_look_at_is_not_used_again(tmp_path, monkeypatch):
    used_again: list[bool] = []
    monkeypatch.setattr(SegmentStore, "release", lambda store, path, nbytes, is_clean: used_again.append(is_clean))
    with executor(1) as pool:
        started, interchange = tmp_path / "started", Pool.of(pool).interchange
        future = pool.submit(large.wait_with, large.ones(), tmp_path / "gate", started)
        until(started.exists, "the call runs")
        kill(interchange)
        with pytest.raises(BrokenPool):
            future.result(PATIENCE_S)
    assert used_again == [False]


def test_what_a_child_of_the_program_looks_at_stays_as_it_was(pool, tmp_path):
    result = pool.submit(large.ones).result(PATIENCE_S)
    unopened = pool.submit(large.ones)
    unopened.exception(PATIENCE_S)
    pid = os.fork()
    if pid == 0:
        calls.wait_for(tmp_path / "gate")
        os._exit(0 if large.total(result) == LARGE / 8 else 1)
    del result, unopened
    for _ in range(5):
        pool.submit(large.echo, np.zeros(LARGE // 8)).result(PATIENCE_S)
    (tmp_path / "gate").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    until_none_is_held(pool)


def test_results_can_be_opened_when_the_pool_has_gone():
    with executor(2) as pool:
        directory = Pool.of(pool).directory
        futures = [pool.submit(large.echo, np.full(size // 8, 3.0)) for size in SIZES]
        shared = pool.submit(large.ones)
    assert not directory.exists()
    assert [large.total(future.result()) for future in futures] == [size // 8 * 3.0 for size in SIZES]
    with executor(1) as other:
        assert other.submit(large.total, shared, shared).result(PATIENCE_S) == LARGE / 8 * 2
    assert large.total(shared.result()) == LARGE / 8


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_results_can_be_opened_when_the_interchange_has_died(number, pool):
    futures = [pool.submit(large.echo, np.full(size // 8, 3.0)) for size in SIZES]
    assert not wait(futures, PATIENCE_S).not_done
    never = pool.submit(calls.run_forever)
    Pool.of(pool).interchange.send_signal(number)
    assert isinstance(never.exception(PATIENCE_S), BrokenPool)
    assert [large.total(future.result(PATIENCE_S)) for future in futures] == [size // 8 * 3.0 for size in SIZES]


def test_a_result_is_an_argument_of_another_pools_call(pool):
    with executor(1) as other:
        assert other.submit(large.total, pool.submit(large.ones)).result(PATIENCE_S) == LARGE / 8
        until_none_is_held(other)
    until_none_is_held(pool)


def test_a_call_that_is_tried_again_has_its_argument(pool, tmp_path):
    log = tmp_path / "log"
    assert pool.options(retries=1).submit(large.fail_first, large.ones(), log).result(PATIENCE_S) == LARGE / 8
    until_none_is_held(pool)


def test_a_call_that_runs_again_after_a_crash_has_its_argument(pool, tmp_path):
    future = pool.options(crash_limit=2).submit(large.wait_with, large.ones(), tmp_path / "gate", tmp_path / "runs")
    until((tmp_path / "runs").exists)
    pid = int((tmp_path / "runs").read_text())
    (tmp_path / "runs").unlink()
    os.kill(pid, signal.SIGKILL)
    until((tmp_path / "runs").exists)
    (tmp_path / "gate").touch()
    assert future.result(PATIENCE_S) == LARGE / 8
    until_none_is_held(pool)


@pytest.mark.parametrize("end", ["cancel", "kill", "timeout", "crash"])
def test_a_call_that_is_ended_leaves_nothing(end, pool, tmp_path):
    # Long enough for a new worker to import what opens an array, also on a busy machine.
    view = pool.options(timeout=4) if end == "timeout" else pool
    arrays = [large.ones() for _ in range(7)]  # all at once: memory that is freed may come back, and be the same again
    running = [view.submit(large.wait_with, arrays[n], tmp_path / "gate", tmp_path / f"runs{n}") for n in range(2)]
    waiting = [pool.submit(large.total, array) for array in arrays[2:]]
    assert len(held(pool)) >= 5
    until(lambda: all(future.done() or (tmp_path / f"runs{n}").exists() for n, future in enumerate(running)))
    for n, future in enumerate(running):
        if end == "kill":
            until(future.running)  # else it is cancelled
            future.kill()
        elif end == "crash":
            os.kill(int((tmp_path / f"runs{n}").read_text()), signal.SIGKILL)
    if end == "cancel":
        assert all(future.cancel() for future in waiting)
        (tmp_path / "gate").touch()
        assert [future.result(PATIENCE_S) for future in running] == [LARGE / 8] * 2
        with pytest.raises(CancelledError):
            waiting[0].result()
    else:
        assert all(future.exception(PATIENCE_S) is not None for future in running)
        assert [future.result(PATIENCE_S) for future in waiting] == [LARGE / 8] * 5
    until_none_is_held(pool)


def test_a_result_that_nobody_wants_any_more_leaves_nothing(pool, tmp_path):
    """It is cancelled while it runs for so short a time that nobody has been told of it."""
    for n in range(30):
        future = pool.submit(large.ones)
        if n % 2:
            os.sched_yield()
        future.cancel()
        del future
    assert pool.submit(abs, 1).result(PATIENCE_S) == 1
    until_none_is_held(pool)


def test_a_worker_that_dies_while_it_shares_its_result_leaves_nothing(pool):
    with pytest.raises(WorkerCrashed):
        pool.submit(large.DiesWhenPickled).result(PATIENCE_S)
    assert pool.submit(large.total, large.ones()).result(PATIENCE_S) == LARGE / 8
    until_none_is_held(pool)


@pytest.mark.once
@pytest.mark.parametrize("victim", ["manager", "fork_server"])
def test_a_node_that_is_lost_leaves_nothing(victim, tmp_path):
    with executor(own_manager(2)) as pool:
        lose_a_node(pool, victim, tmp_path)


@pytest.mark.once
def test_a_hosted_node_that_is_lost_leaves_nothing(pool, tmp_path):
    lose_a_node(pool, "fork_server", tmp_path)


def lose_a_node(pool, victim, tmp_path):
    results = [pool.submit(large.ones) for _ in range(3)]
    assert all(future.exception(PATIENCE_S) is None for future in results)
    again = pool.submit(large.wait_with, large.ones(), tmp_path / "gate", tmp_path / "runs")
    busy = [pool.submit(large.echo, large.ones()) for _ in range(50)]
    until((tmp_path / "runs").exists)
    getattr(Pool.of(pool), victim).kill()
    (tmp_path / "gate").touch()
    assert again.result(PATIENCE_S) == LARGE / 8
    assert [large.total(future.result(PATIENCE_S)) for future in results + busy] == [LARGE / 8] * 53
    del results, busy
    until_none_is_held(pool)


def test_what_shared_memory_has_no_room_for_goes_through_files(pool, monkeypatch, caplog):
    monkeypatch.setattr(segment_files, "_RESERVE", 2.0)
    array = large.ones()
    future = pool.submit(large.double, array)
    assert large.total(future.result(PATIENCE_S)) == LARGE / 4
    assert "is full" in caplog.text
    until(lambda: not [name for name in held(pool, "spill") if name[0] != "."])


def test_an_array_that_is_an_argument_of_many_calls_is_there_once(pool, tmp_path):
    array = large.ones(8 * LARGE)
    blocked = [pool.submit(calls.wait_for, tmp_path / "gate") for _ in range(2)]
    futures = [pool.submit(large.total, array) for _ in range(100)]
    assert len(held(pool)) == 1
    array[-1] = 5
    futures += [pool.submit(large.total, array) for _ in range(100)]
    assert len(held(pool)) == 2
    (tmp_path / "gate").touch()
    assert [future.result(PATIENCE_S) for future in futures] == [LARGE] * 100 + [LARGE + 4] * 100
    assert blocked
    until_none_is_held(pool)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_can_be_an_argument_again_and_again(size, lasting_pool):
    array = np.arange(size // 8, dtype=np.float64)
    handle = lasting_pool.put(array)
    kept = array.copy()
    array += 1
    assert handle.done()
    for _ in range(3):
        results = [
            lasting_pool.submit(large.double, handle).result(PATIENCE_S),
            *lasting_pool.map(large.double, [handle] * 3),
        ]
        assert all(np.array_equal(result, kept * 2) for result in results)
    mine = handle.result()
    assert np.array_equal(mine, kept)
    mine += 1
    nested = lasting_pool.submit(large.echo, {"a": [handle, (handle, 1)]}).result(PATIENCE_S)
    assert np.array_equal(nested["a"][0], kept)
    assert np.array_equal(nested["a"][1][0], kept)
    del handle, results, mine, nested
    until_none_is_held(lasting_pool)


def test_what_is_put_stays_while_calls_need_it_and_no_longer(pool, tmp_path):
    handle = pool.put(large.ones())
    future = pool.submit(large.wait_with, handle, tmp_path / "gate", tmp_path / "runs")
    until((tmp_path / "runs").exists)
    assert len(held(pool)) == 1
    del handle
    assert len(held(pool)) == 1
    (tmp_path / "gate").touch()
    assert future.result(PATIENCE_S) == LARGE / 8
    until_none_is_held(pool)


def test_what_is_put_into_one_pool_is_an_argument_in_another_too(pool):
    with executor(1) as other:
        handle = other.put(large.ones())
        assert pool.submit(large.total, handle, handle).result(PATIENCE_S) == LARGE / 4
    assert pool.submit(large.total, handle).result(PATIENCE_S) == LARGE / 8


def test_put_pickles_large_objects_of_small_parts_once(pool):
    handle = pool.put([str(n) for n in range(100_000)])
    assert len(held(pool)) == 1
    assert [pool.submit(len, handle).result(PATIENCE_S) for _ in range(3)] == [100_000] * 3
    assert handle.result()[-1] == "99999"
    assert len(held(pool)) == 1


def test_put_refuses_what_cannot_be_put(pool, tmp_path):
    with pytest.raises(TypeError, match="put\\(\\) takes no futures"):
        pool.put([pool.submit(abs, 1)])
    with (tmp_path / "file").open("w") as file, pytest.raises(pickle.PicklingError, match="Cannot pickle files"):
        pool.put(file)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.put(1)


BUSY = """
import sys, time
from pathlib import Path
from hpcpool import HPCPoolExecutor
from tests.live import large

folder = Path(sys.argv[1])
pool = HPCPoolExecutor(2)
results = [pool.submit(large.ones) for _ in range(4)]
values = [future.result() for future in results[:2]]
running = pool.submit(large.wait_with, large.ones(), folder / "gate", folder / "runs")
nested = pool.submit(large.inner_pool, folder / "nested")
while not ((folder / "runs").exists() and (folder / "nested").exists()):
    time.sleep(0.005)
arrays = [large.ones() for _ in range(100)]
waiting = [pool.submit(large.total, array) for array in arrays]
print("busy", flush=True)
"""


APART = with_own_manager(BUSY)


def suspend_all(process: psutil.Process) -> list[psutil.Process]:
    """Parents first: what is suspended starts nothing more."""
    process.suspend()
    return [process, *(below for child in process.children() for below in suspend_all(child))]


@pytest.mark.once
def test_when_all_are_killed_at_once_the_next_pool_removes_what_is_left(tmp_path):
    with script(tmp_path / "busy.py", BUSY + FOREVER, tmp_path) as program:
        program.wait_for("busy")
        directory = Pool.below(program.pid).directory
        processes = suspend_all(psutil.Process(program.pid))
        shared = (directory / "shm").resolve()
        with executor(1):
            assert shared.exists(), "they only sleep"
        with (shared / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            for process in processes:
                kill(process)
            program.process.wait()
            until(lambda: not any(is_alive(process.pid) for process in processes))
            # Threads of a zombie may still be ending, and hold it. And a pool that others start on this host in this
            # moment would remove what is to be looked at, if nobody held it.
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert shared.exists()
    with executor(1):
        until(lambda: not (shared.exists() or directory.exists()))  # such a pool may be about to, instead of this one


VICTIMS = [
    ("client", BUSY),
    ("worker", BUSY),
    *(pytest.param(victim, BUSY, marks=pytest.mark.once) for victim in ("interchange", "fork-server", "all but one")),
    pytest.param("manager", APART, marks=pytest.mark.once),
]


@pytest.mark.parametrize(("victim", "busy"), VICTIMS)
def test_whoever_is_killed_nothing_is_left(victim, busy, tmp_path):
    with script(tmp_path / "busy.py", busy + FOREVER, tmp_path) as program:
        program.wait_for("busy")
        client, pool = psutil.Process(program.pid), Pool.below(program.pid)
        processes, directory = client.children(recursive=True), pool.directory
        assert len(list((directory / "shm").glob("client.*"))) >= 50
        (nested,) = {path.parent for path in directory.glob("node-*/hpcpool-*/config.json")}
        inner_shm = (nested / "shm").resolve()
        assert inner_shm.parent == (directory / "shm").resolve()
        if victim == "worker":
            for worker in pool.workers:
                kill(worker)
            until(lambda: not nested.exists() and not inner_shm.exists())
        elif victim == "all but one":
            last = pool.of_role("fork-server")[0]
            client.kill()
            program.process.wait()
            for process in processes:
                if process != last:
                    kill(process)
        elif victim != "client":
            (pool.interchange if victim == "interchange" else pool.of_role(victim)[0]).kill()
        program.process.kill()
        program.process.wait()
        until_nothing_is_left(processes, directory)
        assert not any(map(is_alive, (process.pid for process in processes)))
