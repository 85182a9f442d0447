"""OAR: job scripts, commands and what their outputs mean. Pure but for `OARProvider.open`.

The outputs are those of OAR 2.5 and their documentation (https://oar.imag.fr/docs/latest/user/commands/oarstat.html).
"""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hpcpool.errors import signal_name
from hpcpool.providers import option_checks
from hpcpool.providers.base import JobState, JobStatus, SubmitError
from hpcpool.providers.batch import JobRequest, SubmitUnclear, all_unknown, with_hint
from hpcpool.providers.batch_driver import BatchDriver, open_driver
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.walltime import hours_minutes_seconds

_DIRECTIVE = "#OAR"


@dataclass(frozen=True)
class OARProvider:
    """Jobs of OAR: a block is one job of `nodes_per_block` nodes, with one manager on each.

    What is None is not asked for, and OAR's default counts. OAR cannot be asked for memory: name it in `properties`.

    Args:
        queue: the queue.
        project: the project that is charged.
        properties: an expression that the nodes must satisfy ("cluster='nova' and memnode >= 32768").
        node_resources: what to ask for on each node, in OAR's hierarchy ("core=4", "gpu=1"); None: the GPUs or the
            cores that the node pool works out and, where it does not, whole nodes.
        types: types of the job ("besteffort", "night").
        walltime: how long a block may last ("00:30:00", "1-12:00:00", or seconds as a number).
        scheduler_options: more lines for the head of the job script ("--notify mail:me@x"), with or without `#OAR`.
        job_dir: a folder that all nodes see, for job scripts and their output, without blanks; None: `~/.hpcpool/runs`.
        login: a login node whose commands are used over SSH, an `SSHLogin` or "user@host"; None: this machine.
        poll_interval_s: seconds between two calls of `oarstat`, one for all jobs.

    Raises:
        ConfigError: an option does not fit.
    """

    queue: str | None = None
    project: str | None = None
    properties: str | None = None
    node_resources: str | None = None
    types: tuple[str, ...] = ()
    walltime: str | float | None = None
    scheduler_options: str | tuple[str, ...] = ()
    job_dir: str | None = None
    login: SSHLogin | str | None = None
    poll_interval_s: float = 15.0

    kind: ClassVar[str] = "oar"
    max_nodes_per_block: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        option_checks.check_words(self, "queue", "project", "node_resources", "job_dir")
        option_checks.check_texts(self, "properties")
        option_checks.settle_words(self, "types")
        option_checks.check_folder(self, "job_dir")
        option_checks.check_login(self, "login")
        option_checks.check_seconds(self, "poll_interval_s")
        option_checks.walltime_of(self)
        option_checks.settle_lines(self, "scheduler_options", _DIRECTIVE)

    def open(self, run_dir: str) -> BatchDriver:
        """Make the driver. OAR's commands must be there, on this machine or on that of `login`."""
        return open_driver(
            OARSystem(self),
            run_dir,
            login=self.login,
            job_dir=self.job_dir,
            poll_interval_s=self.poll_interval_s,
            walltime_s=option_checks.walltime_of(self),
        )


#: OAR runs the file itself, and takes a working directory in the script for the job's name (seen with 2.5.9).
_SUBMIT = 'chmod u+x "$1" && exec oarsub -d "$2" -S "$1"'

_PENDING = frozenset("Waiting Hold toLaunch toAckReservation Launching".split())
_RUNNING = frozenset("Running Suspended Resuming Finishing toError".split())

#: What to do about the usual refusals.
_HINTS: Sequence[tuple[str, str]] = (
    (r"not found|cannot be run", "submit from a frontend of the cluster"),
    (r"not enough resources", "no nodes have all that is asked for: `oarnodes -s` lists them"),
    (r"queue \S+ does not exist", "`oarnodes -s` and `oarstat --gantt` show what there is"),
    (r"Bad resource request", "look at properties and node_resources: `oarproperty -l` lists the names"),
    (r"root", "OAR takes no jobs of root"),
)


@dataclass(frozen=True)
class OARSystem:
    """OAR's words."""

    options: OARProvider

    def script(self, job: JobRequest) -> str:
        head = [f"{_DIRECTIVE} {line}" for line in self._directives(job)]
        return "\n".join(["#!/bin/bash", *head, *self.options.scheduler_options, "", job.body])

    def _directives(self, job: JobRequest) -> Iterator[str]:
        options = self.options
        yield f"-n {job.name}"
        yield f"-O {job.stdout}"
        yield f"-E {job.stderr}"
        yield f"-l {self._resources(job)}"
        if options.queue is not None:
            yield f"-q {options.queue}"
        if options.project is not None:
            yield f"--project {options.project}"
        if options.properties is not None:
            yield f"-p {options.properties}"  # quotes around it would be part of it
        yield from (f"-t {name}" for name in options.types)

    def _resources(self, job: JobRequest) -> str:
        below = self.options.node_resources
        if below is None and job.gpus_per_node:
            below = f"gpu={job.gpus_per_node}"
        elif below is None and job.cores_per_node:
            below = f"core={job.cores_per_node}"
        wanted = f"/nodes={job.nodes}" + (f"/{below.lstrip('/')}" if below else "")
        return wanted if job.walltime_s is None else f"{wanted},walltime={hours_minutes_seconds(job.walltime_s)}"

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        return ("sh", "-c", _SUBMIT, "oarsub", script_path, os.path.dirname(script_path))

    def parse_submit(self, result: CommandResult) -> str:
        # Of a refused job it prints an id, too: a negative one.
        if result.code != 0:
            raise SubmitError(with_hint(_without_rules(result), _HINTS))
        ids = re.findall(r"^OAR_JOB_ID=(\d+)$", result.stdout, re.ASCII | re.MULTILINE)
        if not ids:
            raise SubmitUnclear(f"oarsub did not print the id of the job: {result.words}")
        return str(ids[-1])

    def find_command(self, name: str) -> tuple[str, ...]:
        return ("oarstat", "-J", "-f", "--sql", f"job_name = '{name}'")

    def parse_find(self, name: str, result: CommandResult) -> str | None:
        jobs = _jobs(result.stdout) if result.code == 0 else None
        return next((job_id for job_id, job in (jobs or {}).items() if job.get("name") == name), None)

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        return ("oarstat", "-J", "-f", *(word for job_id in job_ids for word in ("-j", job_id)))

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        if result.code != 0:
            return all_unknown(job_ids, result.words)
        jobs = _jobs(result.stdout)
        if jobs is None:
            return all_unknown(job_ids, f"oarstat's answer is not understood: {result.words[:200]}")
        return {job_id: _status(jobs[job_id]) for job_id in job_ids if job_id in jobs}

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        return None  # oarstat tells of jobs that are over, too

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return {}

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        return ("oardel", *job_ids)  # it knows no gentle end, it kills


def _jobs(text: str) -> Mapping[str, Mapping[str, Any]] | None:
    """The jobs in what oarstat printed, by their ids; None: it is not what oarstat prints."""
    if not text.strip():
        return {}  # none of them is known
    try:
        jobs = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(jobs, dict):
        return None
    return {job_id: job for job_id, job in jobs.items() if isinstance(job, dict)}


def _status(job: Mapping[str, Any]) -> JobStatus:
    """What a state means (https://oar.imag.fr/docs/latest/user/mechanisms.html#job-states)."""
    state = str(job.get("state"))
    message = str(job.get("message") or "")
    if state == "Hold":
        return JobStatus(JobState.PENDING, reason="Hold: it will not run until it is released: oarresume")
    if state in _PENDING:
        return JobStatus(JobState.PENDING, reason=f"{state}{f': {message}' if message else ''}")
    if state in _RUNNING:
        started_at, walltime_s = _seconds(job.get("startTime")), _seconds(job.get("walltime"))
        ends_at = None if started_at is None or walltime_s is None else started_at + walltime_s
        reason = "" if state == "Running" else state
        return JobStatus(JobState.RUNNING, reason=reason, ends_at=ends_at, started_at=started_at)
    exit_code = _exit_code(job.get("exit_code"))
    if state == "Terminated":
        over = JobState.ENDED if exit_code == 0 else JobState.FAILED
        return JobStatus(over, exit_code, _end_in_words(exit_code))
    if state == "Error":
        return JobStatus(JobState.FAILED, exit_code, f"{_fate(_events(job))} (Error)")
    return JobStatus(JobState.UNKNOWN, reason=f"OAR says {state!r}, which is not a known state")


def _events(job: Mapping[str, Any]) -> Mapping[str, str]:
    """What happened to a job: the kind of each event, and OAR's words."""
    events = job.get("events")
    found = [event for event in events if isinstance(event, dict)] if isinstance(events, list) else []
    return {str(event.get("type")): str(event.get("description")) for event in found}


def _fate(events: Mapping[str, str]) -> str:
    """Why a job is in error: what OAR did about it is left out where it is known why."""
    if "WALLTIME" in events:
        return "its walltime was over"
    if "FRAG_JOB_REQUEST" in events:
        return f"cancelled from outside: {events['FRAG_JOB_REQUEST']}"
    return "; ".join(f"{kind}: {words}" for kind, words in events.items()) or "killed, or could not be started"


def _end_in_words(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended, its exit code is not told"
    return f"exited with code {exit_code}" if exit_code >= 0 else f"killed by {signal_name(-exit_code)}"


def _exit_code(status: object) -> int | None:
    """An exit code from a wait status; negative: the signal."""
    if not isinstance(status, int) or isinstance(status, bool) or not 0 <= status < 2**16:
        return None
    return -(status & 0x7F) if status & 0x7F else status >> 8


def _seconds(number: object) -> float | None:
    """A time or a duration above 0; OAR writes 0 for none."""
    return float(number) if isinstance(number, int) and not isinstance(number, bool) and 0 < number < 2**40 else None


def _without_rules(result: CommandResult) -> str:
    """What oarsub said, without what the site's rules of admission did in front of it."""
    lines = [line for line in result.stdout.splitlines() if not line.startswith(("[ADMISSION RULE]", "OAR_JOB_ID="))]
    said = " ".join(" ".join([*result.stderr.splitlines(), *lines]).split())
    return said or result.words
