from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hpcpool.config import NodePool
from hpcpool.errors import ConfigError
from hpcpool.providers.base import JobState, JobStatus, SubmitError
from hpcpool.providers.batch import SubmitUnclear
from hpcpool.providers.htcondor import STATES, HTCondorProvider, HTCondorSystem
from tests.providers.answers import UNREACHABLE, job, recorded, said

SYSTEM = HTCondorSystem(HTCondorProvider())
APART = HTCondorProvider(transfer_files=True, job_dir="/tmp/hpcpool-me")


def submit_lines(script: str) -> list[str]:
    return [line.removeprefix("#CONDOR ") for line in script.splitlines() if line.startswith("#CONDOR ")]


# Job scripts


def test_a_script_has_its_submit_description_in_it():
    assert SYSTEM.script(job(cores_per_node=8, memory_per_node=2**30, gpus_per_node=2)) == (
        "#!/bin/bash\n"
        "#CONDOR universe = vanilla\n"
        "#CONDOR batch_name = hpcpool-b1\n"
        "#CONDOR executable = /bin/bash\n"
        "#CONDOR transfer_executable = false\n"
        "#CONDOR initialdir = /home/me/project\n"
        "#CONDOR should_transfer_files = NO\n"
        "#CONDOR request_cpus = 8\n"
        "#CONDOR request_memory = 1024MB\n"
        "#CONDOR request_gpus = 2\n"
        "#CONDOR want_graceful_removal = true\n"
        "#CONDOR kill_sig = SIGTERM\n"
        "#CONDOR job_max_vacate_time = 60\n"
        "#CONDOR periodic_remove = (JobStatus == 1 && NumJobStarts > 0) || "
        "(JobStatus == 5 && HoldReasonCode =!= 1 && HoldReasonCode =!= 15 && HoldReasonCode =!= 16) || "
        "(JobStatus == 2 && time() - EnteredCurrentStatus > 5400)\n"
        "#CONDOR +HpcpoolWalltime = 5400\n"
        "#CONDOR queue 2\n"
        "\n"
        "exec >> /home/me/.hpcpool/jobs/b1/stdout 2>> /home/me/.hpcpool/jobs/b1/stderr\n"
        "module load python\n"
        "exec /opt/py/bin/python -m hpcpool.processes.manager_process\n"
    )


def test_a_script_has_the_options_and_the_user_s_lines_before_queue():
    provider = HTCondorProvider(
        request_cpus=4,
        request_memory="8GB",
        request_gpus=1,
        request_disk="10GB",
        requirements="OpSysMajorVer == 9",
        rank="Mips",
        accounting_group="group_x",
        environment="A=1 B='say \"no\"'",
        scheduler_options='+ProjectName = "x"',
    )
    lines = submit_lines(HTCondorSystem(provider).script(job(nodes=1, walltime_s=None, cores_per_node=8)))
    assert lines[6:14] == [
        "request_cpus = 4",
        "request_memory = 8GB",
        "request_gpus = 1",
        "request_disk = 10GB",
        "requirements = OpSysMajorVer == 9",
        "rank = Mips",
        "accounting_group = group_x",
        'environment = "A=1 B=\'say ""no""\'"',
    ]
    assert lines[-2:] == ['+ProjectName = "x"', "queue 1"]
    assert not any("EnteredCurrentStatus" in line or "HpcpoolWalltime" in line for line in lines)


def test_without_a_common_folder_the_block_s_files_come_with_the_job():
    folder = "/tmp/hpcpool-me/run/b1"
    script = HTCondorSystem(APART).script(job(nodes=1, cwd=folder, stdout=f"{folder}/out", stderr=f"{folder}/err"))
    assert submit_lines(script)[4:11] == [
        f"initialdir = {folder}",
        "should_transfer_files = YES",
        "when_to_transfer_output = ON_EXIT",
        f"transfer_input_files = {folder}/",
        'transfer_output_files = ""',
        f"output = {folder}/out",
        f"error = {folder}/err",
    ]
    assert "exec >>" not in script


@pytest.mark.parametrize("name", ["b1", "it's"])
def test_files_that_came_with_a_job_are_where_its_command_looks_for_them(tmp_path, name):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "key").write_text("secret")
    folder = tmp_path / "jobs" / name
    body = f'cd -- /no/such/folder || exit 1\npwd -P\ncat "{folder}/key"\nstat -c %a "{folder}"\n'
    request = job(nodes=1, cwd=str(folder), body=body)
    (scratch / "job.sh").write_text(HTCondorSystem(APART).script(request))
    done = subprocess.run(
        ["bash", "job.sh"],
        cwd=scratch,
        env={**os.environ, "_CONDOR_SCRATCH_DIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout == f"{scratch}\nsecret700\n"
    assert "/no/such/folder" in done.stderr
    assert not folder.exists()


def test_files_that_are_there_already_are_left_alone(tmp_path):
    (tmp_path / "key").write_text("secret")
    script = HTCondorSystem(APART).script(job(nodes=1, cwd=str(tmp_path), body="cat key\n"))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "secret"
    assert (tmp_path / "key").exists()


def test_blocks_of_several_nodes_need_a_common_folder():
    assert HTCondorProvider().max_nodes_per_block is None
    NodePool(HTCondorProvider(), nodes_per_block=4)
    with pytest.raises(ConfigError, match="must not be more than 1"):
        NodePool(APART, nodes_per_block=2)


def test_each_job_of_a_block_starts_its_own_manager():
    assert HTCondorProvider().default_launcher.wrap("bash node.sh", 4) == "bash node.sh"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"request_cpus": "4"}, "HTCondorProvider.request_cpus is '4'"),
        ({"transfer_files": 1}, "HTCondorProvider.transfer_files is 1"),
        ({"transfer_files": True}, "HTCondorProvider.job_dir is None; valid: with transfer_files=True"),
        ({"transfer_files": True, "job_dir": "~/jobs"}, "HTCondorProvider.job_dir is '~/jobs'"),
        ({"requirements": "a\nqueue 99"}, "HTCondorProvider.requirements is"),
    ],
)
def test_an_impossible_option_is_refused_by_its_name(options, problem):
    with pytest.raises(ConfigError) as caught:
        HTCondorProvider(**options)
    assert problem in str(caught.value)


# Commands


def submitted(folder: Path, provider: HTCondorProvider, script_name: str) -> list[str]:
    """What condor_submit was given: its arguments, one a line, then its stdin."""
    program = folder / "condor_submit"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\ncat\n')
    program.chmod(0o755)
    system = HTCondorSystem(provider)
    script = folder / script_name
    script.write_text(system.script(job(nodes=1)))
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    argv = system.submit_command(str(script))
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()


def test_what_is_submitted_is_the_shell_with_the_script_as_its_argument(tmp_path):
    told = submitted(tmp_path, HTCondorProvider(), "it's a job.sh")
    path = str(tmp_path / "it's a job.sh").replace("'", "''")
    assert told[:4] == ["-terse", "-append", f"arguments = \"'{path}'\"", "-"]
    assert told[4] == "universe = vanilla"
    assert told[-1] == "queue 1"


def test_a_script_that_is_transferred_is_named_without_its_folder(tmp_path):
    assert submitted(tmp_path, APART, "job.sh")[2] == "arguments = \"'job.sh'\""


def test_the_commands_are_those_of_htcondor():
    assert SYSTEM.status_command(["123"])[0:2] == ("condor_q", "-json")
    assert SYSTEM.history_command(["123"])[0:2] == ("condor_history", "-json")
    assert SYSTEM.status_command(["123", "124"])[-2:] == SYSTEM.history_command(["123", "124"])[-2:] == ("123", "124")
    assert SYSTEM.cancel_command(["123"], force=False) == ("condor_rm", "123")
    assert SYSTEM.cancel_command(["123"], force=True) == ("condor_rm", "-forcex", "123")


def test_a_job_whose_id_was_lost_is_found_by_its_name():
    assert SYSTEM.find_command("n")[-2:] == ("-constraint", 'JobBatchName == "n"')
    assert SYSTEM.parse_find("n", said('[\n{\n  "ClusterId": 7\n}\n]\n')) == "7"
    assert SYSTEM.parse_find("n", said("")) is None
    assert SYSTEM.parse_find("n", said('[\n{\n  "ClusterId": 7\n}\n]\n', 1)) is None


@pytest.mark.parametrize("text", ["123.0 - 123.0\n", "WARNING: the pool is busy\n123.0 - 123.9\n"])
def test_the_job_id_is_the_cluster(text):
    assert SYSTEM.parse_submit(said(text, command="sh")) == "123"


@pytest.mark.parametrize(
    ("stderr", "hint"),
    [
        ("ERROR: Can't find address of local schedd", "is the schedd up?"),
        ("ERROR: Failed to connect to local queue manager", "is the schedd up?"),
        ("ERROR: Parse error in expression: Requirements = a ==", "see requirements"),
        ("sh: 1: condor_submit: not found", "an access point"),
    ],
)
def test_a_refusal_has_the_words_of_condor_submit_and_what_to_do(stderr, hint):
    with pytest.raises(SubmitError) as caught:
        SYSTEM.parse_submit(said("", 1, stderr, command="sh"))
    assert str(caught.value).startswith(stderr)
    assert hint in str(caught.value)


def test_a_submit_that_prints_no_id_is_not_clear():
    with pytest.raises(SubmitUnclear):
        SYSTEM.parse_submit(said("", command="sh"))


# Statuses


def test_jobs_in_the_queue_tell_state_reason_and_end():
    told = SYSTEM.parse_status(["123", "124", "125", "126", "127"], said(recorded("htcondor", "queue.txt")))
    reason = "Error from slot1@node7: Failed to execute '/bin/bash': (errno=2: 'No such file or directory')"
    assert told == {
        "123": JobStatus(JobState.RUNNING, started_at=1649348640, ends_at=1649348640 + 3600),
        "124": JobStatus(JobState.PENDING),
        "125": JobStatus(JobState.PENDING, reason=reason, is_stuck=True),
        "126": JobStatus(JobState.RUNNING, reason="being removed"),
    }


def test_jobs_that_have_left_the_queue_tell_how_they_ended():
    ids = ["130", "131", "132", "133", "134", "135"]
    told = SYSTEM.parse_history(ids, said(recorded("htcondor", "history.txt")))
    assert told["130"] == JobStatus(JobState.ENDED, exit_code=0, reason="exited with code 0")
    assert told["131"] == JobStatus(JobState.FAILED, exit_code=3, reason="exited with code 3")
    assert told["132"] == JobStatus(JobState.FAILED, exit_code=-9, reason="killed by SIGKILL")
    assert told["133"].state is JobState.FAILED
    assert told["133"].reason.startswith("Job has gone over cgroup memory limit of 128 megabytes.")
    assert told["134"] == JobStatus(JobState.FAILED, reason="via condor_rm (by user me)")
    assert list(told) == ids[:-1]


def cluster(*ads: str) -> JobStatus:
    text = ",".join(f'{{"ClusterId": 1, {ad}}}' for ad in ads)
    return SYSTEM.parse_status(["1"], said(f"[{text}]"))["1"]


RUNS = '"JobStatus": 2, "JobCurrentStartDate": {}, "HpcpoolWalltime": 100'
HELD = '"JobStatus": 5, "HoldReason": "no disk"'
DONE = '"JobStatus": 4, "ExitCode": 0'


@pytest.mark.parametrize(
    ("ads", "expected"),
    [
        ([RUNS.format(50), RUNS.format(20)], JobStatus(JobState.RUNNING, started_at=20, ends_at=120)),
        ([HELD, RUNS.format(50)], JobStatus(JobState.RUNNING, reason="no disk", started_at=50, ends_at=150)),
        ([DONE, HELD], JobStatus(JobState.PENDING, reason="no disk; exited with code 0")),
        ([DONE, DONE], JobStatus(JobState.ENDED, exit_code=0, reason="exited with code 0")),
        (
            [DONE, '"JobStatus": 4, "ExitCode": 2'],
            JobStatus(JobState.FAILED, exit_code=2, reason="exited with code 2; exited with code 0"),
        ),
    ],
)
def test_a_cluster_is_what_its_jobs_are_together(ads, expected):
    assert cluster(*ads) == expected


@pytest.mark.parametrize(("code", "is_stuck"), [(1, False), (16, False), (34, True)])
def test_a_job_that_is_held_for_its_own_fault_will_not_start(code, is_stuck):
    assert cluster(f'{HELD}, "HoldReasonCode": {code}').is_stuck is is_stuck
    assert cluster(RUNS.format(1), f'{HELD}, "HoldReasonCode": {code}').is_stuck is False


@pytest.mark.parametrize("number", range(8))
def test_every_state_of_htcondor_is_known(number):
    assert set(range(8)) == set(STATES)
    assert cluster(f'"JobStatus": {number}, "ExitCode": 0').state is STATES[number]


@pytest.mark.parametrize("ad", ['"JobStatus": 9', '"JobStatus": "2"', '"JobStatus": null', '"ProcId": 0'])
def test_a_state_that_nobody_knows_is_unknown(ad):
    assert cluster(ad).state is JobState.UNKNOWN


@pytest.mark.parametrize("ad", ['"JobStatus": 4', '"JobStatus": 4, "ExitCode": "zero"'])
def test_a_job_that_does_not_tell_how_it_ended_has_failed(ad):
    assert cluster(ad).state is JobState.FAILED


def test_an_output_that_is_cut_off_tells_what_is_whole():
    text = recorded("htcondor", "queue.txt")
    told = SYSTEM.parse_status(["123", "124", "125"], said(text[: text.index('"HoldReason"') + 30]))
    assert list(told) == ["123", "124"]


@pytest.mark.parametrize("parse", [SYSTEM.parse_status, SYSTEM.parse_history])
def test_jobs_that_are_not_named_are_left_out(parse):
    assert parse(["1"], said("")) == {}
    assert parse(["1"], said("[\n]\n")) == {}


@pytest.mark.parametrize("parse", [SYSTEM.parse_status, SYSTEM.parse_history])
@pytest.mark.parametrize("result", [said("", 1, "-- Failed to fetch ads from: <127.0.0.1:9618>"), UNREACHABLE])
def test_a_status_command_that_fails_says_nothing_of_a_job(parse, result):
    (told,) = parse(["1"], result).values()
    assert (told.state, told.reason) == (JobState.UNKNOWN, result.words)
