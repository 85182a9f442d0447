from __future__ import annotations

import calendar
import os
import subprocess
from pathlib import Path

import pytest

from hpcpool.errors import ConfigError
from hpcpool.providers.base import JobState, JobStatus, SubmitError
from hpcpool.providers.batch import SubmitUnclear
from hpcpool.providers.lsf import STATES, LSFProvider, LSFSystem
from tests.providers.answers import UNREACHABLE, job, recorded, said

SYSTEM = LSFSystem(LSFProvider())


def february_2(hour: int, minute: int) -> int:
    return calendar.timegm((2026, 2, 2, hour, minute, 0))


def statuses(name: str, *job_ids: str, code: int = 0, stderr: str = "") -> dict[str, JobStatus]:
    return dict(SYSTEM.parse_status(job_ids, said(recorded("lsf", name), code, stderr, command="env")))


# Job scripts


def test_a_script_asks_for_slots_on_each_node():
    assert SYSTEM.script(job(cores_per_node=8, memory_per_node=2**30, gpus_per_node=2)) == (
        "#!/bin/bash\n"
        "#BSUB -J hpcpool-b1\n"
        "#BSUB -o /home/me/.hpcpool/jobs/b1/stdout\n"
        "#BSUB -e /home/me/.hpcpool/jobs/b1/stderr\n"
        "#BSUB -n 16\n"
        '#BSUB -R "span[ptile=8]"\n'
        '#BSUB -R "rusage[mem=1024MB]"\n'
        '#BSUB -gpu "num=2"\n'
        "#BSUB -W 90\n"
        "\n"
        "cd /home/me/project || exit 1\n"
        "module load python\n"
        "exec /opt/py/bin/python -m hpcpool.processes.manager_process\n"
    )


def test_a_script_asks_for_whole_nodes():
    provider = LSFProvider(nnodes=True, project="CSC000", queue="batch", scheduler_options="-alloc_flags smt1")
    lines = LSFSystem(provider).script(job(cores_per_node=8, walltime_s=90)).splitlines()
    assert lines[4:9] == [
        "#BSUB -q batch",
        "#BSUB -P CSC000",
        "#BSUB -nnodes 2",
        "#BSUB -W 2",
        "#BSUB -alloc_flags smt1",
    ]


def test_a_script_has_the_provider_s_own_numbers():
    provider = LSFProvider(
        ptile=4, mem="16GB", mem_limit="20GB", gpu="num=1:mode=shared", exclusive=True, resources="select[ib]"
    )
    lines = LSFSystem(provider).script(job(nodes=3, walltime_s=None, cores_per_node=8, gpus_per_node=2)).splitlines()
    assert lines[4:11] == [
        "#BSUB -n 12",
        '#BSUB -R "span[ptile=4]"',
        '#BSUB -R "rusage[mem=16GB]"',
        "#BSUB -M 20GB",
        '#BSUB -gpu "num=1:mode=shared"',
        "#BSUB -x",
        '#BSUB -R "select[ib]"',
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ptile": 0}, "LSFProvider.ptile is 0"),
        ({"nnodes": 2}, "LSFProvider.nnodes is 2; valid: True or False"),
        ({"nnodes": True, "ptile": 4}, "LSFProvider.ptile is 4; valid: None with nnodes=True"),
        ({"gpu": "num=1\n"}, "LSFProvider.gpu is"),
    ],
)
def test_an_impossible_option_is_refused_by_its_name(options, problem):
    with pytest.raises(ConfigError) as caught:
        LSFProvider(**options)
    assert problem in str(caught.value)


# Commands


def test_the_commands_are_those_of_lsf():
    assert SYSTEM.status_command(["101", "102"])[-3:] == ("bjobs", "101", "102")
    assert SYSTEM.cancel_command(["101"], force=False) == ("bkill", "101")
    assert SYSTEM.cancel_command(["101"], force=True) == ("bkill", "-r", "101")
    assert SYSTEM.history_command(["101"]) is None
    assert SYSTEM.parse_history(["101"], said("")) == {}


def test_a_job_whose_id_was_lost_is_found_by_its_name():
    assert SYSTEM.find_command("n") == ("bjobs", "-w", "-J", "n")
    assert SYSTEM.parse_find("n", said(recorded("lsf", "table.txt"))) == "101"
    assert SYSTEM.parse_find("n", said("", 255, "Job <n> is not found")) is None


def run_with(folder: Path, argv: tuple[str, ...], **programs: str) -> str:
    """Run a command with small programs in front of the PATH; return its stdout."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=20, check=False).stdout


def test_the_script_reaches_bsub_through_its_stdin(tmp_path):
    script = tmp_path / "job script"
    script.write_text("#BSUB -n 1\n")
    told = run_with(tmp_path, SYSTEM.submit_command(str(script)), bsub='echo "$#"; cat')
    assert told == "0\n#BSUB -n 1\n"


def test_the_table_is_asked_for_only_where_fields_cannot_be_had(tmp_path):
    argv = SYSTEM.status_command(["101", "102"])
    modern = run_with(tmp_path, argv, bjobs='echo "$TZ $1 $4 $5"').splitlines()[1:]
    assert modern == ["UTC0 -noheader 101 102"]
    old = run_with(tmp_path, argv, bjobs='[ "$1" = -w ] || exit 255; echo "table $2 $3"').splitlines()[1:]
    assert old == ["table 101 102"]


def test_the_job_id_is_read():
    said_by_bsub = "Job <101> is submitted to default queue <normal>.\n"
    assert SYSTEM.parse_submit(said(f"** project CSC000: 12 hours **\n{said_by_bsub}", command="sh")) == "101"


@pytest.mark.parametrize(
    ("stderr", "hint"),
    [
        ("nosuch: No such queue. Job not submitted.", "`bqueues` lists the queues"),
        ("RUNLIMIT: Cannot exceed queue's hard limit(s). Job not submitted.", "the walltime is longer"),
        ("Too many processors requested. Job not submitted.", "so many slots"),
        ("Bad resource requirement syntax. Job not submitted.", "see mem, gpu and resources"),
        ("User cannot use the queue. Job not submitted.", "see queue and project"),
        ("bsub: line 1: exec: bsub: not found", "load LSF's profile"),
    ],
)
def test_a_refusal_has_the_words_of_bsub_and_what_to_do(stderr, hint):
    with pytest.raises(SubmitError) as caught:
        SYSTEM.parse_submit(said("", 255, stderr, command="sh"))
    assert str(caught.value).startswith(stderr)
    assert hint in str(caught.value)


def test_a_submit_that_prints_no_id_is_not_clear():
    with pytest.raises(SubmitUnclear):
        SYSTEM.parse_submit(said("Travail <101> soumis\n", command="sh"))


# Statuses


def test_the_fields_tell_state_reason_start_and_end():
    ids = [str(n) for n in (764220165, 764220167, 764254593, 764255172, 764255173, 764255175)]
    told = statuses("fields.txt", *ids, "1")
    assert list(told) == ids
    assert told["764220165"] == JobStatus(
        JobState.PENDING,
        reason="The user has reached his/her job slot limit; "
        "Not enough slots or resources for whole duration of the job",
    )
    assert told["764220167"].reason == "New job is waiting for scheduling"
    assert told["764254593"] == JobStatus(JobState.RUNNING, started_at=february_2(7, 39))
    assert told["764255172"] == JobStatus(JobState.RUNNING, started_at=february_2(7, 47), ends_at=february_2(8, 47))
    assert told["764255173"].state is JobState.PENDING
    assert told["764255175"] == JobStatus(JobState.RUNNING, reason="suspended by a user", started_at=february_2(7, 40))


def test_the_fields_tell_how_jobs_ended():
    assert statuses("fields.txt", "764213236", "764213237", "764213238", "764255174") == {
        "764213236": JobStatus(
            JobState.FAILED, exit_code=140, reason="TERM_RUNLIMIT: job killed after reaching LSF run time limit"
        ),
        "764213237": JobStatus(JobState.FAILED, exit_code=1, reason="exited with code 1"),
        "764213238": JobStatus(JobState.FAILED, exit_code=130, reason="TERM_OWNER: job killed by owner"),
        "764255174": JobStatus(JobState.ENDED, exit_code=0, reason="exited with code 0"),
    }


def test_a_table_tells_the_states():
    told = statuses("table.txt", "101", "102", "103", "104")
    expected = [JobState.RUNNING, JobState.PENDING, JobState.FAILED, JobState.ENDED]
    assert [status.state for status in told.values()] == expected


def test_what_both_forms_tell_is_taken_from_the_fields():
    told = statuses("both.txt", "764255172", "99999", code=255, stderr="Job <99999> is not found\n" * 2)
    assert told == {"764255172": JobStatus(JobState.RUNNING, started_at=february_2(7, 47), ends_at=february_2(8, 47))}


@pytest.mark.parametrize(
    ("code", "stderr"), [(255, "Job <101> is not found"), (254, "No unfinished job found"), (0, "")]
)
def test_jobs_that_lsf_does_not_know_are_left_out(code, stderr):
    assert SYSTEM.parse_status(["101"], said("1770018300\n", code, stderr)) == {}


@pytest.mark.parametrize(
    "result",
    [
        said("1770018300\n", 255, "LSF is down. Please wait ..."),
        said("1770018300\n", 127, "bjobs: not found"),
        UNREACHABLE,
    ],
)
def test_a_status_command_that_fails_says_nothing_of_a_job(result):
    (told,) = SYSTEM.parse_status(["101"], result).values()
    assert (told.state, told.reason) == (JobState.UNKNOWN, result.words)


def test_a_status_command_that_fails_silently_says_nothing_of_a_job():
    assert SYSTEM.parse_status(["101"], said("1770018300\n", 255))["101"].reason == "bjobs failed"


ALL_STATES = "PEND FWD_PEND PROV PSUSP WAIT RUN SSUSP USUSP DONE EXIT UNKWN ZOMBI".split()


@pytest.mark.parametrize("state", ALL_STATES)
def test_every_state_of_lsf_is_known_in_both_forms(state):
    assert set(ALL_STATES) == set(STATES)
    fields = SYSTEM.parse_status(["1"], said(f"1770018300\n1|{state}|-|-|-|-|-\n"))["1"]
    table = SYSTEM.parse_status(["1"], said(f"1770018300\n1 me {state} q h - n Feb  2 07:40\n"))["1"]
    assert fields.state is table.state is STATES[state]
    assert fields.reason or state in ("PEND", "RUN", "WAIT")


def test_a_state_that_nobody_knows_is_unknown():
    told = SYSTEM.parse_status(["1"], said("1770018300\n1|LAUFT|-|-|-|-|-\n"))["1"]
    assert told.state is JobState.UNKNOWN
    assert "'LAUFT'" in told.reason
