from __future__ import annotations

import contextlib
import pickle

import pytest
from hypothesis import given

from hpcpool import Config, ConfigError, NodePool
from hpcpool.providers import JobState, JobStatus, OARProvider, SubmitError, provider_class
from hpcpool.providers.batch import BatchSystem, JobSearch, SubmitUnclear
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.oar import OARSystem
from tests.providers.recorded import RESULTS, golden, recorded, refused
from tests.providers.requests import job

SYSTEM = OARSystem(OARProvider())


def told(text: str) -> JobStatus:
    return SYSTEM.parse_status(["1"], CommandResult(("oarstat",), 0, text, ""))["1"]


# Options and scripts


def test_it_is_a_value_that_travels_in_a_configuration():
    provider = OARProvider(queue="default", walltime="1:00:00", types=["besteffort"], properties="a='b'")
    assert pickle.loads(pickle.dumps(provider)) == provider
    config = Config(NodePool(provider, nodes_per_block=3))
    assert Config.from_json(config.to_json()) == config
    assert provider_class("oar") is OARProvider
    system: BatchSystem = SYSTEM
    assert isinstance(system, JobSearch)
    assert system.history_command(["1"]) is None
    assert system.parse_history(["1"], recorded("oar/empty.txt")) == {}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"job_dir": "/a b"}, "OARProvider.job_dir is '/a b'; valid: text without blanks, or None"),
        ({"job_dir": "a"}, "OARProvider.job_dir is 'a'; valid: an absolute path"),
        ({"properties": ""}, "OARProvider.properties is ''"),
        ({"types": "x"}, "OARProvider.types is 'x'"),
        ({"walltime": 0}, "OARProvider.walltime is 0"),
    ],
)
def test_an_option_that_does_not_fit_is_named_with_what_does(options, problem):
    with pytest.raises(ConfigError) as caught:
        OARProvider(**options)
    assert str(caught.value).startswith(problem)


def test_the_script_of_a_plain_job():
    script = SYSTEM.script(job())
    assert script == golden("oar-plain.sh", script)


def test_the_script_of_a_job_with_everything():
    provider = OARProvider(
        queue="night",
        project="proj",
        properties="cluster='nova' and memnode >= 32768",
        node_resources="/cpu=1/core=4",
        types=("besteffort", "night"),
        scheduler_options="--notify mail:me@x",
    )
    script = OARSystem(provider).script(job(nodes=4, walltime_s=90_000.0, cores_per_node=8))
    assert script == golden("oar-everything.sh", script)


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (job(nodes=2), "#OAR -l /nodes=2"),
        (job(nodes=2, cores_per_node=4), "#OAR -l /nodes=2/core=4"),
        (job(cores_per_node=4, gpus_per_node=2), "#OAR -l /nodes=1/gpu=2"),
    ],
)
def test_gpus_bring_their_cores_and_without_both_nodes_are_whole(request_, line):
    assert line in SYSTEM.script(request_).splitlines()


# Submitting


def test_the_id_of_an_accepted_job_is_read():
    assert SYSTEM.parse_submit(recorded("oar/oarsub-accepted.txt")) == "9"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("too-many-nodes", "There are not enough resources for your request"),
        ("bad-property", "look at properties and node_resources"),
        ("unknown-queue", "ERROR : The queue nope does not exist"),
        ("root", "(OAR takes no jobs of root)"),
    ],
)
def test_a_refusal_is_in_oar_s_words_with_what_to_do(name, words):
    with pytest.raises(SubmitError) as caught:
        SYSTEM.parse_submit(refused(f"oar/oarsub-{name}.txt", 8))
    assert not isinstance(caught.value, SubmitUnclear)
    assert words in str(caught.value)


def test_the_rules_of_admission_are_left_out_of_a_refusal():
    said = "[ADMISSION RULE] Set default walltime to 7200.\nOAR_JOB_ID=-5\n"
    with pytest.raises(SubmitError, match="^no$"):
        SYSTEM.parse_submit(CommandResult(("oarsub",), 8, said, "no\n"))


def test_an_answer_without_an_id_does_not_count_as_a_refusal():
    with pytest.raises(SubmitUnclear):
        SYSTEM.parse_submit(recorded("oar/empty.txt"))


def test_a_job_is_found_by_its_name():
    assert SYSTEM.parse_find("find-me", recorded("oar/oarstat-find.txt")) == "14"
    assert SYSTEM.parse_find("other", recorded("oar/oarstat-find.txt")) is None
    assert SYSTEM.parse_find("other", recorded("oar/empty.txt")) is None


# Watching


def test_the_states_of_many_jobs_are_read():
    ids = [str(number) for number in range(10, 18)]
    assert SYSTEM.parse_status([*ids, "99999"], recorded("oar/oarstat-many-states.txt")) == {
        "10": JobStatus(JobState.ENDED, 0, "exited with code 0"),
        "11": JobStatus(JobState.FAILED, 3, "exited with code 3"),
        "12": JobStatus(JobState.FAILED, None, "its walltime was over (Error)"),
        "13": JobStatus(JobState.FAILED, -9, "killed by SIGKILL"),
        "14": JobStatus(JobState.RUNNING, ends_at=1795978843.0, started_at=1795978243.0),
        "15": JobStatus(JobState.PENDING, reason="Hold: it will not run until it is released: oarresume"),
        "16": JobStatus(
            JobState.FAILED, None, "cancelled from outside: User tester requested to frag the job 16 (Error)"
        ),
        "17": JobStatus(JobState.PENDING, reason="Waiting: R=4,W=0:10:0,J=B,N=hpcpool-x1-b0"),
    }


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ('{"1": {"state": "Launching"}}', JobState.PENDING),
        ('{"1": {"state": "Running", "startTime": 0}}', JobState.RUNNING),
        ('{"1": {"state": "Terminated"}}', JobState.FAILED),
        ('{"1": {"state": "Error", "events": [1, {}]}}', JobState.FAILED),
        ('{"1": {"state": ["Running"]}}', JobState.UNKNOWN),
        ('{"1": {}}', JobState.UNKNOWN),
    ],
)
def test_what_is_left_out_of_an_answer_is_not_made_up(text, state):
    assert told(text).state is state
    assert told(text).ends_at is None


def test_an_id_that_oar_does_not_know_is_left_out():
    assert SYSTEM.parse_status(["99999"], recorded("oar/empty.txt")) == {}


@pytest.mark.parametrize(
    "result",
    [
        recorded("oar/oarstat-truncated.txt"),
        CommandResult(("oarstat",), 0, "[1, 2]", ""),
        CommandResult(("oarstat",), 2, "", "Verbindung zur Datenbank nicht möglich"),
        CommandResult(("oarstat",), None, "", "oarstat did not answer within 30 s"),
    ],
)
def test_an_answer_that_is_none_says_nothing_about_any_job(result):
    answer = SYSTEM.parse_status(["10", "11"], result)
    assert {status.state for status in answer.values()} == {JobState.UNKNOWN}
    assert all(status.reason for status in answer.values())


@given(RESULTS)
def test_no_output_makes_it_raise(result):
    ids = ["1", "2", "17"]
    answer = SYSTEM.parse_status(ids, result)
    assert set(answer) <= set(ids)
    assert all(isinstance(status, JobStatus) for status in answer.values())
    SYSTEM.parse_find("x", result)
    with contextlib.suppress(SubmitError):
        assert SYSTEM.parse_submit(result).isdigit()
