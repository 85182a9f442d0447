"""The Torque provider on real commands: Slurm's wrappers of Torque's, in front of a real Slurm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool.providers import JobState, JobStatus, SubmitError, TorqueProvider
from tests.testbed.blocks import Open, block, opening, reached, told
from tests.testbed.slurm import Slurm
from tests.testbed.torque import torque_commands

pytestmark = pytest.mark.testbed


@pytest.fixture(scope="module")
def commands(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in torque_commands(tmp_path_factory.mktemp("torque")).items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def opened(commands: None, slurm: Slurm, tmp_path: Path) -> Iterator[Open]:
    yield from opening(TorqueProvider, slurm.jobs_left, queue="main", walltime=300, job_dir=str(tmp_path))


def test_a_job_runs_and_its_exit_code_and_output_are_told(opened, tmp_path):
    driver = opened()
    go = tmp_path / "go"
    script = f'while [ ! -e "{go}" ]; do sleep 0.1; done; echo gone wrong >&2; exit 3'
    job = driver.submit(block(script, cores_per_node=2))
    assert reached(driver, job, JobState.RUNNING).ends_at is not None, "its walltime and when it was submitted tell"
    go.touch()
    over = reached(driver, job, JobState.FAILED)
    assert (over.exit_code, over.reason.partition(";")[0]) == (3, "exited with code 3")
    assert over.stderr_tail == "gone wrong"


def test_a_job_of_two_nodes_that_does_its_work_has_ended(opened, tmp_path):
    driver = opened()
    job = driver.submit(block(f'echo "$SLURM_NNODES" > "{tmp_path}/nodes"', nodes=2))
    assert reached(driver, job, JobState.ENDED).exit_code == 0
    assert (tmp_path / "nodes").read_text() == "2\n"


def test_a_job_that_is_cancelled_ends(opened):
    driver = opened()
    job = driver.submit(block("exec sleep 600"))
    reached(driver, job, JobState.RUNNING)
    driver.cancel([job])
    assert reached(driver, job, JobState.ENDED).reason.startswith("cancelled")


def test_a_queue_that_is_not_there_is_told_in_the_batch_system_s_words(opened):
    with pytest.raises(SubmitError, match="(?i)partition|queue"):
        opened(queue="nosuch").submit(block("exit 0"))


def test_a_job_that_nobody_knows_is_not_told_of(opened):
    unknown = JobStatus(JobState.UNKNOWN, reason="the batch system does not name this job")
    assert told(opened(), "99999") == unknown
