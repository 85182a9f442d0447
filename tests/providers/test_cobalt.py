from __future__ import annotations

import calendar
import os
import stat
import subprocess

import pytest

from hpcpool.errors import ConfigError
from hpcpool.providers.base import JobState, JobStatus, SubmitError
from hpcpool.providers.cobalt import STATES, CobaltProvider, CobaltSystem
from tests.providers.answers import UNREACHABLE, job, recorded, said

SYSTEM = CobaltSystem(CobaltProvider())


def test_a_script_asks_for_nodes_and_time():
    provider = CobaltProvider(
        queue="debug-flat-quad", project="proj", attrs="filesystems=home", scheduler_options="--mode script"
    )
    assert CobaltSystem(provider).script(job(cores_per_node=8)) == (
        "#!/bin/bash\n"
        "#COBALT --jobname hpcpool-b1\n"
        "#COBALT --cwd /home/me/project\n"
        "#COBALT -o /home/me/.hpcpool/jobs/b1/stdout\n"
        "#COBALT -e /home/me/.hpcpool/jobs/b1/stderr\n"
        "#COBALT --debuglog /home/me/project/cobalt.log\n"
        "#COBALT -q debug-flat-quad\n"
        "#COBALT -A proj\n"
        "#COBALT --attrs filesystems=home\n"
        "#COBALT -n 2\n"
        "#COBALT -t 90\n"
        "#COBALT --mode script\n"
        "\n"
        "cd /home/me/project || exit 1\n"
        "module load python\n"
        "exec /opt/py/bin/python -m hpcpool.processes.manager_process\n"
    )


def test_an_impossible_option_is_refused_by_its_name():
    with pytest.raises(ConfigError, match=r"CobaltProvider\.queue is ''"):
        CobaltProvider(queue="")


def test_the_commands_are_those_of_cobalt():
    assert SYSTEM.status_command(["501", "502"])[-5:] == ("qstat", "-l", "-f", "501", "502")
    assert SYSTEM.cancel_command(["501"], force=False) == ("qdel", "501")
    assert SYSTEM.cancel_command(["501"], force=True) == ("qdel", "501")
    assert SYSTEM.history_command(["501"]) is None
    assert SYSTEM.parse_history(["501"], said("")) == {}


def test_a_script_is_made_executable_before_it_is_submitted(tmp_path):
    (tmp_path / "qsub").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "qsub").chmod(0o755)
    script = tmp_path / "job script"
    script.touch(0o600)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    argv = SYSTEM.submit_command(str(script))
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == f"{script}\n"
    assert script.stat().st_mode & stat.S_IXUSR


def test_the_job_id_is_the_only_thing_on_stdout():
    notice = 'Job routed to queue "default".\nMemory mode set to cache quad for queue default\n'
    assert SYSTEM.parse_submit(said("501\n", stderr=notice, command="sh")) == "501"


@pytest.mark.parametrize(
    ("stderr", "hint"),
    [
        ("Walltime greater than the 'debug' queue max walltime of 01:00:00", "the limits of the queues"),
        ("You are not allowed to submit to the 'R.x' queue", "see queue and project"),
        ("The limit of 5 jobs per user in the 'default' queue has been reached", "lower max_blocks"),
        ("Failed to connect to queue manager", "is down"),
    ],
)
def test_a_refusal_has_the_words_of_qsub_and_what_to_do(stderr, hint):
    with pytest.raises(SubmitError) as caught:
        SYSTEM.parse_submit(said("", 1, stderr, command="sh"))
    assert str(caught.value).startswith(stderr)
    assert hint in str(caught.value)


def test_jobs_tell_their_state_reason_and_end():
    started_at = calendar.timegm((2021, 3, 4, 17, 10, 2))
    assert SYSTEM.parse_status(["501", "502", "503", "504", "505"], said(recorded("cobalt", "jobs.txt"))) == {
        "501": JobStatus(JobState.RUNNING, started_at=started_at, ends_at=started_at + 3600),
        "502": JobStatus(JobState.PENDING),
        "503": JobStatus(JobState.PENDING, reason="held by its user: qrls releases it"),
    }


def test_a_state_that_nobody_knows_is_unknown():
    told = SYSTEM.parse_status(["5", "3"], said(recorded("cobalt", "stars.txt")))
    assert {status.state for status in told.values()} == {JobState.UNKNOWN}
    assert "'*'" in told["5"].reason


@pytest.mark.parametrize("code", [0, 1])
def test_jobs_that_cobalt_does_not_know_are_left_out(code):
    assert SYSTEM.parse_status(["9"], said("", code)) == {}


@pytest.mark.parametrize("result", [said("", 1, "Failed to connect to queue manager"), UNREACHABLE])
def test_a_status_command_that_fails_says_nothing_of_a_job(result):
    (told,) = SYSTEM.parse_status(["501"], result).values()
    assert (told.state, told.reason) == (JobState.UNKNOWN, result.words)


ALL_STATES = (
    "queued pending user_hold admin_hold dep_hold dep_fail maxrun_hold preempted starting running preempting killing"
    " exiting"
).split()


@pytest.mark.parametrize("state", ALL_STATES)
def test_every_state_of_cobalt_is_known(state):
    assert set(ALL_STATES) == set(STATES)
    told = SYSTEM.parse_status(["1"], said(f"JobID: 1\n    State             : {state}\n"))["1"]
    assert told.state is STATES[state]
    assert told.reason or state in ("queued", "running")
