"""Torque: job scripts, commands and what their outputs mean. Pure but for `TorqueProvider.open`.

The facts are those of the administrator guide of Torque 6 and of outputs of Torque 2 to 6.
"""

from __future__ import annotations

import math
import os.path
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hpcpool.providers import option_checks
from hpcpool.providers.base import JobState, JobStatus
from hpcpool.providers.batch import JobRequest
from hpcpool.providers.batch_driver import STDERR, STDOUT, BatchDriver, open_driver
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.job_script import found_id, job_script, quoted, submitted_id
from hpcpool.providers.qstat import Attributes, last_status, living_status, told_statuses
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.walltime import hours_minutes_seconds

_DIRECTIVE = "#PBS"
_MIB = 2**20


@dataclass(frozen=True)
class TorqueProvider:
    """Jobs of Torque, with whichever scheduler (Maui, Moab): a block is one job of `nodes_per_block` nodes.

    What is None is not asked for, and Torque's default counts. Cores, memory and GPUs that are given here come before
    those that the node pool works out.

    Args:
        queue: the queue.
        account: the account that is charged.
        ppn: cores ("processors") of each node.
        gpus: GPUs of each node.
        mem: memory of the whole job ("32gb"), not of a node.
        properties: properties that each node must have, joined by colons ("xe:gen9").
        walltime: how long a block may last ("00:30:00", "1-12:00:00", or seconds as a number).
        scheduler_options: more lines for the head of the job script ("-l naccesspolicy=singlejob"), with or without
            `#PBS`.
        job_dir: a folder that all nodes see, for job scripts and their output; None: `~/.hpcpool/runs`.
        login: a login node whose commands are used over SSH, an `SSHLogin` or "user@host"; None: this machine.
        poll_interval_s: seconds between two calls of `qstat`, one for all jobs.

    Raises:
        ConfigError: an option does not fit.
    """

    queue: str | None = None
    account: str | None = None
    ppn: int | None = None
    gpus: int | None = None
    mem: str | None = None
    properties: str | None = None
    walltime: str | float | None = None
    scheduler_options: str | tuple[str, ...] = ()
    job_dir: str | None = None
    login: SSHLogin | str | None = None
    poll_interval_s: float = 15.0

    kind: ClassVar[str] = "torque"
    max_nodes_per_block: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        option_checks.check_texts(self, "queue", "account", "mem", "properties")
        option_checks.check_counts(self, "ppn", "gpus")
        option_checks.check_folder(self, "job_dir")
        option_checks.check_login(self, "login")
        option_checks.check_seconds(self, "poll_interval_s")
        option_checks.walltime_of(self)
        option_checks.settle_lines(self, "scheduler_options", _DIRECTIVE)

    def open(self, run_dir: str) -> BatchDriver:
        """Make the driver. Torque's commands must be there, on this machine or on that of `login`."""
        return open_driver(
            TorqueSystem(self),
            run_dir,
            login=self.login,
            job_dir=self.job_dir,
            poll_interval_s=self.poll_interval_s,
            walltime_s=option_checks.walltime_of(self),
        )


#: Every state of `qstat`; how C ended its exit status tells.
STATES: Mapping[str, JobState] = {
    "C": JobState.ENDED,
    "E": JobState.RUNNING,  # exiting: its nodes are not free yet
    "H": JobState.PENDING,
    "Q": JobState.PENDING,
    "R": JobState.RUNNING,
    "S": JobState.RUNNING,  # suspended: it has started, and has not ended
    "T": JobState.PENDING,
    "W": JobState.PENDING,
}
_OVER = "C"
#: What to say of a state where the server gives no comment.
_WORDS = {"H": "held", "S": "suspended", "T": "in transit", "W": "waiting for its time"}
#: The exit statuses below 0 ("Job Exit Status").
EXIT_STATUSES: Mapping[int, str] = {
    -1: "it could not be started (JOB_EXEC_FAIL1)",
    -2: "it could not be started (JOB_EXEC_FAIL2)",
    -3: "it could not be started, to be tried again (JOB_EXEC_RETRY)",
    -4: "aborted when the node's MOM was restarted (JOB_EXEC_INITABT)",
    -5: "aborted when the node's MOM was restarted (JOB_EXEC_INITRST)",
    -6: "aborted when the node's MOM was restarted (JOB_EXEC_INITRMG)",
    -7: "it could not be restarted (JOB_EXEC_BADRESRT)",
    -8: "its script could not be run (JOB_EXEC_CMDFAIL)",
    -9: "its output files could not be opened (JOB_EXEC_STDOUTFAIL)",
    -10: "killed: more memory than asked for (JOB_EXEC_OVERLIMIT_MEM)",
    -11: "killed: the walltime is over (JOB_EXEC_OVERLIMIT_WT)",
    -12: "killed: more CPU time than asked for (JOB_EXEC_OVERLIMIT_CPUT)",
}
#: What to do about the usual refusals.
_HINTS: Sequence[tuple[str, str]] = (
    (r"qsub.*([Nn]ot found|cannot be run)", "submit from a login node of the cluster, or load Torque's module"),
    (r"Unknown queue", "`qstat -q` lists the queues"),
    (r"Queue is not enabled", "the queue takes no jobs now; `qstat -q` lists the queues"),
    (r"Bad UID", "this user may not submit from this host"),
    (r"Unknown resource", "see ppn, gpus, properties and scheduler_options"),
    (r"Illegal attribute or resource value", "see mem and scheduler_options"),
    (r"exceeds (queue|server).*limit|[Vv]iolates queue", "`qstat -Qf` tells the limits on walltime, nodes and jobs"),
    (r"cannot locate feasible nodes", "no nodes have this ppn, gpus and properties: `pbsnodes -a`"),
    (
        r"[Cc]annot connect|Connection refused|Unable to communicate",
        "the server is down or cannot be reached from here",
    ),
)
#: A job id stands alone in its line; banners of the site may stand in front of it.
_JOB_ID = re.compile(r"\d+(?:\[\d*\])?(?:\.[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class TorqueSystem:
    """Torque's words."""

    options: TorqueProvider

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
        yield f"-l nodes={self._nodes(job)}"
        if self.options.mem:
            yield f"-l mem={self.options.mem}"
        elif job.memory_per_node:
            yield f"-l mem={math.ceil(job.nodes * job.memory_per_node / _MIB)}mb"
        if job.walltime_s is not None:
            yield f"-l walltime={hours_minutes_seconds(job.walltime_s)}"

    def _nodes(self, job: JobRequest) -> str:
        ppn = self.options.ppn or job.cores_per_node
        gpus = self.options.gpus or job.gpus_per_node
        parts = (str(job.nodes), f"ppn={ppn}" if ppn else "", f"gpus={gpus}" if gpus else "", self.options.properties)
        return ":".join(part for part in parts if part)

    def submit_command(self, script_path: str) -> tuple[str, ...]:
        # Said once more, because Slurm's wrapper of qsub puts the output elsewhere, whatever the script says.
        folder = os.path.dirname(script_path)
        return ("qsub", "-o", os.path.join(folder, STDOUT), "-e", os.path.join(folder, STDERR), script_path)

    def parse_submit(self, result: CommandResult) -> str:
        return submitted_id(result, _JOB_ID, _HINTS)

    def find_command(self, name: str) -> tuple[str, ...]:
        return ("qselect", "-N", name)

    def parse_find(self, name: str, result: CommandResult) -> str | None:
        return found_id(result, _JOB_ID)

    def status_command(self, job_ids: Sequence[str]) -> tuple[str, ...]:
        # qstat prints dates in its own time zone.
        return ("env", "TZ=UTC0", "qstat", "-f", *job_ids)

    def parse_status(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return told_statuses(job_ids, result, _status)

    def history_command(self, job_ids: Sequence[str]) -> tuple[str, ...] | None:
        # How a job ended is shown for as long as the server's keep_completed says; logs are for administrators.
        return None

    def parse_history(self, job_ids: Sequence[str], result: CommandResult) -> Mapping[str, JobStatus]:
        return {}

    def cancel_command(self, job_ids: Sequence[str], *, force: bool) -> tuple[str, ...]:
        # -W 0: SIGKILL at once. What is more (`qdel -p`) is for administrators.
        return ("qdel", "-W", "0", *job_ids) if force else ("qdel", *job_ids)


def _status(attributes: Attributes) -> JobStatus | None:
    letter = attributes.get("job_state", "")
    state = STATES.get(letter)
    if state is None:
        return JobStatus(JobState.UNKNOWN, reason=f"Torque says {letter!r}, which is not a known state")
    if letter == _OVER and "exit_status" not in attributes:
        return None  # Slurm's wrapper of qstat; the exit code that the job's script wrote tells
    if letter == _OVER:
        return last_status(attributes, attributes.get("exit_status"), EXIT_STATUSES)
    return living_status(attributes, state, attributes.get("start_time", ""), _WORDS.get(letter, ""))
