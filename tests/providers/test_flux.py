from __future__ import annotations

import contextlib
import pickle

import pytest
from hypothesis import given

from hpcpool import Config, ConfigError, NodePool
from hpcpool.providers import FluxProvider, JobState, JobStatus, SubmitError, provider_class
from hpcpool.providers.batch import BatchSystem, JobSearch, SubmitUnclear
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.flux import FluxSystem
from tests.providers.recorded import RESULTS, golden, recorded, refused
from tests.providers.requests import job

SYSTEM = FluxSystem(FluxProvider())
IDS = [f"fA{digit}" for digit in "123456789AB"]


# Options and scripts


def test_it_is_a_value_that_travels_in_a_configuration():
    provider = FluxProvider(queue="pbatch", walltime="1:00:00", gpus_per_node=4)
    assert pickle.loads(pickle.dumps(provider)) == provider
    config = Config(NodePool(provider, nodes_per_block=3))
    assert Config.from_json(config.to_json()) == config
    assert provider_class("flux") is FluxProvider
    system: BatchSystem = SYSTEM
    assert isinstance(system, JobSearch)
    assert system.history_command(["f1"]) is None
    assert system.parse_history(["f1"], recorded("flux/empty.txt")) == {}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"queue": "a b"}, "FluxProvider.queue is 'a b'; valid: text without blanks, or None"),
        ({"gpus_per_node": "4"}, "FluxProvider.gpus_per_node is '4'; valid: a whole number from 1"),
        ({"exclusive": None}, "FluxProvider.exclusive is None; valid: True or False"),
    ],
)
def test_an_option_that_does_not_fit_is_named_with_what_does(options, problem):
    with pytest.raises(ConfigError) as caught:
        FluxProvider(**options)
    assert str(caught.value).startswith(problem)


def test_the_script_of_a_plain_job():
    script = SYSTEM.script(job())
    assert script == golden("flux-plain.sh", script)


def test_the_script_of_a_job_with_everything():
    provider = FluxProvider(
        queue="pbatch",
        bank="proj",
        requires="hosts:node[1-4] | bigmem",
        exclusive=True,
        cores_per_node=16,
        scheduler_options="--urgency=20",
    )
    request = job(nodes=4, walltime_s=5400.5, gpus_per_node=2, cwd="/a b", cores_per_node=8)
    script = FluxSystem(provider).script(request)
    assert script == golden("flux-everything.sh", script)


# Submitting


@pytest.mark.parametrize("name", ["accepted", "accepted-ascii"])
def test_the_id_of_an_accepted_job_is_read(name):
    assert SYSTEM.parse_submit(recorded(f"flux/batch-{name}.txt")) == "f5VSeqLT"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("unsatisfiable", "no nodes have all that is asked for"),
        ("unknown-queue", "`flux queue list`"),
        ("no-instance", "$FLUX_URI"),
    ],
)
def test_a_refusal_is_in_flux_s_words_with_what_to_do(name, hint):
    result = refused(f"flux/batch-{name}.txt")
    with pytest.raises(SubmitError) as caught:
        SYSTEM.parse_submit(result)
    assert not isinstance(caught.value, SubmitUnclear)
    assert str(caught.value).startswith(result.words)
    assert hint in str(caught.value)


def test_an_answer_without_an_id_does_not_count_as_a_refusal():
    with pytest.raises(SubmitUnclear):
        SYSTEM.parse_submit(recorded("flux/empty.txt"))


def test_a_job_is_found_by_its_name():
    assert SYSTEM.parse_find("x", recorded("flux/batch-accepted.txt")) == "f5VSeqLT"
    assert SYSTEM.parse_find("x", recorded("flux/empty.txt")) is None


# Watching


def test_the_states_of_many_jobs_are_read():
    assert SYSTEM.parse_status([*IDS, "f99"], recorded("flux/jobs-many-states.txt")) == {
        "fA1": JobStatus(JobState.PENDING, reason="insufficient resources"),
        "fA2": JobStatus(JobState.PENDING, reason="DEPEND"),
        "fA3": JobStatus(JobState.RUNNING, ends_at=1795979295.5, started_at=1795977495.25),
        "fA4": JobStatus(JobState.RUNNING, reason="CLEANUP", ends_at=1795979295.5, started_at=1795977495.25),
        "fA5": JobStatus(JobState.ENDED, 0, "exited with code 0"),
        "fA6": JobStatus(JobState.FAILED, 3, "exited with code 3 (FAILED)"),
        "fA7": JobStatus(JobState.FAILED, -9, "killed by SIGKILL (FAILED)"),
        "fA8": JobStatus(JobState.FAILED, None, "cancelled from outside; cancel: not | needed (CANCELED)"),
        "fA9": JobStatus(JobState.FAILED, 142, "its walltime was over; timeout: resource allocation expired (TIMEOUT)"),
        "fAA": JobStatus(JobState.FAILED, 1, "exited with code 1; exec: lost contact with job shell (FAILED)"),
        "fAB": JobStatus(JobState.UNKNOWN, reason="Flux says 'SHINY ', which is not a known state"),
    }


def test_of_a_cut_output_the_whole_lines_count():
    told = SYSTEM.parse_status(IDS, recorded("flux/jobs-truncated.txt"))
    assert set(told) == {"fA1", "fA2", "fA3"}


def test_of_ids_that_flux_does_not_know_nothing_is_said():
    assert SYSTEM.parse_status(["f99"], refused("flux/jobs-unknown-id.txt")) == {}


@pytest.mark.parametrize("name", ["batch-no-instance", "jobs-localised"])
def test_a_status_command_that_fails_leaves_all_jobs_unknown_with_its_words(name):
    result = refused(f"flux/{name}.txt")
    unknown = JobStatus(JobState.UNKNOWN, reason=result.words)
    assert SYSTEM.parse_status(["f1", "f2"], result) == {"f1": unknown, "f2": unknown}


@given(RESULTS)
def test_no_output_makes_it_raise(result):
    ids = ["f1", "1", "17"]
    told = SYSTEM.parse_status(ids, result)
    assert set(told) <= set(ids)
    assert all(isinstance(status, JobStatus) for status in told.values())
    SYSTEM.parse_find("x", result)
    with contextlib.suppress(SubmitError):
        assert SYSTEM.parse_submit(result)


def test_a_second_cancellation_kills():
    assert SYSTEM.cancel_command(["f1", "f2"], force=False) == ("flux", "cancel", "f1", "f2")
    assert "SIGKILL" in SYSTEM.cancel_command(["f1"], force=True)[2]
    assert SYSTEM.parse_status(["f1"], CommandResult(("flux",), None, "", "late"))["f1"].reason == "late"
