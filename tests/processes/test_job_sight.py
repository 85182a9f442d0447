from __future__ import annotations

import pytest

from hpcpool.core.block_orders import Phase, Sight, Taken
from hpcpool.processes.job_sight import sight_of
from hpcpool.providers.base import JobState, JobStatus


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


def test_a_job_that_has_not_failed_was_not_taken_away():
    assert sight_of(JobStatus(JobState.PENDING, reason="PartitionTimeLimit"), 0.0).taken is None
