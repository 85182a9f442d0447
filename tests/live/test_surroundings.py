"""Programs and machines that are not as usual: many workers, few descriptors, blocked signals, long stops."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from concurrent.futures import wait
from pathlib import Path

import psutil
import pytest

from hpcpool import Config, HPCPoolExecutor, NodePool
from hpcpool.providers import LocalProvider
from tests.live import calls
from tests.live.processes import PATIENCE_S, Pool, executor, stopped, until
from tests.live.scripts import script

pytestmark = pytest.mark.live

#: Short, so that a test outlasts it, but longer than a busy machine lets a process wait.
HEARTBEATS = Config(NodePool(LocalProvider(own_process=True)), heartbeat_period_s=0.2, heartbeat_timeout_s=3.0)


@pytest.mark.once
def test_a_busy_manager_is_not_lost_while_the_interchange_has_nothing_to_say():
    """Outcomes go up all the time and nothing comes down: the end of every long run."""
    with executor(HEARTBEATS, max_workers=2) as pool:
        manager = Pool.of(pool).manager.pid
        futures = [pool.submit(time.sleep, 0.1) for _ in range(80)]
        assert [future.result(PATIENCE_S) for future in futures] == [None] * 80
        assert {future.info.attempt for future in futures} == {1}
        assert Pool.of(pool).manager.pid == manager


@pytest.mark.once
def test_a_pool_that_is_stopped_as_a_whole_goes_on_where_it_was(tmp_path: Path):
    """A laptop that slept, a frozen container: nobody was silent, nobody was there."""
    with executor(HEARTBEATS, max_workers=1) as pool:
        future = pool.submit(calls.wait_for, tmp_path / "gate", tmp_path / "runs")
        until((tmp_path / "runs").exists)
        processes = Pool.below(os.getpid()).all()
        with contextlib.ExitStack() as stack:
            for process in processes:
                stack.enter_context(stopped(process))
            time.sleep(1.5 * HEARTBEATS.heartbeat_timeout_s)  # that this time passes is what the test is about
        (tmp_path / "gate").touch()
        future.result(PATIENCE_S)
        assert future.info.attempt == 1


@pytest.mark.once
def test_more_workers_than_a_channel_holds_messages():
    with HPCPoolExecutor(600) as pool:
        futures = [pool.submit(time.sleep, 0.01) for _ in range(1200)]
        assert wait(futures, timeout=3 * PATIENCE_S).not_done == set()
        assert [future.exception() for future in futures] == [None] * 1200


BLOCKED = """
import os, signal
from hpcpool import HPCPoolExecutor
{set_up}
with HPCPoolExecutor(1) as pool:
    error = pool.submit(os._exit, 3).exception(20)
    assert "exit code 3" in str(error), error
    error = pool.options(timeout=0.1).submit(signal.pause).exception(20)
    assert "timeout" in str(error), error
    assert pool.submit(pow, 2, 3).result(20) == 8
"""


@pytest.mark.parametrize(
    "set_up",
    [
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    ],
    ids=["all signals are blocked", "SIGCHLD is ignored"],
)
def test_what_the_program_does_with_signals_is_its_own_affair(tmp_path: Path, set_up: str):
    with script(tmp_path / "program.py", BLOCKED.format(set_up=set_up)) as program:
        assert program.finish() == 0, program.err


def fork_and_return() -> int:
    return os.fork()


def test_a_child_that_returns_from_the_call_that_forked_it_does_no_harm():
    with executor(1) as pool:
        for _ in range(5):
            assert pool.submit(fork_and_return).result(PATIENCE_S) > 0
            futures = [pool.submit(pow, n, 2) for n in range(100)]
            assert [future.result(PATIENCE_S) for future in futures] == [n * n for n in range(100)]


LIMITED = """
import resource
from hpcpool import HPCPoolExecutor
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
with HPCPoolExecutor({workers}) as pool:
    futures = [pool.submit(resource.getrlimit, resource.RLIMIT_NOFILE) for _ in range(2 * {workers})]
    print({{future.result(60) for future in futures}})
"""


def test_a_call_may_open_as_many_files_as_the_program(tmp_path: Path):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with script(tmp_path / "program.py", LIMITED.format(soft=200, hard=hard, workers=1)) as program:
        assert program.finish() == 0, program.err
        assert program.out.strip() == f"{{(200, {hard})}}"


def test_with_too_few_descriptors_there_are_fewer_workers(tmp_path: Path):
    with script(tmp_path / "program.py", LIMITED.format(soft=100, hard=100, workers=60)) as program:
        assert program.finish() == 0, program.err
        assert program.out.strip() == "{(100, 100)}"


NO_FORK = """
import os
def fork(fork=os.fork):
    if os.path.exists(os.environ["NO_FORK"]):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = fork
"""

FORK_FAILS = """
import os, sys, time
from pathlib import Path
from hpcpool import HPCPoolExecutor
from tests.live import calls
folder = Path(sys.argv[1])
no_fork = Path(os.environ["NO_FORK"])
with HPCPoolExecutor(3) as pool:
    running = pool.submit(calls.wait_for, folder / "gate", folder / "runs")
    while not (folder / "runs").exists():
        time.sleep(0.005)
    no_fork.touch()
    others = [pool.submit(os._exit, 3), *(pool.submit(calls.wait_for, folder / "gate") for _ in range(4))]
    print("tries", flush=True)
    while no_fork.exists():
        time.sleep(0.005)
    errors = [type(future.exception(30)).__name__ for future in (running, *others)]
    print(errors)
"""


def test_a_moment_without_room_for_another_process_ends_no_call(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(NO_FORK)
    no_fork = tmp_path / "no-fork"
    environment = {"NO_FORK": str(no_fork)}
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        with script(tmp_path / "program.py", FORK_FAILS, tmp_path, **environment) as program:
            program.wait_for("tries")
            log = Pool.below(program.pid).directory / "interchange.log"
            until(lambda: "no room for another worker" in log.read_text())
            assert psutil.pid_exists(program.pid)
            no_fork.unlink()
            (tmp_path / "gate").touch()
            assert program.finish() == 0, program.err
            assert program.out.splitlines()[-1] == str(["NoneType", "WorkerCrashed", *["NoneType"] * 4])


NO_STREAMS = """
import os, sys
from hpcpool import HPCPoolExecutor
for descriptor in (0, 1, 2):
    os.close(descriptor)
with HPCPoolExecutor(2) as pool:
    results = [pool.submit(pow, n, 2).result(20) for n in range(4)]
with open(sys.argv[1], "w") as file:
    print(results, file=file)
"""


def test_a_program_may_have_closed_its_streams(tmp_path: Path):
    with script(tmp_path / "program.py", NO_STREAMS, tmp_path / "out") as program:
        program.finish()
        assert (tmp_path / "out").read_text() == "[0, 1, 4, 9]\n"


NO_DIRECTORY = """
import os, sys
from hpcpool import HPCPoolExecutor
from tests.live.processes import Pool, until
os.mkdir(sys.argv[1])
os.chdir(sys.argv[1])
with HPCPoolExecutor(1) as pool:
    processes = Pool.of(pool)
    os.rmdir(sys.argv[1])
    processes.fork_server.kill()
    assert pool.submit(pow, 2, 3).result(20) == 8
with HPCPoolExecutor(1) as pool:
    assert pool.submit(pow, 2, 3).result(20) == 8
"""


def test_a_working_directory_may_be_removed(tmp_path: Path):
    with script(tmp_path / "program.py", NO_DIRECTORY, tmp_path / "gone") as program:
        assert program.finish() == 0, program.err


class BadStream:
    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        raise RuntimeError("no")


def put_bad_stream_in_place() -> int:
    import sys

    sys.stdout = BadStream()
    return 1


def test_a_stream_of_the_users_that_cannot_be_flushed_costs_no_result():
    with executor(1) as pool:
        assert pool.submit(put_bad_stream_in_place).result(PATIENCE_S) == 1
        assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8
