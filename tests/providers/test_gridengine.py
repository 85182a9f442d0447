from __future__ import annotations

import contextlib
import pickle

import pytest
from hypothesis import given

from hpcpool import Config, ConfigError, NodePool
from hpcpool.providers import GridEngineProvider, JobState, JobStatus, SubmitError, provider_class
from hpcpool.providers.batch import BatchSystem, JobRequest, JobSearch, SubmitUnclear
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.gridengine import GridEngineSystem
from tests.providers.recorded import RESULTS, golden, recorded, refused
from tests.providers.requests import job

SYSTEM = GridEngineSystem(GridEngineProvider())
IDS = [str(number) for number in range(27, 37)]


def lines(options: GridEngineProvider, request: JobRequest) -> list[str]:
    """The directives of a script, without the prefix."""
    script = GridEngineSystem(options).script(request)
    return [line.removeprefix("#$ ") for line in script.splitlines() if line.startswith("#$")]


def in_queue(state: str, more: str = "") -> JobStatus:
    text = (
        "<?xml version='1.0'?>\n<job_info><queue_info><job_list><JB_job_number>1</JB_job_number>"
        f"<state>{state}</state>{more}</job_list></queue_info></job_info>\n"
    )
    return SYSTEM.parse_status(["1"], CommandResult(("qstat",), 0, text, ""))["1"]


# Options


def test_it_is_a_value_that_travels_in_a_configuration():
    provider = GridEngineProvider(queue="all.q", walltime="1:00:00", resources=["gpu=1"], scheduler_options="-V")
    assert pickle.loads(pickle.dumps(provider)) == provider
    config = Config(NodePool(provider))
    assert Config.from_json(config.to_json()) == config
    assert provider_class("gridengine") is GridEngineProvider
    system: BatchSystem = SYSTEM
    assert isinstance(system, JobSearch)


def test_several_nodes_need_a_parallel_environment():
    with pytest.raises(ConfigError, match="must not be more than 1"):
        NodePool(GridEngineProvider(), nodes_per_block=2)
    NodePool(GridEngineProvider(parallel_environment="mpi"), nodes_per_block=2)
    with pytest.raises(SubmitError, match="set parallel_environment"):
        SYSTEM.script(job(nodes=2))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"queue": "a b"}, "GridEngineProvider.queue is 'a b'; valid: text without blanks, or None"),
        ({"slots_per_node": 0}, "GridEngineProvider.slots_per_node is 0"),
        ({"resources": "gpu=1"}, "GridEngineProvider.resources is 'gpu=1'; valid: a sequence of texts without blanks"),
        ({"resources": ("a b",)}, "GridEngineProvider.resources is ('a b',)"),
        ({"walltime": "long"}, "GridEngineProvider.walltime is 'long'"),
        ({"job_dir": "x"}, "GridEngineProvider.job_dir is 'x'"),
        ({"scheduler_options": ("\x00",)}, "GridEngineProvider.scheduler_options is ('\\x00',)"),
    ],
)
def test_an_option_that_does_not_fit_is_named_with_what_does(options, problem):
    with pytest.raises(ConfigError) as caught:
        GridEngineProvider(**options)
    assert str(caught.value).startswith(problem)


# Scripts


def test_the_script_of_a_plain_job():
    script = SYSTEM.script(job())
    assert script == golden("gridengine-plain.sh", script)


def test_the_script_of_a_job_with_everything():
    provider = GridEngineProvider(
        queue="long.q,all.q",
        parallel_environment="mpi16",
        slots_per_node=16,
        project="proj",
        resources=("arch=lx-amd64", "scratch"),
        memory_resource="mem_free",
        gpu_resource="gpu",
        scheduler_options=("#$ -V", "-M me@x"),
    )
    request = job(nodes=4, walltime_s=5400.5, memory_per_node=2**36, gpus_per_node=2, cwd="/a b", cores_per_node=8)
    script = GridEngineSystem(provider).script(request)
    assert script == golden("gridengine-everything.sh", script)


def test_slots_are_asked_for_as_the_node_pool_works_them_out_and_only_in_a_parallel_environment():
    request = job(nodes=1, cores_per_node=8, memory_per_node=2**33)
    assert "-pe smp 8" in lines(GridEngineProvider(parallel_environment="smp"), request)
    assert not any(line.startswith("-pe") for line in lines(GridEngineProvider(), request))
    per_slot = GridEngineProvider(parallel_environment="smp", memory_resource="h_vmem")
    assert "-l h_vmem=1024M" in lines(per_slot, request)
    assert "-l h_vmem=8192M" in lines(GridEngineProvider(memory_resource="h_vmem"), request)


# Submitting


@pytest.mark.parametrize(("name", "job_id"), [("accepted", "19"), ("array", "20"), ("with-greeting", "1234567")])
def test_the_id_of_an_accepted_job_is_read(name, job_id):
    assert SYSTEM.parse_submit(recorded(f"gridengine/qsub-{name}.txt")) == job_id


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("unknown-queue", "`qconf -sql`"),
        ("unknown-pe", "`qconf -spl`"),
        ("unknown-project", "`qconf -sprjl`"),
        ("unknown-resource", "`qconf -sc`"),
        ("no-suitable-queue", "no queue has so many slots"),
        ("qmaster-down", "the qmaster cannot be reached"),
        ("bad-walltime", 'attribute "h_rt" is not a time value'),
    ],
)
def test_a_refusal_is_in_grid_engine_s_words_with_what_to_do(name, hint):
    result = refused(f"gridengine/qsub-{name}.txt")
    with pytest.raises(SubmitError) as caught:
        SYSTEM.parse_submit(result)
    assert not isinstance(caught.value, SubmitUnclear)
    assert str(caught.value).startswith(result.words)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "result",
    [
        recorded("gridengine/empty.txt"),
        CommandResult(("qsub",), 1, "", "error: commlib error: got read error (closing connection)"),
    ],
)
def test_an_answer_that_was_lost_does_not_count_as_a_refusal(result):
    with pytest.raises(SubmitUnclear):
        SYSTEM.parse_submit(result)


def test_a_job_is_found_by_its_whole_name():
    queue = recorded("gridengine/qstat-many-states.txt")
    assert SYSTEM.parse_find("s.sh", CommandResult(("qstat",), 0, queue.stdout.partition("\n=")[0], "")) == "36"
    assert SYSTEM.parse_find("s.s", recorded("gridengine/qstat-no-job.txt")) is None
    assert SYSTEM.parse_find("s.sh", refused("gridengine/qstat-qmaster-down.txt")) is None


# Watching


def test_the_states_of_many_jobs_are_read():
    told = SYSTEM.parse_status([*IDS, "99999"], recorded("gridengine/qstat-many-states.txt"))
    stuck = "in error state (Eqw), it will never run: error: can't"
    assert told == {
        "30": JobStatus(JobState.PENDING, reason="held (hqw): it will not run until it is released: qrls"),
        "31": JobStatus(JobState.PENDING, reason='waiting (qw: cannot run in PE "smp" because it only offers 0 slots)'),
        "32": JobStatus(
            JobState.PENDING, reason=f"{stuck} chdir to /nonexistent: No such file or directory", is_stuck=True
        ),
        "33": JobStatus(
            JobState.PENDING,
            reason=f'{stuck} open output file "/nonexistent/x": No such file or directory',
            is_stuck=True,
        ),
        "36": JobStatus(JobState.RUNNING, started_at=1795977911.0),
    }


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("r", JobStatus(JobState.RUNNING)),
        ("t", JobStatus(JobState.RUNNING, reason="t")),
        ("Rr", JobStatus(JobState.RUNNING, reason="Rr")),
        ("dr", JobStatus(JobState.RUNNING, reason="dr")),
        ("S", JobStatus(JobState.RUNNING, reason="S")),
        ("hr", JobStatus(JobState.RUNNING, reason="hr")),
        ("qw", JobStatus(JobState.PENDING, reason="waiting (qw)")),
        ("Rq", JobStatus(JobState.PENDING, reason="waiting (Rq)")),
        ("", JobStatus(JobState.UNKNOWN, reason="Grid Engine says '', which is not a known state")),
        ("läuft", JobStatus(JobState.UNKNOWN, reason="Grid Engine says 'läuft', which is not a known state")),
    ],
)
def test_the_letters_of_a_state_are_read(state, expected):
    assert in_queue(state) == expected


def test_an_error_state_without_a_reason_says_where_to_look():
    assert in_queue("Eqw").reason == "in error state (Eqw), it will never run: `qstat -j` tells why"


@pytest.mark.parametrize(
    ("text", "started_at"),
    [("2026-11-29T18:45:11", 1795977911.0), ("2026-11-29T18:45:11.250", 1795977911.0), ("gestern", None), ("", None)],
)
def test_a_start_is_read_as_utc(text, started_at):
    assert in_queue("r", f"<JAT_start_time>{text}</JAT_start_time>").started_at == started_at


def test_jobs_that_are_not_in_the_queue_are_left_out():
    assert SYSTEM.parse_status(IDS, recorded("gridengine/qstat-no-job.txt")) == {}


@pytest.mark.parametrize("name", ["qmaster-down", "no-root", "localised"])
def test_a_status_command_that_fails_leaves_all_jobs_unknown_with_its_words(name):
    result = refused(f"gridengine/qstat-{name}.txt")
    unknown = JobStatus(JobState.UNKNOWN, reason=result.words)
    assert SYSTEM.parse_status(["1", "2"], result) == {"1": unknown, "2": unknown}


@pytest.mark.parametrize("name", ["truncated", "localised"])
def test_an_answer_that_is_not_understood_says_nothing_about_any_job(name):
    told = SYSTEM.parse_status(IDS, recorded(f"gridengine/qstat-{name}.txt"))
    assert {status.state for status in told.values()} == {JobState.UNKNOWN}
    assert all(status.reason.startswith("qstat's answer is not understood: ") for status in told.values())


def test_how_jobs_ended_is_read_from_the_history():
    assert SYSTEM.parse_history([*IDS, "99999"], recorded("gridengine/qacct-many-ends.txt")) == {
        "27": JobStatus(JobState.ENDED, 0, "exited with code 0"),
        "28": JobStatus(JobState.FAILED, 3, "exited with code 3"),
        "29": JobStatus(JobState.FAILED, -9, "killed, SIGKILL (failed 100 : assumedly after job)"),
        "32": JobStatus(JobState.FAILED, None, "failed 28 : changing into working directory"),
        "33": JobStatus(JobState.FAILED, None, "failed 26 : opening input/output file"),
        "34": JobStatus(
            JobState.FAILED,
            -9,
            "its walltime or its memory was over, SIGKILL (failed 37 : qmaster enforced h_rt, h_cpu, or h_vmem limit)",
        ),
        "35": JobStatus(JobState.FAILED, -9, "killed, SIGKILL (failed 100 : assumedly after job)"),
    }


def test_of_a_cut_history_only_whole_records_count():
    assert SYSTEM.parse_history(IDS, recorded("gridengine/qacct-truncated.txt")) == {}
    down = SYSTEM.parse_history(["1"], CommandResult(("sh",), None, "", "sh did not answer within 30 s"))
    assert down["1"] == JobStatus(JobState.UNKNOWN, reason="sh did not answer within 30 s")


@given(RESULTS)
def test_no_output_makes_it_raise(result):
    ids = ["1", "2", "17"]
    for told in (SYSTEM.parse_status(ids, result), SYSTEM.parse_history(ids, result)):
        assert set(told) <= set(ids)
        assert all(isinstance(status, JobStatus) for status in told.values())
    SYSTEM.parse_find("x", result)
    with contextlib.suppress(SubmitError):
        assert SYSTEM.parse_submit(result).isdigit()
