"""The driver of all batch systems: it runs commands and keeps what jobs need; a `BatchSystem` knows what to say.

Rules of this file:
- A submission is never repeated. One that may have been accepted unseen is looked for by the job's name; what turns up
  later is cancelled.
- A command that fails says nothing about a job: it is `UNKNOWN`, and so it counts as alive. A job is over when the
  batch system says so, or when it answers and does not know the job, for longer than news may take.
- A job's script writes the exit code of its body into the job's folder. So the end of a job can be told where the
  batch system forgets jobs at once, or does not tell how they ended.
"""

from __future__ import annotations

import dataclasses
import logging
import os.path
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from hpcpool.providers.base import BlockRequest, JobState, JobStatus, SubmitError, Unreachable
from hpcpool.providers.batch import BatchSystem, JobRequest, JobSearch, SubmitUnclear
from hpcpool.providers.commands import CommandResult, LocalRunner, Runner

if TYPE_CHECKING:
    from hpcpool.providers.ssh.login import SSHLogin
    from hpcpool.providers.ssh.login_node import LoginNode

logger = logging.getLogger(__name__)

SCRIPT, STDOUT, STDERR, EXIT_CODE = "job.sh", "job.out", "job.err", "job.exit"

#: Submit commands wait for busy controllers (Slurm's own limit for one message is 10 s, and it tries again).
_SUBMIT_TIMEOUT_S = 60.0
#: A status command that does not answer keeps everything else in this thread waiting.
_ASK_TIMEOUT_S = 30.0
#: How long a job may be named nowhere before it is taken for over: queues and accounting files are written with delay.
_GRACE_S = 30.0
#: The same for a job that was cancelled before it was ever named.
_CANCELLED_GRACE_S = 5.0
#: How long the history may fail before a job that the queue does not know is given up.
_HISTORY_PATIENCE_S = 300.0
#: How long a job that may have been accepted is looked for, to cancel it.
_STRAY_PATIENCE_S = 600.0
#: For so long after a submission or a cancellation news are likely, and are asked for more often.
_BUSY_S = 20.0
_BUSY_INTERVAL_S = 2.0
#: What batch systems send to a job that shall end.
_SIGNALS = "TERM HUP USR1 USR2 XCPU"
#: What submit commands say when nobody has answered them: of Slurm, Grid Engine, PBS and Torque, LSF, HTCondor.
_UNREACHABLE = re.compile(
    r"unable to contact|unable to send message to qmaster|cannot connect to (the )?(default )?server"
    r"|lsf is down|failed to connect to|connection refused|connection timed out|did not answer within",
    re.IGNORECASE,
)
#: Enough for a Python traceback, and little enough for an error message.
_TAIL_LINES = 20
_TAIL_BYTES = 8192


class BatchDriver:
    """Submits, watches and cancels the jobs of one batch system. All calls come from one thread.

    Args:
        system: what the commands are and mean.
        runner: where they run, and where files are kept; it is closed with the driver.
        folder: the folder of this run, which the nodes see; an absolute path. Each block has its own folder in it.
        poll_interval_s: seconds between two looks at the jobs while nothing special goes on.
        walltime_s: the walltime of blocks that come without one (seconds); None: the batch system's default.
        clock: tells the time (seconds since the epoch).
        login_node: where `runner` runs commands, if that is another machine; it is closed with the driver.
    """

    is_local = False
    watch_fd = None

    def __init__(
        self,
        system: BatchSystem,
        runner: Runner,
        folder: str,
        poll_interval_s: float,
        *,
        walltime_s: float | None = None,
        clock: Callable[[], float] = time.time,
        login_node: LoginNode | None = None,
    ) -> None:
        self._system = system
        self._runner = runner
        self._folder = folder
        self._poll_interval_s = poll_interval_s
        self._walltime_s = walltime_s
        self._clock = clock
        self._login_node = login_node
        self._is_closed = False
        self._busy_until = 0.0
        #: Jobs that were submitted here, and those of earlier runs that somebody has asked about.
        self._jobs: dict[str, _Job] = {}
        #: Names of jobs that may have been accepted unseen, and until when they are looked for.
        self._strays: dict[str, float] = {}

    @property
    def poll_interval_s(self) -> float:
        is_busy = self._clock() < self._busy_until
        return min(_BUSY_INTERVAL_S, self._poll_interval_s) if is_busy else self._poll_interval_s

    def block_dir(self, block_id: str) -> str:
        return os.path.join(self._folder, block_id)

    def find_job(self, block_id: str) -> str | None:
        """Return the id of the job of a block of this run, if the batch system has one by its name.

        None: it has none, or jobs cannot be found by name.
        """
        return self._find(job_name(os.path.basename(self._folder), block_id))

    def reach(self, port: int) -> Sequence[str]:
        return () if self._login_node is None else self._login_node.reach(port)

    def python(self, block_id: str) -> str:
        return "" if self._login_node is None else self._login_node.python()

    def job_script(self, request: BlockRequest) -> str:
        """Return the script that `submit` would hand to the batch system.

        Raises:
            SubmitError: the batch system cannot have such a block.
        """
        return self._system.script(self._job_request(request))

    def submit(self, request: BlockRequest) -> str:
        if self._is_closed:
            raise RuntimeError("this driver has been closed")
        job = self._job_request(request)
        script = self._system.script(job)
        folder = self.block_dir(request.block_id)
        self._keep_files(folder, {**request.files, SCRIPT: script.encode()})
        job_id = self._submitted(job.name, folder)
        now = self._clock()
        self._jobs[job_id] = _Job(job_id, folder, job.walltime_s, now)
        self._busy_until = now + _BUSY_S
        logger.info("block=%s job=%s submitted", request.block_id, job_id)
        return job_id

    def status(self, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        now = self._clock()
        self._cancel_strays(now)
        jobs = [self._job(job_id, now) for job_id in job_ids]
        if open_jobs := {job.job_id: job for job in jobs if job.last is None}:
            self._look_at(open_jobs, now)
        return {job.job_id: job.last or job.latest for job in jobs}

    def cancel(self, job_ids: Sequence[str]) -> None:
        now = self._clock()
        jobs = [job for job in (self._job(job_id, now) for job_id in job_ids) if job.last is None]
        asked_before = [job for job in jobs if job.is_cancelled]
        self._cancel([job for job in jobs if not job.is_cancelled], force=False)
        self._cancel(asked_before, force=True)
        if jobs:
            self._busy_until = now + _BUSY_S

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._cancel_strays(self._clock())
        kept = {job.folder for job in self._jobs.values() if job.last is not None and job.last.state is JobState.FAILED}
        if kept - {""}:
            for folder in {job.folder for job in self._jobs.values()} - kept - {""}:
                self._runner.remove_folder(folder)
        else:
            self._runner.remove_folder(self._folder)
        self._runner.close()
        if self._login_node is not None:
            self._login_node.close()

    # -- submitting --

    def _job_request(self, request: BlockRequest) -> JobRequest:
        folder = self.block_dir(request.block_id)
        return JobRequest(
            name=job_name(os.path.basename(self._folder), request.block_id),
            nodes=request.nodes,
            body=job_body(request, os.path.join(folder, EXIT_CODE)),
            # The job's own folder is there on all nodes. The body goes to the user's, and says so where it is missing.
            cwd=folder,
            stdout=os.path.join(folder, STDOUT),
            stderr=os.path.join(folder, STDERR),
            walltime_s=self._walltime_s if request.walltime_s is None else request.walltime_s,
            cores_per_node=request.cores_per_node,
            memory_per_node=request.memory_per_node,
            gpus_per_node=request.gpus_per_node,
        )

    def _keep_files(self, folder: str, files: Mapping[str, bytes]) -> None:
        try:
            self._runner.write_files(folder, files)
        except OSError as error:
            self._runner.remove_folder(folder)
            raise SubmitError(
                f"cannot write the files of a job to {folder} ({error}); job_dir names another folder for them"
            ) from error

    def _submitted(self, name: str, folder: str) -> str:
        """Run the submit command and return the job's id; a folder that no job will use does not remain."""
        result = self._run(self._system.submit_command(os.path.join(folder, SCRIPT)), _SUBMIT_TIMEOUT_S)
        try:
            if result.is_cut_off:
                raise SubmitUnclear(result.words)
            return self._system.parse_submit(result)
        except SubmitUnclear as error:
            logger.warning("name=%s it is not clear if the job was accepted: %s", name, error)
            return self._found_after(error, name, folder)
        except SubmitError as error:
            self._runner.remove_folder(folder)
            if _UNREACHABLE.search(str(error)):
                raise Unreachable(str(error)) from error
            raise

    def _found_after(self, error: SubmitUnclear, name: str, folder: str) -> str:
        """The id of a job whose submission went wrong but was accepted."""
        if found := self._find(name):
            logger.info("name=%s job=%s was accepted all the same", name, found)
            return found
        self._runner.remove_folder(folder)  # should the job start in spite of all, it finds nothing and ends
        if not isinstance(self._system, JobSearch):
            advice = "jobs cannot be found by name here: look for it and cancel it"
        else:
            self._strays[name] = self._clock() + _STRAY_PATIENCE_S
            advice = "it was not found in the queue, and will be cancelled if it turns up"
        raise Unreachable(f"{error} (the job, named {name}, may have been accepted: {advice})") from error

    def _find(self, name: str) -> str | None:
        if not isinstance(self._system, JobSearch):
            return None
        return self._system.parse_find(name, self._run(self._system.find_command(name), _ASK_TIMEOUT_S))

    def _cancel_strays(self, now: float) -> None:
        for name, until in list(self._strays.items()):
            found = self._find(name)
            if found is not None:
                logger.warning("name=%s job=%s was accepted although submitting it failed: cancelled", name, found)
                result = self._run(self._system.cancel_command([found], force=False), _ASK_TIMEOUT_S)
                found = found if result.code == 0 else None
            if found is not None or now > until:
                del self._strays[name]

    # -- watching --

    def _job(self, job_id: str, now: float) -> _Job:
        """What is kept of a job; one of an earlier run has no folder that we know of."""
        return self._jobs.setdefault(job_id, _Job(job_id, "", None, now))

    def _look_at(self, jobs: Mapping[str, _Job], now: float) -> None:
        named = self._ask(jobs)
        missing = [job_id for job_id in jobs if job_id not in named]
        history = self._ask_history(missing)
        for job_id, job in jobs.items():
            status = named.get(job_id)
            if status is not None:
                job.note_named(status, now)
            elif (past := history.get(job_id)) is not None and past.state is not JobState.UNKNOWN:
                job.note_named(past, now)
            else:
                status = self._unnamed(job, history.get(job_id), now)
                job.latest = status
            if job.latest.state.is_over:
                self._settle(job)

    def _ask(self, job_ids: Iterable[str]) -> Mapping[str, JobStatus]:
        ids = list(job_ids)
        return self._system.parse_status(ids, self._run(self._system.status_command(ids), _ASK_TIMEOUT_S))

    def _ask_history(self, job_ids: list[str]) -> Mapping[str, JobStatus]:
        command = self._system.history_command(job_ids) if job_ids else None
        return {} if command is None else self._system.parse_history(job_ids, self._run(command, _ASK_TIMEOUT_S))

    def _unnamed(self, job: _Job, past: JobStatus | None, now: float) -> JobStatus:
        """What to tell of a job that the batch system was asked about and did not name."""
        if (exit_code := self._exit_code(job)) is not None:
            return _ended(exit_code)
        if job.unnamed_since is None:
            job.unnamed_since = now
        if now - job.unnamed_since >= job.patience_s(past):
            words = "the batch system does not know this job any more"
            return JobStatus(JobState.FAILED, reason=f"{words} ({past.reason})" if past else words)
        reason = past.reason if past else "the batch system does not name this job"
        return JobStatus(JobState.UNKNOWN, reason=reason)

    def _settle(self, job: _Job) -> None:
        """Keep the last answer of a job that is over."""
        status = job.latest
        if status.exit_code is None:
            status = dataclasses.replace(status, exit_code=self._exit_code(job))
        if job.is_cancelled:
            more = "" if "cancelled" in status.reason.lower() else status.reason
            job.last = dataclasses.replace(
                status, state=JobState.ENDED, reason=", ".join(filter(None, ("cancelled", more)))
            )
        else:
            job.last = status
        if job.folder and job.last.state is JobState.FAILED:
            tail = last_lines(self._runner.tail_of(os.path.join(job.folder, STDERR), _TAIL_BYTES))
            reason = f"{job.last.reason or 'failed'}; its output is in {job.folder}"
            job.last = dataclasses.replace(job.last, reason=reason, stderr_tail=tail)
        logger.info("job=%s %s (%s)", job.job_id, job.last.state.value, job.last.reason)

    def _exit_code(self, job: _Job) -> int | None:
        """The exit code that the job's script has written; None: it has not come to that."""
        text = self._runner.tail_of(os.path.join(job.folder, EXIT_CODE), 16) if job.folder else ""
        return int(text) if re.fullmatch(r"[0-9]{1,3}\n", text) else None

    # -- cancelling --

    def _cancel(self, jobs: list[_Job], *, force: bool) -> None:
        if not jobs:
            return
        ids = [job.job_id for job in jobs]
        result = self._run(self._system.cancel_command(ids, force=force), _ASK_TIMEOUT_S)
        logger.info("jobs=%s cancelled%s", ",".join(ids), " by force" if force else "")
        if result.code != 0:
            # By force, a second time, most jobs are over, which some commands call an error.
            level = logging.INFO if force else logging.WARNING
            logger.log(level, "jobs=%s cancelling says: %s", ",".join(ids), result.words)
        # Some commands fail as a whole because one of the jobs is over. Those that could not be asked are asked again.
        if result.code is not None:
            for job in jobs:
                job.is_cancelled = True

    def _run(self, argv: Sequence[str], timeout_s: float) -> CommandResult:
        result = self._runner.run(argv, timeout_s=timeout_s)
        logger.debug("code=%s %s", result.code, " ".join(argv))
        return result


class _Job:
    """One job and what is known of it."""

    def __init__(self, job_id: str, folder: str, walltime_s: float | None, now: float) -> None:
        self.job_id = job_id
        #: Where its files are; empty: it was not submitted here.
        self.folder = folder
        self.walltime_s = walltime_s
        self.is_cancelled = False
        self.was_named = False
        #: Since when the batch system answers without naming it; None: it names it.
        self.unnamed_since: float | None = None
        #: The last time (seconds since the epoch) when it is certain that it had not started.
        self.not_started_at = now
        self.latest = JobStatus(JobState.UNKNOWN, reason="not asked yet")
        #: The answer from now on, once it is over.
        self.last: JobStatus | None = None

    def note_named(self, status: JobStatus, now: float) -> None:
        """Take what the batch system says."""
        if status.state is not JobState.UNKNOWN:
            self.was_named, self.unnamed_since = True, None
        if status.state is JobState.PENDING:
            self.not_started_at = now
        elif status.state is JobState.RUNNING and status.ends_at is None and self.walltime_s is not None:
            # Where no start is told it is taken for the earliest: rather too little time left than too much.
            started_at = self.not_started_at if status.started_at is None else status.started_at
            status = dataclasses.replace(status, ends_at=started_at + self.walltime_s)
        self.latest = status

    def patience_s(self, past: JobStatus | None) -> float:
        """How long it may be named nowhere. `past`: the history could not be asked."""
        if self.is_cancelled:
            return 0.0 if self.was_named else _CANCELLED_GRACE_S
        return _GRACE_S if past is None else _HISTORY_PATIENCE_S


def open_driver(
    system: BatchSystem,
    run_dir: str,
    *,
    login: SSHLogin | str | None,
    job_dir: str | None,
    poll_interval_s: float,
    walltime_s: float | None,
) -> BatchDriver:
    """Make the driver of a batch system whose commands are on this machine or on a login node.

    Args:
        system: what the commands are and mean.
        run_dir: the run directory, which gives the folder of its jobs its name.
        login: the login node; None: this machine.
        job_dir, poll_interval_s, walltime_s: see `runs_folder` and `BatchDriver`.

    Raises:
        OSError: the login node cannot be reached, or the home directory there not be found out.
        ConfigError: `~/.ssh/config` cannot be used.
    """
    login_node = None if login is None else _login_node(login)
    runner: Runner = LocalRunner() if login_node is None else login_node.runner
    try:
        folder = runs_folder(runner, job_dir, run_dir)
    except BaseException:
        runner.close()
        raise
    return BatchDriver(system, runner, folder, poll_interval_s, walltime_s=walltime_s, login_node=login_node)


def _login_node(login: SSHLogin | str) -> LoginNode:
    # Imported here, because only those who have a login node need it.
    from hpcpool.providers.ssh.login import login_of
    from hpcpool.providers.ssh.login_node import LoginNode
    from hpcpool.providers.ssh.node_python import NodePython

    return LoginNode(login_of(login), NodePython())


def runs_folder(runner: Runner, job_dir: str | None, run_dir: str) -> str:
    """Return the folder for the jobs of a run: below `job_dir` or, where that is None, in the user's home directory.

    Args:
        run_dir: the run directory, which gives its name.

    Raises:
        OSError: the home directory is needed and cannot be found out.
    """
    parent = "~/.hpcpool/runs" if job_dir is None else job_dir
    if parent.startswith("~/"):
        parent = os.path.join(runner.home(), parent.removeprefix("~/"))
    return os.path.join(parent, os.path.basename(os.path.normpath(run_dir)))


def job_name(run: str, block_id: str) -> str:
    """Return a name that no other job of the user has, good for every batch system.

    >>> job_name("hpcpool-k3_x9", "gpu.nodes-0")
    'hpcpool-k3_x9-gpu_nodes-0'
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{run}-{block_id}")
    return name if re.match("[A-Za-z]", name) else f"hpcpool-{name}"


def job_body(request: BlockRequest, exit_file: str) -> str:
    """Return the shell lines of a job: what the block is to do, in its folder and environment, and how it ended."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in request.env.items()]
    inner = request.script.rstrip("\n") or f"exec {shlex.join(request.command)}"
    lines = [
        f"cd -- {shlex.quote(request.cwd)} || exit 1",
        *exports,
        # Some batch systems tell only this shell that the job shall end, some all processes, and some with a warning of
        # their own (Slurm's --signal, Grid Engine's -notify). What comes is passed on, and waited for.
        f'body=; woken=; trap \'woken=1; [ -z "$body" ] || kill -TERM "$body" 2> /dev/null\' {_SIGNALS}',
        "(",
        inner,
        ") &",
        "body=$!",
        # A signal that came before `body` was known; and one ends `wait`, which is then gone into again.
        '[ -z "$woken" ] || kill -TERM "$body" 2> /dev/null',
        'woken=1; while [ -n "$woken" ]; do woken=; wait "$body"; code=$?; done',
        f'echo "$code" > {shlex.quote(exit_file)}',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def last_lines(text: str) -> str:
    """Return the last lines of what was read from the end of a file."""
    lines = text.splitlines()
    if len(text.encode()) >= _TAIL_BYTES and len(lines) > 1:
        del lines[0]  # most likely cut
    return "\n".join(lines[-_TAIL_LINES:])


def _ended(exit_code: int) -> JobStatus:
    state = JobState.ENDED if exit_code == 0 else JobState.FAILED
    return JobStatus(state, exit_code, f"exited with code {exit_code}")
