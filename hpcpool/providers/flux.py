"""Flux: job scripts, commands and what their outputs mean. Pure but for `FluxProvider.open`.

The outputs are as documented (https://flux-framework.readthedocs.io/projects/flux-core/en/latest/man1/flux-jobs.html).
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hpcpool.errors import signal_name
from hpcpool.providers import option_checks
from hpcpool.providers.base import JobState, JobStatus, SubmitError
from hpcpool.providers.batch import JobRequest, SubmitUnclear, all_unknown, with_hint
from hpcpool.providers.batch_driver import BatchDriver, open_driver
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.ssh.login import SSHLogin

_DIRECTIVE = "# flux:"


@dataclass(frozen=True)
class FluxProvider:
    """Jobs of Flux: a block is one batch job (a Flux instance of its own) of `nodes_per_block` nodes.

    What is None is not asked for, and Flux's default counts. Flux cannot be asked for memory.

    Args:
        queue: the queue.
        bank: the bank that is charged.
        requires: a constraint that the nodes must satisfy ("hosts:node[1-4]", "gpu").
        exclusive: whether whole nodes are asked for. They are, too, where neither cores nor GPUs are.
        cores_per_node: cores on each node; None: what the node pool works out.
        gpus_per_node: the same for GPUs.
        walltime: how long a block may last ("00:30:00", "1-12:00:00", or seconds as a number).
        scheduler_options: more lines for the head of the job script ("--urgency=20"), with or without `# flux:`.
        job_dir: a folder that all nodes see, for job scripts and their output; None: `~/.hpcpool/runs`.
        login: a login node whose commands are used over SSH, an `SSHLogin` or "user@host"; None: this machine.
        poll_interval_s: seconds between two calls of `flux jobs`, one for all jobs.

    Raises:
        ConfigError: an option does not fit.
    """

    queue: str | None = None
    bank: str | None = None
    requires: str | None = None
    exclusive: bool = False
    cores_per_node: int | None = None
    gpus_per_node: int | None = None
    walltime: str | float | None = None
    scheduler_options: str | tuple[str, ...] = ()
    job_dir: str | None = None
    login: SSHLogin | str | None = None
    poll_interval_s: float = 15.0

    kind: ClassVar[str] = "flux"
    max_nodes_per_block: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        option_checks.check_words(self, "queue", "bank")
        option_checks.check_texts(self, "requires")
        option_checks.check_flags(self, "exclusive")
        option_checks.check_counts(self, "cores_per_node", "gpus_per_node")
        option_checks.check_folder(self, "job_dir")
        option_checks.check_login(self, "login")
        option_checks.check_seconds(self, "poll_interval_s")
        option_checks.walltime_of(self)
        option_checks.settle_lines(self, "scheduler_options", _DIRECTIVE)

    def open(self, run_dir: str) -> BatchDriver:
        """Make the driver. `flux` must be there and find its instance, on this machine or that of `login`."""
        return open_driver(
            FluxSystem(self),
            run_dir,
            login=self.login,
            job_dir=self.job_dir,
            poll_interval_s=self.poll_interval_s,
            walltime_s=option_checks.walltime_of(self),
        )


#: One line a job; the note, which may hold anything, is last.
_FORMAT = (
    "{id.f58}|{state}|{result}|{returncode}|{t_run}|{expiration}"
    "|{sched.reason_pending}|{exception.type}|{exception.note}"
)
_FIELDS = _FORMAT.count("|") + 1

_PENDING = frozenset("NEW DEPEND PRIORITY SCHED".split())
_RUNNING = frozenset("RUN CLEANUP".split())
_RESULTS: Mapping[str, str] = {
    "COMPLETED": "",
    "FAILED": "",
    "CANCELED": "cancelled from outside",
    "TIMEOUT": "its walltime was over",
}
#: What Flux tells as the return code of a job that was cancelled before it started.
_NEVER_STARTED = -128

#: What to do about the usual refusals.
_HINTS: Sequence[tuple[str, str]] = (
    (r"(?i)unable to connect|error connecting to Flux", "no Flux instance is found here: look at $FLUX_URI"),
    (r"not found|cannot be run", "submit from a login node of the cluster, or inside a Flux instance"),
    (r"(?i)queue", "`flux queue list` lists the queues"),
    (r"(?i)unsatisfiable", "no nodes have all that is asked for: `flux resource list`"),
    (r"(?i)duration|time.?limit", "the walltime is longer than the queue allows: `flux queue list`"),
)


@dataclass(frozen=True)
class FluxSystem:
    """Flux's words."""

    options: FluxProvider

    def script(self, job: JobRequest) -> str:
        head = [f"{_DIRECTIVE} {line}" for line in self._directives(job)]
        return "\n".join(["#!/bin/bash", *head, *self.options.scheduler_options, "", job.body])

    def _directives(self, job: JobRequest) -> Iterator[str]:
        options = self.options
        yield f"--job-name={job.name}"
        yield shlex.quote(f"--cwd={job.cwd}")
        yield shlex.quote(f"--output={job.stdout}")
        yield shlex.quote(f"--error={job.stderr}")
        yield from self._shape(job)
        for name in ("queue", "bank", "requires"):
            if (value := getattr(options, name)) is not None:
                yield shlex.quote(f"--{name}={value}")
        if job.walltime_s is not None:
            yield f"--time-limit={math.ceil(job.walltime_s)}s"

    def _shape(self, job: JobRequest) -> Iterator[str]:
        yield f"--nodes={job.nodes}"
        cores = self.options.cores_per_node or job.cores_per_node
        gpus = self.options.gpus_per_node or job.gpus_per_node
        if cores or gpus:
            yield f"--nslots={job.nodes}"
            yield f"--cores-per-slot={cores or 1}"
        if gpus:
            yield f"--gpus-per-slot={gpus}"
        if self.options.exclusive or not (cores or gpus):
            yield "--exclusive"

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        return ("flux", "batch", script_path)

    def parse_submit(self, result: CommandResult) -> str:
        if result.code != 0:
            raise SubmitError(with_hint(result.words, _HINTS))
        ids = re.findall(r"^[fƒ]([1-9A-HJ-NP-Za-km-z]{1,12})\s*$", result.stdout, re.MULTILINE)
        if not ids:
            raise SubmitUnclear(f"flux batch did not print the id of the job: {result.words}")
        return f"f{ids[-1]}"

    def find_command(self, name: str) -> tuple[str, ...]:
        return ("flux", "jobs", "-a", "-n", "--color=never", f"--name={name}", "-o", "{id.f58}")

    def parse_find(self, name: str, result: CommandResult) -> str | None:
        try:
            return self.parse_submit(result)
        except SubmitError:
            return None

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        return ("flux", "jobs", "-a", "-n", "--color=never", "-o", _FORMAT, *job_ids)

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        # It complains of ids that it does not know, and tells of the others.
        if result.code != 0 and not re.search(r"unknown", result.stderr, re.I):
            return all_unknown(job_ids, result.words)
        rows = (line.split("|", _FIELDS - 1) for line in result.stdout.splitlines())
        named = {re.sub("^ƒ", "f", row[0].strip()): row[1:] for row in rows if len(row) == _FIELDS}
        return {job_id: _status(*named[job_id]) for job_id in job_ids if job_id in named}

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        return None  # flux jobs tells of jobs that are over, too

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return {}

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        # A cancelled job gets SIGTERM, and SIGKILL some seconds later.
        kill = 'for id; do flux job kill --signal=SIGKILL "$id"; done; exec flux cancel "$@"'
        return ("sh", "-c", kill, "flux", *job_ids) if force else ("flux", "cancel", *job_ids)


def _status(
    state: str, result: str, code: str, started: str, ends: str, waits_for: str, exception: str, note: str
) -> JobStatus:
    """What a state and a result mean, by Flux's RFC 21."""
    if state in _PENDING:
        return JobStatus(JobState.PENDING, reason=waits_for.strip() or state)
    if state in _RUNNING:
        reason = "" if state == "RUN" else state
        return JobStatus(JobState.RUNNING, reason=reason, ends_at=_seconds(ends), started_at=_seconds(started))
    if state != "INACTIVE" or result not in _RESULTS:
        return JobStatus(JobState.UNKNOWN, reason=f"Flux says {f'{state} {result}'!r}, which is not a known state")
    exit_code = _exit_code(code)
    if result == "COMPLETED":
        return JobStatus(JobState.ENDED, exit_code, f"exited with code {exit_code or 0}")
    said = f"{exception}: {note}".strip(": ") if exception else ""
    words = [_RESULTS[result] or _end_in_words(exit_code), said]
    return JobStatus(JobState.FAILED, exit_code, f"{'; '.join(filter(None, words))} ({result})")


def _end_in_words(exit_code: int | None) -> str:
    if exit_code is None:
        return "failed"
    return f"exited with code {exit_code}" if exit_code >= 0 else f"killed by {signal_name(-exit_code)}"


def _exit_code(text: str) -> int | None:
    if not re.fullmatch(r"-?\d{1,3}", text.strip(), re.ASCII):
        return None
    code = int(text)
    return None if code == _NEVER_STARTED else code


def _seconds(text: str) -> float | None:
    """Seconds since the epoch; None: there is no such time, which Flux writes as 0."""
    if not re.fullmatch(r"\d{1,11}(\.\d{1,9})?", text.strip(), re.ASCII):
        return None
    return float(text) or None
