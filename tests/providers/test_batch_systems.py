"""What holds for every batch system whose outputs are only known as text."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcpool import Config, NodePool
from hpcpool.providers import (
    CobaltProvider,
    HTCondorProvider,
    JobState,
    JobStatus,
    LSFProvider,
    PBSProProvider,
    SubmitError,
    TorqueProvider,
)
from hpcpool.providers.base import BlockRequest
from hpcpool.providers.batch import BatchSystem, JobSearch
from hpcpool.providers.cobalt import CobaltSystem
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.htcondor import HTCondorSystem
from hpcpool.providers.lsf import LSFSystem
from hpcpool.providers.pbs import PBSProSystem
from hpcpool.providers.torque import TorqueSystem
from tests.providers.answers import DATA, job
from tests.providers.recorded import RESULTS

pytestmark = pytest.mark.once

PROVIDERS = [PBSProProvider(), TorqueProvider(), LSFProvider(), HTCondorProvider(), CobaltProvider()]
SYSTEMS: dict[str, BatchSystem] = {
    "pbspro": PBSProSystem(PBSProProvider()),
    "torque": TorqueSystem(TorqueProvider()),
    "lsf": LSFSystem(LSFProvider()),
    "htcondor": HTCondorSystem(HTCondorProvider()),
    "cobalt": CobaltSystem(CobaltProvider()),
}
RECORDED = [path for system in SYSTEMS for path in sorted((DATA / system).glob("*.txt"))]

of_each_system = pytest.mark.parametrize("kind", SYSTEMS)
of_each_recording = pytest.mark.parametrize("path", RECORDED, ids=lambda path: f"{path.parent.name}/{path.stem}")


def told(system: BatchSystem, job_ids: list[str], result: CommandResult) -> dict[str, JobStatus]:
    """All that a system can make of an output."""
    found = dict(system.parse_status(job_ids, result))
    assert set(found) <= set(job_ids)
    history = system.parse_history(job_ids, result)
    assert set(history) <= set(job_ids)
    assert all(isinstance(status, JobStatus) for status in (*found.values(), *history.values()))
    return found


@of_each_system
@given(result=RESULTS)
@settings(deadline=None)
def test_no_output_makes_a_system_raise(kind, result):
    system = SYSTEMS[kind]
    told(system, ["1", "2", "17"], result)
    if isinstance(system, JobSearch):
        assert system.parse_find("x", result) is None or result.code == 0
    with contextlib.suppress(SubmitError):
        assert system.parse_submit(result)


@of_each_system
@given(text=st.text(max_size=300))
@settings(deadline=None)
def test_a_status_command_that_fails_makes_no_job_end(kind, text):
    result = CommandResult(("command",), None, "", text)
    states = {status.state for status in told(SYSTEMS[kind], ["1", "2"], result).values()}
    assert states <= {JobState.UNKNOWN}


@of_each_recording
@given(data=st.data())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_a_recording_that_is_cut_off_or_garbled_is_read_as_far_as_it_goes(path, data):
    text = path.read_text(encoding="utf-8")
    cut = data.draw(st.integers(0, len(text)))
    garbled = data.draw(st.text(max_size=20))
    ids = sorted(set(re.findall(r"\d{3,}(?:\.[a-z0-9.]+)?", text)))[:20]
    system = SYSTEMS[path.parent.name]
    for output in (text[:cut], text[:cut] + garbled + text[cut:]):
        told(system, ids, CommandResult(("command",), 0, output, ""))


@of_each_recording
def test_a_recording_in_another_language_s_encoding_is_read(path):
    text = path.read_bytes().replace(b"a", b"\xe9").decode(errors="replace")
    told(SYSTEMS[path.parent.name], ["1"], CommandResult(("command",), 0, text, ""))


@pytest.mark.parametrize("kind", SYSTEMS)
def test_each_recording_is_listed_with_its_source(kind):
    listed = set(re.findall(r"`([\w-]+\.txt)` \|", (DATA / kind / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in (DATA / kind).glob("*.txt")}


@of_each_system
def test_a_job_script_is_a_shell_script(kind):
    script = SYSTEMS[kind].script(job(cores_per_node=2, memory_per_node=2**30, gpus_per_node=1, cwd="/it's a folder"))
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=20)
    head, _, _ = script.partition("\n\n")
    assert all(line.startswith("#") for line in head.splitlines()), "a directive behind the first command is not read"


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.kind)
def test_a_provider_is_a_value_that_travels_in_a_configuration(provider):
    config = Config(NodePool(provider, nodes_per_block=2))
    assert Config.from_json(config.to_json()) == config
    data = {"node_pools": [{"provider": provider.kind, "nodes_per_block": 2}]}
    assert Config.from_dict(data) == config


# A batch system made of small programs: the whole way of a block, from its request to its last status.

PBS_PROGRAMS = {
    "qsub": 'cp "$1" "$STATE/script"; echo Q > "$STATE/state"; echo 7.server',
    "qstat": 'state=$(cat "$STATE/state"); printf "Job Id: 7.server\\n    job_state = %s\\n" "$state"',
    "qdel": 'echo "$@" >> "$STATE/deleted"; echo F > "$STATE/state"',
}


@pytest.fixture
def pbs_of_programs(tmp_path, monkeypatch) -> Path:
    for name, text in PBS_PROGRAMS.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(tmp_path))
    return tmp_path


def test_a_block_goes_all_its_way(pbs_of_programs):
    driver = PBSProProvider(queue="short", job_dir=str(pbs_of_programs / "jobs")).open("/run/hpcpool-x1")
    request = BlockRequest(
        block_id="b1", nodes=2, command=("true",), cwd="/", stdout="/dev/null", stderr="/dev/null", files={"key": b"k"}
    )
    job_id = driver.submit(request)
    assert job_id == "7.server"
    script = (pbs_of_programs / "script").read_text()
    assert "#PBS -q short\n" in script
    assert "#PBS -N hpcpool-x1-b1\n" in script
    assert driver.status([job_id])[job_id].state is JobState.PENDING
    (pbs_of_programs / "state").write_text("R")
    assert driver.status([job_id])[job_id].state is JobState.RUNNING
    driver.cancel([job_id])
    driver.cancel([job_id])
    assert (pbs_of_programs / "deleted").read_text() == "7.server\n-W force 7.server\n"
    assert driver.status([job_id])[job_id].state is JobState.ENDED
    driver.close()
    assert not (pbs_of_programs / "jobs" / "hpcpool-x1").exists()
