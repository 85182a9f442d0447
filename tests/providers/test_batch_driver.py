from __future__ import annotations

import signal
import subprocess

import pytest

from hpcpool.providers import BlockRequest, Driver, JobState, JobStatus, SubmitError, Unreachable
from hpcpool.providers.batch_driver import BatchDriver, job_body, job_name, last_lines, runs_folder
from hpcpool.providers.commands import CommandResult
from tests.providers.paper_batch import ForgetfulSystem, PaperMachine, PaperSystem, failed, printed

FOLDER = "/home/user/.hpcpool/runs/run1"
LOST = failed("submit did not answer within 60 s", code=None)


@pytest.fixture
def machine() -> PaperMachine:
    return PaperMachine()


@pytest.fixture
def driver(machine) -> BatchDriver:
    return driver_on(machine)


def driver_on(machine: PaperMachine, system: ForgetfulSystem | None = None, **options) -> BatchDriver:
    return BatchDriver(system or PaperSystem(), machine, FOLDER, 30.0, clock=machine.clock, **options)


def block(block_id: str = "b1", **changes) -> BlockRequest:
    fields = {"nodes": 1, "command": ("run", "me"), "cwd": "/work", "stdout": "/x/out", "stderr": "/x/err"}
    return BlockRequest(block_id=block_id, **{**fields, **changes})


def status(driver: BatchDriver, job: str) -> JobStatus:
    return driver.status([job])[job]


# Submitting


def test_it_is_a_driver(driver):
    made: Driver = driver
    assert isinstance(made, Driver)
    assert (made.watch_fd, made.is_local, made.poll_interval_s) == (None, False, 30.0)


def test_the_files_and_the_script_of_a_block_are_written_into_its_folder_before_it_is_submitted(driver, machine):
    job = driver.submit(block(files={"connection.json": b"{}"}))
    assert machine.files[f"{FOLDER}/b1/connection.json"] == b"{}"
    assert machine.files[f"{FOLDER}/b1/job.sh"].decode() == driver.job_script(block())
    assert machine.ran == [("submit", f"{FOLDER}/b1/job.sh")]
    assert (job, driver.block_dir("b1")) == ("1", f"{FOLDER}/b1")


def test_a_script_is_shown_without_submitting_it(driver, machine):
    assert driver.job_script(block()).startswith("# run1-b1\n# None\ncd -- /work || exit 1\n")
    assert (machine.ran, machine.files) == ([], {})


def test_the_walltime_of_a_block_comes_before_the_provider_s(machine):
    driver = driver_on(machine, walltime_s=60.0)
    assert driver.job_script(block()).splitlines()[1] == "# 60.0"
    assert driver.job_script(block(walltime_s=30.0)).splitlines()[1] == "# 30.0"


def test_a_refused_block_leaves_nothing_and_is_not_submitted_again(driver, machine):
    machine.instead["submit"] = failed("no such queue")
    with pytest.raises(SubmitError, match="^no such queue$"):
        driver.submit(block(files={"key": b"secret"}))
    assert machine.verbs() == ["submit"]
    assert machine.files == {}


@pytest.mark.parametrize(
    "words",
    [
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        'Unable to run job: unable to send message to qmaster using port 1 on host "localhost": got send error',
        "qsub: cannot connect to server pbs (errno=111)",
        "LSF is down. Please wait ...",
    ],
)
def test_a_batch_system_that_cannot_be_reached_has_refused_nothing(driver, machine, words):
    machine.instead["submit"] = failed(words)
    with pytest.raises(Unreachable) as caught:
        driver.submit(block())
    assert words in str(caught.value)
    assert machine.files == {}


def test_a_job_is_found_by_the_name_of_its_block(driver, machine):
    job = driver.submit(block())
    assert driver.find_job("b1") == job
    assert driver.find_job("another") is None


def test_a_block_that_the_batch_system_cannot_have_is_refused_before_anything_is_written(driver, machine):
    with pytest.raises(SubmitError, match="there are 9 nodes"):
        driver.submit(block(nodes=10))
    assert (machine.ran, machine.files) == ([], {})


def test_files_that_cannot_be_written_are_told_with_the_option_that_helps(driver, machine):
    machine.is_full = True
    with pytest.raises(SubmitError, match=rf"{FOLDER}/b1 .*No space left on device.*job_dir"):
        driver.submit(block())
    assert machine.ran == []


def test_a_driver_that_is_closed_takes_no_block(driver):
    driver.close()
    with pytest.raises(RuntimeError, match="closed"):
        driver.submit(block())


# A submission of which nobody knows if it was accepted


@pytest.mark.parametrize("code", [None, -9])
def test_a_submission_that_was_accepted_unseen_is_found_by_its_name(driver, machine, code):
    def answer(command):
        machine.obey(command)
        return CommandResult(command, code, "", "cut off")

    machine.instead["submit"] = answer
    assert driver.submit(block()) == "1"
    assert machine.verbs() == ["submit", "find"]
    assert status(driver, "1").state is JobState.PENDING


def test_an_answer_that_is_no_id_is_looked_into(driver, machine):
    def answer(command):
        machine.obey(command)
        return printed(command, "Welcome!")

    machine.instead["submit"] = answer
    assert driver.submit(block()) == "1"


def test_a_submission_that_is_not_found_is_told_by_name_and_not_repeated(driver, machine):
    machine.instead["submit"] = LOST
    with pytest.raises(SubmitError, match=r"60 s \(the job, named run1-b1, may have been accepted: it was not found"):
        driver.submit(block())
    assert machine.verbs() == ["submit", "find"]
    assert machine.files == {}, "it starts nothing, should it start"


def test_a_job_that_turns_up_after_its_submission_was_given_up_is_cancelled_once(driver, machine):
    machine.instead["submit"] = LOST
    with pytest.raises(SubmitError):
        driver.submit(block())
    driver.status([])
    machine.names["7"] = "run1-b1"
    machine.ran.clear()
    driver.status([])
    driver.status([])
    assert machine.ran == [("find", "run1-b1"), ("cancel", "7")]


def test_a_job_that_has_not_turned_up_is_looked_for_once_more_at_the_end(driver, machine):
    machine.instead["submit"] = LOST
    with pytest.raises(SubmitError):
        driver.submit(block())
    machine.names["7"] = "run1-b1"
    machine.ran.clear()
    driver.close()
    assert machine.ran == [("find", "run1-b1"), ("cancel", "7")]


def test_a_job_that_does_not_turn_up_is_forgotten_in_the_end(driver, machine):
    machine.instead["submit"] = LOST
    with pytest.raises(SubmitError):
        driver.submit(block())
    machine.now += 601.0
    driver.status([])
    machine.ran.clear()
    driver.status([])
    assert machine.ran == []


def test_where_jobs_have_no_names_the_error_says_that_it_may_have_been_accepted(machine):
    machine.instead["submit"] = LOST
    with pytest.raises(SubmitError, match="named run1-b1, may have been accepted: jobs cannot be found by name here"):
        driver_on(machine, ForgetfulSystem()).submit(block())
    assert machine.verbs() == ["submit"]


def test_a_submit_command_that_is_not_there_has_accepted_nothing(driver, machine):
    machine.instead["submit"] = lambda argv: CommandResult(argv, None, "", "submit: not found", was_not_started=True)
    with pytest.raises(SubmitError, match="^submit: not found$"):
        driver.submit(block())
    assert machine.verbs() == ["submit"]


# Watching


def test_all_jobs_are_asked_about_in_one_command(driver, machine):
    jobs = [driver.submit(block(f"b{number}")) for number in range(3)]
    machine.ran.clear()
    assert {told.reason for told in driver.status(jobs).values()} == {"Priority"}
    assert machine.ran == [("status", "1", "2", "3")]


def test_only_those_that_are_not_named_are_looked_up_in_the_history(driver, machine):
    jobs = [driver.submit(block(f"b{number}")) for number in range(3)]
    del machine.queue["2"]
    machine.past["2"] = "ended 0 - - done"
    machine.ran.clear()
    told = driver.status(jobs)
    assert told["2"] == JobStatus(JobState.ENDED, 0, "done")
    assert machine.ran == [("status", "1", "2", "3"), ("history", "2")]


def test_a_job_that_is_over_keeps_its_answer_and_is_not_asked_about_again(driver, machine):
    job = driver.submit(block())
    machine.queue[job] = "failed 3 - - bad"
    first = status(driver, job)
    machine.queue.clear()
    machine.ran.clear()
    assert status(driver, job) is first
    assert machine.ran == []


def test_a_job_that_failed_tells_its_stderr_and_where_its_output_is(driver, machine):
    job = driver.submit(block())
    machine.files[f"{FOLDER}/b1/job.err"] = b"first\nno module named numpy\n"
    machine.queue[job] = "failed 3 - - exited with code 3"
    assert status(driver, job) == JobStatus(
        JobState.FAILED,
        3,
        f"exited with code 3; its output is in {FOLDER}/b1",
        stderr_tail="first\nno module named numpy",
    )


@pytest.mark.parametrize("code", [None, 1])
def test_a_status_command_that_fails_says_nothing_about_a_job_however_long(driver, machine, code):
    job = driver.submit(block())
    machine.instead["status"] = failed("controller down", code)
    machine.ran.clear()
    for _ in range(3):
        assert status(driver, job) == JobStatus(JobState.UNKNOWN, reason="controller down")
        machine.now += 100_000.0
    assert set(machine.verbs()) == {"status"}
    del machine.instead["status"]
    assert status(driver, job).state is JobState.PENDING


def test_a_job_that_is_not_named_yet_is_unknown_and_then_over(driver, machine):
    job = driver.submit(block())
    line = machine.queue.pop(job)
    assert status(driver, job) == JobStatus(JobState.UNKNOWN, reason="the batch system does not name this job")
    machine.now += 29.0
    assert status(driver, job).state is JobState.UNKNOWN
    machine.queue[job] = line
    assert status(driver, job).state is JobState.PENDING
    del machine.queue[job]
    machine.now += 100.0
    assert status(driver, job).state is JobState.UNKNOWN, "it was named a moment ago"
    machine.now += 31.0
    assert status(driver, job).state is JobState.FAILED
    assert status(driver, job).reason.startswith("the batch system does not know this job any more")


def test_a_history_that_fails_gives_a_job_more_time_and_its_words(driver, machine):
    job = driver.submit(block())
    machine.queue.clear()
    machine.instead["history"] = failed("database down")
    assert status(driver, job) == JobStatus(JobState.UNKNOWN, reason="database down")
    machine.now += 299.0
    assert status(driver, job).state is JobState.UNKNOWN
    machine.now += 1.0
    assert status(driver, job).state is JobState.FAILED
    assert "(database down)" in status(driver, job).reason


@pytest.mark.parametrize(("code", "state"), [(0, JobState.ENDED), (3, JobState.FAILED)])
def test_a_job_that_nobody_names_is_over_once_its_script_has_written_how_it_ended(machine, code, state):
    driver = driver_on(machine, ForgetfulSystem())
    job = driver.submit(block())
    machine.queue.clear()
    machine.files[f"{FOLDER}/b1/job.exit"] = b""  # being written
    assert status(driver, job).state is JobState.UNKNOWN
    machine.files[f"{FOLDER}/b1/job.exit"] = b"%d\n" % code
    told = status(driver, job)
    assert (told.state, told.exit_code) == (state, code)
    assert told.reason.startswith(f"exited with code {code}")


def test_an_exit_code_that_the_batch_system_does_not_tell_is_that_of_the_script(driver, machine):
    job = driver.submit(block())
    machine.queue[job] = "failed - - - Error"
    machine.files[f"{FOLDER}/b1/job.exit"] = b"7\n"
    assert status(driver, job).exit_code == 7


def test_a_job_of_an_earlier_run_can_be_asked_about_and_cancelled(driver, machine):
    machine.queue["99"] = "running - - - -"
    assert status(driver, "99").state is JobState.RUNNING
    driver.cancel(["99"])
    assert ("cancel", "99") in machine.ran
    machine.queue["99"] = "failed 15 - - ended"
    assert status(driver, "99") == JobStatus(JobState.ENDED, 15, "cancelled, ended")


def test_the_end_that_the_batch_system_tells_counts(machine):
    driver = driver_on(machine, walltime_s=600.0)
    job = driver.submit(block())
    machine.queue[job] = "running - 1010 1234 -"
    assert status(driver, job).ends_at == 1234


def test_an_end_that_is_not_told_is_worked_out_from_the_start(machine):
    driver = driver_on(machine, walltime_s=600.0)
    job = driver.submit(block())
    machine.queue[job] = "running - 1010 - -"
    machine.now = 1100.0
    assert status(driver, job).ends_at == 1610.0


def test_a_start_that_is_not_told_is_the_last_moment_at_which_the_job_was_waiting(machine):
    driver = driver_on(machine)
    job = driver.submit(block(walltime_s=600.0))
    machine.now = 1100.0
    status(driver, job)
    machine.queue[job] = "running - - - -"
    for now in (1130.0, 1160.0):
        machine.now = now
        assert status(driver, job).ends_at == 1700.0


def test_without_a_walltime_no_end_is_made_up(driver, machine):
    job = driver.submit(block())
    machine.queue[job] = "running - 1010 - -"
    assert status(driver, job).ends_at is None


def test_jobs_are_looked_at_more_often_just_after_a_submission_or_a_cancellation(driver, machine):
    job = driver.submit(block())
    assert driver.poll_interval_s == 2.0
    machine.now += 20.0
    assert driver.poll_interval_s == 30.0
    driver.cancel([job])
    assert driver.poll_interval_s == 2.0


# Cancelling


def test_a_job_is_asked_to_end_once_and_then_ended_by_force(driver, machine):
    first, second = driver.submit(block("b1")), driver.submit(block("b2"))
    machine.ran.clear()
    driver.cancel([first])
    driver.cancel([first, second])
    assert machine.ran == [("cancel", "1"), ("cancel", "2"), ("cancel", "--force", "1")]


def test_a_cancelled_job_ended_as_it_should_and_another_one_did_not(driver, machine):
    ours, theirs = driver.submit(block("b1")), driver.submit(block("b2"))
    driver.cancel([ours])
    machine.queue = {ours: "failed 15 - - CANCELLED", theirs: "failed 15 - - CANCELLED"}
    told = driver.status([ours, theirs])
    assert told[ours] == JobStatus(JobState.ENDED, 15, "cancelled")
    assert told[theirs].state is JobState.FAILED


def test_jobs_that_are_over_are_passed_by(driver, machine):
    job = driver.submit(block())
    machine.queue[job] = "ended 0 - - -"
    driver.status([job])
    machine.ran.clear()
    driver.cancel([job])
    assert machine.ran == []


def test_a_cancellation_that_did_not_answer_is_asked_again_without_force(driver, machine):
    job = driver.submit(block())
    machine.instead["cancel"] = failed("no answer", code=None)
    driver.cancel([job])
    machine.ran.clear()
    driver.cancel([job])
    assert machine.ran == [("cancel", job)]


def test_a_cancelled_job_is_over_when_it_is_not_named_any_more(driver, machine):
    job = driver.submit(block())
    driver.status([job])
    driver.cancel([job])
    machine.queue.clear()
    assert status(driver, job).state is JobState.ENDED


def test_a_job_that_was_cancelled_before_it_was_ever_named_may_still_turn_up(driver, machine):
    job = driver.submit(block())
    driver.cancel([job])
    line = machine.queue.pop(job)
    assert status(driver, job).state is JobState.UNKNOWN
    machine.queue[job] = line
    assert status(driver, job).state is JobState.PENDING
    machine.queue.clear()
    assert status(driver, job).state is JobState.ENDED


# Closing


def test_at_the_end_nothing_is_left_of_a_run_without_failures(driver, machine):
    jobs = [driver.submit(block(f"b{number}")) for number in range(3)]
    machine.queue = {"1": "ended 0 - - -", "2": "running - - - -"}
    driver.cancel(["2"])
    driver.status(jobs)
    machine.files[f"{FOLDER}/other"] = b""
    driver.close()
    driver.close()
    assert machine.files == {}
    assert machine.is_closed


def test_at_the_end_only_the_folders_of_failed_jobs_are_left(driver, machine):
    jobs = [driver.submit(block(f"b{number}")) for number in range(3)]
    machine.queue = {"1": "ended 0 - - -", "2": "failed 1 - - -", "3": "running - - - -"}
    driver.status(jobs)
    driver.close()
    assert list(machine.files) == [f"{FOLDER}/b1/job.sh"]


# What is pure


def test_the_body_goes_to_the_folder_sets_the_environment_and_writes_how_it_ended():
    request = block(cwd="/a b", script="srun x\ny\n", env={"A": "it's"})
    assert job_body(request, "/f/job.exit") == (
        "cd -- '/a b' || exit 1\n"
        "export A='it'\"'\"'s'\n"
        'body=; woken=; trap \'woken=1; [ -z "$body" ] || kill -TERM "$body" 2> /dev/null\' TERM HUP USR1 USR2 XCPU\n'
        "(\n"
        "srun x\n"
        "y\n"
        ") &\n"
        "body=$!\n"
        '[ -z "$woken" ] || kill -TERM "$body" 2> /dev/null\n'
        'woken=1; while [ -n "$woken" ]; do woken=; wait "$body"; code=$?; done\n'
        'echo "$code" > /f/job.exit\n'
        'exit "$code"\n'
    )


@pytest.mark.live
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP"])
def test_what_tells_only_the_job_s_shell_to_end_is_passed_on_and_waited_for(tmp_path, name):
    script = "trap 'echo asked; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    body = job_body(block(cwd=str(tmp_path), script=script), str(tmp_path / "job.exit"))
    with subprocess.Popen(["bash", "-c", body], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        job.send_signal(signal.Signals[name])
        assert job.stdout.read() == "asked\n"
    assert job.returncode == 7
    assert (tmp_path / "job.exit").read_text() == "7\n"


@pytest.mark.live
@pytest.mark.parametrize("code", [0, 3])
def test_the_job_ends_as_its_body_did(tmp_path, code):
    body = job_body(block(cwd=str(tmp_path), script=f"exit {code}"), str(tmp_path / "job.exit"))
    assert subprocess.run(["bash", "-c", body], check=False).returncode == code
    assert (tmp_path / "job.exit").read_text() == f"{code}\n"


def test_without_a_script_the_command_is_run():
    assert "\n(\nexec python3 -m x 'a b'\n) &\n" in job_body(block(command=("python3", "-m", "x", "a b")), "/f")


@pytest.mark.parametrize(
    ("run", "block_id", "name"),
    [("hpcpool-k3_x9", "local-0", "hpcpool-k3_x9-local-0"), ("2024.run", "a.b", "hpcpool-2024_run-a_b")],
)
def test_a_job_name_is_good_for_every_batch_system(run, block_id, name):
    assert job_name(run, block_id) == name


@pytest.mark.parametrize(
    ("job_dir", "folder"),
    [
        (None, "/home/user/.hpcpool/runs/hpcpool-1"),
        ("~/jobs", "/home/user/jobs/hpcpool-1"),
        ("/scratch/me/", "/scratch/me/hpcpool-1"),
    ],
)
def test_the_jobs_of_a_run_have_their_folder_where_the_nodes_see_it(machine, job_dir, folder):
    assert runs_folder(machine, job_dir, "/tmp/hpcpool-1/") == folder


def test_of_a_long_output_only_whole_last_lines_are_told():
    assert last_lines("a\nb\n") == "a\nb"
    assert last_lines("") == ""
    assert last_lines("".join(f"{number}\n" for number in range(100))).splitlines() == [
        str(number) for number in range(80, 100)
    ]
    assert last_lines(f"cut{'x' * 8180}\nwhole line\n") == "whole line"
