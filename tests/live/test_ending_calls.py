"""Calls that are ended (timeout, `kill()`, `cancel()`, all workers): all that they have started goes with them."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from pathlib import Path

import pytest

from hpcpool import HPCPoolExecutor
from hpcpool.errors import BrokenPool, TaskKilled, TaskTimeout, WorkerCrashed
from tests.live import calls
from tests.live.processes import PATIENCE_S, Pool, executor, is_alive, stopped, until, until_heard
from tests.live.test_node_loss import family_of

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def pool():
    with executor(2) as pool:
        yield pool


def test_a_timeout_ends_the_call_and_all_that_it_started(pool, tmp_path):
    with stopped(Pool.of(pool).fork_server):  # it ends calls, and so this one has the time to start all of it
        future = pool.options(timeout=1.0).submit(calls.start_family, tmp_path / "family", detached=True)
        family = family_of(tmp_path / "family")
    error = future.exception(PATIENCE_S)
    assert isinstance(error, TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert "start_family ran longer than its timeout of 1 s on" in str(error)
    until(lambda: not any(map(is_alive, family)))
    assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8


def test_a_timeout_ends_a_call_that_ignores_signals(pool, tmp_path):
    future = pool.options(timeout=0.2).submit(calls.ignore_signals, tmp_path / "runs")
    assert isinstance(future.exception(PATIENCE_S), TaskTimeout)


def test_a_timeout_counts_from_the_start_of_the_call_not_from_submit(tmp_path):
    with executor(1) as pool:
        first = pool.submit(calls.wait_for, tmp_path / "gate", tmp_path / "runs")
        until((tmp_path / "runs").exists)
        second = pool.options(timeout=5.0).submit(time.monotonic)
        time.sleep(0.3)
        limited = pool.options(timeout=2.0).submit(pow, 2, 3)
        time.sleep(2.2)
        (tmp_path / "gate").touch()
        assert first.result(PATIENCE_S)
        assert second.result(PATIENCE_S)
        assert limited.result(PATIENCE_S) == 8


def test_the_timeout_of_one_call_does_not_touch_its_neighbours(tmp_path):
    log = tmp_path / "log"
    with executor(1) as pool:
        list(pool.map(abs, range(200)))  # short calls: now a worker is given several at once
        futures = []
        for n in range(5):
            futures += [pool.submit(calls.note, log, f"{n} {m}") for m in range(20)]
            futures.append(pool.options(timeout=0.05).submit(calls.run_forever))
        errors = [future.exception(PATIENCE_S) for future in futures]
    assert [type(error) for error in errors if error is not None] == [TaskTimeout] * 5
    assert sorted(log.read_text().splitlines()) == sorted(f"{n} {m}" for n in range(5) for m in range(20))


def test_calls_that_end_in_the_moment_of_their_timeout_have_one_outcome_and_harm_no_neighbour():
    with executor(2) as pool:
        limited = pool.options(timeout=0.03)
        close = [limited.submit(time.sleep, 0.03) for _ in range(40)]
        neighbours = [pool.submit(pow, 2, n) for n in range(200)]
        for future in close:
            error = future.exception(PATIENCE_S)
            assert error is None or type(error) is TaskTimeout
        assert [future.result(PATIENCE_S) for future in neighbours] == [2**n for n in range(200)]


def test_kill_ends_a_running_call_and_all_that_it_started(pool, tmp_path):
    future = pool.submit(calls.start_family, tmp_path / "family", detached=True)
    family = family_of(tmp_path / "family")
    until(future.running)
    assert future.kill() is True
    assert isinstance(future.exception(PATIENCE_S), TaskKilled)
    until(lambda: not any(map(is_alive, family)))
    assert future.kill() is False
    assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8


def test_kill_cancels_a_call_that_does_not_run(tmp_path):
    with executor(1) as pool:
        blocks = pool.submit(calls.wait_for, tmp_path / "gate", tmp_path / "runs")
        until((tmp_path / "runs").exists)
        waits = pool.submit(calls.note, tmp_path / "log", "ran")
        assert waits.kill() is True
        assert waits.cancelled()
        until_heard(pool)
        (tmp_path / "gate").touch()
        blocks.result(PATIENCE_S)
        pool.submit(abs, 1).result(PATIENCE_S)
        assert not (tmp_path / "log").exists()


def test_kill_of_many_calls_in_every_state():
    with executor(2) as pool:
        futures = [pool.submit(time.sleep, 0.001 * (n % 50)) for n in range(150)]
        for future in futures[::3]:
            future.kill()
        done, not_done = concurrent.futures.wait(futures, PATIENCE_S)
        assert not not_done
        for n, future in enumerate(futures):
            if n % 3 or future.cancelled():
                assert future.cancelled() is (n % 3 == 0)
                continue
            assert future.exception() is None or type(future.exception()) is TaskKilled
        assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8


def test_a_call_that_is_cancelled_when_it_has_just_started_is_ended(pool, tmp_path):
    for attempt in range(5):
        started = tmp_path / str(attempt)
        future = pool.submit(calls.run_forever, started)
        # It runs, but whether that is known here yet is a matter of milliseconds: both answers are right.
        until(started.exists)
        if future.cancel():
            assert future.cancelled()
            pid = int(started.read_text())
            until(lambda pid=pid: not is_alive(pid), "its worker was ended")
        else:
            until(future.running)
            assert future.kill()
            assert isinstance(future.exception(PATIENCE_S), TaskKilled)
        assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8


def test_cancelling_many_calls_at_random_runs_the_others_once(tmp_path):
    log = tmp_path / "log"
    with executor(2) as pool:
        futures = {str(n): pool.submit(calls.note, log, str(n)) for n in range(500)}
        for n in range(0, 500, 2):
            futures[str(n)].cancel()
        done, not_done = concurrent.futures.wait(futures.values(), PATIENCE_S)
        assert not not_done
        pool.shutdown()
    written = log.read_text().splitlines()
    assert len(written) == len(set(written))
    assert {name for name, future in futures.items() if not future.cancelled()} <= set(written)


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_ending_all_workers_breaks_the_pool_and_leaves_nothing(method, tmp_path):
    with HPCPoolExecutor(3) as pool:
        processes = Pool.of(pool)
        futures = [
            pool.submit(calls.start_family, tmp_path / "family", detached=True),
            pool.submit(calls.ignore_signals, tmp_path / "ignores"),
            pool.submit(calls.run_forever, tmp_path / "runs"),
            *(pool.submit(pow, 2, n) for n in range(20)),
        ]
        family_of(tmp_path / "family")
        until(lambda: (tmp_path / "ignores").exists() and (tmp_path / "runs").exists())
        everything = processes.all()
        getattr(pool, method)()
        errors = [future.exception(PATIENCE_S) for future in futures]
        assert {type(error) for error in errors[:3]} == {BrokenPool}
        assert {type(error) for error in errors[3:]} <= {BrokenPool, type(None)}
        assert method in str(errors[0])
        until(lambda: not [process for process in everything if is_alive(process.pid)])
        assert not processes.directory.exists()
        with pytest.raises(RuntimeError):
            pool.submit(abs, 1)


def test_terminate_workers_lets_a_signal_handler_run(tmp_path):
    with HPCPoolExecutor(1) as pool:
        pool.submit(note_at_sigterm, tmp_path / "runs", tmp_path / "log")
        until((tmp_path / "runs").exists)
        pool.terminate_workers()
    assert (tmp_path / "log").read_text() == "terminated\n"


def note_at_sigterm(started, log) -> None:
    def handle(number, frame) -> None:
        calls.note(log, "terminated")
        os._exit(0)

    signal.signal(signal.SIGTERM, handle)
    calls.run_forever(started)


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_ending_the_workers_of_a_pool_that_starts_or_never_started(method):
    never = HPCPoolExecutor(1)
    getattr(never, method)()
    starts = HPCPoolExecutor(2)
    future = starts.submit(time.sleep, 600)
    getattr(starts, method)()
    assert isinstance(future.exception(PATIENCE_S), BrokenPool)
    getattr(starts, method)()


def fail_in_a_moment(runs: Path) -> None:
    calls.note(runs, "run")
    time.sleep(0.05)
    raise ValueError("again")


def test_calls_that_wait_for_another_attempt_are_cancelled_with_the_rest(tmp_path):
    pool = HPCPoolExecutor(2)
    futures = [pool.options(retries=10_000).submit(fail_in_a_moment, tmp_path / "runs") for _ in range(8)]
    until(lambda: all(future.info.attempt > 1 for future in futures))
    pool.shutdown(wait=False, cancel_futures=True)
    for future in futures:
        future.kill()
    done, not_done = concurrent.futures.wait(futures, timeout=PATIENCE_S)
    assert not_done == set()
    assert all(future.cancelled() or isinstance(future.exception(), (TaskKilled, ValueError)) for future in done)
    pool.shutdown()


def test_a_call_that_waits_for_another_attempt_can_be_cancelled(pool, tmp_path):
    future = pool.options(retries=10_000).submit(fail_in_a_moment, tmp_path / "runs")
    until(future.running)
    until(future.cancel)
    assert concurrent.futures.wait([future], timeout=PATIENCE_S).not_done == set()


def test_a_killed_call_is_not_tried_again(pool, tmp_path):
    """Whether it runs, has just failed, or waits for the next attempt."""
    for round_number in range(20):
        runs = tmp_path / str(round_number)
        future = pool.options(retries=10_000, crash_limit=10_000).submit(fail_in_a_moment, runs)
        until(runs.exists)
        time.sleep(0.045 + 0.001 * (round_number % 10))
        assert future.kill()
        assert concurrent.futures.wait([future], timeout=PATIENCE_S).not_done == set()
        assert future.cancelled() or isinstance(future.exception(), (TaskKilled, ValueError))


def test_info_tells_where_and_since_when_a_call_runs_and_when_it_was_ended(tmp_path):
    with executor(1) as pool:
        before = time.time()
        future = pool.submit(calls.run_forever, tmp_path / "runs")
        until(future.running)
        until((tmp_path / "runs").exists)  # it is told of when its worker may still be importing the function
        info = future.info
        assert str(info.pid) in (tmp_path / "runs").read_text()
        assert info.host
        assert before - 1 < info.started_at <= time.time()
        assert info.ended_at is None
        assert future.kill()
        assert isinstance(future.exception(PATIENCE_S), TaskKilled)
        ended = future.info
        assert (ended.host, ended.pid, ended.started_at) == (info.host, info.pid, info.started_at)
        assert info.started_at < ended.ended_at <= time.time() + 1
        assert ended.cpu_s is None


def test_what_ends_a_chunk_of_a_map_names_the_function(pool):
    with pytest.raises(WorkerCrashed, match="while it ran leave"):
        list(pool.map(calls.leave, [3, 4], chunksize=2))
