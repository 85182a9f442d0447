"""The client's hold on its interchange: the run directory, the process, and how to learn of its death."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import subprocess
import tempfile
import time
from multiprocessing import spawn

from hpcpool.config import Config
from hpcpool.errors import ConfigError, signal_name
from hpcpool.processes import sessions
from hpcpool.processes.hosting import is_hosted, is_local
from hpcpool.processes.process_end import has_child_ended
from hpcpool.processes.start_command import HOSTS_NODE, start_command
from hpcpool.wire import run_directory
from hpcpool.wire.segments import SegmentStore
from hpcpool.wire.stream import Stream

log = logging.getLogger(__name__)

#: Longer paths do not fit into a local socket's address (107 bytes on Linux, 103 on macOS; unix(7)).
_SOCKET_PATH_BYTES = 103
#: How much of the interchange's log goes into the error when it dies.
_TAIL_BYTES = 4096
#: When the interchange is gone, the processes on this host get this long (seconds) to notice and end.
_AFTERMATH_S = 2.0
#: The interchange itself gives its workers 10 s to end in good order; it is killed if it takes much longer.
_LONGEST_STOP_S = 20.0


class InterchangeProcess:
    """Starts an interchange for a configuration. Used by the client's thread, but for `after_fork`."""

    def __init__(self, config: Config) -> None:
        run_directory.remove_dead()
        self._options = [HOSTS_NODE] if any(map(is_hosted, config.node_pools)) else []
        self._has_jobs_elsewhere = any(not is_local(pool) for pool in config.node_pools)
        self.directory = _make_run_directory(config.run_dir)
        try:
            with open(os.path.join(self.directory, "config.json"), "wb") as file:
                file.write(config.to_json())
            outer = sessions.node_directory()
            outer_directory = os.path.dirname(outer) if outer is not None else None
            self._lock = _moved(run_directory.prepare(self.directory, outer_directory))
            #: The segments of the client.
            self.store = SegmentStore(self.directory, "client")
            try:
                self._start()
            except BaseException:
                os.close(self._lock)
                raise
        except BaseException:
            run_directory.remove(self.directory)
            raise

    def _start(self) -> None:
        # Either side reads its end's EOF when the other dies, however it dies.
        end, their_end = socket.socketpair()
        self.stream = Stream(_beyond_streams(end))
        # Held open by every process of the pool on this host: its EOF means that the last of them has gone.
        self._census, their_census = (_moved(descriptor) for descriptor in os.pipe())
        user_stderr = _duplicate_stderr()
        their_end = _beyond_streams(their_end)
        inherited = (their_end.fileno(), user_stderr, their_census)
        executable = os.fsdecode(spawn.get_executable())
        try:
            with open(self._log_path, "wb") as log_file:
                self._process = subprocess.Popen(
                    start_command("interchange", self.directory, *inherited, *self._options, executable=executable),
                    # Without the mark of a worker that this may run in: it ends in order when its client does.
                    env={name: value for name, value in os.environ.items() if name != sessions.MARK},
                    stdin=subprocess.DEVNULL,
                    stderr=log_file,
                    pass_fds=inherited,
                    start_new_session=True,  # Ctrl-C in the user's terminal is the client's affair
                )
        except BaseException:
            self.stream.close()
            os.close(self._census)
            raise
        finally:
            their_end.close()
            os.close(user_stderr)
            os.close(their_census)

    @property
    def _log_path(self) -> str:
        return os.path.join(self.directory, "interchange.log")

    def obituary(self) -> str:
        """Say how the interchange died, with the last of its log."""
        code = self._process.wait()
        how = signal_name(-code) if code < 0 else f"exit code {code}"
        text = f"the interchange (pid {self._process.pid}) died by {how}"
        tail = self._log_tail()
        return f"{text}; its log ends with:\n{tail}" if tail else text

    def wait_until_gone(self) -> None:
        """Wait until no process of the pool is left on this host, and remove the run directory."""
        if not has_child_ended(self._process, _LONGEST_STOP_S):
            self._process.kill()
            self._process.wait()
        self._wait_for_census()
        if self._process.returncode:
            # Who should have ended what the calls had started may have been killed together with it.
            sessions.kill_marked(lambda mark: mark.startswith(f"{self.directory}/"))
        self._end_what_is_left()
        self.stream.close()
        os.close(self._census)
        run_directory.remove(self.directory)
        os.close(self._lock)

    def _end_what_is_left(self) -> None:
        if not self._has_jobs_elsewhere:
            return
        from hpcpool.processes.leftovers import after_the_end  # a pool on this machine does not need it

        try:
            after_the_end(self.directory, has_crashed=bool(self._process.returncode))
        except Exception:
            log.exception("the jobs of a pool that has ended could not be looked at; `hpcpool cleanup` tries again")

    def after_fork(self) -> None:
        """In a forked child: close our ends, so that the parent's death is still seen."""
        self.stream.close()
        os.close(self._census)
        os.close(self._lock)

    def _wait_for_census(self) -> None:
        deadline = time.monotonic() + _AFTERMATH_S
        poll = select.poll()
        poll.register(self._census, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                return

    def _log_tail(self) -> str:
        try:
            with open(self._log_path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""


def _make_run_directory(parent: str | None) -> str:
    """Make a private directory whose sockets' paths are short enough."""
    # A pool made inside a call lives in its worker's directory, so it goes with that, however that goes. /tmp is for
    # the case that $TMPDIR is too long.
    places = (sessions.node_directory(), None, "/tmp") if parent is None else (parent,)
    for place in places:
        try:
            directory = tempfile.mkdtemp(prefix="hpcpool-", dir=place)
        except OSError as error:
            if parent is None:
                raise
            raise ConfigError(
                f"run_dir {parent!r} cannot be used: {error.strerror}; it must be a folder that you may write to"
            ) from error
        if len(os.fsencode(os.path.join(directory, "managers.sock"))) <= _SOCKET_PATH_BYTES:
            return directory
        os.rmdir(directory)
    raise ConfigError(
        f"run_dir {parent!r} is too long: local sockets allow paths of {_SOCKET_PATH_BYTES} bytes; choose a shorter one"
    )


def _duplicate_stderr() -> int:
    """Return a descriptor for what workers write to stderr: the user's, or nowhere if it is closed."""
    try:
        return _moved(os.dup(2))
    except OSError:
        return _moved(os.open(os.devnull, os.O_WRONLY))


def _moved(descriptor: int) -> int:
    """Return a descriptor beyond those of stdin, stdout and stderr, which a program may have closed."""
    if descriptor > 2:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return moved


def _beyond_streams(end: socket.socket) -> socket.socket:
    return socket.socket(fileno=_moved(end.detach()))
