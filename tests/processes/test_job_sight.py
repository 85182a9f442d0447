from __future__ import annotations

import pytest

from hpcpool.core.block_orders import Phase, Sight, Taken
from hpcpool.processes.job_sight import sight_of
from hpcpool.providers import (
    FluxProvider,
    GridEngineProvider,
    LSFProvider,
    OARProvider,
    PBSProProvider,
    SlurmProvider,
    TorqueProvider,
)
from hpcpool.providers.base import JobState, JobStatus
from hpcpool.providers.flux import FluxSystem
from hpcpool.providers.gridengine import GridEngineSystem
from hpcpool.providers.lsf import LSFSystem
from hpcpool.providers.oar import OARSystem
from hpcpool.providers.pbs import PBSProSystem
from hpcpool.providers.slurm import SlurmSystem
from hpcpool.providers.torque import TorqueSystem
from tests.providers.recorded import recorded


def test_a_status_is_told_in_block_control_s_words_and_time():
    status = JobStatus(JobState.FAILED, 3, "FAILED", "no such file", ends_at=5000.0)
    assert sight_of(status, -4000.0) == Sight(Phase.FAILED, 3, "FAILED", "no such file", ends_at=1000.0)


@pytest.mark.parametrize("state", JobState)
def test_every_state_has_a_phase(state):
    assert sight_of(JobStatus(state), 0.0).ends_at is None


@pytest.mark.parametrize(
    ("reason", "taken"),
    [
        ("TIMEOUT", Taken.WALLTIME),
        ("TimeLimit", Taken.WALLTIME),
        ("DEADLINE", Taken.WALLTIME),
        ("PBS: job killed: walltime 62 exceeded limit 60", Taken.WALLTIME),
        ("TERM_RUNLIMIT: job killed after reaching LSF run time limit.", Taken.WALLTIME),
        ("PREEMPTED", Taken.PREEMPTION),
        ("TERM_PREEMPT: job killed by preemption", Taken.PREEMPTION),
        ("Job was evicted", Taken.PREEMPTION),
        ("FAILED", None),
        ("NODE_FAIL", None),
        ("OUT_OF_MEMORY", None),
        ("", None),
    ],
)
def test_what_took_a_job_away_is_seen_in_the_batch_system_s_words(reason, taken):
    assert sight_of(JobStatus(JobState.FAILED, reason=reason), 0.0).taken is taken


#: Of each batch system that tells it: the recorded output of a job that was taken away.
_RECORDED = [
    (SlurmSystem(SlurmProvider()), "slurm/squeue-federation.txt", "1", Taken.WALLTIME),
    (SlurmSystem(SlurmProvider()), "slurm/squeue-federation.txt", "3", Taken.PREEMPTION),
    (PBSProSystem(PBSProProvider()), "pbspro/killed.txt", "11.node1", Taken.WALLTIME),
    (TorqueSystem(TorqueProvider()), "torque/completed.txt", "522083.barnacle.ucsd.edu", Taken.WALLTIME),
    (LSFSystem(LSFProvider()), "lsf/fields.txt", "764213236", Taken.WALLTIME),
    (OARSystem(OARProvider()), "oar/oarstat-many-states.txt", "12", Taken.WALLTIME),
    (FluxSystem(FluxProvider()), "flux/jobs-many-states.txt", "fA9", Taken.WALLTIME),
]


@pytest.mark.parametrize(
    ("system", "path", "job_id", "taken"), _RECORDED, ids=[f"{path} {job}" for _, path, job, _ in _RECORDED]
)
def test_a_job_that_is_recorded_as_taken_away_is_no_failure(system, path, job_id, taken):
    status = system.parse_status([job_id], recorded(path))[job_id]
    assert sight_of(status, 0.0).taken is taken


def test_grid_engine_s_history_tells_that_a_walltime_was_over():
    status = GridEngineSystem(GridEngineProvider()).parse_history(["34"], recorded("gridengine/qacct-many-ends.txt"))
    assert sight_of(status["34"], 0.0).taken is Taken.WALLTIME


def test_a_job_that_has_not_failed_was_not_taken_away():
    assert sight_of(JobStatus(JobState.PENDING, reason="PartitionTimeLimit"), 0.0).taken is None
