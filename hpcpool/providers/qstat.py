"""What `qstat -f` prints on PBS Pro, OpenPBS and Torque: jobs with their attributes, in plain text.

The text is read, not the JSON or XML of newer versions: it is the same in all of them since 1998, and PBS Pro writes
JSON that is none where a job's environment has quotes or control characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from hpcpool.errors import signal_name
from hpcpool.providers.base import JobState, JobStatus
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.times import duration_s, epoch_s

#: The attributes of one job, by name, such as "job_state": "R".
Attributes: TypeAlias = Mapping[str, str]

#: An indented name, such as Resource_List.walltime. What follows a line break inside a value has a tab in front.
_ATTRIBUTE = re.compile(r"^ {1,4}([A-Za-z_][A-Za-z0-9_.]*) = ?(.*)$")
#: Exit codes of qstat: one of the jobs is not known (PBSE_UNKJOBID), or is over and was not asked for with -x
#: (PBSE_HISTJOBID). What it printed of the others is right.
UNKNOWN_JOB_CODES = frozenset({153, 35})
#: The exit status of a job that a signal ended is this number and the signal's.
_SIGNALLED = 256


def told_statuses(
    job_ids: Sequence[str], result: CommandResult, status_of: Callable[[Attributes], JobStatus]
) -> dict[str, JobStatus]:
    """Return the statuses of those of the jobs that an output names; if qstat failed as a whole, all others unknown."""
    jobs = jobs_of(result.stdout)
    told = {job_id: status_of(jobs[job_id]) for job_id in job_ids if job_id in jobs}
    if result.code == 0 or result.code in UNKNOWN_JOB_CODES:
        return told
    unknown = JobStatus(JobState.UNKNOWN, reason=result.words)
    return {job_id: told.get(job_id, unknown) for job_id in job_ids}


def jobs_of(text: str) -> dict[str, Attributes]:
    """Return the attributes of each job in an output, by job id."""
    found: dict[str, Attributes] = {}
    attributes: dict[str, str] = {}
    # A value is cut at 80 columns, and goes on behind a tab (or, where tabs were expanded, eight blanks).
    for line in re.sub(r"\n(?:\t| {8,})", "", text.replace("\r\n", "\n")).split("\n"):
        if line.startswith("Job Id:"):
            attributes = {}
            found[line.removeprefix("Job Id:").strip()] = attributes
        elif match := _ATTRIBUTE.match(line):
            # The first wins: what looks like an attribute later may be part of the job's environment.
            attributes.setdefault(match[1], match[2].strip())
    return found


def living_status(attributes: Attributes, state: JobState, start: str, words: str) -> JobStatus:
    """Return the status of a job that is not over.

    Args:
        attributes: all that is known of it.
        state: what its state means.
        start: when it started, as printed; it may be empty.
        words: what to say where the server gives no comment.
    """
    reason = attributes.get("comment") or words
    started_at = epoch_s(start) if state is JobState.RUNNING else None
    limit_s = duration_s(attributes.get("Resource_List.walltime", ""))
    ends_at = None if started_at is None or limit_s is None else started_at + limit_s
    return JobStatus(state, reason=reason, ends_at=ends_at, started_at=started_at)


def last_status(attributes: Attributes, status: str | None, meanings: Mapping[int, str]) -> JobStatus:
    """Return the status of a job that is over.

    Args:
        attributes: all that is known of it.
        status: its exit status as printed; None: it has none.
        meanings: what the batch system's own exit statuses (below 0) mean.
    """
    comment = attributes.get("comment", "")
    if status is None or not re.fullmatch(r"-?[0-9]{1,9}", status):
        return JobStatus(JobState.FAILED, reason=comment or "it was over before it had started")
    code = int(status)
    if code == 0:
        return JobStatus(JobState.ENDED, exit_code=0, reason="exited with code 0")
    if code < 0:
        return JobStatus(JobState.FAILED, reason=meanings.get(code, f"ended by the batch system, status {code}"))
    if code > _SIGNALLED:
        number = code - _SIGNALLED
        return JobStatus(JobState.FAILED, exit_code=-number, reason=f"killed by {signal_name(number)}")
    return JobStatus(JobState.FAILED, exit_code=code, reason=f"exited with code {code}")
