"""LSF: job scripts, commands and what their outputs mean. Pure but for `LSFProvider.open`.

The facts are those of IBM Spectrum LSF 10.1 (https://www.ibm.com/docs/en/spectrum-lsf/10.1.0) and of OpenLava 2.2.
"""

from __future__ import annotations

import math
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
from hpcpool.providers.times import epoch_s, whole_minutes

_DIRECTIVE = "#BSUB"
_MIB = 2**20


@dataclass(frozen=True)
class LSFProvider:
    """Jobs of LSF: a block is one job whose slots are spread evenly over `nodes_per_block` hosts.

    What is None is not asked for, and LSF's default counts. Slots, memory and GPUs that are given here come before
    those that the node pool works out.

    Args:
        queue: the queue.
        project: the project that is charged.
        ptile: slots (cores) on each node.
        nnodes: whether whole nodes are asked for with `-nnodes`, without slots, as Summit and Lassen want it.
        mem: memory of each node, as in `rusage[mem=]` ("16GB"; older versions take no unit).
        mem_limit: the limit of `-M`, which LSF sets for each process or for the job, as it is configured ("16GB").
        gpu: GPUs of each node, as in `-gpu` ("num=4:mode=exclusive_process").
        exclusive: whether no other job may run on the nodes.
        resources: more that the nodes must have, as in `-R` ("select[model==XeonGold]").
        walltime: how long a block may last ("00:30:00", "1-12:00:00", or seconds as a number); whole minutes count.
        scheduler_options: more lines for the head of the job script ("-alloc_flags smt1"), with or without `#BSUB`.
        job_dir: a folder that all nodes see, for job scripts and their output; None: `~/.hpcpool/runs`.
        login: a login node whose commands are used over SSH, an `SSHLogin` or "user@host"; None: this machine.
        poll_interval_s: seconds between two calls of `bjobs`, one for all jobs.

    Raises:
        ConfigError: an option does not fit.
    """

    queue: str | None = None
    project: str | None = None
    ptile: int | None = None
    nnodes: bool = False
    mem: str | None = None
    mem_limit: str | None = None
    gpu: str | None = None
    exclusive: bool = False
    resources: str | None = None
    walltime: str | float | None = None
    scheduler_options: str | tuple[str, ...] = ()
    job_dir: str | None = None
    login: SSHLogin | str | None = None
    poll_interval_s: float = 15.0

    kind: ClassVar[str] = "lsf"
    max_nodes_per_block: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        option_checks.check_texts(self, "queue", "project", "mem", "mem_limit", "gpu", "resources")
        option_checks.check_counts(self, "ptile")
        option_checks.check_flags(self, "nnodes", "exclusive")
        if self.nnodes and self.ptile is not None:
            option_checks.refuse(self, "ptile", "None with nnodes=True, where whole nodes are asked for")
        option_checks.check_folder(self, "job_dir")
        option_checks.check_login(self, "login")
        option_checks.check_seconds(self, "poll_interval_s")
        option_checks.walltime_of(self)
        option_checks.settle_lines(self, "scheduler_options", _DIRECTIVE)

    def open(self, run_dir: str) -> BatchDriver:
        """Make the driver. LSF's commands must be there, on this machine or on that of `login`."""
        return open_driver(
            LSFSystem(self),
            run_dir,
            login=self.login,
            job_dir=self.job_dir,
            poll_interval_s=self.poll_interval_s,
            walltime_s=option_checks.walltime_of(self),
        )


#: Every state of `bjobs`.
STATES: Mapping[str, JobState] = {
    "PEND": JobState.PENDING,
    "FWD_PEND": JobState.PENDING,  # forwarded to another cluster
    "PROV": JobState.PENDING,  # its host is being woken up
    "PSUSP": JobState.PENDING,
    "WAIT": JobState.PENDING,
    "RUN": JobState.RUNNING,
    "SSUSP": JobState.RUNNING,  # suspended: it has started, and has not ended
    "USUSP": JobState.RUNNING,
    "DONE": JobState.ENDED,
    "EXIT": JobState.FAILED,
    "UNKWN": JobState.UNKNOWN,
    "ZOMBI": JobState.UNKNOWN,
}
#: What to say of a state where LSF says nothing more.
_WORDS = {
    "FWD_PEND": "forwarded to another cluster",
    "PROV": "its host is being started",
    "PSUSP": "held",
    "SSUSP": "suspended by LSF",
    "USUSP": "suspended by a user",
    "DONE": "exited with code 0",
    "EXIT": "failed",
    "UNKWN": "LSF has lost contact with the job's host",
    "ZOMBI": "it was killed while LSF had no contact with its host",
}
#: What to do about the usual refusals.
_HINTS: Sequence[tuple[str, str]] = (
    (r"bsub.*([Nn]ot found|cannot be run)", "submit from a login node of the cluster, or load LSF's profile"),
    (r"No such queue", "`bqueues` lists the queues"),
    (r"[Qq]ueue (has been )?closed|Queue is closed", "the queue takes no jobs now; `bqueues` lists the queues"),
    (r"User cannot use the queue|not (a )?(valid|authori[sz]ed).*project|[Pp]roject", "see queue and project"),
    (r"RUNLIMIT|hard limit", "the walltime is longer than the queue allows: `bqueues -l`"),
    (r"Too many (processors|tasks) requested", "the queue does not allow so many slots: `bqueues -l`"),
    (r"Bad resource requirement|[Uu]nknown resource|[Ii]nvalid.*GPU", "see mem, gpu and resources"),
    (r"LSF is down|daemon not responding|LIM", "LSF's daemons are down or cannot be reached from here: `lsid`"),
)
_SUBMITTED = re.compile(r"Job <(\d+)> is submitted.*", re.ASCII)
#: LSF has never heard of these jobs, or not lately.
_NOT_FOUND = re.compile(r"Job <(\d+)> is not found", re.ASCII)
_NONE_FOUND = "No unfinished job found"

#: Dates have no year, so the time is told as well. Where bjobs has no -o (before LSF 9, OpenLava), and where it fails
#: because it does not know one of the jobs, its table follows.
_FIELDS = "jobid stat exit_code start_time finish_time exit_reason pend_reason delimiter='|'"
_STATUS = f'date +%s; bjobs -noheader -o "{_FIELDS}" "$@" || bjobs -w "$@"'
#: bsub reads directives only in what comes through its stdin.
_SUBMIT = 'exec bsub < "$1"'
#: JOBID USER STAT ...
_TABLE_ROW = re.compile(r"(\d+) +\S+ +([A-Z_]+) .*", re.ASCII)


@dataclass(frozen=True)
class LSFSystem:
    """LSF's words."""

    options: LSFProvider

    def script(self, job: JobRequest) -> str:
        return job_script(_DIRECTIVE, self._directives(job), self.options.scheduler_options, job)

    def _directives(self, job: JobRequest) -> Iterator[str]:
        yield f"-J {job.name}"
        yield f"-o {quoted(job.stdout)}"
        yield f"-e {quoted(job.stderr)}"
        if self.options.queue:
            yield f"-q {quoted(self.options.queue)}"
        if self.options.project:
            yield f"-P {quoted(self.options.project)}"
        yield from self._nodes(job)
        yield from self._memory_and_gpus(job)
        if self.options.exclusive:
            yield "-x"
        if self.options.resources:
            yield f"-R {quoted(self.options.resources)}"
        if job.walltime_s is not None:
            yield f"-W {whole_minutes(job.walltime_s)}"

    def _nodes(self, job: JobRequest) -> Iterator[str]:
        if self.options.nnodes:
            yield f"-nnodes {job.nodes}"
        else:
            ptile = self.options.ptile or job.cores_per_node or 1
            yield f"-n {job.nodes * ptile}"
            yield f"-R {quoted(f'span[ptile={ptile}]')}"

    def _memory_and_gpus(self, job: JobRequest) -> Iterator[str]:
        needed = f"{math.ceil(job.memory_per_node / _MIB)}MB" if job.memory_per_node else None
        if mem := self.options.mem or needed:
            yield f"-R {quoted(f'rusage[mem={mem}]')}"
        if self.options.mem_limit:
            yield f"-M {self.options.mem_limit}"
        if gpu := self.options.gpu or (f"num={job.gpus_per_node}" if job.gpus_per_node else None):
            yield f'-gpu "{gpu}"'

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        return ("sh", "-c", _SUBMIT, "bsub", script_path)

    def parse_submit(self, result: CommandResult) -> str:
        return submitted_id(result, _SUBMITTED, _HINTS)

    def find_command(self, name: str) -> tuple[str, ...]:
        return ("bjobs", "-w", "-J", name)

    def parse_find(self, name: str, result: CommandResult) -> str | None:
        return next(iter(_table(result.stdout)), None) if result.code == 0 else None

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        # bjobs prints dates in its own time zone.
        return ("env", "TZ=UTC0", "sh", "-c", _STATUS, "bjobs", *job_ids)

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        found = {**_table(result.stdout), **_rows(result.stdout)}
        told = {job_id: found[job_id] for job_id in job_ids if job_id in found}
        if result.code == 0 or _NONE_FOUND in result.stderr:
            return told
        gone = set(_NOT_FOUND.findall(result.stderr))
        unknown = JobStatus(JobState.UNKNOWN, reason=result.words if result.stderr.strip() else "bjobs failed")
        return {job_id: told.get(job_id, unknown) for job_id in job_ids if job_id in told or job_id not in gone}

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        # bjobs tells of jobs for an hour after they ended (CLEAN_PERIOD), which is longer than anybody waits to ask.
        return None

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return {}

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        # -r: also where the job's host does not answer.
        return ("bkill", "-r", *job_ids) if force else ("bkill", *job_ids)


def _rows(text: str) -> dict[str, JobStatus]:
    """The jobs that the chosen fields tell about."""
    lines = text.splitlines()
    now = epoch_s(lines[0]) if lines else None
    rows = (line.split("|", 6) for line in lines)
    return {row[0].strip(): _status(*map(str.strip, row[1:]), now=now) for row in rows if len(row) == 7}


def _table(text: str) -> dict[str, JobStatus]:
    """The jobs in a table, which has no exit codes, ends and reasons."""
    matches = (_TABLE_ROW.fullmatch(line.strip()) for line in text.splitlines())
    return {match[1]: _state_status(match[2]) for match in matches if match}


def _status(
    state: str, exit_code: str, start: str, finish: str, exit_reason: str, pend_reason: str, *, now: float | None
) -> JobStatus:
    told = _state_status(state)
    if told.state is JobState.PENDING and pend_reason not in ("", "-"):
        return JobStatus(JobState.PENDING, reason=pend_reason.rstrip(";"))
    if told.state is JobState.RUNNING:
        # " L": the limit, not an estimate.
        ends_at = epoch_s(finish, now) if finish.endswith(" L") else None
        return JobStatus(JobState.RUNNING, reason=told.reason, ends_at=ends_at, started_at=epoch_s(start, now))
    if told.state.is_over:
        code = int(exit_code) if re.fullmatch(r"[0-9]{1,9}", exit_code) else None
        reason = told.reason if code is None else f"exited with code {code}"
        return JobStatus(told.state, exit_code=code, reason=reason if exit_reason in ("", "-") else exit_reason)
    return told


def _state_status(state: str) -> JobStatus:
    known = STATES.get(state)
    if known is None:
        return JobStatus(JobState.UNKNOWN, reason=f"LSF says {state!r}, which is not a known state")
    return JobStatus(known, exit_code=0 if known is JobState.ENDED else None, reason=_WORDS.get(state, ""))
