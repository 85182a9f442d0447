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

#: A name, such as Resource_List.walltime, and its value.
_ATTRIBUTE = re.compile(r"([A-Za-z_][A-Za-z0-9_.]*) = ?(.*)")
_CONTINUED = re.compile(r"\t| {8}")
#: Exit codes of qstat: one of the jobs is not known (PBSE_UNKJOBID), or is over and was not asked for with -x
#: (PBSE_HISTJOBID). What it printed of the others is right.
UNKNOWN_JOB_CODES = frozenset({153, 35})
#: The exit status of a job that a signal ended is this number and the signal's.
_SIGNALLED = 256
#: How PBS's scheduler begins a comment on a job that asks for more than there is.
_NEVER = "Can Never Run"


def told_statuses(
    job_ids: Sequence[str], result: CommandResult, status_of: Callable[[Attributes], JobStatus | None]
) -> dict[str, JobStatus]:
    """Return the statuses of those of the jobs that an output tells of; if qstat failed as a whole, all others unknown.

    `status_of` returns None for a job that is over where it is not told how.
    """
    jobs = jobs_of(result.stdout)
    found = {job_id: status_of(jobs[job_id]) for job_id in job_ids if job_id in jobs}
    told = {job_id: status for job_id, status in found.items() if status is not None}
    if result.code == 0 or result.code in UNKNOWN_JOB_CODES:
        return told
    unknown = JobStatus(JobState.UNKNOWN, reason=result.words)
    return {job_id: told.get(job_id, unknown) for job_id in job_ids if job_id in told or job_id not in found}


def jobs_of(text: str) -> dict[str, Attributes]:
    """Return the attributes of each job in an output, by job id."""
    found: dict[str, Attributes] = {}
    for part in re.split(r"^Job Id:", text.replace("\r\n", "\n"), flags=re.MULTILINE)[1:]:
        job_id, *lines = part.split("\n")
        found[job_id.strip()] = _attributes(lines)
    return found


def _attributes(lines: Sequence[str]) -> Attributes:
    """The attributes of one job. Each is indented as the first is; what is indented more goes on with the last one."""
    first = next((line for line in lines if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        match = _ATTRIBUTE.fullmatch(line.removeprefix(indent)) if line.startswith(indent) else None
        if match and match[1] not in found:
            name = match[1]
            found[name] = match[2]
        elif match:
            # The first wins: what looks like an attribute later may be part of the job's environment.
            name = ""
        elif name and (rest := _CONTINUED.match(line)):
            # A value is cut at 80 columns, and goes on behind a tab (or, where tabs were expanded, eight blanks).
            found[name] += line[rest.end() :]
    return {name: value.strip() for name, value in found.items()}


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
    is_stuck = state is JobState.PENDING and reason.startswith(_NEVER)
    return JobStatus(state, reason=reason, ends_at=ends_at, started_at=started_at, is_stuck=is_stuck)


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
