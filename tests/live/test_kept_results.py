"""Results that stay at the nodes that made them: what crosses, when, how often, and what is left of it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from concurrent.futures import as_completed, wait
from pathlib import Path

import numpy as np
import psutil
import pytest

from hpcpool import Config, DependencyError, HPCPoolExecutor, NodePool, PayloadError, ResultLost
from hpcpool.core.scheduler import DRAIN_S
from tests.live import calls, far
from tests.live.folder_system import folder_system
from tests.live.processes import PATIENCE_S, Pool, executor, is_alive, own_manager, until
from tests.live.scripts import script

pytestmark = pytest.mark.live

MIB = 2**20


@pytest.fixture(autouse=True)
def _far_provider(monkeypatch, tmp_path):
    far.install(monkeypatch, tmp_path / "site")


def hosts(*names: str, workers: int = 1) -> Config:
    """Nodes that share no memory with the client, each a node pool of its own."""
    provider = far.FarProvider()
    pools = [NodePool(provider, name=name, workers_per_node=workers, max_idle_time=None) for name in names]
    return Config(*pools, heartbeat_period_s=0.5, heartbeat_timeout_s=PATIENCE_S)


def manager_of(name: str) -> psutil.Process:
    managers = Pool.below(os.getpid()).of_role("manager")
    return next(manager for manager in managers if any(word.startswith(f"{name}-") for word in manager.cmdline()))


class Files:
    """The kept results in the run directories: the client's, and a node's."""

    def __init__(self, name: str) -> None:
        manager = manager_of(name)
        (fork_server,) = [child for child in manager.children() if "fork-server" in child.cmdline()]
        self._name = name
        self._there = Path(fork_server.cwd())
        self._here = Pool.below(os.getpid()).directory

    @property
    def there(self) -> list[str]:
        """Those of the node, at the node."""
        return names(self._there, f"node-{self._name}-")

    @property
    def here(self) -> list[str]:
        """Those of the node, on the client's host."""
        return names(self._here, f"node-{self._name}-")

    @property
    def foreign(self) -> list[str]:
        """Those of others, at the node."""
        return sorted(set(names(self._there, "")) - set(self.there))


def names(directory: Path, prefix: str) -> list[str]:
    folders = (directory / "shm", directory / "spill")
    found = [path.name for folder in folders if folder.exists() for path in folder.iterdir()]
    return sorted(name for name in found if name.startswith(prefix) and ".1" in name)


def ones(count: int = MIB) -> np.ndarray:
    return np.ones(count, np.uint8)


def total(*arrays: np.ndarray) -> int:
    return int(sum(int(array.sum()) for array in arrays))


class OpensHere:
    """A result that cannot be opened."""

    def __init__(self) -> None:
        self.data = b"x" * MIB

    def __setstate__(self, state: object) -> None:
        raise ValueError("not like this")


def test_a_kept_result_crosses_once_and_only_when_somebody_asks():
    with executor(hosts("a")) as pool:
        files = Files("a")
        future = pool.options(keep=True).submit(ones)
        wait([future], PATIENCE_S)
        assert (future.done(), len(files.there), files.here) == (True, 1, [])
        assert future.result(PATIENCE_S).sum() == MIB
        assert (len(files.there), len(files.here)) == (1, 1)
        before = files_of_inode(files)
        assert pool.submit(total, future).result(PATIENCE_S) == MIB
        assert future.result() is future.result()
        assert files_of_inode(files) == before, "and not again"
        del future
        gc.collect()
        until(lambda: not files.there and not files.here, "both files are gone with the future")


def files_of_inode(files: Files) -> list[tuple[str, int]]:
    shm = files._here / "shm"
    return [(name, (shm / name).stat().st_ino) for name in files.here]


@pytest.mark.once
def test_calls_on_its_node_read_it_there_and_nothing_crosses():
    with executor(hosts("a")) as pool:
        files = Files("a")
        view = pool.options(keep=True)
        value = view.submit(ones)
        for _ in range(20):
            value = view.submit(np.add, value, value)
            assert files.here == []
        assert pool.submit(np.max, value).result(PATIENCE_S) == 2**20 % 256
        assert files.here == []
        until(lambda: len(files.there) == 1, "those that only led there are freed")


def test_a_small_result_travels_along_and_one_of_many_small_parts_stays():
    with executor(hosts("a")) as pool:
        files = Files("a")
        small = pool.options(keep=True).submit(bytes, 100_000)
        wait([small], PATIENCE_S)
        assert files.there == []
        parts = pool.options(keep=True).submit(many_parts)
        wait([parts], PATIENCE_S)
        assert (len(files.there), files.here) == (1, [])
        assert len(small.result()) == 100_000
        assert [int(part[0]) for part in parts.result(PATIENCE_S)] == list(range(64))


def many_parts() -> list[np.ndarray]:
    return [np.full(50_000, n, np.uint8) for n in range(64)]


@pytest.mark.once
def test_a_call_on_another_node_has_it_carried_there_once():
    with executor(hosts("a", "b")) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        there, other = Files("a"), Files("b")
        future = pool.options(pool="a", keep=True).submit(ones)
        futures = [pool.options(pool="b").submit(total, future) for _ in range(10)]
        assert [f.result(PATIENCE_S) for f in futures] == [MIB] * 10
        assert (len(there.there), len(there.here), other.foreign) == (1, 1, there.there)
        assert future.result(PATIENCE_S).sum() == MIB


@pytest.mark.once
def test_calls_of_this_machine_and_of_other_nodes_share_kept_results():
    near = NodePool(name="near", workers_per_node=1)
    away = NodePool(far.FarProvider(), name="away", workers_per_node=1, max_idle_time=None)
    with executor(Config(near, away)) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        here, there = pool.options(pool="near", keep=True), pool.options(pool="away", keep=True)
        value = there.submit(ones)
        for view in (here, there, there, here, here, there):
            value = view.submit(np.add, value, 1)
        assert (value.result(PATIENCE_S) == 7).all()


@pytest.mark.once
def test_a_call_goes_where_its_argument_is_kept():
    with executor(hosts("a", "b")) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        kept = {name: pool.options(pool=name, keep=True).submit(ones) for name in "ab"}
        wait(kept.values(), PATIENCE_S)
        for name in "abbaab":
            assert pool.submit(total, kept[name]).result(PATIENCE_S) == MIB
        assert Files("a").here == Files("b").here == []


@pytest.mark.once
def test_when_its_node_is_busy_the_call_runs_elsewhere(tmp_path):
    gate, started = tmp_path / "gate", tmp_path / "started"
    with executor(hosts("a", "b")) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        kept = pool.options(pool="a", keep=True).submit(ones)
        wait([kept], PATIENCE_S)
        busy = pool.options(pool="a").submit(calls.wait_for, gate, started)
        until(started.exists)
        assert pool.submit(total, kept).result(PATIENCE_S) == MIB
        assert not busy.done()
        gate.touch()


@pytest.mark.parametrize("config", [None, own_manager(2)], ids=["hosted", "a manager of its own"])
def test_on_this_machine_a_kept_result_is_in_shared_memory_anyway(config):
    with executor(config or 2) as pool:
        future = pool.options(keep=True).submit(ones)
        assert pool.submit(total, future, future).result(PATIENCE_S) == 2 * MIB
        assert future.result(PATIENCE_S).sum() == MIB
        shm = Pool.below(os.getpid()).directory / "shm"
        assert len(names(shm.parent, "node-")) == 1
        assert pool.submit(total, future).result(PATIENCE_S) == MIB
        assert len(names(shm.parent, "")) == 1, "it was not made again for that call"


def test_what_the_user_changes_in_a_value_no_call_sees():
    with executor(hosts("a")) as pool:
        future = pool.options(keep=True).submit(ones)
        future.result(PATIENCE_S)[:] = 9
        assert pool.submit(total, future).result(PATIENCE_S) == MIB


def test_a_callback_can_ask_for_the_value_and_for_those_of_others():
    with executor(hosts("a", workers=2)) as pool:
        view = pool.options(keep=True)
        others = [view.submit(ones, n * MIB) for n in range(1, 4)]
        wait(others, PATIENCE_S)
        seen: list[int] = []
        done = threading.Event()

        def note(future) -> None:
            seen.extend(total(f.result()) for f in (future, *others))
            done.set()

        busy = [pool.submit(abs, n) for n in range(1000)]
        view.submit(ones).add_done_callback(note)
        assert done.wait(PATIENCE_S)
        assert seen == [MIB, MIB, 2 * MIB, 3 * MIB]
        assert [f.result(PATIENCE_S) for f in busy] == list(range(1000))


def test_every_way_to_a_value_finds_it():
    with executor(hosts("a")) as pool:
        view = pool.options(keep=True)
        assert [total(f.result()) for f in as_completed([view.submit(ones) for _ in range(3)])] == [MIB] * 3
        assert [total(value) for value in view.map(ones, [MIB, 2 * MIB, 3 * MIB])] == [MIB, 2 * MIB, 3 * MIB]
        assert view.submit(ones).exception(PATIENCE_S) is None
        assert pool.join(np.sum, view.submit(ones)).result(PATIENCE_S) == MIB
        with HPCPoolExecutor(1) as other:
            assert other.submit(total, view.submit(ones)).result(PATIENCE_S) == MIB

        async def gather() -> list[int]:
            loop = asyncio.get_running_loop()
            return [total(value) for value in await asyncio.gather(*(loop.run_in_executor(view, ones) for _ in "xyz"))]

        assert asyncio.run(gather()) == [MIB] * 3
        future = view.submit(ones)
        values: list[int] = []
        threads = [threading.Thread(target=lambda: values.append(id(future.result()))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(values) == 8
        assert len(set(values)) == 1


def test_errors_are_not_kept_and_values_that_cannot_be_opened_say_so():
    with executor(hosts("a")) as pool:
        view = pool.options(keep=True)
        assert isinstance(view.submit(divmod, 1, 0).exception(PATIENCE_S), ZeroDivisionError)
        assert isinstance(view.submit(OpensHere).exception(PATIENCE_S), PayloadError)


def test_a_coroutine_that_awaits_what_is_lost_or_cannot_be_opened_hears_of_it():
    """It asks for the exception first, and would wait for ever if the result then raised one."""
    with executor(hosts("a", "b")) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        view = pool.options(pool="a", keep=True)
        kept, unopenable = view.submit(ones), view.submit(OpensHere)
        wait([kept, unopenable], PATIENCE_S)

        async def await_all(*futures) -> list[object]:
            awaited = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
            return await asyncio.wait_for(awaited, PATIENCE_S)

        (error,) = asyncio.run(await_all(unopenable))
        assert isinstance(error, PayloadError)
        lose("a")
        assert [type(error) for error in asyncio.run(await_all(kept, unopenable))] == [ResultLost, PayloadError]


def test_what_is_cancelled_or_forgotten_leaves_nothing(tmp_path):
    with executor(hosts("a")) as pool:
        files = Files("a")
        view = pool.options(keep=True)
        for _ in range(20):
            view.submit(ones)
        gate, started = tmp_path / "gate", tmp_path / "started"
        late = view.submit(ones_behind, gate, started)
        until(started.exists)
        late.cancel()
        del late  # it may be known to run already
        gate.touch()
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1
        gc.collect()
        until(lambda: not files.there and not files.here, "all of it is gone")


def ones_behind(gate: Path, started: Path) -> np.ndarray:
    calls.wait_for(gate, started)
    return ones()


@pytest.mark.once
def test_a_call_that_is_held_takes_no_slot_and_can_be_cancelled_and_killed():
    """Its argument is at a node that does not answer."""
    with executor(hosts("a", "b")) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        kept = pool.options(pool="a", keep=True).submit(ones)
        wait([kept], PATIENCE_S)
        manager = manager_of("a")
        manager.send_signal(signal.SIGSTOP)
        try:
            held_back = [pool.options(pool="b").submit(total, kept) for _ in range(3)]
            assert pool.options(pool="b").submit(abs, -1).result(PATIENCE_S) == 1
            assert held_back[0].cancel()
            held_back[1].kill()
            with pytest.raises(TimeoutError):
                kept.result(timeout=0.2)
        finally:
            manager.send_signal(signal.SIGCONT)
        assert held_back[2].result(PATIENCE_S) == MIB
        assert held_back[1].done()
        assert total(kept.result(PATIENCE_S)) == MIB


def lose(name: str) -> None:
    manager = manager_of(name)
    manager.kill()
    until(lambda: not is_alive(manager.pid))


@pytest.mark.once
def test_what_was_kept_at_a_node_is_lost_with_it_and_says_so():
    with executor(hosts("a", "b")) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        home = Files("a")._there
        shm = (home / "shm").resolve()
        view = pool.options(pool="a", keep=True)
        fetched, kept = view.submit(ones), view.submit(ones)
        wait([fetched, kept], PATIENCE_S)
        assert total(fetched.result(PATIENCE_S)) == MIB
        lose("a")
        error = kept.exception(PATIENCE_S)
        assert isinstance(error, ResultLost)
        assert "the result of ones was kept at its node, and lost with it: manager on" in str(error)
        assert total(fetched.result()) == MIB
        for view in (pool, pool.options(pool="b", keep=True)):
            dependent = view.submit(total, kept)
            failure = dependent.exception(PATIENCE_S)
            assert isinstance(failure, DependencyError)
            assert "total was not run: a call that it depends on failed (ones -> total): ResultLost" in str(failure)
            assert isinstance(failure.__cause__, ResultLost)
        assert pool.options(pool="b").submit(total, fetched).result(PATIENCE_S) == MIB
        until(lambda: not home.exists() and not shm.exists(), "the node's files are gone")


@pytest.mark.once
def test_calls_that_wait_for_what_is_lost_fail_with_it():
    with executor(hosts("a", "b")) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        kept = pool.options(pool="a", keep=True).submit(ones)
        wait([kept], PATIENCE_S)
        manager = manager_of("a")
        manager.send_signal(signal.SIGSTOP)
        held_back = pool.options(pool="b").submit(total, kept)
        after = pool.submit(abs, held_back)
        asker: list[BaseException | None] = []
        thread = threading.Thread(target=lambda: asker.append(kept.exception()))
        thread.start()
        lose("a")
        for future, chain in ((held_back, "total"), (after, "total -> abs")):
            error = future.exception(PATIENCE_S)
            assert isinstance(error, DependencyError), error
            assert isinstance(error.__cause__, ResultLost)
            assert chain in str(error)
        thread.join(PATIENCE_S)
        assert [type(error) for error in asker] == [ResultLost]


@pytest.mark.once
def test_before_a_block_is_given_back_its_results_are_fetched():
    with executor(hosts("a")) as pool:
        files = Files("a")
        futures = [pool.options(keep=True).submit(ones, n * MIB) for n in range(1, 4)]
        wait(futures, PATIENCE_S)
        assert files.here == []
        manager = manager_of("a")
        pool.scale(0)
        until(lambda: not is_alive(manager.pid), "the end of the block")
        assert len(names(Pool.below(os.getpid()).directory, "node-a-")) == 3
        assert [total(future.result(PATIENCE_S)) for future in futures] == [MIB, 2 * MIB, 3 * MIB]


@pytest.mark.once
def test_an_idle_block_is_given_back_with_its_results_fetched():
    node_pool = NodePool(far.FarProvider(), name="a", workers_per_node=1, max_idle_time=0.3, init_blocks=0)
    with executor(node_pool) as pool:
        future = pool.options(keep=True).submit(ones)
        wait([future], PATIENCE_S)
        until(lambda: not Pool.below(os.getpid()).of_role("manager"), "the end of the idle block")
        assert total(future.result(PATIENCE_S)) == MIB


@pytest.mark.once
def test_before_a_block_s_walltime_is_over_its_results_are_fetched(monkeypatch, tmp_path):
    folder = tmp_path / "batch"
    folder.mkdir()
    with folder_system(monkeypatch, folder) as system:
        system.behave("walltime", f"{DRAIN_S + 8}")
        with executor(Config(system.pool())) as pool:
            futures = [pool.options(keep=True).submit(ones, n * MIB) for n in range(1, 4)]
            wait(futures, PATIENCE_S)
            here = Pool.below(os.getpid()).directory
            until(lambda: len(names(here, "node-")) == 3, "its end is near")
            until(lambda: (system.jobs[0] / "code").exists(), "its end")
            assert [total(future.result(PATIENCE_S)) for future in futures] == [MIB, 2 * MIB, 3 * MIB]


@pytest.mark.once
def test_when_the_pool_ends_what_somebody_may_still_ask_for_is_fetched():
    with executor(hosts("a")) as pool:
        home = Files("a")._there
        kept = [pool.options(keep=True).submit(ones, n * MIB) for n in range(1, 4)]
        kept[1] = None
    assert not home.exists()
    assert [total(future.result()) for future in kept if future is not None] == [MIB, 3 * MIB]


def test_what_was_kept_in_a_pool_that_is_killed_is_lost():
    pool = HPCPoolExecutor(hosts("a"))
    kept = pool.options(keep=True).submit(ones)
    wait([kept], PATIENCE_S)
    pool.kill_workers()
    error = kept.exception(PATIENCE_S)
    assert isinstance(error, ResultLost)
    assert "the pool ended before anybody had asked for it" in str(error)
    pool.shutdown()


@pytest.mark.once
def test_what_was_kept_is_lost_with_the_interchange_and_leaves_nothing():
    pool = HPCPoolExecutor(hosts("a"))
    kept = pool.options(keep=True).submit(ones)
    wait([kept], PATIENCE_S)
    home = Files("a")._there
    shm = (home / "shm").resolve()
    Pool.below(os.getpid()).interchange.kill()
    error = kept.exception(PATIENCE_S)
    assert isinstance(error, ResultLost)
    until(lambda: not home.exists() and not shm.exists(), "the node's files are gone")
    pool.shutdown()


PROGRAM = """
import os
from concurrent.futures import wait
from hpcpool import HPCPoolExecutor, NodePool
from tests.live import far

pool = HPCPoolExecutor(NodePool(far.FarProvider(), workers_per_node=1))
kept = [pool.options(keep=True).submit(bytes, 2**20) for _ in range(3)]
wait(kept)
print("in", pool.submit(lambda: os.readlink("/proc/%d/cwd" % os.getppid())).result(), flush=True)
pool.submit(__import__("time").sleep, 600).result()
"""


@pytest.mark.once
def test_when_the_client_is_killed_nothing_that_was_kept_stays(tmp_path):
    with script(tmp_path / "program.py", PROGRAM) as program:
        program.wait_for("in ")
        home = Path(program.out.split()[1])
        shm = (home / "shm").resolve()
        assert len(names(home, "node-")) == 3
        os.kill(program.pid, signal.SIGKILL)
        until(lambda: not home.exists() and not shm.exists(), "the node's files are gone")


def test_a_worker_that_dies_takes_no_kept_result_along():
    with executor(hosts("a")) as pool:
        kept = pool.options(keep=True).submit(ones)
        wait([kept], PATIENCE_S)
        pool.submit(calls.kill_myself).exception(PATIENCE_S)
        assert pool.submit(total, kept).result(PATIENCE_S) == MIB
        assert total(kept.result(PATIENCE_S)) == MIB


def test_in_a_forked_child_what_is_away_is_out_of_reach():
    with executor(hosts("a")) as pool:
        kept = pool.options(keep=True).submit(ones)
        wait([kept], PATIENCE_S)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if isinstance(kept.exception(), ResultLost) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert total(kept.result(PATIENCE_S)) == MIB
