"""HTCondor: job scripts, commands and what their outputs mean. Pure but for `HTCondorProvider.open`.

The facts are those of the HTCondor manual (https://htcondor.readthedocs.io/en/latest/man-pages/condor_submit.html).

Rules of this file:
- A block is a cluster of jobs, one for each node, and its job id is the cluster's. Each job starts a manager where it
  runs: there is no first node that could reach the others.
- HTCondor reads a submit description, not a script. It stands in the script, in lines that begin with `#CONDOR`, and
  what is submitted is the shell with the script as its argument.
- A job that was evicted, or is held for its own fault, is removed by its own expression: HTCondor would start it again
  under its old id, or keep it for ever.
"""

from __future__ import annotations

import json
import math
import os.path
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hpcpool.errors import signal_name
from hpcpool.providers import option_checks
from hpcpool.providers.base import JobState, JobStatus
from hpcpool.providers.batch import JobRequest
from hpcpool.providers.batch_driver import BatchDriver, open_driver
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.job_script import submitted_id
from hpcpool.providers.ssh.login import SSHLogin

_DIRECTIVE = "#CONDOR"
_MIB = 2**20


@dataclass(frozen=True)
class HTCondorProvider:
    """Jobs of HTCondor: a block is a cluster of `nodes_per_block` jobs, with a manager in each.

    Two jobs of a block may get slots of the same machine. What is None is not asked for, and the pool's default counts.
    Cores, memory and GPUs that are given here come before those that the node pool works out.

    Args:
        request_cpus: cores of each job.
        request_memory: memory of each job ("16GB").
        request_gpus: GPUs of each job.
        request_disk: disk of each job ("10GB").
        requirements: an expression that machines must fulfil ('OpSysMajorVer == 9').
        rank: an expression that is higher for machines that are preferred ("Mips").
        accounting_group: the group that is charged.
        environment: variables of the job, as in a submit description ("A=1 B='two words'").
        transfer_files: whether nodes and this machine have no folder in common: HTCondor then copies the block's files.
            Blocks are of one node, hpcpool must be installed on the nodes (or come in a container), and `job_dir` must
            be a folder that can be made on the nodes as well ("/tmp/hpcpool-me").
        walltime: how long a block may last ("00:30:00", "1-12:00:00", or seconds as a number).
        scheduler_options: more lines of the submit description ('+ProjectName = "x"'), with or without `#CONDOR`.
        job_dir: a folder that all nodes see, for job scripts and their output; None: `~/.hpcpool/runs`.
        login: a login node whose commands are used over SSH, an `SSHLogin` or "user@host"; None: this machine.
        poll_interval_s: seconds between two calls of `condor_q`, one for all jobs.

    Raises:
        ConfigError: an option does not fit.
    """

    request_cpus: int | None = None
    request_memory: str | None = None
    request_gpus: int | None = None
    request_disk: str | None = None
    requirements: str | None = None
    rank: str | None = None
    accounting_group: str | None = None
    environment: str | None = None
    transfer_files: bool = False
    walltime: str | float | None = None
    scheduler_options: str | tuple[str, ...] = ()
    job_dir: str | None = None
    login: SSHLogin | str | None = None
    poll_interval_s: float = 15.0

    kind: ClassVar[str] = "htcondor"

    def __post_init__(self) -> None:
        option_checks.check_texts(self, "request_memory", "request_disk", "requirements", "rank")
        option_checks.check_texts(self, "accounting_group", "environment")
        option_checks.check_counts(self, "request_cpus", "request_gpus")
        option_checks.check_flags(self, "transfer_files")
        option_checks.check_folder(self, "job_dir")
        option_checks.check_login(self, "login")
        if self.transfer_files and (self.job_dir is None or not self.job_dir.startswith("/")):
            valid = "with transfer_files=True a folder that can be made on the nodes, too, such as '/tmp/hpcpool-me'"
            option_checks.refuse(self, "job_dir", valid)
        option_checks.check_seconds(self, "poll_interval_s")
        option_checks.walltime_of(self)
        option_checks.settle_lines(self, "scheduler_options", _DIRECTIVE)

    @property
    def max_nodes_per_block(self) -> int | None:
        """One where files are transferred: the output of several would be written to one file."""
        return 1 if self.transfer_files else None

    @property
    def default_launcher(self) -> EachJobLauncher:
        """Nothing is launched from one node to others."""
        return EachJobLauncher()

    def open(self, run_dir: str) -> BatchDriver:
        """Make the driver. HTCondor's commands must be there, on this machine or on that of `login`."""
        return open_driver(
            HTCondorSystem(self),
            run_dir,
            login=self.login,
            job_dir=self.job_dir,
            poll_interval_s=self.poll_interval_s,
            walltime_s=option_checks.walltime_of(self),
        )


@dataclass(frozen=True)
class EachJobLauncher:
    """The launcher of blocks whose every node runs the block's script by itself."""

    kind: ClassVar[str] = "each_job"

    def wrap(self, command: str, nodes: int) -> str:
        """Return the command as it is."""
        return command


#: Every `JobStatus` of a job in the queue. There 3 means that it is being removed.
STATES: Mapping[int, JobState] = {
    0: JobState.PENDING,  # not yet put together
    1: JobState.PENDING,
    2: JobState.RUNNING,
    3: JobState.RUNNING,
    4: JobState.ENDED,
    5: JobState.PENDING,
    6: JobState.RUNNING,
    7: JobState.RUNNING,
}
_RUNNING, _REMOVED, _COMPLETED, _HELD = 2, 3, 4, 5
_WORDS = {3: "being removed", 6: "its output is transferred", 7: "suspended"}
#: What to do about the usual refusals.
_HINTS: Sequence[tuple[str, str]] = (
    (r"condor_submit.*([Nn]ot found|cannot be run)", "submit from an access point of the pool"),
    (r"find address of (local )?schedd|connect to (local )?queue manager|schedd", "is the schedd up? `condor_q`"),
    (r"on Line \d+|[Pp]arse error|[Ee]xpression", "see requirements, rank and scheduler_options"),
    (r"[Aa]ccounting|AcctGroup", "see accounting_group"),
    (r"MAX_JOBS|[Mm]aximum", "you may not have more jobs at one time: lower max_blocks"),
)
_SUBMITTED = re.compile(r"(\d+)\.\d+ - \d+\.\d+", re.ASCII)
_SUBMIT = 'sed -n "s/^#CONDOR //p" "$1" | condor_submit -terse -append "$2" -'
_ATTRIBUTES = (
    "ClusterId,ProcId,JobStatus,JobCurrentStartDate,HpcpoolWalltime,ExitCode,ExitBySignal,ExitSignal,"
    "HoldReason,HoldReasonCode,LastHoldReason,RemoveReason"
)
#: The hold codes that are not the job's fault: a user's, submitted on hold, input on its way.
_HARMLESS_HOLDS = (1, 15, 16)


@dataclass(frozen=True)
class HTCondorSystem:
    """HTCondor's words."""

    options: HTCondorProvider

    def script(self, job: JobRequest) -> str:
        lines = [f"{_DIRECTIVE} {command}" for command in self._commands(job)]
        lines += [*self.options.scheduler_options, f"{_DIRECTIVE} queue {job.nodes}", ""]
        prepare = _unpacking(job) if self.options.transfer_files else _appending(job)
        return "\n".join(["#!/bin/bash", *lines, *prepare, job.body.rstrip("\n"), ""])

    def _commands(self, job: JobRequest) -> Iterator[str]:
        yield "universe = vanilla"
        yield f"batch_name = {job.name}"
        yield "executable = /bin/bash"
        yield "transfer_executable = false"
        yield f"initialdir = {job.cwd}"
        yield from self._files(job)
        yield from self._resources(job)
        # Asked to end by a signal, with the time to do it, before it is killed.
        yield "want_graceful_removal = true"
        yield "kill_sig = SIGTERM"
        yield "job_max_vacate_time = 60"
        yield f"periodic_remove = {_removal(job)}"
        if job.walltime_s is not None:
            yield f"+HpcpoolWalltime = {math.ceil(job.walltime_s)}"

    def _files(self, job: JobRequest) -> Iterator[str]:
        if not self.options.transfer_files:
            yield "should_transfer_files = NO"
            return
        yield "should_transfer_files = YES"
        yield "when_to_transfer_output = ON_EXIT"
        yield f"transfer_input_files = {job.cwd}/"
        yield 'transfer_output_files = ""'
        yield f"output = {job.stdout}"
        yield f"error = {job.stderr}"

    def _resources(self, job: JobRequest) -> Iterator[str]:
        options = self.options
        memory = f"{math.ceil(job.memory_per_node / _MIB)}MB" if job.memory_per_node else None
        asked = {
            "request_cpus": options.request_cpus or job.cores_per_node,
            "request_memory": options.request_memory or memory,
            "request_gpus": options.request_gpus or job.gpus_per_node,
            "request_disk": options.request_disk,
            "requirements": options.requirements,
            "rank": options.rank,
            "accounting_group": options.accounting_group,
            "environment": options.environment and _double_quoted(options.environment),
        }
        yield from (f"{name} = {value}" for name, value in asked.items() if value)

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        # A file that was transferred is in the folder that the job starts in.
        script = os.path.basename(script_path) if self.options.transfer_files else script_path
        return ("sh", "-c", _SUBMIT, "sh", script_path, f"arguments = {_arguments(script)}")

    def parse_submit(self, result: CommandResult) -> str:
        return submitted_id(result, _SUBMITTED, _HINTS)

    def find_command(self, name: str) -> tuple[str, ...]:
        return ("condor_q", "-json", "-attributes", "ClusterId", "-constraint", f'JobBatchName == "{name}"')

    def parse_find(self, name: str, result: CommandResult) -> str | None:
        found = [str(ad["ClusterId"]) for ad in _ads(result.stdout) if isinstance(ad.get("ClusterId"), int)]
        return found[0] if found and result.code == 0 else None

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        return ("condor_q", "-json", "-attributes", _ATTRIBUTES, *job_ids)

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return _statuses(job_ids, result, _in_queue)

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        return ("condor_history", "-json", "-attributes", _ATTRIBUTES, *job_ids)

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return _statuses(job_ids, result, _over)

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        # -forcex: jobs that are being removed, and whose machine does not answer.
        return ("condor_rm", "-forcex", *job_ids) if force else ("condor_rm", *job_ids)


def _removal(job: JobRequest) -> str:
    """When HTCondor is to remove the job by itself."""
    harmless = " && ".join(f"HoldReasonCode =!= {code}" for code in _HARMLESS_HOLDS)
    cases = ["(JobStatus == 1 && NumJobStarts > 0)", f"(JobStatus == 5 && {harmless})"]
    if job.walltime_s is not None:
        cases.append(f"(JobStatus == 2 && time() - EnteredCurrentStatus > {math.ceil(job.walltime_s)})")
    return " || ".join(cases)


def _appending(job: JobRequest) -> list[str]:
    """Shell lines with which all jobs of the cluster share two files; HTCondor would have each empty them again."""
    return [f"exec >> {shlex.quote(job.stdout)} 2>> {shlex.quote(job.stderr)}"]


def _unpacking(job: JobRequest) -> list[str]:
    """Shell lines that put what came with the job where its command looks for it."""
    return [
        "# The files of the block have come with the job: they go where they are looked for.",
        f"folder={shlex.quote(job.cwd)}",
        'if [ ! -e "$folder" ]; then',
        "  umask 077",
        '  mkdir -p "${folder%/*}" && mkdir "$folder" && cp -R ./. "$folder" || exit 1',
        "  trap 'rm -rf \"$folder\"' EXIT",
        "fi",
        "# The first folder that it goes to is the submitter's: where that is not here, the job stays in its own.",
        'cd() { unset -f cd; cd "$@" || cd "$_CONDOR_SCRATCH_DIR"; }',
    ]


def _arguments(word: str) -> str:
    """One argument, in the syntax of a submit description."""
    return _double_quoted("'" + word.replace("'", "''") + "'")


def _double_quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _ads(text: str) -> Iterator[Mapping[str, Any]]:
    """The objects in an output, also where it is cut off, or several lists of them follow each other."""
    decoder = json.JSONDecoder(strict=False)
    position = text.find("{")
    while position >= 0:
        try:
            ad, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            ad, position = None, position + 1
        if isinstance(ad, dict):
            yield ad
        position = text.find("{", position)


def _statuses(
    job_ids: Sequence[str], result: CommandResult, status_of: Callable[[Mapping[str, Any]], JobStatus]
) -> dict[str, JobStatus]:
    """The statuses of clusters from those of their jobs."""
    found: dict[str, list[JobStatus]] = {}
    for ad in _ads(result.stdout):
        found.setdefault(str(ad.get("ClusterId")), []).append(status_of(ad))
    told = {job_id: _together(found[job_id]) for job_id in job_ids if job_id in found}
    if result.code == 0:
        return told
    unknown = JobStatus(JobState.UNKNOWN, reason=result.words)
    return {job_id: told.get(job_id, unknown) for job_id in job_ids}


#: A cluster is in the first of these states that one of its jobs is in.
_ORDER = (JobState.RUNNING, JobState.UNKNOWN, JobState.PENDING, JobState.FAILED, JobState.ENDED)


def _together(jobs: Sequence[JobStatus]) -> JobStatus:
    """The status of a cluster. What its jobs say is told with it: why one is held matters to who waits for it."""
    first = min(jobs, key=lambda job: _ORDER.index(job.state))
    same = [job for job in jobs if job.state is first.state]
    ends = [job.ends_at for job in same if job.ends_at is not None]
    starts = [job.started_at for job in same if job.started_at is not None]
    reasons = dict.fromkeys(job.reason for job in (*same, *jobs) if job.reason)
    return JobStatus(
        first.state,
        exit_code=first.exit_code,
        reason="; ".join(reasons),
        ends_at=min(ends, default=None),
        started_at=min(starts, default=None),
        is_stuck=first.state is JobState.PENDING and any(job.is_stuck for job in same),
    )


def _in_queue(ad: Mapping[str, Any]) -> JobStatus:
    status = ad.get("JobStatus")
    if not isinstance(status, int) or status not in STATES:
        return JobStatus(JobState.UNKNOWN, reason=f"HTCondor says {status!r}, which is not a known JobStatus")
    if status == _COMPLETED:
        return _over(ad)
    if status == _HELD:
        is_stuck = "HoldReasonCode" in ad and ad["HoldReasonCode"] not in _HARMLESS_HOLDS
        return JobStatus(STATES[status], reason=_text(ad, "HoldReason") or "held", is_stuck=is_stuck)
    started_at = _number(ad, "JobCurrentStartDate") if status == _RUNNING else None
    limit_s = _number(ad, "HpcpoolWalltime")
    ends_at = None if started_at is None or limit_s is None else started_at + limit_s
    return JobStatus(STATES[status], reason=_WORDS.get(status, ""), ends_at=ends_at, started_at=started_at)


def _over(ad: Mapping[str, Any]) -> JobStatus:
    """The status of a job that has left the queue, or is about to."""
    if ad.get("JobStatus") == _REMOVED:
        reasons = (_text(ad, name) for name in ("LastHoldReason", "HoldReason", "RemoveReason"))
        return JobStatus(JobState.FAILED, reason="; ".join(dict.fromkeys(filter(None, reasons))) or "removed")
    if ad.get("JobStatus") != _COMPLETED:
        return JobStatus(JobState.UNKNOWN, reason=f"its JobStatus in the history is {ad.get('JobStatus')!r}")
    if ad.get("ExitBySignal") is True and (number := _number(ad, "ExitSignal")) is not None:
        return JobStatus(JobState.FAILED, exit_code=-int(number), reason=f"killed by {signal_name(int(number))}")
    code = _number(ad, "ExitCode")
    if code is None:
        return JobStatus(JobState.FAILED, reason="it is over, and how is not told")
    state = JobState.ENDED if code == 0 else JobState.FAILED
    return JobStatus(state, exit_code=int(code), reason=f"exited with code {int(code)}")


def _text(ad: Mapping[str, Any], name: str) -> str:
    value = ad.get(name)
    return " ".join(value.split()) if isinstance(value, str) else ""


def _number(ad: Mapping[str, Any], name: str) -> float | None:
    value = ad.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]  # checked above
