"""Whole pools on a real Grid Engine, which kills jobs without a warning."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool import BrokenPool, Config, HPCPoolExecutor, NodePool
from hpcpool.processes.journal import journal_folder
from hpcpool.providers import GridEngineProvider
from tests.gate import Gate, pass_gate
from tests.live.processes import until
from tests.live.scripts import script
from tests.testbed.gridengine import GridEngine

pytestmark = pytest.mark.testbed

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def home(gridengine: GridEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A home directory of its own for jobs and journals; no job is left in the queue at the end."""
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        yield
        until(lambda: not gridengine.jobs_left(), "no job is left", PATIENCE_S)
    finally:
        gridengine.run("qdel", "-u", "*")


def pool_of(**options: object) -> NodePool:
    options = {"workers_per_node": 1, "walltime": "00:05:00"} | options
    return NodePool(GridEngineProvider(poll_interval_s=1.0), **options)  # type: ignore[arg-type]


def test_blocks_come_with_the_work_and_go_when_it_has_gone(gridengine, tmp_path):
    with HPCPoolExecutor(pool_of(max_blocks=2, max_idle_time=2)) as pool, Gate(tmp_path) as gate:
        calls = [pool.submit(pass_gate, gate.path) for _ in range(2)]
        until(lambda: pool.status().running == 2, "two calls that run", PATIENCE_S)
        assert {block.state for block in pool.status().blocks} == {"serving"}
        gate.open()
        for call in calls:
            call.result(PATIENCE_S)
        until(lambda: not gridengine.jobs_left(), "idle blocks are given back", PATIENCE_S)
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1
    assert list(journal_folder().glob("*")) == []


def test_the_call_of_a_job_that_is_deleted_from_outside_runs_in_another(gridengine, tmp_path):
    with HPCPoolExecutor(pool_of()) as pool, Gate(tmp_path) as gate:
        call = pool.submit(pass_gate, gate.path)
        until(lambda: pool.status().running == 1, "the call runs", PATIENCE_S)
        job = pool.status().blocks[0].job_id
        gridengine.run("qdel", job)
        until(lambda: [b.job_id for b in pool.status().blocks if b.job_id not in ("", job)], "another", PATIENCE_S)
        gate.open()
        assert call.result(PATIENCE_S) == ""


def test_worker_init_that_fails_is_told_in_its_words():
    config = Config(pool_of(worker_init="echo no such module >&2; exit 4"), start_failure_limit=1)
    with HPCPoolExecutor(config) as pool:
        error = pool.submit(abs, 1).exception(PATIENCE_S)
    assert isinstance(error, BrokenPool)
    assert "no such module" in str(error)


PROGRAM = """
import time
from hpcpool import HPCPoolExecutor
from tests.testbed.test_pools_on_gridengine import pool_of
with HPCPoolExecutor(pool_of()) as pool:
    pool.wait_for_workers(1)
    print("ready", flush=True)
    pool.submit(time.sleep, 600).result()
"""


def test_when_the_client_is_killed_no_job_is_left(gridengine, tmp_path):
    with script(tmp_path / "program.py", PROGRAM) as program:
        program.wait_for("ready")
        assert gridengine.jobs_left()
        os.kill(program.pid, signal.SIGKILL)
        until(lambda: not gridengine.jobs_left(), "no job is left", PATIENCE_S)
    until(lambda: not list(journal_folder().glob("*")), "no journal is left", PATIENCE_S)
