"""Blocks of a batch system come and go with the work, and what goes wrong with them is told in its words."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool import BrokenPool, Config, HPCPoolExecutor
from tests.gate import Gate, pass_gate
from tests.live.folder_system import FolderSystem, folder_system
from tests.live.processes import PATIENCE_S, executor, until

pytestmark = [pytest.mark.live, pytest.mark.once]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FolderSystem]:
    with folder_system(monkeypatch, tmp_path) as system:
        yield system


def config(system: FolderSystem, start_warning_s: float = 30.0, **options: object) -> Config:
    return Config(system.pool(**options), start_warning_s=start_warning_s)


def test_calls_run_in_a_block_of_a_batch_system_which_is_over_when_the_pool_is(system):
    with executor(config(system)) as pool:
        assert pool.submit(pow, 2, 10).result(PATIENCE_S) == 1024
        assert len(system.alive) == 1
    assert system.alive == []


def test_blocks_come_with_the_work_and_go_when_it_has_gone(system, tmp_path):
    with executor(config(system, max_blocks=3, max_idle_time=0.5)) as pool:
        gate = Gate(tmp_path)
        calls = [pool.submit(pass_gate, gate.path) for _ in range(6)]
        until(lambda: len(system.alive) == 3, "three blocks")
        gate.open()
        for call in calls:
            call.result(PATIENCE_S)
        until(lambda: not system.alive, "the end of idle blocks")
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1, "and a new one comes when there is work again"
    assert len(system.jobs) <= 5


def test_a_queued_block_is_cancelled_when_its_work_has_gone(system):
    system.behave("hold", "Resources")
    with HPCPoolExecutor(config(system, init_blocks=0, max_idle_time=0.5)) as pool:
        call = pool.submit(abs, 1)
        until(lambda: system.alive, "a job in the queue")
        assert call.cancel()
        until(lambda: not system.alive, "the end of that job")


def test_a_block_is_lost_when_its_walltime_is_over_and_another_takes_its_calls(system, tmp_path):
    system.behave("walltime", "6")
    with HPCPoolExecutor(Config(system.pool(), loss_limit=1)) as pool, Gate(tmp_path) as gate:
        call = pool.submit(pass_gate, gate.path)
        until(lambda: len(system.jobs) == 2, "a second block")
        system.behave("walltime", "60")
        gate.open()
        call.result(PATIENCE_S)


def fail_once(path: str, gate: str) -> int:
    """Note each run; wait in the first one, fail in the second one, and return in which one it went well."""
    with open(path, "a+") as log:
        log.write("x")
        log.flush()
        run = log.tell()
    if run == 1:
        pass_gate(gate)
    if run == 2:
        raise ValueError("once")
    return run


@pytest.mark.parametrize("how", ["preempted", "over its walltime"])
def test_a_call_whose_block_is_taken_away_has_its_retries_left(system, tmp_path, how):
    if how == "over its walltime":
        system.behave("walltime", "18")  # nothing is started in the last ten seconds
    runs = tmp_path / "runs"
    with HPCPoolExecutor(config(system)) as pool, Gate(tmp_path) as gate:
        call = pool.options(retries=1).submit(fail_once, str(runs), gate.path)
        until(lambda: runs.exists() and runs.read_text(), "the first run")
        if how == "preempted":
            system.preempt()
        until(lambda: len(system.jobs) == 2, "a second block", 2 * PATIENCE_S)
        system.behave("walltime", "60")
        assert call.result(PATIENCE_S) == 3
        assert pool.status().node_pools[0].last_failure == ""


def note_and_pass(path: str, gate: str) -> int:
    """Note each run; return in which one the gate was open."""
    with open(path, "a+") as log:
        log.write("x")
        log.flush()
        run = log.tell()
    pass_gate(gate)
    return run


def test_however_often_its_block_is_preempted_a_call_is_not_lost_for_good(system, tmp_path):
    runs = tmp_path / "runs"
    with HPCPoolExecutor(Config(system.pool(), loss_limit=1)) as pool, Gate(tmp_path) as gate:
        call = pool.submit(note_and_pass, str(runs), gate.path)
        for count in range(1, 5):
            until(lambda count=count: runs.exists() and len(runs.read_text()) == count, f"run {count}")
            system.preempt()
        until(lambda: len(runs.read_text()) == 5, "the last run")
        gate.open()
        assert call.result(PATIENCE_S) == 5


def test_blocks_that_die_break_the_pool_with_state_code_and_the_end_of_their_stderr(system):
    system.behave("die", "ModuleNotFoundError: no module named hpcpool")
    with HPCPoolExecutor(Config(system.pool(), start_failure_limit=1)) as pool:
        error = pool.submit(abs, 1).exception(PATIENCE_S)
    assert isinstance(error, BrokenPool)
    for words in ("failed", "FAILED", "exit code 3", "ModuleNotFoundError: no module named hpcpool", "job 1"):
        assert words in str(error)


def test_blocks_that_are_refused_break_the_pool_in_the_batch_system_s_words(system):
    system.behave("refuse", "invalid partition specified: debgu")
    with HPCPoolExecutor(Config(system.pool(), start_failure_limit=2)) as pool:
        error = pool.submit(abs, 1).exception(PATIENCE_S)
    assert isinstance(error, BrokenPool)
    assert "invalid partition specified: debgu" in str(error)


def test_an_outage_of_the_batch_system_is_waited_for(system):
    system.behave("outage")
    with HPCPoolExecutor(Config(system.pool(), start_failure_limit=1)) as pool:
        call = pool.submit(abs, -3)
        until(lambda: system.counted("submissions"), "a submission that fails")
        system.recover("outage")
        assert call.result(PATIENCE_S) == 3


def test_a_status_command_that_fails_ends_no_block(system, tmp_path):
    with executor(config(system)) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE_S)
        system.behave("outage")
        asked = system.counted("questions")
        until(lambda: system.counted("questions") > asked + 3, "questions that fail")
        assert pool.submit(os.getpid).result(PATIENCE_S) == pid
        system.recover("outage")
    assert len(system.jobs) == 1


def test_one_warning_tells_why_no_worker_comes_in_the_batch_system_s_words(system, caplog):
    system.behave("hold", "QOSMaxJobsPerUserLimit")
    caplog.set_level(logging.WARNING, logger="hpcpool")
    with HPCPoolExecutor(config(system, start_warning_s=0.5)) as pool:
        pool.scale(1)
        until(lambda: any(block.reason for block in pool.status().blocks), "a block that waits")
        call = pool.submit(abs, -3)
        until(lambda: "QOSMaxJobsPerUserLimit" in caplog.text, "the warning")
        system.recover("hold")
        assert call.result(PATIENCE_S) == 3
    assert caplog.text.count("no worker has come") == 1
    assert "block default-0 (job 1) is queued: QOSMaxJobsPerUserLimit" in caplog.text


def test_a_batch_system_that_answers_slowly_delays_no_call_and_loses_no_job_at_the_end(system):
    with executor(config(system)) as pool:
        system.behave("slow", "1.5")
        system.behave("hang")
        until(lambda: system.counted("hanging"), "a question that takes its time")
        for _ in range(20):
            pool.submit(abs, 1).result(PATIENCE_S)
        system.recover("hang")
    assert system.alive == []


def test_a_pool_that_ends_while_its_block_is_being_submitted_leaves_no_job(system):
    system.behave("slow", "1")
    with HPCPoolExecutor(config(system)) as pool:
        call = pool.submit(abs, 1)
        call.cancel()
    assert system.alive == []
