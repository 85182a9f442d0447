"""A dead worker fails the call that it ran, tells how it died, and harms nobody else."""

from __future__ import annotations

import os
import pickle
import random
import signal
import socket
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest

from hpcpool import Config, NodePool
from hpcpool.errors import WorkerCrashed
from tests.live import calls
from tests.live.processes import PATIENCE_S, Pool, executor, is_alive, kill, until

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def pool():
    with executor(2) as pool:
        yield pool


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (calls.segfault, signal.SIGSEGV),
        (calls.read_nowhere, signal.SIGSEGV),
        (calls.abort, signal.SIGABRT),
        (calls.kill_myself, signal.SIGKILL),
    ],
)
def test_a_worker_killed_by_a_signal_fails_its_call_with_all_that_is_known(pool, call, number):
    future = pool.submit(call)
    error = future.exception(PATIENCE_S)
    assert isinstance(error, WorkerCrashed)
    assert isinstance(error, BrokenProcessPool)
    assert (error.signal, error.exit_code, error.host) == (number, None, socket.gethostname())
    assert error.pid == future.info.pid != os.getpid()
    assert not is_alive(error.pid)
    assert not error.out_of_memory
    assert number.name in str(error)
    assert str(error.pid) in str(error)
    assert call.__qualname__ in str(error)
    assert pool.submit(pow, 2, 5).result(PATIENCE_S) == 32


def test_a_signal_without_a_name_is_told_by_its_number(pool):
    number = signal.SIGRTMIN + 5
    error = pool.submit(calls.kill_myself, number).exception(PATIENCE_S)
    assert isinstance(error, WorkerCrashed)
    assert error.signal == number
    assert f"signal {number}" in str(error)


@pytest.mark.parametrize("code", [0, 1, 77, 255])
def test_a_worker_that_leaves_tells_its_exit_code(pool, code):
    error = pool.submit(calls.leave, code).exception(PATIENCE_S)
    assert isinstance(error, WorkerCrashed)
    assert (error.signal, error.exit_code) == (None, code)
    assert f"exit code {code}" in str(error)


@pytest.mark.parametrize(("call", "words"), [(calls.segfault, "Segmentation fault"), (calls.abort, "Aborted")])
def test_a_crash_in_c_code_shows_the_stack_of_the_call(pool, call, words):
    error = pool.submit(call).exception(PATIENCE_S)
    assert f"Fatal Python error: {words}" in error.stderr_tail
    assert call.__name__ in error.stderr_tail
    assert words in str(error)


def test_the_error_carries_the_last_that_its_worker_wrote_and_nothing_of_another(pool):
    futures = [pool.submit(calls.say_and_die, f"the last words of {name}") for name in ("one", "two")]
    one, two = (future.exception(PATIENCE_S) for future in futures)
    assert "the last words of one" in one.stderr_tail
    assert "the last words of two" in two.stderr_tail
    assert "two" not in one.stderr_tail
    assert "one" not in two.stderr_tail


def test_a_crash_survives_pickling(pool):
    error = pool.submit(calls.say_and_die, "words").exception(PATIENCE_S)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is WorkerCrashed
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_a_worker_that_is_killed_while_idle_fails_no_call(pool):
    for _ in range(5):
        pid = pool.submit(os.getpid).result(PATIENCE_S)
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not is_alive(pid))
        # Whether the manager knows already or not: the call must not be lost with the worker.
        assert pool.submit(os.getpid).result(PATIENCE_S) != pid


def test_a_call_that_is_given_to_a_worker_that_just_died_runs_elsewhere(pool):
    processes = Pool.of(pool)
    for _ in range(20):
        victims = processes.workers
        for worker in victims:
            worker.kill()
        until(lambda victims=victims: not any(is_alive(worker.pid) for worker in victims))
        assert pool.submit(pow, 3, 3).result(PATIENCE_S) == 27


def test_a_worker_that_is_killed_from_outside_while_it_runs(pool, tmp_path):
    future = pool.submit(calls.run_forever, tmp_path / "runs")
    pid = int(until((tmp_path / "runs").exists) and (tmp_path / "runs").read_text())
    os.kill(pid, signal.SIGKILL)
    error = future.exception(PATIENCE_S)
    assert isinstance(error, WorkerCrashed)
    assert (error.pid, error.signal) == (pid, signal.SIGKILL)


def test_calls_that_wait_behind_a_crash_are_untouched_and_run_once(tmp_path):
    log = tmp_path / "log"
    with executor(1) as pool:
        # Many short calls before: then the worker is given several at once.
        list(pool.map(abs, range(300)))
        before = [pool.submit(calls.note, log, f"before {n}") for n in range(20)]
        crash = pool.submit(calls.kill_myself)
        after = [pool.submit(calls.note, log, f"after {n}") for n in range(50)]
        assert isinstance(crash.exception(PATIENCE_S), WorkerCrashed)
        names = [future.result(PATIENCE_S) for future in (*before, *after)]
    assert Counter(log.read_text().splitlines()) == Counter(names)
    assert len(set(names)) == 70


@pytest.mark.parametrize("seed", range(4))
def test_short_calls_run_exactly_once_but_for_those_that_a_killed_worker_ran(seed, tmp_path):
    log = tmp_path / "log"
    dice = random.Random(seed)
    with executor(2) as pool:
        list(pool.map(abs, range(200)))
        futures = {}
        for n in range(600):
            if dice.random() < 0.03:
                futures[f"crash {n}"] = pool.submit(calls.leave, 9)
            futures[f"call {n}"] = pool.submit(calls.note, log, f"call {n}")
        errors = {name: future.exception(PATIENCE_S) for name, future in futures.items()}
    assert {name for name, error in errors.items() if error is not None} == {n for n in futures if "crash" in n}
    assert Counter(log.read_text().splitlines()) == Counter(name for name in futures if "call" in name)


def test_two_hundred_crashes_in_a_row(pool):
    futures = [pool.submit(calls.leave, 1 + n % 200) for n in range(200)]
    assert [future.exception(PATIENCE_S * 3).exit_code for future in futures] == [1 + n % 200 for n in range(200)]
    assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8


def test_several_workers_that_die_at_once(tmp_path):
    with executor(6) as pool:
        processes = Pool.of(pool)
        futures = [pool.submit(calls.run_forever, tmp_path / str(n)) for n in range(6)]
        behind = [pool.submit(pow, 2, n) for n in range(30)]
        until(lambda: all((tmp_path / str(n)).exists() for n in range(6)))
        victims = processes.workers
        assert len(victims) == 6
        for worker in victims:
            worker.kill()
        errors = [future.exception(PATIENCE_S) for future in futures]
        assert {type(error) for error in errors} == {WorkerCrashed}
        assert {error.pid for error in errors} == {worker.pid for worker in victims}
        assert [future.result(PATIENCE_S) for future in behind] == [2**n for n in range(30)]


@pytest.mark.parametrize("size", [100_000, 3_000_000, 40_000_000])
def test_a_crash_with_large_arguments(pool, size):
    data = bytearray(size)
    futures = [pool.submit(calls.die_with, data) for _ in range(3)]
    fine = [pool.submit(len, data) for _ in range(3)]
    assert {type(future.exception(PATIENCE_S)) for future in futures} == {WorkerCrashed}
    assert [future.result(PATIENCE_S) for future in fine] == [size] * 3


@pytest.mark.parametrize("seed", range(3))
def test_workers_that_are_killed_while_large_arguments_and_results_travel(seed):
    dice = random.Random(seed)
    data = pickle.PickleBuffer(bytearray(4_000_000))
    with executor(2) as pool:
        processes = Pool.of(pool)
        futures = []
        for _ in range(12):
            futures.append(pool.submit(bytearray, bytearray(data)))
            if dice.random() < 0.6 and (workers := processes.workers):
                kill(dice.choice(workers))  # it may be dying from the last time
        errors = [future.exception(PATIENCE_S) for future in futures]
        assert {type(error) for error in errors} <= {type(None), WorkerCrashed}
        whole = [future.result() for future in futures if future.exception() is None]
        assert all(len(result) == 4_000_000 for result in whole)


def die_unless(limit: int, attempts: Path) -> int:
    calls.note(attempts, str(os.getpid()))
    count = len(attempts.read_text().splitlines())
    if count < limit:
        os._exit(1)
    return count


def test_crash_limit_counts_workers(tmp_path):
    with executor(2) as pool:
        three = pool.options(crash_limit=3)
        attempts = tmp_path / "lives"
        assert three.submit(die_unless, 3, attempts).result(PATIENCE_S) == 3
        attempts = tmp_path / "dies"
        error = three.submit(die_unless, 1000, attempts).exception(PATIENCE_S)
        assert isinstance(error, WorkerCrashed)
        pids = attempts.read_text().split()
        assert len(pids) == 3 == len(set(pids))
        assert error.pid == int(pids[-1])


def test_crash_limit_of_the_configuration(tmp_path):
    with executor(Config(NodePool(workers_per_node=1), crash_limit=2)) as pool:
        assert isinstance(pool.submit(die_unless, 1000, tmp_path / "a").exception(PATIENCE_S), WorkerCrashed)
        assert len((tmp_path / "a").read_text().split()) == 2
        once = pool.options(crash_limit=1)
        assert isinstance(once.submit(die_unless, 1000, tmp_path / "b").exception(PATIENCE_S), WorkerCrashed)
        assert len((tmp_path / "b").read_text().split()) == 1


def test_what_a_dead_worker_had_started_is_ended(pool, tmp_path):
    processes = Pool.of(pool)
    for detached in (False, True):
        started = tmp_path / f"started {detached}".replace(" ", "")
        future = pool.submit(calls.start_family, started, detached=detached)
        shell = int(until(lambda path=started: path.exists() and path.read_text().strip(), "the shell runs"))
        family = until(lambda pid=shell, least=2 + detached: calls_below(pid, least), "its children run")
        (worker,) = [worker for worker in processes.workers if shell in {p.pid for p in worker.children()}]
        worker.kill()
        assert isinstance(future.exception(PATIENCE_S), WorkerCrashed)
        until(lambda pids=(shell, *family): not any(map(is_alive, pids)), "all of its family has ended")


def calls_below(shell: int, least: int) -> list[int]:
    found = [process.pid for process in psutil.Process(shell).children(recursive=True)]
    return found if len(found) >= least else []
