"""Slurm with accounts: what it says of a wrong one, and how jobs are told of that its queue has forgotten."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool import BrokenPool, Config, HPCPoolExecutor, NodePool
from hpcpool.providers import JobState, SlurmProvider
from tests.live.processes import until
from tests.testbed.blocks import block
from tests.testbed.conftest import running
from tests.testbed.slurm_accounts import ACCOUNT, SlurmWithAccounts

#: The first test installs and starts MariaDB and all of Slurm, too.
pytestmark = [pytest.mark.testbed, pytest.mark.timeout(170)]

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def accounts(temporary_directory: Path) -> Iterator[SlurmWithAccounts]:
    system = SlurmWithAccounts(Path(tempfile.mkdtemp(prefix="accounts-", dir=temporary_directory)))
    with running(system):
        yield system


@pytest.fixture
def home(accounts, monkeypatch, tmp_path) -> Iterator[SlurmWithAccounts]:
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        yield accounts
        until(lambda: not accounts.jobs_left(), "no job is left", PATIENCE_S)
    finally:
        accounts.run("scancel", "--user=root")


def pool_of(account: str) -> NodePool:
    provider = SlurmProvider(account=account, cores_per_node=1, poll_interval_s=1.0)
    return NodePool(provider, workers_per_node=1, walltime="00:05:00")


def test_an_account_that_is_not_the_user_s_breaks_the_pool_in_slurm_s_words_with_what_to_do(home):
    with HPCPoolExecutor(Config(pool_of("nobody"), start_failure_limit=1)) as pool:
        error = pool.submit(abs, 1).exception(PATIENCE_S)
    assert isinstance(error, BrokenPool)
    assert "Invalid account or account/partition combination specified" in str(error)
    assert "`sacctmgr show associations user=$USER` lists your accounts" in str(error)


def test_calls_run_under_an_account(home):
    with HPCPoolExecutor(pool_of(ACCOUNT)) as pool:
        assert pool.submit(abs, -1).result(PATIENCE_S) == 1
        assert ACCOUNT in home.run("squeue", "-h", "-o", "%a")


def test_how_a_job_ended_that_the_queue_has_forgotten_is_told_by_sacct(home, tmp_path):
    provider = SlurmProvider(account=ACCOUNT, job_dir=str(tmp_path), poll_interval_s=0.5)
    with contextlib.closing(provider.open(str(tmp_path / "run"))) as driver:
        job = driver.submit(block("exit 7"))
        until(lambda: not home.run("squeue", "-h", "-t", "all", "-j", job), "the queue has forgotten it", 100)
        with contextlib.closing(provider.open(str(tmp_path / "another run"))) as another:
            status = another.status([job])[job]
        assert (status.state, status.exit_code) == (JobState.FAILED, 7)
        assert driver.status([job])[job].exit_code == 7
