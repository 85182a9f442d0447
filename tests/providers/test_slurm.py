from __future__ import annotations

import contextlib
import os
import pickle
import subprocess

import pytest
from hypothesis import given

from hpcpool import Config, ConfigError, NodePool
from hpcpool.providers import JobState, JobStatus, SlurmProvider, SubmitError, provider_class
from hpcpool.providers.batch import BatchSystem, JobRequest, JobSearch, SubmitUnclear
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.slurm import SlurmSystem
from tests.providers.recorded import RESULTS, golden, recorded, refused
from tests.providers.requests import job

SYSTEM = SlurmSystem(SlurmProvider())
JOB = job()


def lines(options: SlurmProvider, request: JobRequest = JOB) -> list[str]:
    """The directives of a script, without the prefix."""
    script = SlurmSystem(options).script(request)
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


def queue(text: str) -> dict[str, JobStatus]:
    result = CommandResult(("squeue",), 0, text, "")
    return dict(SYSTEM.parse_status([line.split()[0] for line in text.splitlines()], result))


# Options


def test_it_is_a_value_that_travels_in_a_configuration():
    provider = SlurmProvider(partition="debug", walltime=1800, gpus_per_node="a100:4", scheduler_options=["--x", "--y"])
    assert pickle.loads(pickle.dumps(provider)) == provider
    config = Config(NodePool(provider, nodes_per_block=2))
    assert Config.from_json(config.to_json()) == config
    assert provider_class("slurm") is SlurmProvider
    assert isinstance(SYSTEM, JobSearch)
    system: BatchSystem = SYSTEM
    assert system.history_command(["1"]) is not None


def test_it_can_be_written_in_toml(tmp_path):
    (tmp_path / "c.toml").write_text(
        '[[node_pools]]\nprovider = {kind = "slurm", partition = "p", walltime = 1800, gpus_per_node = 2,'
        ' scheduler_options = ["--mail-type=FAIL"]}\nnodes_per_block = 4\n'
    )
    (pool,) = Config.from_toml(tmp_path / "c.toml").node_pools
    assert pool.provider == SlurmProvider(
        partition="p", walltime=1800, gpus_per_node=2, scheduler_options="--mail-type=FAIL"
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"partition": ""}, "SlurmProvider.partition is ''; valid: text without line breaks, or None"),
        ({"partition": "a\nb"}, "SlurmProvider.partition is 'a\\nb'"),
        ({"account": 3}, "SlurmProvider.account is 3"),
        ({"exclusive": 1}, "SlurmProvider.exclusive is 1; valid: True or False"),
        ({"walltime": "soon"}, "SlurmProvider.walltime is 'soon'; valid: 'HH:MM:SS', 'DAYS-HH:MM:SS', or seconds as"),
        ({"mem": "16 GB"}, "SlurmProvider.mem is '16 GB'; valid: a number with one of the units K, M, G, T"),
        ({"gpus_per_node": 0}, "SlurmProvider.gpus_per_node is 0"),
        ({"gpus_per_node": "many"}, "SlurmProvider.gpus_per_node is 'many'"),
        ({"cores_per_node": True}, "SlurmProvider.cores_per_node is True"),
        ({"cluster": "a,b"}, "SlurmProvider.cluster is 'a,b'; valid: the name of one cluster, or None"),
        ({"job_dir": "runs"}, "SlurmProvider.job_dir is 'runs'; valid: an absolute path"),
        ({"poll_interval_s": 0}, "SlurmProvider.poll_interval_s is 0"),
        ({"scheduler_options": 3}, "SlurmProvider.scheduler_options is 3; valid: lines of text"),
    ],
)
def test_an_option_that_does_not_fit_is_named_with_what_does(options, problem):
    with pytest.raises(ConfigError) as caught:
        SlurmProvider(**options)
    assert str(caught.value).startswith(problem)


# Scripts


def test_the_script_of_a_plain_job():
    assert SYSTEM.script(JOB) == golden("slurm-plain.sh", SYSTEM.script(JOB))


def test_the_script_of_a_job_with_everything():
    provider = SlurmProvider(
        partition="gpu,long",
        account="proj",
        qos="high",
        constraint="[rack1|rack2]",
        reservation="maint 1",
        exclusive=True,
        gres="nvme:1",
        gpus_per_node="a100:4",
        cores_per_node=64,
        scheduler_options="#SBATCH --mail-type=FAIL\n--comment=x",
    )
    request = job(nodes=4, walltime_s=5400.0, cwd="/a b", stdout="/a b/100%.out", stderr='/a "b\\/err')
    script = SlurmSystem(provider).script(request)
    assert script == golden("slurm-everything.sh", script)


def test_what_the_node_pool_works_out_is_asked_for_unless_the_provider_says_otherwise():
    asked = job(cores_per_node=8, memory_per_node=3 * 2**30 + 1, gpus_per_node=2)
    assert {"--cpus-per-task=8", "--mem=3073M", "--gpus-per-node=2"} <= set(lines(SlurmProvider(), asked))
    said = SlurmProvider(cores_per_node=16, mem="64G", gpus_per_node="a100:1")
    assert {"--cpus-per-task=16", "--mem=64G", "--gpus-per-node=a100:1"} <= set(lines(said, asked))
    assert "--mem=0" in lines(SlurmProvider(exclusive=True), asked)
    assert not any("gpus" in line for line in lines(SlurmProvider(gres="gpu:4"), asked))


def test_a_job_is_never_put_back_into_the_queue_under_its_old_id():
    assert "--no-requeue" in lines(SlurmProvider())


@pytest.mark.live
def test_the_shape_of_a_job_around_is_not_handed_on(tmp_path):
    """sbatch is called with what it needs of the environment, and not with that of the job that it is called from."""
    fake = tmp_path / "sbatch"
    fake.write_text("#!/bin/sh\nenv | grep '^S.*=' | sort\necho \"$@\"\n")
    fake.chmod(0o700)
    around = {"SLURM_NTASKS": "4", "SLURM_MEM_PER_CPU": "1", "SLURM_CONF": "/etc/x", "SBATCH_ACCOUNT": "me"}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = SYSTEM.submit_command("/a b/job.sh")
    done = subprocess.run(command, env={**path, **around}, capture_output=True, text=True, check=True)
    shown = [line for line in done.stdout.splitlines() if not line.startswith(("SHLVL", "SHELL"))]
    assert shown == ["SBATCH_ACCOUNT=me", "SLURM_CONF=/etc/x", "--parsable /a b/job.sh"]


def test_all_commands_go_to_the_cluster_that_is_asked_for():
    system = SlurmSystem(SlurmProvider(cluster="alpha"))
    commands = [
        system.submit_command("/s"),
        system.find_command("n"),
        system.status_command(["1"]),
        system.history_command(["1"]) or (),
        system.cancel_command(["1"], force=False),
        system.cancel_command(["1"], force=True),
    ]
    assert all("--clusters=alpha" in command for command in commands)


# Submitting


def test_the_id_of_an_accepted_job_is_read():
    assert SYSTEM.parse_submit(recorded("slurm/sbatch-accepted.txt")) == "14"


def test_a_cluster_s_name_and_a_site_s_greeting_are_no_part_of_the_id():
    assert SYSTEM.parse_submit(recorded("slurm/sbatch-federation-with-greeting.txt")) == "4711"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("unknown-partition", "`sinfo -s` lists the partitions"),
        ("unknown-gres", "`sinfo -o '%P %f %G'` lists what the nodes have"),
        ("unknown-feature", "`sinfo -o '%P %f %G'` lists what the nodes have"),
        ("too-much-memory", "no node of the partition has all that is asked for"),
        ("unknown-account", "`sacctmgr show associations user=$USER` lists your accounts"),
        ("unknown-qos", "`sacctmgr show associations user=$USER format=account,qos` lists yours"),
        ("too-many-jobs", "lower max_blocks"),
        ("controller-down", "Slurm's controller is down"),
    ],
)
def test_a_refusal_is_in_slurm_s_words_with_what_to_do(name, hint):
    result = refused(f"slurm/sbatch-{name}.txt")
    with pytest.raises(SubmitError) as caught:
        SYSTEM.parse_submit(result)
    assert not isinstance(caught.value, SubmitUnclear)
    assert str(caught.value).startswith(result.words)
    assert hint in str(caught.value)


def test_a_refusal_without_a_hint_is_told_as_it_is():
    with pytest.raises(SubmitError, match="^sbatch: error: Invalid --time specification$"):
        SYSTEM.parse_submit(refused("slurm/sbatch-bad-time.txt", 255))


def test_a_machine_without_slurm_is_told_so():
    with pytest.raises(SubmitError, match="login node"):
        SYSTEM.parse_submit(CommandResult(("bash",), 127, "", "bash: line 1: exec: sbatch: not found\n"))


@pytest.mark.parametrize("result", [refused("slurm/sbatch-lost-answer.txt"), recorded("slurm/empty.txt")])
def test_an_answer_that_was_lost_does_not_count_as_a_refusal(result):
    with pytest.raises(SubmitUnclear):
        SYSTEM.parse_submit(result)


def test_a_job_is_found_by_its_name():
    assert SYSTEM.parse_find("n", CommandResult(("squeue",), 0, "CLUSTER: a\n12\n", "")) == "12"
    assert SYSTEM.parse_find("n", recorded("slurm/empty.txt")) is None
    assert SYSTEM.parse_find("n", refused("slurm/squeue-controller-down.txt")) is None


# Watching


def test_the_states_of_many_jobs_are_read():
    ids = [str(number) for number in range(17, 29)]
    told = SYSTEM.parse_status([*ids, "99999"], recorded("slurm/squeue-many-states.txt"))
    assert told == {
        "17": JobStatus(JobState.ENDED, 0, "exited with code 0"),
        "18": JobStatus(JobState.FAILED, 3, "exited with code 3 (FAILED)"),
        "19": JobStatus(JobState.RUNNING, ends_at=1795978095.0, started_at=1795977495.0),
        "20": JobStatus(JobState.PENDING, reason="JobHeldUser: it will not run until it is released: scontrol release"),
        "21": JobStatus(
            JobState.PENDING,
            reason="PartitionNodeLimit: it will never run: the partition does not allow so many nodes, or so few",
            is_stuck=True,
        ),
        "22": JobStatus(
            JobState.PENDING,
            reason="PartitionTimeLimit: it will never run: the walltime is longer than the partition allows",
            is_stuck=True,
        ),
        "23": JobStatus(JobState.PENDING, reason="PartitionDown: it will not run until the partition is opened"),
        "24": JobStatus(JobState.ENDED, 0, "exited with code 0"),
        "25": JobStatus(JobState.FAILED, -9, "killed by SIGKILL (FAILED)"),
        "26": JobStatus(
            JobState.PENDING,
            reason="PartitionConfig: it will never run: the partition does not have, or not allow, what it asks for",
            is_stuck=True,
        ),
        "27": JobStatus(JobState.FAILED, -15, "cancelled from outside (CANCELLED)"),
        "28": JobStatus(JobState.PENDING, reason="BeginTime"),
    }


def test_a_job_without_a_folder_on_its_node_says_so():
    (told,) = SYSTEM.parse_status(["8"], recorded("slurm/squeue-launch-failure.txt")).values()
    assert (told.state, told.exit_code) == (JobState.FAILED, -53)
    assert "its folder cannot be reached from the node" in told.reason


def test_a_limit_that_others_will_make_room_for_is_told_as_it_is():
    told = SYSTEM.parse_status(["7"], recorded("slurm/squeue-account-limit.txt"))
    assert told["7"] == JobStatus(JobState.PENDING, reason="AssocMaxJobsLimit")


def test_every_bad_end_is_told_in_words():
    told = SYSTEM.parse_status([str(number) for number in range(1, 10)], recorded("slurm/squeue-federation.txt"))
    assert [told[str(number)].reason for number in range(1, 7)] == [
        "its walltime was over (TIMEOUT)",
        "a node failed (NODE_FAIL)",
        "another job took its nodes (PREEMPTED)",
        "it used more memory than it asked for (OUT_OF_MEMORY)",
        "its nodes did not boot (BOOT_FAIL)",
        "its deadline had passed (DEADLINE)",
    ]
    assert {told[str(number)].state for number in range(1, 7)} == {JobState.FAILED}
    assert told["7"].reason == "(ReqNodeNotAvail, UnavailableNodes:node4)"
    assert (told["8"].state, told["8"].reason) == (JobState.RUNNING, "COMPLETING")
    assert (told["9"].state, told["9"].reason) == (
        JobState.UNKNOWN,
        "Slurm says 'SHINY_NEW_STATE', which is not a known state",
    )


@pytest.mark.parametrize(
    ("reason", "never"),
    [
        ("QOSMaxWallDurationPerJobLimit", True),
        ("AssocMaxCpuPerJobLimit", True),
        ("QOSMinCpuNotSatisfied", True),
        ("QOSMaxJobsPerUserLimit", False),
        ("AssocGrpCpuLimit", False),
        ("Priority", False),
        ("Resources", False),
    ],
)
def test_a_reason_that_does_not_go_away_says_so(reason, never):
    told = queue(f"1 PENDING N/A N/A 0 {reason}")["1"]
    assert told.reason.startswith(reason)
    assert ("it will never run" in told.reason, told.is_stuck) == (never, never)


def test_times_that_are_no_times_are_left_out():
    assert queue("1 RUNNING Unknown NONE 0 None")["1"] == JobStatus(JobState.RUNNING)
    assert queue("1 RUNNING 2026-11-29T18:31:09 2026-11-29T19:31:09 0 None")["1"].ends_at is None


def test_an_id_that_slurm_does_not_know_is_left_out():
    assert SYSTEM.parse_status(["99999"], refused("slurm/squeue-unknown-id.txt")) == {}
    assert SYSTEM.parse_status(["1", "2"], recorded("slurm/empty.txt")) == {}


@pytest.mark.parametrize("name", ["controller-down", "localised"])
def test_a_status_command_that_fails_leaves_all_jobs_unknown_with_its_words(name):
    result = refused(f"slurm/squeue-{name}.txt")
    unknown = JobStatus(JobState.UNKNOWN, reason=result.words)
    assert SYSTEM.parse_status(["1", "2"], result) == {"1": unknown, "2": unknown}


def test_of_a_cut_output_the_whole_lines_count():
    told = SYSTEM.parse_status([str(number) for number in range(17, 29)], recorded("slurm/squeue-truncated.txt"))
    assert set(told) == {"23", "27"}


def test_how_jobs_ended_is_read_from_the_history():
    told = SYSTEM.parse_history(["1", "2", "3", "4", "5", "99999"], recorded("slurm/sacct-many-states.txt"))
    assert told == {
        "1": JobStatus(JobState.ENDED, 0, "exited with code 0"),
        "2": JobStatus(JobState.FAILED, 3, "exited with code 3 (FAILED)"),
        "3": JobStatus(JobState.FAILED, 0, "cancelled from outside by root (CANCELLED)"),
        "4": JobStatus(JobState.FAILED, -9, "killed by SIGKILL (FAILED)"),
        "5": JobStatus(JobState.RUNNING),
    }
    assert queue("1 COMPLETED 1 2 0 None")["1"] == told["1"]


def test_who_cancelled_a_job_is_told():
    result = CommandResult(("sacct",), 0, "3|CANCELLED by 1000|0:15\n", "")
    assert SYSTEM.parse_history(["3"], result)["3"].reason == "cancelled from outside by user 1000 (CANCELLED)"


def test_without_accounting_there_is_no_history():
    assert SYSTEM.parse_history(["1"], refused("slurm/sacct-disabled.txt")) == {}
    assert SYSTEM.parse_history(["1"], recorded("slurm/sacct-truncated.txt"))["1"].state is JobState.ENDED
    down = SYSTEM.parse_history(["1"], CommandResult(("sacct",), 1, "", "slurmdbd: Connection refused"))
    assert down["1"].state is JobState.UNKNOWN


@given(RESULTS)
def test_no_output_makes_it_raise(result):
    ids = ["1", "2", "17"]
    for told in (SYSTEM.parse_status(ids, result), SYSTEM.parse_history(ids, result)):
        assert set(told) <= set(ids)
        assert all(isinstance(status, JobStatus) for status in told.values())
    SYSTEM.parse_find("x", result)
    with contextlib.suppress(SubmitError):
        assert SYSTEM.parse_submit(result).isdigit()
