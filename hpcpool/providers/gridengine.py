"""Grid Engine: job scripts, commands and what their outputs mean. Pure but for `GridEngineProvider.open`.

The outputs are those of Son of Grid Engine 8.1.9; Univa's and Altair's are close to them.
"""

from __future__ import annotations

import calendar
import math
import re
import time
import xml.etree.ElementTree as ElementTree
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

_DIRECTIVE = "#$"
_MIB = 2**20


@dataclass(frozen=True)
class GridEngineProvider:
    """Jobs of Grid Engine: a block is one job. More than one node, or more than one slot, needs a parallel environment.

    What is None is not asked for, and Grid Engine's default counts.

    Args:
        queue: the queue, or several, separated by commas.
        parallel_environment: the parallel environment. Its allocation rule must put `slots_per_node` slots on each
            host.
        slots_per_node: slots to ask for, for each node; None: the cores of a node that the node pool works out. Only
            with a parallel environment.
        project: the project that is charged.
        resources: requests for `-l` ("gpu=1", "arch=lx-amd64").
        memory_resource: the resource that stands for memory here ("mem_free", "h_vmem"); what the node pool needs is
            asked for under this name, for each slot. None: memory is not asked for.
        gpu_resource: the same for GPUs, for each node.
        walltime: how long a block may last ("00:30:00", "1-12:00:00", or seconds as a number): `h_rt`.
        scheduler_options: more lines for the head of the job script ("-V"), with or without `#$`.
        job_dir: a folder that all nodes see, for job scripts and their output; None: `~/.hpcpool/runs`.
        login: a login node whose commands are used over SSH, an `SSHLogin` or "user@host"; None: this machine.
        poll_interval_s: seconds between two calls of `qstat`, one for all jobs.

    Raises:
        ConfigError: an option does not fit.
    """

    queue: str | None = None
    parallel_environment: str | None = None
    slots_per_node: int | None = None
    project: str | None = None
    resources: tuple[str, ...] = ()
    memory_resource: str | None = None
    gpu_resource: str | None = None
    walltime: str | float | None = None
    scheduler_options: str | tuple[str, ...] = ()
    job_dir: str | None = None
    login: SSHLogin | str | None = None
    poll_interval_s: float = 15.0

    kind: ClassVar[str] = "gridengine"

    @property
    def max_nodes_per_block(self) -> int | None:
        """One, unless there is a parallel environment."""
        return 1 if self.parallel_environment is None else None

    def __post_init__(self) -> None:
        option_checks.check_words(self, "queue", "parallel_environment", "project", "memory_resource", "gpu_resource")
        option_checks.check_counts(self, "slots_per_node")
        option_checks.settle_words(self, "resources")
        option_checks.check_folder(self, "job_dir")
        option_checks.check_login(self, "login")
        option_checks.check_seconds(self, "poll_interval_s")
        option_checks.walltime_of(self)
        option_checks.settle_lines(self, "scheduler_options", _DIRECTIVE)

    def open(self, run_dir: str) -> BatchDriver:
        """Make the driver. Grid Engine's commands must be there, on this machine or on that of `login`."""
        return open_driver(
            GridEngineSystem(self),
            run_dir,
            login=self.login,
            job_dir=self.job_dir,
            poll_interval_s=self.poll_interval_s,
            walltime_s=option_checks.walltime_of(self),
        )


#: The queue, and behind it what it does not tell: why jobs wait. Its times are those of the zone that it is told.
_STATUS = 'qstat -xml && { qstat -j "$1" 2>/dev/null; true; }'
#: qacct tells about one job only, and of a job that has not ended it complains.
_HISTORY = 'for id; do qacct -j "$id"; done; true'

#: Lines of qstat -j that say why a job waits.
_WHY = re.compile(r"(?:error reason\s+\d+|scheduling info):\s*(.*)")
_ERROR_TIME = re.compile(r"^[\d/]+ [\d:.]+ \[[\d:]*\]: ")

#: What happened to a job by the number in "failed"; 0: it ran to its end, whatever came of it.
_KILLED = {"37": "its walltime or its memory was over", "100": "killed"}

#: What qsub says when the qmaster may have taken the job but its answer was lost.
_LOST_ANSWER = re.compile(r"got (read error|timeout)|timeout|acknowledge", re.I)
#: What to do about the usual refusals.
_HINTS: Sequence[tuple[str, str]] = (
    (r"not found|cannot be run", "submit from a login node of the cluster, or load Grid Engine's module"),
    (r"SGE_ROOT", "load Grid Engine's module, or source its settings.sh"),
    (r"no suitable queues", "no queue has so many slots, all the resources and a walltime as long as asked for"),
    (r"unknown queue", "`qconf -sql` lists the queues"),
    (r"parallel environment", "`qconf -spl` lists the parallel environments"),
    (r"project", "`qconf -sprjl` lists the projects"),
    (r"unknown resource", "`qconf -sc` lists the resources"),
    (
        r"unable to send message to qmaster|can't resolve host|unable to contact qmaster",
        "the qmaster cannot be reached",
    ),
)


@dataclass(frozen=True)
class GridEngineSystem:
    """Grid Engine's words."""

    options: GridEngineProvider

    def script(self, job: JobRequest) -> str:
        head = [f"{_DIRECTIVE} {line}" for line in self._directives(job)]
        return "\n".join(["#!/bin/bash", *head, *self.options.scheduler_options, "", job.body])

    def _directives(self, job: JobRequest) -> Iterator[str]:
        options = self.options
        yield "-S /bin/bash"
        yield f"-N {job.name}"
        yield f"-wd {_quoted(job.cwd)}"
        yield f"-o {_quoted(job.stdout)}"
        yield f"-e {_quoted(job.stderr)}"
        # A block that starts again under its old id would find its place taken: another block does the work.
        yield "-r n"
        # What can never run is refused at once. Else it would wait for ever.
        yield "-w e"
        if options.queue is not None:
            yield f"-q {options.queue}"
        if options.project is not None:
            yield f"-P {options.project}"
        slots_per_node = options.slots_per_node or job.cores_per_node or 1
        if options.parallel_environment is not None:
            yield f"-pe {options.parallel_environment} {job.nodes * slots_per_node}"
        elif job.nodes > 1:
            raise SubmitError(f"{job.nodes} nodes need a parallel environment: set parallel_environment")
        else:
            slots_per_node = 1
        yield from (f"-l {request}" for request in self._resources(job, slots_per_node))

    def _resources(self, job: JobRequest, slots_per_node: int) -> Iterator[str]:
        if job.walltime_s is not None:
            yield f"h_rt={math.ceil(job.walltime_s)}"
        if self.options.memory_resource is not None and job.memory_per_node:
            yield f"{self.options.memory_resource}={math.ceil(job.memory_per_node / slots_per_node / _MIB)}M"
        if self.options.gpu_resource is not None and job.gpus_per_node:
            yield f"{self.options.gpu_resource}={job.gpus_per_node}"
        yield from self.options.resources

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        return ("qsub", "-terse", script_path)

    def parse_submit(self, result: CommandResult) -> str:
        if result.code != 0:
            if _LOST_ANSWER.search(result.words):
                raise SubmitUnclear(result.words)
            raise SubmitError(with_hint(result.words, _HINTS))
        ids = re.findall(r"^(\d+)(?:\.[\d:-]+)?$", result.stdout, re.ASCII | re.MULTILINE)
        if not ids:
            raise SubmitUnclear(f"qsub did not print the id of the job: {result.words}")
        return str(ids[-1])  # in front of it sites print what they like

    def find_command(self, name: str) -> tuple[str, ...]:
        return ("qstat", "-xml")

    def parse_find(self, name: str, result: CommandResult) -> str | None:
        jobs = _jobs(result.stdout) if result.code == 0 else None
        return next((job_id for job_id, job in (jobs or {}).items() if job.findtext("JB_name") == name), None)

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        return ("env", "TZ=UTC", "sh", "-c", _STATUS, "qstat", ",".join(job_ids))

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        if result.code != 0:
            return all_unknown(job_ids, result.words)
        document, _, details = result.stdout.partition("</job_info>\n=")
        jobs = _jobs(f"{document}</job_info>" if details else document)
        if jobs is None:
            return all_unknown(job_ids, f"qstat's answer is not understood: {result.words[:200]}")
        reasons = _reasons(details)
        return {job_id: _from_queue(jobs[job_id], reasons.get(job_id, "")) for job_id in job_ids if job_id in jobs}

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        return ("sh", "-c", _HISTORY, "qacct", *job_ids)

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        if result.code != 0:
            return all_unknown(job_ids, result.words)
        told = {}
        for record in re.split(r"^=+\s*$", result.stdout, flags=re.MULTILINE):
            values = dict(re.findall(r"^(jobnumber|failed|exit_status)[ \t]+(\S.*?)[ \t]*\n", record, re.MULTILINE))
            if values.keys() >= {"jobnumber", "failed", "exit_status"} and values["jobnumber"] in job_ids:
                told[values["jobnumber"]] = _from_history(values["failed"], values["exit_status"])
        return told

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        # -f: also a job whose host does not answer. qdel itself knows no gentle end, it kills.
        return ("qdel", *(("-f",) if force else ()), ",".join(job_ids))


def _jobs(document: str) -> Mapping[str, ElementTree.Element] | None:
    """The jobs in what qstat printed, by their ids; None: it is not what qstat prints."""
    try:
        root = ElementTree.fromstring(document[max(document.find("<"), 0) :])
    except (ElementTree.ParseError, ValueError):
        return None
    if root.tag != "job_info":
        return None
    return {job.findtext("JB_job_number", ""): job for job in root.iter("job_list")}


def _reasons(details: str) -> Mapping[str, str]:
    """Why jobs wait, by their ids, from what qstat -j printed."""
    reasons: dict[str, str] = {}
    job_id = ""
    for line in details.splitlines():
        if match := re.match(r"job_number:\s*(\d+)", line):
            job_id = match[1]
        elif (match := _WHY.match(line)) and job_id not in reasons:  # the error comes before the scheduler's words
            reasons[job_id] = _ERROR_TIME.sub("", match[1].strip())
    return reasons


def _from_queue(job: ElementTree.Element, reason: str) -> JobStatus:
    """What a state means: letters, such as "hqw" (https://gridscheduler.sourceforge.net/htmlman/htmlman1/qstat.html)."""
    state = job.findtext("state", "")
    if "E" in state:
        words = f"in error state ({state}), it will never run: {reason or '`qstat -j` tells why'}"
        return JobStatus(JobState.PENDING, reason=words, is_stuck=True)
    if "h" in state and "r" not in state:
        return JobStatus(JobState.PENDING, reason=f"held ({state}): it will not run until it is released: qrls")
    if "q" in state or "w" in state:
        return JobStatus(JobState.PENDING, reason=f"waiting ({state}{f': {reason}' if reason else ''})")
    if re.fullmatch(r"[dRrtsSTNPh]+", state):
        started_at = _time(job.findtext("JAT_start_time", ""))
        return JobStatus(JobState.RUNNING, reason="" if state == "r" else state, started_at=started_at)
    return JobStatus(JobState.UNKNOWN, reason=f"Grid Engine says {state!r}, which is not a known state")


def _from_history(failed: str, status: str) -> JobStatus:
    """How a job ended, from two lines of qacct: "failed  100 : assumedly after job" and "exit_status  137 (Killed)"."""
    code = re.match(r"\d{1,5}", status, re.ASCII)
    number = failed.split()[0]
    exit_code = None if code is None else int(code[0])
    if number in _KILLED and exit_code is not None and 128 < exit_code < 192:
        exit_code = 128 - exit_code
        words = f"{_KILLED[number]}, {signal_name(-exit_code)} (failed {failed})"
        return JobStatus(JobState.FAILED, exit_code, " ".join(words.split()))
    if number != "0":
        # The exit code is 0 where the job was never started.
        return JobStatus(JobState.FAILED, exit_code or None, " ".join(f"failed {failed}".split()))
    state = JobState.ENDED if exit_code == 0 else JobState.FAILED
    return JobStatus(state, exit_code, "ended" if exit_code is None else f"exited with code {exit_code}")


def _time(text: str) -> float | None:
    """Seconds since the epoch of a time in UTC."""
    try:
        return float(calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return None


def _quoted(path: str) -> str:
    """A path in a directive, which qsub splits into words."""
    return path if re.fullmatch(r"[\w@%+=:,./-]+", path, re.ASCII) else f'"{path}"'
