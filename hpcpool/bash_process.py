"""A bash call's process group and its output, at the worker; knows nothing of templates, results or the pool.

Everything happens in the calling thread; a second one is made only where the kernel has no pidfds (before Linux 5.3).
No signal handler is touched.

Rules: a process group is signalled while its leader is not reaped, or while it is known to have members, so that its
number cannot belong to somebody else; whatever ends `Running.run`, nothing of the group is left.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from hpcpool.processes.process_end import pidfd
from hpcpool.simple_command import simple_command

logger = logging.getLogger(__name__)

#: How much of each captured stream is kept (its end): more than any log that a person reads, and a node whose 64 slots
#: all reach it still needs only some GiB. More than this belongs in a file.
CAPTURE_LIMIT_BYTES = 16 * 1024 * 1024

#: From TERM to KILL: enough for a trap that removes temporary files, short enough to hand on the slot.
#: (`docker stop` waits 10 s and Slurm's KillWait 30 s; those end whole services.)
KILL_AFTER_S = 2.0

#: How long background processes may go on when the command itself has ended. bash does not wait for `>(tee log)`, which
#: ends by itself within milliseconds; killed at once, it would lose its last lines.
LINGER_S = 1.0

#: How long a killed process may take to vanish. One that is stuck in the kernel (a dead network file system) may never
#: do so, and must not take its worker with it.
VANISH_S = 5.0

#: How much of a stream an error carries.
TAIL_BYTES = 64 * 1024

#: What a pipe holds by default; a buffer of 1 MiB costs two system calls more (it is mapped).
_READ_BYTES = 64 * 1024
#: The largest pipe that an ordinary user can make: one read of this size empties any pipe.
_LARGEST_PIPE_BYTES = 1024 * 1024

#: A poll cannot wait for longer than 24 days.
_LONGEST_POLL_S = 86_400.0

OPEN_FLAGS = {
    kind + suffix: os.O_WRONLY | os.O_CREAT | flag
    for kind, flag in (("w", os.O_TRUNC), ("a", os.O_APPEND), ("x", os.O_EXCL))
    for suffix in ("", "b", "t", "+", "b+", "+b", "t+", "+t")
}


class Capture:
    """A stream that is kept: a pipe, read while the command runs, and the end of what came.

    A pipe and not a temporary file: it can fill neither memory nor disk, and costs no more. The write end stays open
    here too, so that the pipe never ends: the end of the command is one event, not three that wake us one by one.
    """

    path: str | None = None

    def __init__(self) -> None:
        self.is_truncated = False
        self._kept = bytearray()
        self.read_fd, self.write_fd = os.pipe()

    def read(self, limit: int) -> None:
        """Take what is in the pipe; it must not be empty."""
        self._kept += os.read(self.read_fd, limit)
        # Only now and then: byte by byte, the whole text would be moved each time.
        if len(self._kept) > CAPTURE_LIMIT_BYTES + _LARGEST_PIPE_BYTES:
            self._cut()

    def text(self) -> str:
        if len(self._kept) > CAPTURE_LIMIT_BYTES:
            self._cut()
        return _decoded(self._kept, is_cut=self.is_truncated)

    def tail(self) -> str:
        return _decoded(self._kept[-TAIL_BYTES:], is_cut=self.is_truncated or len(self._kept) > TAIL_BYTES)

    def _cut(self) -> None:
        del self._kept[:-CAPTURE_LIMIT_BYTES]
        self.is_truncated = True

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


class File:
    """A stream that goes to a file; the command writes there itself."""

    is_truncated = False

    def __init__(self, name: str, path: str, mode: str) -> None:
        self.path = path
        try:
            self.write_fd = os.open(path, OPEN_FLAGS[mode], 0o666)
        except FileNotFoundError:
            why = f"bash(): the directory of {name} does not exist on {host()}, and none is created"
            raise FileNotFoundError(errno.ENOENT, why, path) from None
        #: Where this command's output begins; before it is that of others.
        self._start = os.fstat(self.write_fd).st_size

    def text(self) -> None:
        """Nothing: who asked for a file reads the file."""

    def tail(self) -> str:
        # For an error's message only: it matters more than why the file (moved, or no file at all) cannot be read.
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                return ""
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                start = max(min(self._start, size), size - TAIL_BYTES)
                file.seek(start)
                return _decoded(file.read(TAIL_BYTES), is_cut=start > self._start)
        except OSError:
            return ""

    def close(self) -> None:
        os.close(self.write_fd)


Stream: TypeAlias = Capture | File


class Ended(NamedTuple):
    """How a command ended."""

    #: Negative: the signal that ended it.
    returncode: int
    wall_s: float
    cpu_s: float


def host() -> str:
    return os.uname().nodename


@functools.lru_cache(maxsize=8)
def _bash_on(search_path: str) -> str:
    for directory in [*search_path.split(os.pathsep), "/bin"]:
        candidate = os.path.join(directory, "bash")
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    why = f"bash(): there is no bash on {host()}; install it, or give the command as a list, which needs no shell"
    raise FileNotFoundError(errno.ENOENT, why)


class Running:
    """One command while it runs: its process group, and the pipes that are read meanwhile."""

    def __init__(self, stdout: Stream, stderr: Stream) -> None:
        self._stdout = stdout
        self._stderr = stderr
        # Made before it is started: an interrupt in the middle of the start must not lose the process.
        self._process: subprocess.Popen[bytes] = subprocess.Popen.__new__(subprocess.Popen)
        #: By the descriptor that is read.
        self._captures = {stream.read_fd: stream for stream in (stdout, stderr) if isinstance(stream, Capture)}

    def run(
        self, command: str | tuple[str, ...], cwd: str | None, env: dict[str, str] | None, timeout_s: float | None
    ) -> Ended | None:
        """Run text as bash would, or arguments as a program, and wait for the end; None if the time was up first."""
        exit_fd = -1
        try:
            started_at = time.perf_counter()
            self._start(command, cwd, env)
            exit_fd = _exit_fd(self._process.pid)
            if self._have_ended([exit_fd], timeout_s):
                return self._finish(time.perf_counter() - started_at)
            self._terminate(exit_fd)
            self._kill()
            return None
        except BaseException:
            self._kill()
            raise
        finally:
            if exit_fd >= 0:
                os.close(exit_fd)

    def _start(self, command: str | tuple[str, ...], cwd: str | None, env: dict[str, str] | None) -> None:
        """Start the command in a process group of its own.

        Its session stays the worker's, so that whoever ends the session of a dead worker ends the command too.
        """
        if isinstance(command, str) and self._has_started_simply(command, cwd, env):
            return
        argv = ("bash", "-c", command) if isinstance(command, str) else command
        bash = _bash_on(os.environ.get("PATH", os.defpath)) if isinstance(command, str) else None
        try:
            self._start_program(argv, bash, cwd, env)
        except FileNotFoundError:
            why = f"bash(): no such program on {host()}; install it there, or give its full path"
            raise FileNotFoundError(errno.ENOENT, why, argv[0]) from None
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            why = "bash(): the command and its environment are too long for the system; pass long lists in a file"
            raise OSError(errno.E2BIG, why) from None

    def _has_started_simply(self, command: str, cwd: str | None, env: dict[str, str] | None) -> bool:
        """Start a command without bash; False, with nothing started, if it takes bash to do the same."""
        simple = simple_command(command, cwd, env)
        if simple is None:
            return False
        try:
            self._start_program(simple.argv, simple.path, cwd, simple.environment)
        except OSError as error:
            if error.filename != simple.path:  # anything else, such as what a signal's handler raises
                raise
            # No program after all: bash says what is wrong, or runs a bare script. The old object has the number of
            # a child that is gone; an interrupt now would signal it.
            self._process = subprocess.Popen.__new__(subprocess.Popen)
            return False
        return True

    def _start_program(
        self, argv: tuple[str, ...], path: str | None, cwd: str | None, env: Mapping[str, str] | None
    ) -> None:
        # Nothing here may keep subprocess from vfork (a preexec_fn, another user would): to fork a worker that holds
        # gigabytes takes milliseconds.
        self._process.__init__(  # type: ignore[misc]
            argv,
            executable=path,
            stdin=subprocess.DEVNULL,
            stdout=self._stdout.write_fd,
            stderr=self._stderr.write_fd,
            cwd=cwd,
            env=env,
            process_group=0,
        )

    def _finish(self, wall_s: float) -> Ended:
        returncode, cpu_s = self._reap()
        group = self._process.pid
        if _has_signalled_group(group, 0):
            with contextlib.closing(_Family(p for p in _processes() if p.group == group)) as rest:
                self._have_ended(rest.exit_fds, LINGER_S)
            _has_signalled_group(group, signal.SIGKILL)
        self._read_rest()
        return Ended(returncode, wall_s, cpu_s)

    def _terminate(self, exit_fd: int) -> None:
        """Ask the command and its descendants to end, and wait until they have, or had their time."""
        group = self._process.pid
        with contextlib.closing(_Family(_descendants(group))) as family:
            _has_signalled_group(group, signal.SIGTERM)
            family.end_outside(group)
            self._have_ended([exit_fd, *family.exit_fds], KILL_AFTER_S)
            _has_signalled_group(group, signal.SIGSTOP)  # a shell must not go on behind what is killed
            family.kill(group)

    def _kill(self) -> None:
        """End what is left, at once. Descendants outside the group are found only while the leader is there."""
        group: int | None = getattr(self._process, "pid", None) or self._lost_child()
        if group is None:  # it was never started
            return
        if self._process.returncode is not None:
            _has_signalled_group(group, signal.SIGKILL)
            return
        try:
            # Stopped, it starts nothing while its descendants are looked for.
            _has_signalled_group(group, signal.SIGSTOP)
            with contextlib.closing(_Family(_descendants(group))) as family:
                family.kill(group)
        finally:
            _has_signalled_group(group, signal.SIGKILL)
        self._reap_killed()
        self._read_rest()

    def _lost_child(self) -> int | None:
        """The child whose number was lost: a signal handler can raise after the fork, before the number is kept.

        No rare case: the whole start of a program (a millisecond) is one call, and a signal has to wait for its end.
        """
        streams = [os.fstat(self._stdout.write_fd), os.fstat(self._stderr.write_fd)]
        for process in _processes():
            if process.parent == os.getpid() and process.group == process.pid:
                with contextlib.suppress(FileNotFoundError, PermissionError):  # it ended meanwhile
                    theirs = [os.stat(f"/proc/{process.pid}/fd/{fd}") for fd in (1, 2)]
                    if all(map(os.path.samestat, theirs, streams)):
                        self._process.pid = process.pid
                        return process.pid
        return None

    def _reap(self) -> tuple[int, float]:
        try:
            _, status, usage = os.wait4(self._process.pid, 0)
        except ChildProcessError:
            self._process.returncode = 0  # Nobody can tell; without a number subprocess would wait for it again.
            why = "bash(): the command's exit code was taken by something else in the worker (is SIGCHLD ignored?)"
            raise ChildProcessError(errno.ECHILD, why) from None
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode, usage.ru_utime + usage.ru_stime

    def _reap_killed(self) -> None:
        exit_fd = _exit_fd(self._process.pid)
        try:
            if self._have_ended([exit_fd], VANISH_S):
                self._reap()
            else:
                logger.warning("bash pid=%d is killed but does not end: stuck in the kernel", self._process.pid)
        finally:
            os.close(exit_fd)

    def _have_ended(self, exit_fds: Sequence[int], timeout_s: float | None) -> bool:
        """Read what comes until all `exit_fds` are readable; False if the time is up first."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        waiting = set(exit_fds)
        poll = _poll_of((*waiting, *self._captures))  # a new one: an interrupt in here must not leave one half changed
        while waiting:
            remaining_s = None if deadline is None else deadline - time.monotonic()
            if remaining_s is not None and remaining_s <= 0:
                return False
            for fd, _ in poll.poll(None if remaining_s is None else min(remaining_s, _LONGEST_POLL_S) * 1000):
                if fd in waiting:
                    waiting.remove(fd)
                    poll.unregister(fd)
                else:
                    self._captures[fd].read(_READ_BYTES)
        return True

    def _read_rest(self) -> None:
        """Read what is in the pipes now, once: a daemon that left the group may go on writing."""
        if self._captures:
            for fd, _ in _poll_of(self._captures).poll(0):
                self._captures[fd].read(_LARGEST_PIPE_BYTES)


def _poll_of(fds: Iterable[int]) -> select.poll:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return poll


class _Process(NamedTuple):
    """What `/proc/<pid>/stat` tells."""

    pid: int
    parent: int
    group: int


class _Family:
    """Some processes of a command, held by pidfds where there are any, so that none is mistaken for another."""

    def __init__(self, processes: Iterable[_Process]) -> None:
        self._held: list[tuple[_Process, int | None]] = []
        for process in processes:
            try:
                self._held.append((process, pidfd(process.pid)))
            except ProcessLookupError:  # it ended meanwhile
                continue

    @property
    def exit_fds(self) -> list[int]:
        """Each becomes readable when its process ends; none without pidfds: then there is nothing to wait on."""
        return [fd for _, fd in self._held if fd is not None]

    def end_outside(self, group: int) -> None:
        """Ask the processes to end that made a group of their own (`timeout`, `setsid`, `set -m`)."""
        for process, fd in self._held:
            if process.group != group:
                _signal(process.pid, fd, signal.SIGTERM)

    def kill(self, group: int) -> None:
        """Kill them, also one that has left the group since it was looked at; without pidfds only those outside."""
        for process, fd in self._held:
            if fd is not None or process.group != group:
                _signal(process.pid, fd, signal.SIGKILL)

    def close(self) -> None:
        for fd in self.exit_fds:
            os.close(fd)


def _signal(pid: int, descriptor: int | None, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if descriptor is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)


def _has_signalled_group(group: int, number: int) -> bool:
    """Send a signal to a process group (0: only look); False if it has no members, or only those of other users."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _descendants(pid: int) -> list[_Process]:
    """The members of a command's group, and its descendants in other groups; not its leader."""
    processes = [process for process in _processes() if process.pid != pid]
    family: dict[int, _Process] = {}
    while found := [p for p in processes if p.pid not in family and (p.group == pid or p.parent in {pid, *family})]:
        family.update((process.pid, process) for process in found)
    return list(family.values())


def _processes() -> Iterator[_Process]:
    """All processes that can be seen; none where there is no /proc."""
    try:
        pids = [name for name in os.listdir("/proc") if name.isdecimal()]
    except FileNotFoundError:
        return
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The name of the program comes before, in parentheses; it may contain anything.
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended meanwhile, or is hidden
            continue
        yield _Process(int(pid), int(fields[1]), int(fields[2]))


def _exit_fd(child: int) -> int:
    """A descriptor that becomes readable when the child ends, which reaps nothing."""
    with contextlib.suppress(ProcessLookupError):  # reaped by somebody else: to be told by whoever waits for it
        descriptor = pidfd(child)
        if descriptor is not None:
            return descriptor
    read_fd, write_fd = os.pipe()

    def watch() -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        os.close(write_fd)

    threading.Thread(target=watch, name="hpcpool-bash-exit", daemon=True).start()
    return read_fd


def _decoded(data: bytes | bytearray, *, is_cut: bool) -> str:
    """UTF-8 text, without what is left of a character that the cut went through."""
    begin = 0
    while is_cut and begin < min(3, len(data)) and data[begin] & 0xC0 == 0x80:
        begin += 1
    return str(memoryview(data)[begin:], "utf-8", "replace")  # a view: no second copy of 16 MiB
