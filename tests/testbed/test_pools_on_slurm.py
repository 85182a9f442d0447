"""Whole pools on a real Slurm: blocks come, go, fail, are taken away, and never stay."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hpcpool import BrokenPool, Config, HPCPoolExecutor, NodePool, ResourcesUnavailable
from hpcpool.processes.journal import journal_folder
from hpcpool.providers import SlurmProvider
from tests.conftest import our_processes
from tests.gate import Gate, pass_gate
from tests.live.processes import Pool, kill, role
from tests.live.scripts import script
from tests.testbed.machine import until
from tests.testbed.slurm import Slurm

pytestmark = pytest.mark.testbed

#: Slurm looks at its queue every few seconds, and kills what is over its time within a minute.
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def home(slurm: Slurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A home directory of its own for jobs and journals; no job is left in the queue at the end."""
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        yield
        until(lambda: not slurm.jobs_left(), "no job is left")
    finally:
        slurm.run("scancel", "--user=root")


def pool_of(partition: str = "main", **options: object) -> NodePool:
    provider = SlurmProvider(partition=partition, cores_per_node=1, exclusive=False, poll_interval_s=1.0)
    options = {"workers_per_node": 1, "walltime": "00:05:00"} | options
    return NodePool(provider, **options)  # type: ignore[arg-type]


def test_blocks_come_with_the_work_go_when_it_has_gone_and_all_are_over_with_the_pool(slurm, tmp_path):
    with HPCPoolExecutor(pool_of(max_blocks=3, max_idle_time=2)) as pool, Gate(tmp_path) as gate:
        calls = [pool.submit(pass_gate, gate.path) for _ in range(3)]
        until(lambda: pool.status().running == 3, "three calls that run")
        assert len(slurm.jobs_left()) == 3
        assert {block.state for block in pool.status().blocks} == {"serving"}
        assert {job.split()[0] for job in slurm.jobs_left()} == {block.job_id for block in pool.status().blocks}
        gate.open()
        for call in calls:
            call.result(PATIENCE_S)
        until(lambda: not slurm.jobs_left(), "idle blocks are given back")
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1
    assert list(journal_folder().glob("*")) == []


def test_a_block_of_two_nodes_has_a_manager_on_each(slurm):
    with HPCPoolExecutor(pool_of(nodes_per_block=2)) as pool:
        pool.wait_for_workers(2, PATIENCE_S)
        assert [node.slots for node in pool.status().nodes] == [1, 1]


def test_a_node_that_dies_takes_its_calls_to_the_other_and_no_more(slurm, tmp_path):
    with HPCPoolExecutor(pool_of(nodes_per_block=2)) as pool, Gate(tmp_path) as gate:
        pool.wait_for_workers(2, PATIENCE_S)
        calls = [pool.submit(pass_gate, gate.path) for _ in range(2)]
        until(lambda: pool.status().running == 2, "both nodes are at work")
        victim = next(process for process in managers() if is_on(process, "node2"))
        # The manager first: it must not live to tell that its worker has died.
        for process in [victim, *victim.children(recursive=True)]:
            kill(process)
        until(lambda: len(pool.status().nodes) == 1, "the interchange has noticed")
        assert len(slurm.jobs_left()) == 1, "the block goes on"
        gate.open()
        assert [call.result(PATIENCE_S) for call in calls] == ["", ""]
        assert len(pool.status().nodes) == 1


def managers() -> list[psutil.Process]:
    return [process for process in our_processes() if role(process) == "manager" and is_on(process, "node")]


def is_on(process: psutil.Process, node: str) -> bool:
    return process.environ().get("SLURMD_NODENAME", "").startswith(node)


@pytest.mark.parametrize(
    ("partition", "walltime", "words"),
    [("nowhere", "00:05:00", "Invalid partition name"), ("brief", "01:00:00", "it will never run")],
)
def test_what_slurm_does_not_take_or_will_never_run_is_told_in_its_words(partition, walltime, words):
    config = Config(pool_of(partition, walltime=walltime), start_failure_limit=1, start_timeout_s=1)
    with HPCPoolExecutor(config) as pool:
        error = pool.submit(abs, 1).exception(PATIENCE_S)
    assert isinstance(error, BrokenPool)
    assert words in str(error)


def test_who_waits_for_workers_of_a_closed_partition_is_told(slurm):
    with HPCPoolExecutor(pool_of("closed")) as pool:
        pool.scale(1)
        until(lambda: any("PartitionDown" in block.reason for block in pool.status().blocks), "the reason")
        with pytest.raises(TimeoutError, match="PartitionDown"):
            pool.wait_for_workers(timeout=0.1)


def test_a_held_job_says_so_and_serves_when_it_is_released(slurm):
    provider = SlurmProvider(partition="main", poll_interval_s=1.0, scheduler_options="--hold")
    with HPCPoolExecutor(NodePool(provider, workers_per_node=1)) as pool:
        call = pool.submit(abs, -1)
        until(lambda: any("JobHeldUser" in block.reason for block in pool.status().blocks), "the reason")
        with pytest.raises(TimeoutError, match="JobHeldUser: it will not run until it is released: scontrol release"):
            pool.wait_for_workers(timeout=0.1)
        slurm.run("scontrol", "release", pool.status().blocks[0].job_id)
        assert call.result(PATIENCE_S) == 1


def test_worker_init_that_fails_breaks_the_pool_with_its_stderr():
    pool = pool_of(worker_init="echo no such module >&2; exit 4")
    with HPCPoolExecutor(Config(pool, start_failure_limit=1)) as executor:
        error = executor.submit(abs, 1).exception(PATIENCE_S)
    assert "no such module" in str(error)
    assert "exited with code 4" in str(error)


def has_other_job(pool: HPCPoolExecutor, job: str) -> bool:
    return any(block.job_id not in ("", job) for block in pool.status().blocks)


@pytest.mark.timeout(170)
@pytest.mark.parametrize("how", ["cancelled from outside", "over its walltime"])
def test_the_calls_of_a_block_that_is_gone_run_in_another(slurm, tmp_path, how):
    walltime = "00:01:00" if how == "over its walltime" else "00:05:00"
    with HPCPoolExecutor(pool_of(walltime=walltime)) as pool, Gate(tmp_path) as gate:
        call = pool.submit(pass_gate, gate.path)
        until(lambda: pool.status().running == 1, "the call runs")
        job = pool.status().blocks[0].job_id
        if how == "cancelled from outside":
            slurm.run("scancel", job)
        until(lambda: has_other_job(pool, job), "another block", timeout_s=140)
        gate.open()
        assert call.result(PATIENCE_S) == ""


def test_a_block_that_another_job_preempts_has_not_failed_and_its_call_runs_in_the_next(slurm, tmp_path):
    with HPCPoolExecutor(Config(pool_of(), start_failure_limit=1)) as pool, Gate(tmp_path) as gate:
        call = pool.submit(pass_gate, gate.path)
        until(lambda: pool.status().running == 1, "the call runs")
        first = pool.status().blocks[0].job_id
        whole = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
        slurm.run("sbatch", *whole)
        until(lambda: "PREEMPTED" in slurm.run("squeue", "-h", "-t", "all", "-j", first, "-o", "%T"), "the preemption")
        until(lambda: has_other_job(pool, first), "another block")
        gate.open()
        assert call.result(PATIENCE_S) == ""
        assert pool.status().node_pools[0].last_failure == ""
    until(lambda: not slurm.jobs_left(), "no job is left")


def job_id() -> str:
    return os.environ["SLURM_JOB_ID"]


def test_a_call_that_needs_longer_than_is_left_of_a_block_runs_in_another():
    with HPCPoolExecutor(pool_of(walltime="00:01:00", max_blocks=2)) as pool:
        long = pool.options(time_request=40)
        first = pool.submit(job_id).result(PATIENCE_S)
        until(lambda: (pool.status().blocks[0].ends_at or math.inf) < time.time() + 44, "too little is left")
        assert long.submit(job_id).result(PATIENCE_S) != first
        assert pool.options(time_request=1).submit(job_id).result(PATIENCE_S) is not None


@pytest.mark.parametrize("option", ["time_request", "timeout"])
def test_a_call_that_needs_longer_than_slurm_gives_to_any_block_fails(option):
    """The pool and its provider say no walltime: Slurm's default for the partition is ten minutes."""
    with HPCPoolExecutor(pool_of(walltime=None)) as pool:
        pool.wait_for_workers(1, PATIENCE_S)
        until(lambda: pool.status().blocks[0].ends_at is not None, "Slurm has said when the block ends")
        error = pool.options(**{option: 601}).submit(abs, -1).exception(PATIENCE_S)
    assert isinstance(error, ResourcesUnavailable)
    assert f"needs {option}=601" in str(error)


def test_an_outage_of_the_controller_loses_nothing(slurm, tmp_path):
    with HPCPoolExecutor(pool_of()) as pool, Gate(tmp_path) as gate:
        call = pool.submit(pass_gate, gate.path)
        until(lambda: pool.status().running == 1, "the call runs")
        slurm.stop_controller()
        try:
            until(lambda: pool.status().blocks[0].state == "serving?", "a question that is not answered")
            gate.open()
            assert call.result(PATIENCE_S) == ""
            assert len(pool.status().blocks) == 1
        finally:
            slurm.start_controller()
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1


PROGRAM = """
import time
from hpcpool import HPCPoolExecutor
from tests.testbed.test_pools_on_slurm import pool_of
with HPCPoolExecutor(pool_of(init_blocks=2, max_blocks=2)) as pool:
    pool.wait_for_workers(2)
    print("ready", flush=True)
    pool.submit(time.sleep, 600).result()
"""


@pytest.mark.parametrize("who", ["client", "interchange", "both"])
def test_whoever_is_killed_no_job_is_left(slurm, tmp_path, who):
    with script(tmp_path / "program.py", PROGRAM) as program:
        program.wait_for("ready")
        interchange = Pool.below(program.pid).interchange
        assert len(slurm.jobs_left()) == 2
        if who == "both":
            interchange.send_signal(signal.SIGSTOP)
        if who != "interchange":
            os.kill(program.pid, signal.SIGKILL)
        if who != "client":
            interchange.kill()
            psutil.wait_procs([interchange], PATIENCE_S)
        if who == "both":
            program.process.wait(PATIENCE_S)
            command = [sys.executable, "-m", "hpcpool.tools.main", "cleanup"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "run hpcpool-" in done.stdout
        until(lambda: not slurm.jobs_left(), "no job is left")
        if who == "interchange":
            assert program.finish() == 1, "the calls have failed, and the program with them"
            assert "died by SIGKILL" in program.err
    until(lambda: not list(journal_folder().glob("*")), "no journal is left")
