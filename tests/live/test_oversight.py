"""A pool is looked at and steered while it runs, before it has started and after its end."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool import BrokenPool, Config, HPCPoolExecutor, NodePool, oversight
from hpcpool.providers import LocalProvider, SlurmProvider
from tests.gate import Gate, pass_gate
from tests.live.calls import wait_for
from tests.live.folder_system import FolderSystem, folder_system
from tests.live.processes import PATIENCE_S, Pool, executor, stopped, until

pytestmark = [pytest.mark.live, pytest.mark.once]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FolderSystem]:
    with folder_system(monkeypatch, tmp_path) as system:
        yield system


# status


def test_a_pool_that_has_not_started_has_a_status_and_starts_nothing():
    pool = HPCPoolExecutor(2)
    status = pool.status()
    assert (status.state, status.workers, status.blocks) == ("not started", 0, ())
    assert [node_pool.name for node_pool in status.node_pools] == ["default"]
    pool.shutdown()
    assert pool.status().state == "shut down"


def test_the_status_counts_calls_that_run_wait_for_a_slot_and_wait_for_others(tmp_path):
    with executor(2) as pool, Gate(tmp_path) as gate:
        blocked = [pool.submit(pass_gate, gate.path) for _ in range(5)]
        pool.submit(len, blocked)
        until(lambda: pool.status().running == 2, "two calls that run")
        status = pool.status()
        assert (status.running, status.pending, status.waiting) == (2, 3, 1)
        (node,) = status.nodes
        assert (node.block, node.slots, node.running) == ("default-0", 2, 2)
        assert pool.options(name="x").status().blocks[0].state == "serving"
        assert "default-0" in str(status)


def test_the_status_has_job_ids_states_and_reasons(system):
    system.behave("hold", "Priority")
    with HPCPoolExecutor(Config(system.pool(max_blocks=2, init_blocks=2))) as pool:
        pool.submit(abs, 1)
        until(lambda: [block.reason for block in pool.status().blocks] == ["Priority", "Priority"], "two queued blocks")
        status = pool.status()
        assert [(b.name, b.job_id, b.state) for b in status.blocks] == [
            ("default-0", "1", "queued"),
            ("default-1", "2", "queued"),
        ]
        assert all(0 <= block.age_s < 60 and block.running_s is None for block in status.blocks)
        system.behave("walltime", "600")
        system.recover("hold")
        # Both: a manager that is killed while it starts leaves its folder on its host to the next one there.
        until(lambda: all(block.state == "serving" for block in pool.status().blocks), "blocks that serve")
        until(lambda: pool.status().blocks[0].ends_at, "the end of its walltime")
        block = pool.status().blocks[0]
        assert 500 < block.ends_at - pool.status().at <= 600
        pool.scale(0)
    assert system.alive == []


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_a_pool_that_rests_gets_its_pending_calls_done_at_its_end(cancel_futures):
    pool = HPCPoolExecutor(1)
    pool.scale(0)
    future = pool.submit(abs, -1)  # also with cancel_futures it is taken to be running
    pool.shutdown(cancel_futures=cancel_futures)
    assert future.result(0) == 1


def test_an_interchange_that_is_stopped_is_told_of(monkeypatch):
    with executor(1) as pool:
        with (
            stopped(Pool.of(pool).interchange),
            monkeypatch.context() as patch,
            pytest.raises(TimeoutError, match="has not answered within 0.5 s"),
        ):
            patch.setattr(oversight, "_ANSWER_S", 0.5)
            pool.status()
        assert until(lambda: pool.status().workers == 1)


def test_a_broken_pool_says_why():
    with HPCPoolExecutor(1) as pool:
        pool.submit(abs, 1).result(PATIENCE_S)
        Pool.of(pool).interchange.kill()
        until(lambda: pool.status().state.startswith("broken: the interchange"), "the news")


def test_in_a_callback_it_is_an_error_and_no_deadlock():
    errors: list[BaseException] = []
    asked = threading.Event()

    def ask(future: object) -> None:
        for method in (pool.status, pool.wait_for_workers):
            try:
                method()
            except RuntimeError as error:
                errors.append(error)
        asked.set()

    with executor(1) as pool:
        pool.submit(abs, 1).add_done_callback(ask)
        assert asked.wait(PATIENCE_S)
    assert len(errors) in (0, 2), "none, if the call was over before the callback was added"


# scale


def test_the_user_s_number_of_blocks_is_kept_whatever_the_work_needs(system, tmp_path):
    with HPCPoolExecutor(Config(system.pool(init_blocks=0, max_blocks=3, max_idle_time=0.2))) as pool:
        pool.scale(2)  # at once: without an order a block that is idle would soon be given back
        until(lambda: pool.status().workers == 2, "two blocks")
        assert pool.status().node_pools[0].ordered == 2
        pool.options(name="x").scale(3)
        until(lambda: pool.status().workers == 3, "three blocks")
        with Gate(tmp_path) as gate:
            calls = [pool.submit(pass_gate, gate.path) for _ in range(3)]
            until(lambda: pool.status().running == 3, "three calls that run")
            pool.scale(0)
            until(lambda: [b.state for b in pool.status().blocks] == ["ending"] * 3, "blocks that only finish")
            gate.open()
            assert [call.result(PATIENCE_S) for call in calls] == [""] * 3, "no call was lost"
        until(lambda: not system.alive, "the end of all blocks")
        last = pool.submit(abs, -1)
        pool.scale(None)
        assert last.result(PATIENCE_S) == 1
    assert len(system.jobs) == 4


def test_calls_on_a_block_that_is_to_end_take_the_time_that_they_need(system, tmp_path):
    with executor(Config(system.pool(workers_per_node=2))) as pool, Gate(tmp_path) as gate:
        long = pool.submit(pass_gate, gate.path)
        short = pool.submit(wait_for, tmp_path / "go")
        until(lambda: pool.status().running == 2, "two calls that run")
        pool.scale(0)
        until(lambda: pool.status().blocks[0].state == "ending", "a block that only finishes")
        (tmp_path / "go").touch()
        short.result(PATIENCE_S)  # after this the node offers another number of slots and calls in all
        time.sleep(6)  # a manager that was told to leave would kill its workers within five
        gate.open()
        assert long.result(PATIENCE_S) == ""
        until(lambda: not system.alive, "the end of the block")


@pytest.mark.parametrize(("blocks", "pool_name"), [(-1, None), (3, None), (1, "other"), (True, None), ("1", None)])
def test_a_number_that_cannot_be_is_refused_and_nothing_starts(blocks, pool_name):
    pool = HPCPoolExecutor(NodePool(LocalProvider(own_process=True), max_blocks=2))
    with pytest.raises((ValueError, TypeError)):
        pool.scale(blocks, pool=pool_name)
    assert pool.status().state == "not started"
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.scale(1)


# wait_for_workers


def test_workers_are_waited_for_and_asked_for_as_if_there_were_calls(system):
    with HPCPoolExecutor(Config(system.pool(init_blocks=0, max_blocks=2, max_idle_time=5))) as pool:
        pool.wait_for_workers(2, timeout=PATIENCE_S)
        assert pool.status().workers == 2
        until(lambda: not system.alive, "the end of blocks that nobody needs")


@pytest.mark.parametrize("n", [0, -1, 3, True, "1", None])
def test_a_number_of_workers_that_can_never_be_is_refused(n):
    pool = HPCPoolExecutor(2)
    with pytest.raises((ValueError, TypeError)):
        pool.wait_for_workers(n)
    assert pool.status().state == "not started"


def test_who_waits_too_long_is_told_in_what_state_the_blocks_are(system):
    system.behave("hold", "QOSMaxJobsPerUserLimit")
    with HPCPoolExecutor(Config(system.pool())) as pool:
        pool.scale(1)
        until(lambda: any(block.reason for block in pool.status().blocks), "a block that waits")
        with pytest.raises(TimeoutError, match=r"block default-0 \(job 1\) is queued: QOSMaxJobsPerUserLimit"):
            pool.wait_for_workers(timeout=0.1)
        pool.scale(0)


def test_who_waits_for_workers_of_a_pool_that_breaks_is_told_why(system):
    system.behave("refuse", "no such partition")
    pool = HPCPoolExecutor(Config(system.pool(), start_failure_limit=1))
    with pool, pytest.raises(BrokenPool, match="no such partition"):
        pool.wait_for_workers()


def test_who_waits_when_the_pool_is_shut_down_is_told(system):
    system.behave("hold", "Priority")
    pool = HPCPoolExecutor(Config(system.pool()))
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            pool.wait_for_workers()
        except RuntimeError as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    until(lambda: system.alive, "a job")
    pool.shutdown()
    waiter.join(PATIENCE_S)
    assert "was shut down while" in str(errors[0])


# job_script


def test_the_script_of_a_batch_system_is_shown_without_submitting_it():
    pool = HPCPoolExecutor(
        Config(
            NodePool(name="a"),
            NodePool(SlurmProvider(partition="debug"), name="b", walltime="01:00:00", worker_init="module load x"),
        )
    )
    script = pool.job_script("b")
    for line in ("#SBATCH --partition=debug", "#SBATCH --time=01:00:00", "module load x", "start.py manager"):
        assert line in script
    assert pool.options(name="x").job_script("b").count("#SBATCH") == script.count("#SBATCH")
    with pytest.raises(ValueError, match="pool must name one of a, b"):
        pool.job_script()
    with pytest.raises(ValueError, match="there is no node pool 'c'"):
        pool.job_script("c")


def test_of_this_machine_it_is_the_command():
    assert "start.py manager" in HPCPoolExecutor(1).job_script()


def test_the_script_is_what_is_submitted(system):
    with executor(Config(system.pool())) as pool:
        shown = pool.job_script()
        (job,) = system.jobs
        submitted = (job / "script").read_text()
    body = "\n".join(submitted.splitlines()[1:])
    folder = next(word for word in shown.split() if word.endswith("/block-default-0")).rpartition("/")[0]
    mine = next(word for word in submitted.split() if word.endswith("/block-default-0")).rpartition("/")[0]
    assert shown.replace(folder, mine).strip() == body.strip()
    assert subprocess.run(["bash", "-n"], input=shown, text=True, check=False).returncode == 0
