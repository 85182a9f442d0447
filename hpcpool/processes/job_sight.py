"""What a driver tells of a job, in block control's words: the values of `providers.base` become those of `core`."""

from __future__ import annotations

import re

from hpcpool.core.block_orders import Phase, Sight, Taken
from hpcpool.providers.base import JobState, JobStatus

_PHASES = {
    JobState.PENDING: Phase.QUEUED,
    JobState.RUNNING: Phase.RUNNING,
    JobState.ENDED: Phase.ENDED,
    JobState.FAILED: Phase.FAILED,
    JobState.UNKNOWN: Phase.UNKNOWN,
}
#: How batch systems say it: Slurm TIMEOUT, DEADLINE and PREEMPTED, LSF TERM_RUNLIMIT and TERM_PREEMPT, PBS "walltime …
#: exceeded limit", HTCondor "preempted" and "evicted", Grid Engine "h_rt".
_WALLTIME = re.compile(
    r"\b(timeout|deadline|time ?limit|term_runlimit|walltime|wall[- ]clock|h_rt|s_rt)\b", re.IGNORECASE
)
_PREEMPTION = re.compile(r"preempt|evicted", re.IGNORECASE)


def sight_of(status: JobStatus, clock_offset_s: float) -> Sight:
    """Return a status in the words of block control.

    Args:
        clock_offset_s: what is added to seconds since the epoch to get the time on block control's clock.
    """
    return Sight(
        _PHASES[status.state],
        status.exit_code,
        status.reason,
        status.stderr_tail,
        status.ends_at + clock_offset_s if status.ends_at is not None else None,
        _taken(status),
        status.is_stuck and status.state is JobState.PENDING,
    )


def _taken(status: JobStatus) -> Taken | None:
    if status.state is not JobState.FAILED:
        return None
    if _PREEMPTION.search(status.reason):
        return Taken.PREEMPTION
    return Taken.WALLTIME if _WALLTIME.search(status.reason) else None
