"""Cobalt: job scripts, commands and what their outputs mean. Pure but for `CobaltProvider.open`.

Cobalt ran the machines of the Argonne Leadership Computing Facility until 2023 (Theta, ThetaGPU, Cooley, Mira), and a
few others. The facts are those of its manual pages and its source (https://github.com/ido/cobalt).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hpcpool.providers import option_checks
from hpcpool.providers.base import JobState, JobStatus
from hpcpool.providers.batch import JobRequest
from hpcpool.providers.batch_driver import BatchDriver, open_driver
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.job_script import job_script, quoted, submitted_id
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.times import duration_s, epoch_s, whole_minutes

_DIRECTIVE = "#COBALT"


@dataclass(frozen=True)
class CobaltProvider:
    """Jobs of Cobalt: a block is one job of `nodes_per_block` whole nodes.

    What is None is not asked for, and Cobalt's default counts. Cores, memory and GPUs are not asked for: a job has all
    of its nodes.

    Args:
        queue: the queue.
        project: the project that is charged.
        attrs: attributes of the job ("filesystems=home,eagle:mcdram=cache").
        walltime: how long a block may last ("00:30:00", "1-12:00:00", or seconds as a number); whole minutes count.
        scheduler_options: more lines for the head of the job script ("--mode script"), with or without `#COBALT`.
        job_dir: a folder that all nodes see, for job scripts and their output; None: `~/.hpcpool/runs`.
        login: a login node whose commands are used over SSH, an `SSHLogin` or "user@host"; None: this machine.
        poll_interval_s: seconds between two calls of `qstat`, one for all jobs.

    Raises:
        ConfigError: an option does not fit.
    """

    queue: str | None = None
    project: str | None = None
    attrs: str | None = None
    walltime: str | float | None = None
    scheduler_options: str | tuple[str, ...] = ()
    job_dir: str | None = None
    login: SSHLogin | str | None = None
    poll_interval_s: float = 15.0

    kind: ClassVar[str] = "cobalt"
    max_nodes_per_block: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        option_checks.check_texts(self, "queue", "project", "attrs")
        option_checks.check_folder(self, "job_dir")
        option_checks.check_login(self, "login")
        option_checks.check_seconds(self, "poll_interval_s")
        option_checks.walltime_of(self)
        option_checks.settle_lines(self, "scheduler_options", _DIRECTIVE)

    def open(self, run_dir: str) -> BatchDriver:
        """Make the driver. Cobalt's commands must be there, on this machine or on that of `login`."""
        return open_driver(
            CobaltSystem(self),
            run_dir,
            login=self.login,
            job_dir=self.job_dir,
            poll_interval_s=self.poll_interval_s,
            walltime_s=option_checks.walltime_of(self),
        )


#: Every state of `qstat`. A job that is done is not told about: how it ended only its script's exit code says.
STATES: Mapping[str, JobState] = {
    "queued": JobState.PENDING,
    "pending": JobState.PENDING,
    "user_hold": JobState.PENDING,
    "admin_hold": JobState.PENDING,
    "dep_hold": JobState.PENDING,
    "dep_fail": JobState.PENDING,
    "maxrun_hold": JobState.PENDING,
    "preempted": JobState.PENDING,
    "starting": JobState.RUNNING,  # its nodes are booted
    "running": JobState.RUNNING,
    "preempting": JobState.RUNNING,
    "killing": JobState.RUNNING,
    "exiting": JobState.RUNNING,
}
_DONE = "done"
_STUCK = "dep_fail"
_WORDS = {
    "user_hold": "held by its user: qrls releases it",
    "admin_hold": "held by an administrator",
    "dep_hold": "waits for other jobs",
    "dep_fail": "a job that it waits for has failed",
    "maxrun_hold": "as many of the user's jobs run as the queue allows",
}
#: What to do about the usual refusals.
_HINTS: Sequence[tuple[str, str]] = (
    (r"qsub.*([Nn]ot found|cannot be run)", "submit from a login node of the machine"),
    (r"[Qq]ueue .*(does not exist|not exist|invalid)", "`qstat -Q` lists the queues"),
    (r"[Ww]alltime (greater|less)", "`qstat -Q` tells the limits of the queues"),
    (r"limit of \d+ jobs", "you may not have more jobs at one time: lower max_blocks"),
    (r"not allowed to submit|[Pp]roject", "see queue and project"),
    (r"[Ff]ailed to (connect|contact)|queue.manager", "Cobalt's queue manager is down or cannot be reached from here"),
)
_JOB_ID = re.compile(r"\d+", re.ASCII)
#: Cobalt runs only scripts that may be executed.
_SUBMIT = 'chmod u+x "$1" && exec qsub "$1"'
_ATTRIBUTE = re.compile(r" {4}(\w+) *: (.*)", re.ASCII)


@dataclass(frozen=True)
class CobaltSystem:
    """Cobalt's words."""

    options: CobaltProvider

    def script(self, job: JobRequest) -> str:
        return job_script(_DIRECTIVE, self._directives(job), self.options.scheduler_options, job)

    def _directives(self, job: JobRequest) -> Iterator[str]:
        yield f"--jobname {job.name}"
        yield f"--cwd {quoted(job.cwd)}"
        yield f"-o {quoted(job.stdout)}"
        yield f"-e {quoted(job.stderr)}"
        # Else Cobalt's own log lands beside the user's files.
        yield f"--debuglog {quoted(f'{job.cwd}/cobalt.log')}"
        if self.options.queue:
            yield f"-q {quoted(self.options.queue)}"
        if self.options.project:
            yield f"-A {quoted(self.options.project)}"
        if self.options.attrs:
            yield f"--attrs {quoted(self.options.attrs)}"
        yield f"-n {job.nodes}"
        if job.walltime_s is not None:
            yield f"-t {whole_minutes(job.walltime_s)}"

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        return ("sh", "-c", _SUBMIT, "qsub", script_path)

    def parse_submit(self, result: CommandResult) -> str:
        return submitted_id(result, _JOB_ID, _HINTS)

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        # -l -f: all there is, a line each. qstat prints dates in its own time zone.
        return ("env", "TZ=UTC0", "qstat", "-l", "-f", *job_ids)

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        jobs = _jobs(result.stdout)
        told = {
            job_id: _status(jobs[job_id]) for job_id in job_ids if job_id in jobs and jobs[job_id].get("State") != _DONE
        }
        # Of a job that it does not know, qstat says nothing at all and ends with 1.
        if result.code == 0 or (result.code == 1 and not result.stderr.strip()):
            return told
        unknown = JobStatus(JobState.UNKNOWN, reason=result.words)
        return {job_id: told.get(job_id, unknown) for job_id in job_ids}

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        return None

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return {}

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        # Users have no other way; a job that is asked again is signalled again.
        return ("qdel", *job_ids)


def _jobs(text: str) -> dict[str, dict[str, str]]:
    """The attributes of each job in an output, by job id."""
    found: dict[str, dict[str, str]] = {}
    attributes: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("JobID:"):
            attributes = {}
            found[line.removeprefix("JobID:").strip()] = attributes
        elif match := _ATTRIBUTE.match(line):
            attributes.setdefault(match[1], match[2].strip())
    return found


def _status(attributes: Mapping[str, str]) -> JobStatus:
    word = attributes.get("State", "")
    state = STATES.get(word)
    if state is None:
        return JobStatus(JobState.UNKNOWN, reason=f"Cobalt says {word!r}, which is not a known state")
    reason = _WORDS.get(word, "" if word in ("queued", "running") else word)
    started_at = epoch_s(attributes.get("StartTime", "")) if state is JobState.RUNNING else None
    limit_s = duration_s(attributes.get("WallTime", ""))
    ends_at = None if started_at is None or limit_s is None else started_at + limit_s
    return JobStatus(state, reason=reason, ends_at=ends_at, started_at=started_at, is_stuck=word == _STUCK)
