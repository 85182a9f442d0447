"""PBS Professional and OpenPBS: job scripts, commands and what their outputs mean. Pure but for `PBSProProvider.open`.

The facts are those of OpenPBS 23.06 and of the PBS Professional Reference Guide.
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
from hpcpool.providers.job_script import found_id, job_script, quoted, submitted_id
from hpcpool.providers.qstat import Attributes, last_status, living_status, told_statuses
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.walltime import hours_minutes_seconds

_DIRECTIVE = "#PBS"
_MIB = 2**20


@dataclass(frozen=True)
class PBSProProvider:
    """Jobs of PBS Professional or OpenPBS: a block is one job of `nodes_per_block` chunks, each on a host of its own.

    What is None is not asked for, and PBS's default counts. Cores, memory and GPUs that are given here come before
    those that the node pool works out.

    Args:
        queue: the queue.
        account: the account that is charged.
        ncpus: cores of each node.
        mem: memory of each node ("16gb").
        ngpus: GPUs of each node.
        select_options: more that each node must have, as in a `select` statement ("model=rom:mpiprocs=4").
        place: how the nodes are placed ("scatter:excl" for whole nodes); it must begin with "scatter", since every
            node of a block must be another host.
        walltime: how long a block may last ("00:30:00", "1-12:00:00", or seconds as a number).
        scheduler_options: more lines for the head of the job script ("-l filesystems=home"), with or without `#PBS`.
        job_dir: a folder that all nodes see, for job scripts and their output; None: `~/.hpcpool/runs`.
        login: a login node whose commands are used over SSH, an `SSHLogin` or "user@host"; None: this machine.
        poll_interval_s: seconds between two calls of `qstat`, one for all jobs.

    Raises:
        ConfigError: an option does not fit.
    """

    queue: str | None = None
    account: str | None = None
    ncpus: int | None = None
    mem: str | None = None
    ngpus: int | None = None
    select_options: str | None = None
    place: str = "scatter"
    walltime: str | float | None = None
    scheduler_options: str | tuple[str, ...] = ()
    job_dir: str | None = None
    login: SSHLogin | str | None = None
    poll_interval_s: float = 15.0

    kind: ClassVar[str] = "pbspro"
    max_nodes_per_block: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        option_checks.check_texts(self, "queue", "account", "mem", "select_options")
        if not option_checks.is_line(self.place) or not re.match(r"scatter(:|$)", self.place):
            option_checks.refuse(self, "place", "text that begins with 'scatter' ('scatter:excl')")
        option_checks.check_counts(self, "ncpus", "ngpus")
        option_checks.check_folder(self, "job_dir")
        option_checks.check_login(self, "login")
        option_checks.check_seconds(self, "poll_interval_s")
        option_checks.walltime_of(self)
        option_checks.settle_lines(self, "scheduler_options", _DIRECTIVE)

    def open(self, run_dir: str) -> BatchDriver:
        """Make the driver. PBS's commands must be there, on this machine or on that of `login`."""
        return open_driver(
            PBSProSystem(self),
            run_dir,
            login=self.login,
            job_dir=self.job_dir,
            poll_interval_s=self.poll_interval_s,
            walltime_s=option_checks.walltime_of(self),
        )


#: Every state of `qstat`; how F and X ended their exit status tells.
STATES: Mapping[str, JobState] = {
    "B": JobState.RUNNING,  # an array with at least one job that has started
    "E": JobState.RUNNING,  # exiting: its nodes are not free yet
    "F": JobState.ENDED,
    "H": JobState.PENDING,
    "M": JobState.UNKNOWN,  # moved to another server, which alone knows
    "Q": JobState.PENDING,
    "R": JobState.RUNNING,
    "S": JobState.RUNNING,  # suspended: it has started, and has not ended
    "T": JobState.PENDING,
    "U": JobState.RUNNING,  # suspended, because somebody uses the workstation
    "W": JobState.PENDING,
    "X": JobState.ENDED,
}
_OVER = frozenset("FX")
#: What to say of a state where the server gives no comment.
_WORDS = {
    "H": "held",
    "M": "moved to another server",
    "S": "suspended",
    "T": "in transit",
    "U": "suspended",
    "W": "waiting for its time",
}
#: The exit statuses below 0 ("Job Exit Status Codes").
EXIT_STATUSES: Mapping[int, str] = {
    -1: "it could not be started (JOB_EXEC_FAIL1)",
    -2: "it could not be started (JOB_EXEC_FAIL2)",
    -3: "it could not be started, to be tried again (JOB_EXEC_RETRY)",
    -4: "aborted when the node's MoM was restarted (JOB_EXEC_INITABT)",
    -5: "aborted when the node's MoM was restarted (JOB_EXEC_INITRST)",
    -6: "aborted when the node's MoM was restarted (JOB_EXEC_INITRMG)",
    -7: "it could not be restarted (JOB_EXEC_BADRESRT)",
    -10: "the node does not know this user (JOB_EXEC_FAILUID)",
    -11: "it was rerun (JOB_EXEC_RERUN)",
    -12: "it was checkpointed and killed (JOB_EXEC_CHKP)",
    -14: "its nodes lost contact with each other (JOB_EXEC_RERUN_ON_SIS_FAIL)",
    -16: "a hook of the site rejected it (JOB_EXEC_FAILHOOK_RERUN)",
    -17: "a hook of the site rejected it (JOB_EXEC_FAILHOOK_DELETE)",
    -24: "killed: more CPU use than asked for, in a burst (JOB_EXEC_KILL_NCPUS_BURST)",
    -25: "killed: more CPU use than asked for (JOB_EXEC_KILL_NCPUS_SUM)",
    -26: "killed: more virtual memory than asked for (JOB_EXEC_KILL_VMEM)",
    -27: "killed: more memory than asked for (JOB_EXEC_KILL_MEM)",
    -28: "killed: more CPU time than asked for (JOB_EXEC_KILL_CPUT)",
    -29: "killed: the walltime is over (JOB_EXEC_KILL_WALLTIME)",
}
#: What to do about the usual refusals.
_HINTS: Sequence[tuple[str, str]] = (
    (r"qsub.*([Nn]ot found|cannot be run)", "submit from a login node of the cluster, or load PBS's module"),
    (r"Unknown queue", "`qstat -Q` lists the queues"),
    (r"Queue is not enabled", "the queue takes no jobs now; `qstat -Q` lists the queues"),
    (r"Bad UID", "this user may not submit from this host"),
    (r"Unknown resource", "see ncpus, ngpus, select_options and scheduler_options"),
    (r"Illegal attribute or resource value", "see mem, select_options, place and scheduler_options"),
    (r"[Vv]iolates queue|exceeds? .*limit", "`qstat -Qf` tells the limits on walltime, nodes, cores and jobs"),
    (r"[Cc]annot connect|Connection refused", "the server is down or cannot be reached from here: `qstat -B`"),
)

#: A job id stands alone in its line; banners of the site may stand in front of it.
_JOB_ID = re.compile(r"\d+(?:\[\])?\.[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class PBSProSystem:
    """PBS Professional's words."""

    options: PBSProProvider

    def script(self, job: JobRequest) -> str:
        return job_script(_DIRECTIVE, self._directives(job), self.options.scheduler_options, job)

    def _directives(self, job: JobRequest) -> Iterator[str]:
        yield f"-N {job.name}"
        yield "-S /bin/bash"
        # A block that starts again under its old id would find its place taken: another block does the work.
        yield "-r n"
        yield f"-o {quoted(job.stdout)}"
        yield f"-e {quoted(job.stderr)}"
        if self.options.queue:
            yield f"-q {quoted(self.options.queue)}"
        if self.options.account:
            yield f"-A {quoted(self.options.account)}"
        yield f"-l select={self._select(job)}"
        yield f"-l place={self.options.place}"
        if job.walltime_s is not None:
            yield f"-l walltime={hours_minutes_seconds(job.walltime_s)}"

    def _select(self, job: JobRequest) -> str:
        ncpus = self.options.ncpus or job.cores_per_node
        ngpus = self.options.ngpus or job.gpus_per_node
        mem = self.options.mem or (f"{math.ceil(job.memory_per_node / _MIB)}mb" if job.memory_per_node else "")
        parts = [
            str(job.nodes),
            f"ncpus={ncpus}" if ncpus else "",
            f"mem={mem}" if mem else "",
            f"ngpus={ngpus}" if ngpus else "",
            self.options.select_options or "",
        ]
        return ":".join(filter(None, parts))

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        return ("qsub", script_path)

    def parse_submit(self, result: CommandResult) -> str:
        return submitted_id(result, _JOB_ID, _HINTS)

    def find_command(self, name: str) -> tuple[str, ...]:
        return ("qselect", "-N", name)

    def parse_find(self, name: str, result: CommandResult) -> str | None:
        return found_id(result, _JOB_ID)

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        # -x: finished jobs too. qstat prints dates in its own time zone.
        return ("env", "TZ=UTC0", "qstat", "-x", "-f", *job_ids)

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return told_statuses(job_ids, result, _status)

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        return None

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return {}

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        # A job whose node does not answer is let go of only by force.
        return ("qdel", "-W", "force", *job_ids) if force else ("qdel", *job_ids)


def _status(attributes: Attributes) -> JobStatus:
    letter = attributes.get("job_state", "")
    state = STATES.get(letter)
    if state is None:
        return JobStatus(JobState.UNKNOWN, reason=f"PBS says {letter!r}, which is not a known state")
    if letter in _OVER:
        return last_status(attributes, attributes.get("Exit_status"), EXIT_STATUSES)
    return living_status(attributes, state, attributes.get("stime", ""), _WORDS.get(letter, ""))
