"""The Slurm provider on a real Slurm: real commands, trivial jobs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hpcpool.providers import JobState, JobStatus, SlurmProvider, SubmitError
from hpcpool.providers.batch_driver import BatchDriver, runs_folder
from hpcpool.providers.commands import CommandResult, LocalRunner
from hpcpool.providers.slurm import SlurmSystem
from tests.testbed.blocks import Open, all_over, block, opening, reached, told
from tests.testbed.machine import until
from tests.testbed.slurm import Slurm

pytestmark = pytest.mark.testbed


@pytest.fixture
def opened(slurm: Slurm, tmp_path: Path) -> Iterator[Open]:
    yield from opening(SlurmProvider, slurm.jobs_left, job_dir=str(tmp_path), poll_interval_s=0.5)


def test_a_job_runs_with_its_files_in_its_folder_and_environment(opened, tmp_path):
    driver = opened(walltime=300)
    script = 'cat "$FILES/key"; pwd; echo "$ADDED"; while [ ! -e "$FILES/go" ]; do sleep 0.1; done'
    env = {"ADDED": "it's", "FILES": driver.block_dir("b0")}
    job = driver.submit(block(script, files={"key": b"secret\n"}, cwd=str(tmp_path), env=env))
    status = reached(driver, job, JobState.RUNNING)
    assert status.started_at is not None
    assert abs(status.started_at - time.time()) < 60
    assert status.ends_at == status.started_at + 300
    folder = Path(driver.block_dir("b0"))
    (folder / "go").touch()
    assert reached(driver, job, JobState.ENDED) == JobStatus(JobState.ENDED, 0, "exited with code 0")
    assert (folder / "job.out").read_text() == f"secret\n{tmp_path}\nit's\n"
    driver.close()
    assert not folder.exists()


def test_a_job_that_fails_tells_why_and_keeps_its_output(opened):
    driver = opened()
    job = driver.submit(block("echo no module named numpy >&2; exit 3"))
    status = reached(driver, job, JobState.FAILED)
    folder = Path(driver.block_dir("b0"))
    assert status == JobStatus(
        JobState.FAILED,
        3,
        f"exited with code 3 (FAILED); its output is in {folder}",
        stderr_tail="no module named numpy",
    )
    driver.close()
    assert (folder / "job.err").read_text() == "no module named numpy\n"


def test_a_folder_that_is_not_on_the_node_is_told_by_the_job(opened):
    driver = opened()
    status = reached(driver, driver.submit(block("true", cwd="/no/such/folder")), JobState.FAILED)
    assert "/no/such/folder: No such file or directory" in status.stderr_tail


def test_a_path_with_blanks_and_percents_is_taken_as_it_is(opened, tmp_path):
    driver = opened(job_dir=str(tmp_path / "a b %j"))
    reached(driver, driver.submit(block("echo here")), JobState.ENDED)
    assert Path(driver.block_dir("b0"), "job.out").read_text() == "here\n"


def test_a_job_on_two_nodes_reaches_both(opened):
    driver = opened()
    job = driver.submit(block("srun --ntasks=2 bash -c 'echo \"$SLURM_NODEID $SLURMD_NODENAME\"'", nodes=2))
    reached(driver, job, JobState.ENDED)
    lines = Path(driver.block_dir("b0"), "job.out").read_text().splitlines()
    assert sorted(lines) == ["0 node1", "1 node2"]


def test_many_jobs_are_asked_about_at_once(opened):
    driver = opened()
    jobs = [driver.submit(block("exit $((CODE))", f"b{code}", env={"CODE": str(code)})) for code in range(3)]
    until(lambda: all_over(driver, jobs), "all are over")
    assert [status.exit_code for status in driver.status(jobs).values()] == [0, 1, 2]


def test_a_cancelled_job_gets_the_time_to_end_in_order(opened):
    driver = opened()
    script = 'trap "echo asked; exit 0" TERM; echo ready; while :; do sleep 0.1; done'
    job = driver.submit(block(script))
    output = Path(driver.block_dir("b0"), "job.out")
    until(lambda: output.exists() and output.read_text() == "ready\n", "the job is ready")
    driver.cancel([job])
    assert reached(driver, job, JobState.ENDED).reason == "cancelled"
    assert output.read_text() == "ready\nasked\n"


def test_a_job_that_does_not_end_when_asked_is_killed(opened):
    driver = opened()
    job = driver.submit(block('trap "" TERM; echo ready; while :; do sleep 0.1; done'))
    output = Path(driver.block_dir("b0"), "job.out")
    until(lambda: output.exists() and output.read_text() == "ready\n", "the job is ready")
    driver.cancel([job])
    driver.cancel([job])
    assert reached(driver, job, JobState.ENDED).state is JobState.ENDED


def test_a_job_that_is_cancelled_from_outside_has_failed(opened, slurm):
    driver = opened()
    job = driver.submit(block("sleep 60"))
    reached(driver, job, JobState.RUNNING)
    slurm.run("scancel", job)
    status = reached(driver, job, JobState.FAILED)
    assert status.reason.startswith("cancelled from outside (CANCELLED); its output is in ")


def test_a_waiting_job_is_cancelled(opened):
    driver = opened(scheduler_options="--hold")
    job = driver.submit(block("true"))
    status = reached(driver, job, JobState.PENDING)
    assert status.reason == "JobHeldUser: it will not run until it is released: scontrol release"
    driver.cancel([job])
    reached(driver, job, JobState.ENDED)


def test_a_job_that_never_will_run_says_so(opened):
    driver = opened(partition="brief", walltime=600)
    job = driver.submit(block("true"))
    until(lambda: told(driver, job).reason.startswith("PartitionTimeLimit: it will never run: "), "Slurm says why")
    assert told(driver, job).is_stuck


def test_a_closed_partition_is_told(opened):
    driver = opened(partition="closed")
    job = driver.submit(block("true"))
    until(lambda: told(driver, job).reason.startswith("PartitionDown: "), "Slurm says why")


def test_a_refused_job_is_told_in_slurm_s_words_and_leaves_nothing(opened):
    driver = opened(partition="nope")
    with pytest.raises(SubmitError, match=r"Invalid partition name specified \(`sinfo -s` lists the partitions\)"):
        driver.submit(block("true"))
    assert not Path(driver.block_dir("b0")).exists()


class LosesAnswers(LocalRunner):
    """A login node from which the answer of sbatch does not come back."""

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: str | None = None) -> CommandResult:
        done = super().run(argv, timeout_s=timeout_s, stdin=stdin)
        if "sbatch" not in argv:
            return done
        return CommandResult(done.argv, None, "", f"sbatch did not answer within {timeout_s:g} s")


def test_a_job_whose_submission_did_not_answer_is_found_by_its_name(slurm, tmp_path):
    runner = LosesAnswers()
    folder = runs_folder(runner, str(tmp_path), "/tmp/hpcpool-lost")
    with contextlib.closing(BatchDriver(SlurmSystem(SlurmProvider()), runner, folder, 1.0)) as driver:
        job = driver.submit(block("echo here"))
        reached(driver, job, JobState.ENDED)
        assert Path(driver.block_dir("b0"), "job.out").read_text() == "here\n"
    assert slurm.jobs_left() == []


def test_while_the_controller_is_down_a_job_is_unknown_and_lives_on(opened, slurm):
    driver = opened()
    job = driver.submit(block("sleep 60"))
    reached(driver, job, JobState.RUNNING)
    slurm.stop_controller()
    try:
        status = told(driver, job)
        assert status.state is JobState.UNKNOWN
        assert "Unable to contact slurm controller" in status.reason
    finally:
        slurm.start_controller()
    reached(driver, job, JobState.RUNNING)


@pytest.mark.timeout(170)
def test_a_job_ends_at_its_walltime_about_when_it_was_told(opened):
    driver = opened(walltime=60)
    job = driver.submit(block("sleep 300"))
    ends_at = reached(driver, job, JobState.RUNNING).ends_at
    assert ends_at is not None
    until(lambda: told(driver, job).state.is_over, "the walltime is over", timeout_s=140)
    status = told(driver, job)
    assert status.state is JobState.FAILED
    assert status.reason.startswith("its walltime was over (TIMEOUT)")
    assert "DUE TO TIME LIMIT" in status.stderr_tail
    assert -1 < time.time() - ends_at < 60
