"""A manager or a fork server that dies loses its node: its calls run elsewhere, and another one starts."""

from __future__ import annotations

import contextlib
import random
import signal
from pathlib import Path

import psutil
import pytest

from hpcpool import Config, HPCPoolExecutor, NodePool
from hpcpool.errors import NodeLost
from tests.live import calls
from tests.live.processes import PATIENCE_S, Pool, executor, is_alive, kill, own_manager, role, stopped, until

pytestmark = [pytest.mark.live, pytest.mark.once]


def kill_manager(processes: Pool) -> list[psutil.Process]:
    victims = [processes.manager]
    victims[0].kill()
    return victims


def end_manager(processes: Pool) -> list[psutil.Process]:
    victims = [processes.manager]
    victims[0].terminate()
    return victims


def kill_fork_server(processes: Pool) -> list[psutil.Process]:
    victims = [processes.fork_server]
    victims[0].kill()
    return victims


def kill_both(processes: Pool) -> list[psutil.Process]:
    victims = [processes.manager, processes.fork_server]
    for victim in victims:
        kill(victim)  # the second may end with the first
    return victims


#: With the node that is lost; where it is hosted, a manager cannot die alone.
LOSSES = [
    *((lose, own_manager(2)) for lose in (kill_manager, end_manager, kill_fork_server, kill_both)),
    (kill_fork_server, NodePool(workers_per_node=2)),
]
loss = pytest.mark.parametrize(("lose", "node"), LOSSES)


def ours(processes: Pool) -> list[psutil.Process]:
    return [process for wanted in ("manager", "fork-server") for process in processes.of_role(wanted)]


@loss
def test_the_calls_of_a_lost_node_run_on_another(lose, node, tmp_path):
    log, gate = tmp_path / "log", tmp_path / "gate"
    with executor(node) as pool:
        processes = Pool.of(pool)
        running = [pool.submit(calls.note_and_wait, log, str(n), gate) for n in range(2)]
        waiting = [pool.submit(pow, 2, n) for n in range(20)]
        until(lambda: lines(log) == 2)
        workers = processes.workers
        victims = [*lose(processes), *workers]
        until(lambda: lines(log) == 4, "both run again")
        assert not any(is_alive(victim.pid) for victim in victims)
        gate.touch()
        assert [future.result(PATIENCE_S) for future in running] == ["0", "1"]
        assert [future.result(PATIENCE_S) for future in waiting] == [2**n for n in range(20)]
        assert not set(ours(processes)) & set(victims)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@loss
def test_a_call_that_must_not_run_twice_fails_with_its_node(lose, node, tmp_path):
    config = Config(node, rerun_lost=False)
    with executor(config) as pool:
        future = pool.submit(calls.note_and_wait, tmp_path / "log", "once", tmp_path / "never")
        until(lambda: lines(tmp_path / "log") == 1)
        lose(Pool(pool_interchange(pool)))
        error = future.exception(PATIENCE_S)
        assert isinstance(error, NodeLost)
        assert "default-0" in str(error)
        assert pool.submit(pow, 2, 4).result(PATIENCE_S) == 16
        assert lines(tmp_path / "log") == 1


def pool_interchange(pool: HPCPoolExecutor) -> psutil.Process:
    """For a pool without a free slot, or one that is about to lose what its slots hold."""
    (found,) = [p for p in psutil.Process().children() if role(p) == "interchange"]
    return found


def test_a_call_that_is_lost_again_and_again_fails(tmp_path):
    config = Config(own_manager(1), loss_limit=2)
    with executor(config) as pool:
        processes = Pool.of(pool)
        future = pool.submit(calls.note_and_wait, tmp_path / "log", "run", tmp_path / "never")
        for run in range(1, 4):
            until(lambda run=run: lines(tmp_path / "log") == run, f"run {run}")
            processes.manager.kill()
        assert isinstance(future.exception(PATIENCE_S), NodeLost)
        assert lines(tmp_path / "log") == 3
        assert pool.submit(pow, 2, 4).result(PATIENCE_S) == 16


@loss
def test_an_idle_pool_starts_another_node_when_there_is_work(lose, node):
    with executor(node) as pool:
        processes = Pool.of(pool)
        victims = lose(processes)
        until(lambda: not any(is_alive(victim.pid) for victim in victims))
        assert pool.submit(pow, 2, 4).result(PATIENCE_S) == 16
        assert not set(ours(processes)) & set(victims)


@loss
def test_what_the_calls_of_a_lost_node_had_started_is_ended(lose, node, tmp_path):
    with executor(Config(node, rerun_lost=False)) as pool:
        processes = Pool.of(pool)
        futures = [
            pool.submit(calls.start_family, tmp_path / "python", detached=True),
            pool.bash("echo $$ > {started}; setsid sleep 600 & sleep 600 & wait", started=tmp_path / "bash"),
        ]
        family = [pid for name in ("python", "bash") for pid in family_of(tmp_path / name)]
        lose(processes)
        assert [type(future.exception(PATIENCE_S)) for future in futures] == [NodeLost] * 2
        until(lambda: not any(map(is_alive, family)), "all that the calls had started has ended")


def family_of(started: Path) -> list[int]:
    """The pid in a file and those below it, once all are there."""
    shell = int(until(lambda: started.exists() and started.read_text().strip(), f"{started.name} runs"))
    below = until(lambda: (found := psutil.Process(shell).children(recursive=True)) and len(found) >= 2 and found)
    return [shell, *(process.pid for process in below)]


def test_calls_of_a_silent_node_run_on_another_and_its_processes_are_ended(tmp_path):
    log, gate = tmp_path / "log", tmp_path / "gate"
    config = Config(own_manager(1), heartbeat_period_s=0.1, heartbeat_timeout_s=3.0)
    with executor(config) as pool:
        processes = Pool.of(pool)
        future = pool.submit(calls.note_and_wait, log, "run", gate)
        until(lambda: lines(log) == 1)
        manager, workers = processes.manager, processes.workers
        with stopped(manager):
            until(lambda: lines(log) == 2, "the call runs again")
            until(lambda: not any(is_alive(process.pid) for process in (manager, *workers)))
        gate.touch()
        assert future.result(PATIENCE_S) == "run"


def test_a_node_that_comes_back_from_silence_is_sent_away_and_nothing_is_done_twice(tmp_path):
    log, gate = tmp_path / "log", tmp_path / "gate"
    config = Config(own_manager(1), heartbeat_period_s=0.1, heartbeat_timeout_s=3.0)
    with executor(config) as pool:
        processes = Pool.of(pool)
        future = pool.submit(calls.note_and_wait, log, "run", gate)
        until(lambda: lines(log) == 1)
        old = processes.manager
        with stopped(old):
            until(lambda: "lost" in (processes.directory / "interchange.log").read_text())
        until(lambda: not is_alive(old.pid))
        until(lambda: lines(log) == 2)
        gate.touch()
        assert future.result(PATIENCE_S) == "run"
        assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8


def test_a_fork_server_that_hangs_is_ended_with_its_node(tmp_path):
    with executor(own_manager(1)) as pool:
        processes = Pool.of(pool)
        manager = processes.manager
        with stopped(processes.fork_server):
            manager.terminate()
            until(lambda: not is_alive(manager.pid))
        assert pool.submit(pow, 2, 3).result(PATIENCE_S) == 8


@pytest.mark.parametrize("node", [own_manager(2), NodePool(workers_per_node=2)])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_dies_while_the_pool_starts_every_call_finishes(seed, node):
    dice = random.Random(seed)
    pool = HPCPoolExecutor(Config(node, loss_limit=100))
    try:
        futures = [pool.submit(pow, 2, n) for n in range(10)]
        interchange = until(lambda: [p for p in psutil.Process().children() if role(p) == "interchange"])[0]
        for _ in range(2):
            # At any of the moments at which there is one more process than before, or when nothing is left to do.
            wanted = dice.randint(1, 4)
            until(lambda n=wanted: len(interchange.children(recursive=True)) >= n or all(f.done() for f in futures))
            if victims := interchange.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    dice.choice(victims).send_signal(dice.choice([signal.SIGKILL, signal.SIGTERM]))
        errors = [future.exception(PATIENCE_S) for future in futures]
    except BaseException:
        pool.kill_workers()
        raise
    pool.shutdown()
    # A worker that was hit while it ran one of the calls may have failed that one; no other is harmed.
    assert sum(error is not None for error in errors) <= 2, errors
