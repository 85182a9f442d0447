"""The Grid Engine provider on a real Grid Engine: real commands, trivial jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpool.providers import GridEngineProvider, JobState, JobStatus, SubmitError
from tests.testbed.blocks import Open, all_over, block, opening, reached, told
from tests.testbed.gridengine import SLOTS, GridEngine
from tests.testbed.machine import until

pytestmark = pytest.mark.testbed


@pytest.fixture
def opened(gridengine: GridEngine, tmp_path: Path) -> Iterator[Open]:
    yield from opening(GridEngineProvider, gridengine.jobs_left, job_dir=str(tmp_path), poll_interval_s=0.5)


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


def test_the_start_is_told_right_in_any_time_zone(opened, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    driver = opened()
    started_at = reached(driver, driver.submit(block("sleep 60")), JobState.RUNNING).started_at
    assert started_at is not None
    assert abs(started_at - time.time()) < 60


def test_a_job_that_fails_tells_why_and_keeps_its_output(opened):
    driver = opened()
    job = driver.submit(block("echo no module named numpy >&2; exit 3"))
    folder = Path(driver.block_dir("b0"))
    assert reached(driver, job, JobState.FAILED) == JobStatus(
        JobState.FAILED,
        3,
        f"exited with code 3; its output is in {folder}",
        stderr_tail="no module named numpy",
    )
    driver.close()
    assert (folder / "job.err").read_text() == "no module named numpy\n"


def test_a_path_with_blanks_is_taken_as_it_is(opened, tmp_path):
    driver = opened(job_dir=str(tmp_path / "a b %j"))
    reached(driver, driver.submit(block("echo here")), JobState.ENDED)
    assert Path(driver.block_dir("b0"), "job.out").read_text() == "here\n"


def test_a_job_has_the_slots_that_it_asks_for(opened):
    driver = opened(parallel_environment="smp")
    reached(driver, driver.submit(block('echo "$NSLOTS"', cores_per_node=3)), JobState.ENDED)
    assert Path(driver.block_dir("b0"), "job.out").read_text() == "3\n"


def test_many_jobs_are_asked_about_at_once(opened):
    driver = opened()
    jobs = [driver.submit(block("exit $((CODE))", f"b{code}", env={"CODE": str(code)})) for code in range(3)]
    until(lambda: all_over(driver, jobs), "all are over")
    assert [status.exit_code for status in driver.status(jobs).values()] == [0, 1, 2]


def test_a_cancelled_job_ends(opened):
    driver = opened()
    job = driver.submit(block("sleep 60"))
    reached(driver, job, JobState.RUNNING)
    driver.cancel([job])
    assert reached(driver, job, JobState.ENDED).reason.startswith("cancelled")


def test_a_job_that_is_cancelled_from_outside_has_failed(opened, gridengine):
    driver = opened()
    job = driver.submit(block("sleep 60"))
    reached(driver, job, JobState.RUNNING)
    gridengine.run("qdel", job)
    assert reached(driver, job, JobState.FAILED).reason.startswith("killed, SIGKILL (failed 100 : assumedly after job)")


def test_a_waiting_job_is_cancelled(opened):
    driver = opened(scheduler_options="-h")
    job = driver.submit(block("true"))
    assert reached(driver, job, JobState.PENDING).reason == "held (hqw): it will not run until it is released: qrls"
    driver.cancel([job])
    reached(driver, job, JobState.ENDED)


def test_a_job_whose_output_cannot_be_written_says_why_it_does_not_run(opened):
    driver = opened(scheduler_options="-o /no/such/folder/out")
    job = driver.submit(block("true"))
    until(lambda: told(driver, job).is_stuck, "it is in error state")
    assert "can't open output file" in told(driver, job).reason


def test_a_job_that_waits_for_slots_says_so(opened):
    driver = opened(parallel_environment="smp")
    request = {"script": "sleep 60", "cores_per_node": SLOTS}
    reached(driver, driver.submit(block(**request)), JobState.RUNNING)
    second = driver.submit(block(**request, block_id="b1"))
    assert reached(driver, second, JobState.PENDING).reason.startswith("waiting (qw")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue": "nope.q"}, r"unknown queue .*`qconf -sql`"),
        ({"parallel_environment": "smp", "slots_per_node": 99}, r"no suitable queues"),
        ({"resources": ("nope=1",)}, r"unknown resource .*`qconf -sc`"),
    ],
)
def test_a_refused_job_is_told_in_grid_engine_s_words_and_leaves_nothing(opened, options, words):
    driver = opened(**options)
    with pytest.raises(SubmitError, match=words):
        driver.submit(block("true"))
    assert not Path(driver.block_dir("b0")).exists()


def test_while_the_qmaster_is_down_a_job_is_unknown_and_lives_on(opened, gridengine):
    driver = opened()
    job = driver.submit(block("sleep 60"))
    reached(driver, job, JobState.RUNNING)
    gridengine.stop_qmaster()
    try:
        status = told(driver, job)
        assert status.state is JobState.UNKNOWN
        assert "qmaster" in status.reason
    finally:
        gridengine.start_qmaster()
    reached(driver, job, JobState.RUNNING)


def test_a_job_ends_at_its_walltime(opened):
    driver = opened()
    job = driver.submit(block("sleep 60", walltime_s=5.0))
    status = reached(driver, job, JobState.FAILED)
    assert status.reason.startswith("its walltime or its memory was over")
