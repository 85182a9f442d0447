from __future__ import annotations

import calendar

import pytest

from hpcpool.errors import ConfigError
from hpcpool.providers.base import JobState, JobStatus, SubmitError
from hpcpool.providers.torque import EXIT_STATUSES, STATES, TorqueProvider, TorqueSystem
from tests.providers.answers import UNREACHABLE, job, recorded, said

SYSTEM = TorqueSystem(TorqueProvider())


def status(name: str, job_id: str) -> JobStatus:
    return SYSTEM.parse_status([job_id], said(recorded("torque", name)))[job_id]


# Job scripts


def test_a_script_asks_for_what_the_job_needs():
    assert SYSTEM.script(job(cores_per_node=8, memory_per_node=2**30, gpus_per_node=2)) == (
        "#!/bin/bash\n"
        "#PBS -N hpcpool-b1\n"
        "#PBS -S /bin/bash\n"
        "#PBS -r n\n"
        "#PBS -o /home/me/.hpcpool/jobs/b1/stdout\n"
        "#PBS -e /home/me/.hpcpool/jobs/b1/stderr\n"
        "#PBS -l nodes=2:ppn=8:gpus=2\n"
        "#PBS -l mem=2048mb\n"
        "#PBS -l walltime=01:30:00\n"
        "\n"
        "cd /home/me/project || exit 1\n"
        "module load python\n"
        "exec /opt/py/bin/python -m hpcpool.processes.manager_process\n"
    )


def test_a_script_has_the_options_and_the_user_s_lines_last():
    provider = TorqueProvider(
        queue="batch",
        account="proj",
        ppn=16,
        gpus=1,
        mem="64gb",
        properties="xe:gen9",
        scheduler_options=["-l naccesspolicy=singlejob"],
    )
    lines = TorqueSystem(provider).script(job(walltime_s=None, cores_per_node=4)).splitlines()
    assert lines[6:11] == [
        "#PBS -q batch",
        "#PBS -A proj",
        "#PBS -l nodes=2:ppn=16:gpus=1:xe:gen9",
        "#PBS -l mem=64gb",
        "#PBS -l naccesspolicy=singlejob",
    ]


def test_nothing_is_asked_for_that_nobody_wants():
    assert "#PBS -l nodes=1\n\ncd " in SYSTEM.script(job(nodes=1, walltime_s=None))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"properties": ""}, "TorqueProvider.properties is ''"),
        ({"ppn": True}, "TorqueProvider.ppn is True"),
        ({"poll_interval_s": 0}, "TorqueProvider.poll_interval_s is 0"),
        ({"walltime": -5}, "TorqueProvider.walltime is -5"),
    ],
)
def test_an_impossible_option_is_refused_by_its_name(options, problem):
    with pytest.raises(ConfigError) as caught:
        TorqueProvider(**options)
    assert problem in str(caught.value)


# Commands


def test_the_commands_are_those_of_torque():
    assert SYSTEM.submit_command("/j/job.sh") == ("qsub", "-o", "/j/job.out", "-e", "/j/job.err", "/j/job.sh")
    assert SYSTEM.status_command(["1.s", "2.s"])[-4:] == ("qstat", "-f", "1.s", "2.s")
    assert SYSTEM.cancel_command(["1.s"], force=False) == ("qdel", "1.s")
    assert SYSTEM.cancel_command(["1.s"], force=True) == ("qdel", "-W", "0", "1.s")
    assert SYSTEM.history_command(["1.s"]) is None
    assert SYSTEM.parse_history(["1.s"], said("")) == {}
    assert SYSTEM.find_command("n") == ("qselect", "-N", "n")
    assert SYSTEM.parse_find("n", said("1.s\n")) == "1.s"


@pytest.mark.parametrize("job_id", ["67048.xena.alliance.unm.edu", "549159", "48[1].torque01.bcgsc.ca"])
def test_the_job_id_is_the_last_line_that_looks_like_one(job_id):
    assert SYSTEM.parse_submit(said(f"Project balance: 3\n{job_id}\n", command="qsub")) == job_id


@pytest.mark.parametrize(
    ("code", "stderr", "hint"),
    [
        (170, "qsub: submit error (Unknown queue MSG=cannot locate queue)", "`qstat -q` lists the queues"),
        (
            188,
            "qsub: submit error (Job exceeds queue resource limits MSG=cannot satisfy queue max walltime requirement)",
            "tells the limits",
        ),
        (
            188,
            "qsub: Job rejected by all possible destinations (MSG=cannot locate feasible nodes (nodes file is empty))",
            "pbsnodes",
        ),
        (175, "qsub: Bad UID for job execution MSG=ruserok failed validating root/root from node1", "may not submit"),
        (111, "qsub: cannot connect to server node1 (errno=111) Connection refused", "the server is down"),
    ],
)
def test_a_refusal_has_the_words_of_qsub_and_what_to_do(code, stderr, hint):
    with pytest.raises(SubmitError) as caught:
        SYSTEM.parse_submit(said("", code, stderr, command="qsub"))
    assert str(caught.value).startswith(stderr)
    assert hint in str(caught.value)


# Statuses


def test_a_job_that_runs_tells_its_start_and_end():
    started_at = calendar.timegm((2019, 2, 19, 12, 47, 56))
    expected = JobStatus(JobState.RUNNING, started_at=started_at, ends_at=started_at + 3 * 3600)
    assert status("running.txt", "67048.xena.alliance.unm.edu") == expected


def test_lines_that_go_on_behind_blanks_are_read():
    started_at = calendar.timegm((2021, 8, 11, 17, 13, 12))
    expected = JobStatus(JobState.RUNNING, started_at=started_at, ends_at=started_at + 120 * 3600)
    assert status("blanks.txt", "55755440.seer.t1.grid.kiae.ru") == expected


def test_a_job_that_waits_tells_why_whatever_stands_between():
    assert status("held.txt", "549159") == JobStatus(JobState.PENDING, reason="held")


def test_what_slurm_s_wrapper_of_qstat_prints_is_read():
    told = SYSTEM.parse_status(["14", "15"], said(recorded("torque", "slurm-wrapper.txt")))
    assert told == {"14": JobStatus(JobState.RUNNING)}, "how 15 ended only its script's exit code tells"


def test_jobs_that_are_over_tell_how():
    assert status("completed.txt", "522083.barnacle.ucsd.edu") == JobStatus(JobState.FAILED, reason=EXIT_STATUSES[-11])
    killed = JobStatus(JobState.FAILED, exit_code=-15, reason="killed by SIGTERM")
    assert status("completed.txt", "48[1].torque01.bcgsc.ca") == killed


def test_jobs_that_the_server_does_not_know_are_left_out():
    assert SYSTEM.parse_status(["9.s"], said("", 153, "qstat: Unknown Job Id Error 9.s")) == {}


@pytest.mark.parametrize("result", [said("", 111, "qstat: cannot connect to server node1 (errno=111)"), UNREACHABLE])
def test_a_status_command_that_fails_says_nothing_of_a_job(result):
    (told,) = SYSTEM.parse_status(["1.s"], result).values()
    assert (told.state, told.reason) == (JobState.UNKNOWN, result.words)


@pytest.mark.parametrize("letter", "CEHQRSTW")
def test_every_state_of_torque_is_known(letter):
    assert set("CEHQRSTW") == set(STATES)
    text = f"Job Id: 1.s\n    job_state = {letter}\n    exit_status = 0\n"
    assert SYSTEM.parse_status(["1.s"], said(text))["1.s"].state is STATES[letter]


def test_a_state_that_nobody_knows_is_unknown():
    told = SYSTEM.parse_status(["1.s"], said("Job Id: 1.s\n    job_state = Y\n"))["1.s"]
    assert told.state is JobState.UNKNOWN
    assert "'Y'" in told.reason
