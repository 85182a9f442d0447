"""When the interchange dies the pool is broken: every future says so at once, and nothing of it remains."""

from __future__ import annotations

import itertools
import random
import signal
import time

import psutil
import pytest

from hpcpool import HPCPoolExecutor
from hpcpool.errors import BrokenPool
from tests.live import calls
from tests.live.processes import PATIENCE_S, Pool, executor, is_alive, kill, own_manager, role, stopped, until
from tests.live.test_node_loss import family_of

pytestmark = pytest.mark.live


def kill_interchange(processes: Pool) -> None:
    processes.interchange.kill()


def end_interchange(processes: Pool) -> None:
    processes.interchange.terminate()


def kill_with_manager(processes: Pool) -> None:
    manager = processes.manager
    processes.interchange.kill()
    kill(manager)


def kill_with_fork_server(processes: Pool) -> None:
    fork_server = processes.fork_server
    processes.interchange.kill()
    kill(fork_server)


KILLS = [kill_interchange, end_interchange, kill_with_fork_server]


@pytest.mark.parametrize(
    ("end", "node"), [*itertools.product(KILLS, [None, own_manager(3)]), (kill_with_manager, own_manager(3))]
)
def test_every_future_fails_with_the_end_of_the_log_and_nothing_remains(end, node, tmp_path):
    with executor(node or 3) as pool:
        processes = Pool.of(pool)
        futures = [
            pool.submit(calls.start_family, tmp_path / "python", detached=True),
            pool.bash("echo $$ > {started}; setsid sleep 600 & sleep 600 & wait", started=tmp_path / "bash"),
            pool.submit(calls.run_forever, tmp_path / "runs"),
            *(pool.submit(pow, 2, n) for n in range(50)),
        ]
        waiting = pool.submit(abs, futures[2])
        family = [pid for name in ("python", "bash") for pid in family_of(tmp_path / name)]
        until((tmp_path / "runs").exists)
        all_of_it = processes.all()
        assert set(family) < {process.pid for process in all_of_it}
        end(processes)
        errors = [future.exception(PATIENCE_S) for future in (*futures, waiting)]
        broken = [error for error in errors if error is not None]
        assert len(broken) >= 4
        assert {type(error) for error in broken} == {BrokenPool}
        assert f"pid {processes.interchange.pid}" in str(broken[0])
        assert "manager=" in str(broken[0]), "the end of its log"
        with pytest.raises(BrokenPool, match="interchange"):
            pool.submit(pow, 2, 3)
        pool.shutdown()
        assert not processes.directory.exists()
        # The last of them is known to be gone when it lets go of its files, a moment before it has vanished.
        until(lambda: not [process for process in all_of_it if is_alive(process.pid)])


def test_a_broken_pool_stays_broken_and_a_new_one_works():
    with HPCPoolExecutor(1) as pool:
        processes = Pool.of(pool)
        processes.interchange.kill()
        until(lambda: pool._broken)
        for _ in range(2):
            with pytest.raises(BrokenPool):
                pool.submit(abs, 1)
            with pytest.raises(BrokenPool):
                next(pool.map(abs, [1]))
            with pytest.raises(BrokenPool):
                pool.options(retries=3).submit(abs, 1)
    with pytest.raises(BrokenPool):  # as with ProcessPoolExecutor, where it also comes before "after shutdown"
        pool.submit(abs, 1)
    with HPCPoolExecutor(1) as pool:
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1


@pytest.mark.parametrize("seed", range(5))
def test_an_interchange_that_dies_while_the_pool_starts(seed):
    dice = random.Random(seed)
    with HPCPoolExecutor(2) as pool:
        # A call that lasts: else one worker may do all of it, and there is never a second one.
        futures = [pool.submit(time.sleep, 2 * PATIENCE_S), *(pool.submit(pow, 2, n) for n in range(5))]
        interchange = until(lambda: [p for p in psutil.Process().children() if role(p) == "interchange"])[0]
        wanted = dice.randint(0, 3)
        until(lambda: len(interchange.children(recursive=True)) >= wanted)
        interchange.send_signal(dice.choice([signal.SIGKILL, signal.SIGTERM]))
        for future in futures:
            error = future.exception(PATIENCE_S)
            assert error is None or isinstance(error, BrokenPool)
        until(lambda: pool._broken)


def test_a_manager_that_hangs_does_not_outlive_its_interchange_for_long(tmp_path):
    with executor(own_manager(1)) as pool:
        processes = Pool.of(pool)
        future = pool.submit(calls.run_forever, tmp_path / "runs")
        until((tmp_path / "runs").exists)
        manager = processes.manager
        everything = [process.pid for process in processes.all()]
        with stopped(manager):
            processes.interchange.kill()
            assert isinstance(future.exception(PATIENCE_S), BrokenPool)
            pool.shutdown()
            assert not processes.directory.exists()
        # It was only stopped. When it goes on it sees that it is alone.
        until(lambda: not any(map(is_alive, everything)))
