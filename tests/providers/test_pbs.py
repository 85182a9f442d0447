from __future__ import annotations

import calendar

import pytest

from hpcpool.errors import ConfigError
from hpcpool.providers.base import JobState, JobStatus, SubmitError
from hpcpool.providers.batch import JobSearch, SubmitUnclear
from hpcpool.providers.pbs import EXIT_STATUSES, STATES, PBSProProvider, PBSProSystem
from tests.providers.answers import UNREACHABLE, job, recorded, said

SYSTEM = PBSProSystem(PBSProProvider())


def statuses(name: str, *job_ids: str, code: int = 0, stderr: str = "") -> dict[str, JobStatus]:
    return dict(SYSTEM.parse_status(job_ids, said(recorded("pbspro", name), code, stderr)))


# Job scripts


def test_a_script_asks_for_what_the_job_needs():
    job_request = job(cores_per_node=8, memory_per_node=3 * 2**30 + 1, gpus_per_node=2)
    assert SYSTEM.script(job_request) == (
        "#!/bin/bash\n"
        "#PBS -N hpcpool-b1\n"
        "#PBS -S /bin/bash\n"
        "#PBS -r n\n"
        "#PBS -o /home/me/.hpcpool/jobs/b1/stdout\n"
        "#PBS -e /home/me/.hpcpool/jobs/b1/stderr\n"
        "#PBS -l select=2:ncpus=8:mem=3073mb:ngpus=2\n"
        "#PBS -l place=scatter\n"
        "#PBS -l walltime=01:30:00\n"
        "\n"
        "cd /home/me/project || exit 1\n"
        "module load python\n"
        "exec /opt/py/bin/python -m hpcpool.processes.manager_process\n"
    )


def test_a_script_has_the_options_and_the_user_s_lines_last():
    provider = PBSProProvider(
        queue="prod",
        account="my project",
        ncpus=64,
        mem="200gb",
        ngpus=4,
        select_options="system=polaris",
        place="scatter:excl",
        scheduler_options="#PBS -l filesystems=home:eagle\n-m n\n",
    )
    lines = (
        PBSProSystem(provider).script(job(walltime_s=None, cwd="/home/me/a b", stdout="/home/me/a b/out")).splitlines()
    )
    assert lines[4:] == [
        '#PBS -o "/home/me/a b/out"',
        "#PBS -e /home/me/.hpcpool/jobs/b1/stderr",
        "#PBS -q prod",
        '#PBS -A "my project"',
        "#PBS -l select=2:ncpus=64:mem=200gb:ngpus=4:system=polaris",
        "#PBS -l place=scatter:excl",
        "#PBS -l filesystems=home:eagle",
        "#PBS -m n",
        "",
        "cd '/home/me/a b' || exit 1",
        "module load python",
        "exec /opt/py/bin/python -m hpcpool.processes.manager_process",
    ]


def test_the_provider_s_own_numbers_win_over_what_the_pool_needs():
    script = PBSProSystem(PBSProProvider(ncpus=4)).script(job(cores_per_node=16))
    assert "#PBS -l select=2:ncpus=4\n" in script


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"queue": "a\nb"}, "PBSProProvider.queue is 'a"),
        ({"ncpus": 0}, "PBSProProvider.ncpus is 0; valid: a whole number from 1"),
        ({"place": "pack"}, "PBSProProvider.place is 'pack'; valid: text that begins with 'scatter'"),
        ({"place": None}, "PBSProProvider.place is None"),
        ({"walltime": "soon"}, "PBSProProvider.walltime is 'soon'"),
        ({"job_dir": "jobs"}, "PBSProProvider.job_dir is 'jobs'; valid: an absolute path"),
    ],
)
def test_an_impossible_option_is_refused_by_its_name(options, problem):
    with pytest.raises(ConfigError) as caught:
        PBSProProvider(**options)
    assert problem in str(caught.value)


# Commands


def test_the_commands_are_those_of_pbs():
    assert SYSTEM.submit_command("/j/script") == ("qsub", "/j/script")
    assert SYSTEM.status_command(["11.node1", "12.node1"])[-5:] == ("qstat", "-x", "-f", "11.node1", "12.node1")
    assert SYSTEM.cancel_command(["11.node1"], force=False) == ("qdel", "11.node1")
    assert SYSTEM.cancel_command(["11.node1"], force=True) == ("qdel", "-W", "force", "11.node1")
    assert SYSTEM.history_command(["11.node1"]) is None
    assert SYSTEM.parse_history(["11.node1"], said("")) == {}


@pytest.mark.parametrize(
    ("stdout", "job_id"),
    [
        ("11.node1\n", "11.node1"),
        ("7600424.pbs02", "7600424.pbs02"),
        ("Welcome to the cluster!\nYour balance is 12.5 hours\n13198744.pbspl1.nas.nasa.gov\n\n", None),
        ("20[].node1\n", "20[].node1"),
    ],
)
def test_the_job_id_is_the_last_line_that_looks_like_one(stdout, job_id):
    expected = job_id or "13198744.pbspl1.nas.nasa.gov"
    assert SYSTEM.parse_submit(said(stdout, command="qsub")) == expected


@pytest.mark.parametrize(
    ("code", "stderr", "hint"),
    [
        (170, "qsub: Unknown queue", "`qstat -Q` lists the queues"),
        (173, "qsub: Queue is not enabled", "takes no jobs now"),
        (175, "qsub: Bad UID for job execution", "may not submit from this host"),
        (187, "qsub: Unknown resource: Resource_List.ngpu", "see ncpus, ngpus, select_options"),
        (188, "qsub: Job violates queue and/or server resource limits", "tells the limits"),
        (166, "qsub: Illegal attribute or resource value Resource_List.walltime", "scheduler_options"),
        (162, "qsub: cannot connect to server node1 (errno=15010)", "the server is down"),
        (1, "qsub: script file:: No such file or directory", None),
        (127, "qsub: command not found", "load PBS's module"),
    ],
)
def test_a_refusal_has_the_words_of_qsub_and_what_to_do(code, stderr, hint):
    with pytest.raises(SubmitError) as caught:
        SYSTEM.parse_submit(said("", code, stderr + "\n", command="qsub"))
    assert str(caught.value).startswith(stderr)
    assert (hint is None) == (str(caught.value) == stderr)
    assert hint is None or hint in str(caught.value)


@pytest.mark.parametrize(
    "result",
    [
        said("Bienvenue\n", command="qsub"),
        said("", 1, "qsub: End of File", command="qsub"),
        said("", 226, "qsub: Communication failure.", command="qsub"),
    ],
)
def test_a_submit_whose_answer_was_lost_is_not_clear(result):
    with pytest.raises(SubmitUnclear) as caught:
        SYSTEM.parse_submit(result)
    assert result.words in str(caught.value)


def test_a_job_whose_id_was_lost_is_found_by_its_name():
    assert isinstance(SYSTEM, JobSearch)
    assert SYSTEM.find_command("hpcpool-x-b1") == ("qselect", "-N", "hpcpool-x-b1")
    assert SYSTEM.parse_find("hpcpool-x-b1", said("31.node1\n")) == "31.node1"
    assert SYSTEM.parse_find("hpcpool-x-b1", said("")) is None
    assert SYSTEM.parse_find("hpcpool-x-b1", said("31.node1\n", 255)) is None


# Statuses


def test_jobs_that_are_alive_tell_their_state_reason_and_end():
    told = statuses("alive.txt", "68350.mycluster", "69301.mycluster", "69302.mycluster", "74164.mycluster", "1.x")
    where = "(b141:ncpus=16)+(b142:ncpus=16)+(b143:ncpus=16)+(b144:ncpus=16)"
    assert told == {
        "68350.mycluster": JobStatus(JobState.PENDING, reason="Not Running: Node is in an ineligible state: offline"),
        "69301.mycluster": JobStatus(
            JobState.RUNNING,
            reason=f"Job run at Sat Apr 20 at 01:36 on {where}",
            ends_at=calendar.timegm((2013, 4, 23, 1, 36, 59)),
            started_at=calendar.timegm((2013, 4, 20, 1, 36, 59)),
        ),
        "69302.mycluster": JobStatus(JobState.PENDING, reason="held"),
        "74164.mycluster": JobStatus(
            JobState.RUNNING,
            reason="Job run at Mon Apr 22 at 07:17 on (b270:ncpus=16)+(b275:ncpus=16)",
            ends_at=calendar.timegm((2013, 4, 23, 7, 17, 36)),
            started_at=calendar.timegm((2013, 4, 22, 7, 17, 36)),
        ),
    }


def test_jobs_that_are_over_tell_how():
    assert statuses("finished.txt", "7600424.pbs02") == {
        "7600424.pbs02": JobStatus(JobState.ENDED, exit_code=0, reason="exited with code 0")
    }
    assert statuses("killed.txt", "11.node1", "12.node1", "13.node1") == {
        "11.node1": JobStatus(JobState.FAILED, reason=EXIT_STATUSES[-29]),
        "12.node1": JobStatus(JobState.FAILED, exit_code=-15, reason="killed by SIGTERM"),
        "13.node1": JobStatus(
            JobState.FAILED, reason="Not Running: Insufficient amount of resource: ncpus and terminated"
        ),
    }


def test_a_job_that_can_never_run_is_stuck_with_the_server_s_comment():
    (status,) = statuses("never.txt", "14.node1").values()
    comment = "Can Never Run: Insufficient amount of resource: ncpus (R: 99 A: 4 T: 4)"
    assert status == JobStatus(JobState.PENDING, reason=comment, is_stuck=True)


def test_dates_in_seconds_are_read():
    assert statuses("epoch.txt", "4259576.pbssrv1")["4259576.pbssrv1"].ends_at == 1649348640 + 3600


def test_what_looks_like_an_attribute_in_a_job_s_environment_is_none():
    (status,) = statuses("quotes.txt", "15.node1").values()
    assert status.state is JobState.RUNNING
    assert status.ends_at == calendar.timegm((2026, 11, 1, 10, 10, 0))


@pytest.mark.parametrize("code", [153, 35])
def test_jobs_that_the_server_does_not_know_are_left_out_and_the_others_are_told(code):
    told = statuses("never.txt", "14.node1", "99.node1", code=code, stderr="qstat: Unknown Job Id 99.node1")
    assert list(told) == ["14.node1"]


@pytest.mark.parametrize(
    "result",
    [
        said("", 162, "Connection refused\nqstat: cannot connect to server node1 (errno=15010)"),
        said("", 255, "No Permission."),
        UNREACHABLE,
    ],
)
def test_a_status_command_that_fails_says_nothing_of_a_job(result):
    (status,) = SYSTEM.parse_status(["11.node1"], result).values()
    assert (status.state, status.reason) == (JobState.UNKNOWN, result.words)


def test_what_was_printed_before_a_failure_counts():
    told = statuses("never.txt", "14.node1", "15.node1", code=162, stderr="connection lost")
    assert [told[job_id].state for job_id in ("14.node1", "15.node1")] == [JobState.PENDING, JobState.UNKNOWN]


@pytest.mark.parametrize("letter", "BEFHMQRSTUWX")
def test_every_state_of_pbs_is_known(letter):
    assert set("BEFHMQRSTUWX") == set(STATES)
    text = f"Job Id: 1.s\n    job_state = {letter}\n    Exit_status = 0\n"
    assert SYSTEM.parse_status(["1.s"], said(text))["1.s"].state is STATES[letter]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Job Id: 1.s\n    job_state = Z\n", "'Z'"),
        ("Job Id: 1.s\n    Job_Name = x\n", "''"),
        ("Job Id: 1.s\n    job_state = Laufend\n", "'Laufend'"),
    ],
)
def test_a_state_that_nobody_knows_is_unknown(text, reason):
    status = SYSTEM.parse_status(["1.s"], said(text))["1.s"]
    assert status.state is JobState.UNKNOWN
    assert reason in status.reason


@pytest.mark.parametrize(
    ("exit_status", "state", "exit_code", "reason"),
    [
        ("0", JobState.ENDED, 0, "exited with code 0"),
        ("3", JobState.FAILED, 3, "exited with code 3"),
        ("137", JobState.FAILED, 137, "exited with code 137"),
        ("265", JobState.FAILED, -9, "killed by SIGKILL"),
        ("-27", JobState.FAILED, None, EXIT_STATUSES[-27]),
        ("-99", JobState.FAILED, None, "ended by the batch system, status -99"),
        ("drei", JobState.FAILED, None, "it was over before it had started"),
    ],
)
def test_exit_statuses_are_told_apart(exit_status, state, exit_code, reason):
    text = f"Job Id: 1.s\n    job_state = F\n    Exit_status = {exit_status}\n"
    assert SYSTEM.parse_status(["1.s"], said(text))["1.s"] == JobStatus(state, exit_code=exit_code, reason=reason)
