"""Slurm: job scripts, commands and what their outputs mean. Pure but for `SlurmProvider.open`.

The outputs are those of Slurm 22.05 and their documentation (https://slurm.schedmd.com/squeue.html).
"""

from __future__ import annotations

import math
import re
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
from hpcpool.providers.walltime import hours_minutes_seconds

_DIRECTIVE = "#SBATCH"
#: What sbatch says of the walltime, which no script can be longer than: a year, in minutes.
_MIB = 2**20


@dataclass(frozen=True)
class SlurmProvider:
    """Jobs of Slurm: a block is one job of `nodes_per_block` nodes, with one manager on each.

    What is None is not asked for, and Slurm's default counts. Cores, memory and GPUs that are given here come before
    those that the node pool works out.

    Args:
        partition: the partition, or several, separated by commas.
        account: the account that is charged.
        qos: the quality of service.
        constraint: features that the nodes must have ("haswell", "[rack1|rack2]").
        reservation: the reservation to run in.
        cluster: the cluster of a federation to submit to.
        exclusive: whether whole nodes are asked for, with all of their cores and memory.
        gres: generic resources on each node ("gpu:a100:4").
        gpus_per_node: GPUs on each node, a number or with a type ("a100:4").
        mem: memory of each node ("16G"; "0": all of it).
        cores_per_node: cores on each node.
        walltime: how long a block may last ("00:30:00", "1-12:00:00", or seconds as a number).
        scheduler_options: more lines for the head of the job script ("--mail-type=FAIL"), with or without `#SBATCH`.
        job_dir: a folder that all nodes see, for job scripts and their output; None: `~/.hpcpool/runs`.
        login: a login node whose commands are used over SSH, an `SSHLogin` or "user@host"; None: this machine.
        poll_interval_s: seconds between two calls of `squeue`, one for all jobs.

    Raises:
        ConfigError: an option does not fit.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    cluster: str | None = None
    exclusive: bool = False
    gres: str | None = None
    gpus_per_node: int | str | None = None
    mem: str | None = None
    cores_per_node: int | None = None
    walltime: str | float | None = None
    scheduler_options: str | tuple[str, ...] = ()
    job_dir: str | None = None
    login: SSHLogin | str | None = None
    poll_interval_s: float = 15.0

    kind: ClassVar[str] = "slurm"
    max_nodes_per_block: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        option_checks.check_texts(
            self, "partition", "account", "qos", "constraint", "reservation", "cluster", "gres", "mem"
        )
        option_checks.check_flags(self, "exclusive")
        option_checks.check_counts(self, "cores_per_node")
        if not isinstance(self.gpus_per_node, str):
            option_checks.check_counts(self, "gpus_per_node")
        elif not re.fullmatch(r"[\w.-]+:[1-9]\d*|[1-9]\d*", self.gpus_per_node, re.ASCII):
            option_checks.refuse(self, "gpus_per_node", "a whole number from 1, 'TYPE:NUMBER', or None")
        if self.mem is not None and not re.fullmatch(r"\d+[KMGTkmgt]?", self.mem, re.ASCII):
            option_checks.refuse(self, "mem", "a number with one of the units K, M, G, T ('16G'), or None")
        if self.cluster is not None and not re.fullmatch(r"[\w.-]+", self.cluster):
            option_checks.refuse(self, "cluster", "the name of one cluster, or None")
        option_checks.check_folder(self, "job_dir")
        option_checks.check_login(self, "login")
        option_checks.check_seconds(self, "poll_interval_s")
        option_checks.walltime_of(self)
        option_checks.settle_lines(self, "scheduler_options", _DIRECTIVE)

    def open(self, run_dir: str) -> BatchDriver:
        """Make the driver. Slurm's commands must be there, on this machine or on that of `login`."""
        return open_driver(
            SlurmSystem(self),
            run_dir,
            login=self.login,
            job_dir=self.job_dir,
            poll_interval_s=self.poll_interval_s,
            walltime_s=option_checks.walltime_of(self),
        )


#: In front of a command: its times are seconds since the epoch, in whatever zone the machine is.
_EPOCH_TIMES = ("env", "SLURM_TIME_FORMAT=%s")

#: Inside a job (also an interactive one) the environment has that job's shape, such as SLURM_MEM_PER_CPU and
#: SLURM_NTASKS. sbatch hands it on, and srun in the new job would take it for its own.
_SUBMIT = 'for name in "${!SLURM_@}"; do [ "$name" = SLURM_CONF ] || unset "$name"; done; exec sbatch "$@"'

#: The widths are those of squeue's --Format; the reason, which has blanks, is last.
_COLUMNS = "JobID:20,State:20,StartTime:24,EndTime:24,exit_code:12,Reason:200"

_PENDING = frozenset("PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT".split())
_RUNNING = frozenset("RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING".split())
#: States of jobs that are over, in words; COMPLETED is the only good one.
_OVER: Mapping[str, str] = {
    "COMPLETED": "",
    "FAILED": "",
    "CANCELLED": "cancelled from outside",
    "TIMEOUT": "its walltime was over",
    "NODE_FAIL": "a node failed",
    "PREEMPTED": "another job took its nodes",
    "OUT_OF_MEMORY": "it used more memory than it asked for",
    "BOOT_FAIL": "its nodes did not boot",
    "DEADLINE": "its deadline had passed",
    "LAUNCH_FAILED": "it could not be started on its nodes",
    "RECONFIG_FAIL": "its nodes could not be configured",
    "REVOKED": "another cluster has taken it",
}

_NEVER = "it will never run"
#: Why jobs wait, for those reasons that do not go away by themselves
#: (https://slurm.schedmd.com/job_reason_codes.html). The first pattern that matches counts.
_REASONS: Sequence[tuple[str, str]] = (
    (r"PartitionNodeLimit", f"{_NEVER}: the partition does not allow so many nodes, or so few"),
    (r"PartitionTimeLimit", f"{_NEVER}: the walltime is longer than the partition allows"),
    (r"PartitionConfig", f"{_NEVER}: the partition does not have, or not allow, what it asks for"),
    (r"PartitionDown|PartitionInactive", "it will not run until the partition is opened"),
    (r"AccountNotAllowed|InvalidAccount", f"{_NEVER}: the account may not be used here"),
    (r"QOSNotAllowed|InvalidQOS", f"{_NEVER}: the qos may not be used here"),
    (r"(QOS|Assoc)Max.*PerJob.*|(QOS|Assoc)MaxWall.*|(QOS|Assoc)Min.*", f"{_NEVER}: one job may not ask for this"),
    (r"MaxMemPerLimit", f"{_NEVER}: it asks for more memory than is allowed"),
    (r"BadConstraints", f"{_NEVER}: no nodes have these features"),
    (r"ReservationDeleted|ReservationInvalid", f"{_NEVER}: the reservation is not there"),
    (r"DependencyNeverSatisfied", _NEVER),
    (r"JobHeldUser", "it will not run until it is released: scontrol release"),
    (r"JobHeldAdmin", "it will not run until an administrator releases it"),
    (r"JobLaunchFailure|launch failed requeued held", f"{_NEVER}: it could not be started on its nodes"),
)

#: The wait status of a job whose working directory or output file could not be opened.
_NO_OUTPUT = -53

#: What sbatch says when the controller may have taken the job but its answer was lost.
_LOST_ANSWER = re.compile(r"Socket timed out|Zero Bytes were transmitted|Unexpected message received", re.I)
#: What to do about the usual refusals.
_HINTS: Sequence[tuple[str, str]] = (
    (r"sbatch: (command )?not found|cannot be run", "submit from a login node of the cluster, or load Slurm's module"),
    (r"Invalid partition name", "`sinfo -s` lists the partitions"),
    (r"Invalid account or account/partition", "`sacctmgr show associations user=$USER` lists your accounts"),
    (r"Invalid qos", "`sacctmgr show associations user=$USER format=account,qos` lists yours"),
    (r"Invalid feature|Invalid generic resource", "`sinfo -o '%P %f %G'` lists what the nodes have"),
    (r"Requested node configuration|Memory specification", "no node of the partition has all that is asked for"),
    (r"time limit is invalid", "the walltime is longer than the partition allows: `sinfo -o '%P %l'`"),
    (r"MaxSubmitJob", "you may not have more jobs at one time: lower max_blocks"),
    (r"Unable to contact slurm controller", "Slurm's controller is down or cannot be reached from here"),
)


@dataclass(frozen=True)
class SlurmSystem:
    """Slurm's words."""

    options: SlurmProvider

    def script(self, job: JobRequest) -> str:
        head = [f"{_DIRECTIVE} {line}" for line in self._directives(job)]
        return "\n".join(["#!/bin/bash", *head, *self.options.scheduler_options, "", job.body])

    def _directives(self, job: JobRequest) -> Iterator[str]:
        yield f"--job-name={job.name}"
        yield f"--chdir={_quoted(job.cwd)}"
        yield f"--output={_quoted_pattern(job.stdout)}"
        yield f"--error={_quoted_pattern(job.stderr)}"
        # A block that starts again under its old id would find its place taken: another block does the work.
        yield "--no-requeue"
        yield f"--nodes={job.nodes}"
        if job.nodes > 1:
            yield "--no-kill"  # a node that fails takes its own manager along, and no other
        yield "--ntasks-per-node=1"
        yield from self._named("partition", "account", "qos", "constraint", "reservation")
        if self.options.exclusive:
            yield "--exclusive"
        if cores := self.options.cores_per_node or job.cores_per_node:
            yield f"--cpus-per-task={cores}"
        yield from self._memory_and_gpus(job)
        if job.walltime_s is not None:
            yield f"--time={hours_minutes_seconds(job.walltime_s)}"

    def _named(self, *names: str) -> Iterator[str]:
        for name in names:
            if (value := getattr(self.options, name)) is not None:
                yield f"--{name}={_quoted(value)}"

    def _memory_and_gpus(self, job: JobRequest) -> Iterator[str]:
        if self.options.mem is not None:
            yield f"--mem={self.options.mem}"
        elif self.options.exclusive:
            yield "--mem=0"
        elif job.memory_per_node:
            yield f"--mem={math.ceil(job.memory_per_node / _MIB)}M"
        yield from self._named("gres")
        gpus = self.options.gpus_per_node or (job.gpus_per_node if self.options.gres is None else 0)
        if gpus:
            yield f"--gpus-per-node={gpus}"

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        return ("bash", "-c", _SUBMIT, "sbatch", "--parsable", *self._cluster(), script_path)

    def parse_submit(self, result: CommandResult) -> str:
        if result.code != 0:
            if _LOST_ANSWER.search(result.words):
                raise SubmitUnclear(result.words)
            raise SubmitError(with_hint(result.words, _HINTS))
        ids = re.findall(r"^(\d+)(?:;\S+)?$", result.stdout, re.ASCII | re.MULTILINE)
        if not ids:
            raise SubmitUnclear(f"sbatch did not print the id of the job: {result.words}")
        return str(ids[-1])  # in front of it sites print what they like

    def find_command(self, name: str) -> tuple[str, ...]:
        return ("squeue", *self._cluster(), "-h", "-t", "all", "-n", name, "-o", "%A")

    def parse_find(self, name: str, result: CommandResult) -> str | None:
        if result.code != 0:
            return None
        ids = re.findall(r"^(\d+)\s*$", result.stdout, re.ASCII | re.MULTILINE)
        return str(ids[0]) if ids else None

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        # Without `-t all` jobs that are over are not named.
        options = ("-h", "-t", "all", "-j", ",".join(job_ids), "-O", _COLUMNS)
        return (*_EPOCH_TIMES, "squeue", *self._cluster(), *options)

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        if result.code != 0:
            # Said of a single job only; in a list those that are not known are left out.
            if "Invalid job id" in result.stderr:
                return {}
            return all_unknown(job_ids, result.words)
        rows = (line.split(None, 5) for line in result.stdout.splitlines())
        return {row[0]: _from_queue(*row[1:]) for row in rows if len(row) == 6 and row[0] in job_ids}

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        return (
            *(*_EPOCH_TIMES, "sacct", *self._cluster(), "-X", "-n", "-P"),
            *("-j", ",".join(job_ids), "-o", "JobIDRaw,State,ExitCode"),
        )

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        if result.code != 0:
            if "accounting storage is disabled" in result.words or result.was_not_started:
                return {}
            return all_unknown(job_ids, result.words)
        rows = (line.split("|") for line in result.stdout.splitlines())
        return {row[0]: _status(row[1], _exit_code(row[2]), "") for row in rows if len(row) == 3 and row[0] in job_ids}

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        # --full: the batch script as well; it counts for jobs that wait, too.
        signal = ("--signal=KILL", "--full") if force else ()
        return ("scancel", *self._cluster(), *signal, *job_ids)

    def _cluster(self) -> tuple[str, ...]:
        return () if self.options.cluster is None else (f"--clusters={self.options.cluster}",)


def _from_queue(state: str, started: str, ends: str, exit_code: str, reason: str) -> JobStatus:
    status = _status(state, _exit_code(exit_code), reason.strip())
    if status.state is not JobState.RUNNING:
        return status
    return JobStatus(status.state, None, status.reason, ends_at=_time(ends), started_at=_time(started))


def _status(words: str, exit_code: int | None, reason: str) -> JobStatus:
    """What a state means. Behind a state stands who cancelled the job ("CANCELLED by 1000")."""
    state = words.split(" ", 1)[0]
    said = "" if reason in ("None", "(null)") else reason
    if state in _PENDING:
        explained = _explained(said)
        return JobStatus(JobState.PENDING, reason=explained or state, is_stuck=_NEVER in explained)
    if state in _RUNNING:
        return JobStatus(JobState.RUNNING, reason="" if state == "RUNNING" else state)
    if state == "COMPLETED":
        return JobStatus(JobState.ENDED, exit_code, "exited with code 0")
    if state in _OVER:
        return JobStatus(JobState.FAILED, exit_code, _end_in_words(words, exit_code, said))
    return JobStatus(JobState.UNKNOWN, reason=f"Slurm says {words!r}, which is not a known state")


def _end_in_words(words: str, exit_code: int | None, reason: str) -> str:
    state, _, by = words.partition(" by ")
    parts = [f"{_OVER[state]} by user {by}" if by and by != "0" else f"{_OVER[state]}{' by root' if by else ''}"]
    if state == "FAILED" and exit_code == _NO_OUTPUT:
        parts.append("it could not be started: its folder cannot be reached from the node, or is not writable there")
    elif state == "FAILED" and exit_code is not None:
        parts.append(f"exited with code {exit_code}" if exit_code >= 0 else f"killed by {signal_name(-exit_code)}")
    told = state if reason in ("", "NonZeroExitCode", "JobLaunchFailure", "TimeLimit") else f"{state}, {reason}"
    return f"{'; '.join(filter(None, parts)) or 'failed'} ({told})"


def _explained(reason: str) -> str:
    """The reason and, where it does not go away by itself, what it means."""
    meaning = next((words for pattern, words in _REASONS if re.fullmatch(pattern, reason)), None)
    return reason if meaning is None else f"{reason}: {meaning}"


def _exit_code(text: str) -> int | None:
    """An exit code from "3:0" (code and signal) or from a wait status ("768"); negative: the signal."""
    if match := re.fullmatch(r"(\d{1,9}):(\d{1,9})", text, re.ASCII):
        code, signal = map(int, match.groups())
        return -signal if signal else code
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return None
    status = int(text)
    return -(status & 0x7F) if status & 0x7F else status >> 8


def _time(text: str) -> float | None:
    """Seconds since the epoch; None for "N/A", "Unknown" and what else stands for no time."""
    return float(text) if re.fullmatch(r"\d{1,11}", text, re.ASCII) else None


def _quoted(text: str) -> str:
    """A value of a directive, which sbatch splits into words as a shell does."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _quoted_pattern(path: str) -> str:
    """A path in which sbatch would replace %j and the like."""
    return _quoted(path.replace("%", "%%"))
