"""The local provider: a block is this machine, and its job is the manager's process; it knows nothing of batch systems.

Rules of this file:
- A job is the leader of its own session, so that everything it started, in whatever process group, can be found.
- Jobs are reaped only where `status` or `close` clears up behind them at once: until then a pid can be signalled,
  because it cannot come to mean another process. (`Popen.terminate` and `kill` reap too, so they are not used.)
- A job that exits with 0 has ended its own workers, and what a call left behind on purpose stays, as it does with
  `ProcessPoolExecutor`. After any other end the rest of the session is killed, as a batch system would do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hpcpool.errors import ConfigError, signal_name
from hpcpool.providers.base import BlockRequest, JobState, JobStatus, SubmitError

logger = logging.getLogger(__name__)

#: Without pidfds (before Linux 5.3, macOS): waitpid is cheap, and a dead manager must be known well within 2 s.
_POLL_INTERVAL_S = 0.2
#: A process that was sent SIGKILL is gone within milliseconds unless it hangs in the kernel (a dead NFS server).
_KILL_WAIT_S = 5.0
#: Enough for a Python traceback, and little enough for an error message.
_TAIL_LINES = 20
_TAIL_BYTES = 8192


@dataclass(frozen=True, repr=False)
class LocalProvider:
    """This machine. Each block is one manager on it, so one block is what a program usually wants.

    Args:
        own_process: start each manager as a process of its own, as it is on any other machine: if it dies, its calls
            are run again, and a call takes longer by two hops. False: the only block of a node pool (`max_blocks=1`)
            needs none.
    """

    own_process: bool = False

    kind: ClassVar[str] = "local"
    max_nodes_per_block: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.own_process, bool):
            raise ConfigError(f"LocalProvider.own_process is {self.own_process!r}; valid: True or False")

    def __repr__(self) -> str:
        return f"LocalProvider({'own_process=True' if self.own_process else ''})"

    def open(self, run_dir: str) -> LocalDriver:
        """Make the driver; a block's files are below `run_dir`."""
        return LocalDriver(_new_epoll(), run_dir)


class LocalDriver:
    """Starts managers as processes of this machine, and ends them. All calls come from one thread.

    Args:
        epoll: gets a pidfd of each job and becomes `watch_fd`; the driver closes it. None: `status` must be polled.
        run_dir: where the files of blocks are kept, in a folder for each block.
    """

    poll_interval_s = _POLL_INTERVAL_S
    is_local = True

    def __init__(self, epoll: select.epoll | None, run_dir: str) -> None:
        self._epoll = epoll
        self._run_dir = run_dir
        self._is_closed = False
        #: Jobs that have not been reaped, by job id; never also in `_over`.
        self._running: dict[str, _Job] = {}
        #: The answer for each job that has been reaped; kept, because it may be asked again.
        self._over: dict[str, JobStatus] = {}

    @property
    def watch_fd(self) -> int | None:
        return None if self._epoll is None or self._epoll.closed else self._epoll.fileno()

    def block_dir(self, block_id: str) -> str:
        return os.path.join(self._run_dir, f"block-{block_id}")

    def submit(self, request: BlockRequest) -> str:
        if self._is_closed:
            raise RuntimeError("this driver has been closed")
        if request.nodes != 1:
            raise SubmitError(f"block {request.block_id} asks for {request.nodes} nodes, this machine is one")
        if request.files:
            _keep_files(self.block_dir(request.block_id), request.files)
        job = _start(request)
        if self._epoll is not None:
            self._watch(job, self._epoll)
        self._running[job.job_id] = job
        logger.info("block=%s job=%s started", request.block_id, job.job_id)
        return job.job_id

    def status(self, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        # All jobs, not only those asked for: one that is over and left alone would keep `watch_fd` readable for ever.
        for job in list(self._running.values()):
            if job.process.poll() is not None:
                self._settle(job)
        return {job_id: self._answer(job_id) for job_id in job_ids}

    def cancel(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            job = self._running.get(job_id)
            if job is None:
                continue
            if job.is_cancelled:
                logger.warning("job=%s did not end when asked, killed", job_id)
                _kill_session(job.process.pid)
            else:
                # Only the manager: it ends its workers in order, and knows that they did not crash.
                job.is_cancelled = True
                os.kill(job.process.pid, signal.SIGTERM)

    def close(self) -> None:
        self._is_closed = True
        for job in list(self._running.values()):
            if job.process.poll() is None:
                job.is_cancelled = True
                _kill_session(job.process.pid)
            try:
                job.process.wait(_KILL_WAIT_S)
            except subprocess.TimeoutExpired:
                logger.error("job=%s hangs in the kernel and cannot be killed", job.job_id)
            self._settle(job)
        if self._epoll is not None:
            self._epoll.close()

    def _watch(self, job: _Job, epoll: select.epoll) -> None:
        """Make `watch_fd` readable when the job ends; a job that cannot be watched is not left running."""
        try:
            job.pidfd = os.pidfd_open(job.process.pid)
            epoll.register(job.pidfd, select.EPOLLIN)
        except OSError as error:
            _kill_session(job.process.pid)
            job.process.wait()
            job.close_pidfd()
            raise SubmitError(f"cannot watch {job.request.command[0]}: {error.strerror}") from error

    def _settle(self, job: _Job) -> None:
        """Keep the last answer of a job that was reaped, and clear up behind it."""
        exit_code = job.process.returncode
        if exit_code != 0:
            _kill_session(job.process.pid)
        job.close_pidfd()  # also takes it out of the epoll
        status = _last_status(job, exit_code)
        del self._running[job.job_id]
        self._over[job.job_id] = status
        logger.info("block=%s job=%s %s (%s)", job.request.block_id, job.job_id, status.state.value, status.reason)

    def _answer(self, job_id: str) -> JobStatus:
        if job_id in self._running:
            return JobStatus(JobState.RUNNING)
        return self._over.get(job_id) or JobStatus(JobState.UNKNOWN, reason="this driver has started no such job")


class _Job:
    """One started block and what is needed to end it and to tell of it."""

    def __init__(self, request: BlockRequest, process: subprocess.Popen[bytes], stderr_start: int) -> None:
        self.request = request
        self.process = process
        #: The size of the stderr file before this job wrote to it: what is in front is another's.
        self.stderr_start = stderr_start
        self.pidfd: int | None = None
        self.is_cancelled = False

    @property
    def job_id(self) -> str:
        """The pid, for whoever looks at the machine, made unique by the block's id: pids come round again."""
        return f"{self.request.block_id}.{self.process.pid}"

    def close_pidfd(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


def _new_epoll() -> select.epoll | None:
    """An epoll if pidfds can be had: neither on macOS, nor before Linux 5.3, nor in some sandboxes."""
    if not hasattr(os, "pidfd_open") or not hasattr(select, "epoll"):
        return None
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        logger.info("no pidfds here (%s), managers are polled", error.strerror)
        return None
    return select.epoll()


def _keep_files(folder: str, files: Mapping[str, bytes]) -> None:
    """Write the files of a block where only the user can read them."""
    try:
        os.mkdir(folder, 0o700)
        for name, content in files.items():
            with open(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
    except OSError as error:
        raise SubmitError(f"cannot keep the files of a block in {folder}: {error}") from error


def _start(request: BlockRequest) -> _Job:
    """Start the manager in a session of its own."""
    command = ("/bin/bash", "-c", request.script) if request.script else request.command
    try:
        with _output(request.stdout) as stdout, _output(request.stderr) as stderr:
            stderr_start = os.fstat(stderr).st_size
            process = subprocess.Popen(
                command,
                cwd=request.cwd,
                env={**os.environ, **request.env},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=request.pass_fds,
                start_new_session=True,
            )
    except OSError as error:
        raise SubmitError(f"cannot start {' '.join(command)} in {request.cwd}: {error}") from error
    return _Job(request, process, stderr_start)


@contextlib.contextmanager
def _output(target: str | int) -> Iterator[int]:
    """The descriptor to write to; a file is opened for appending, private to the user, and closed again."""
    if isinstance(target, int):
        yield target
        return
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _last_status(job: _Job, exit_code: int | None) -> JobStatus:
    """What to tell of a job from now on. An exit code of None: it was killed but has not gone."""
    ended_well = exit_code == 0 or job.is_cancelled
    reason = _reason(exit_code)
    return JobStatus(
        state=JobState.ENDED if ended_well else JobState.FAILED,
        exit_code=exit_code,
        reason=f"cancelled, {reason}" if job.is_cancelled else reason,
        stderr_tail=tail_of(job.request.stderr, job.stderr_start),
    )


def _reason(exit_code: int | None) -> str:
    """The end of a process in words."""
    if exit_code is None:
        return "hangs in the kernel"
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    return f"killed by {signal_name(-exit_code)}"


def tail_of(target: str | int, start: int = 0) -> str:
    """The last lines that were written to a file after its first `start` bytes; none where it is not a file of ours."""
    if isinstance(target, int):
        return ""
    try:
        with open(target, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            begin = max(start, end - _TAIL_BYTES)
            file.seek(begin)
            lines = file.read(_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError as error:
        return f"({target} cannot be read: {error.strerror})"
    if begin > start and len(lines) > 1:
        del lines[0]  # most likely cut
    return "\n".join(lines[-_TAIL_LINES:])


def _kill_session(leader: int) -> None:
    """Kill every process of the leader's session, until a look finds no new one: a member may fork between the two.

    The leader has not been reaped, or only just now. So its number stands for nothing else: pids are given out in
    turn, and none is given out that is the id of a session which still has members.
    """
    killed: set[int] = set()
    while found := _session_members(leader) - killed:
        for pid in found:
            _kill(pid)
        killed |= found


def _session_members(leader: int) -> set[int]:
    # Imported here because only a job that went wrong needs it, and the interchange must be up quickly.
    import psutil

    members = set()
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone meanwhile; not ours (macOS refuses)
            if os.getsid(pid) == leader:
                members.add(pid)
    return members


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it went by itself
    except PermissionError:
        logger.warning("pid=%d has outlived its block and belongs to another user: it is left alone", pid)
