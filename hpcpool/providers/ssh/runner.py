"""Runs commands and keeps files on another machine, over one SSH connection. It starts no thread but the connection's.

Rules of this file:
- Everything is bounded in time: a connection that was cut looks alive for a long while.
- What breaks before a command was sent is tried once more on a new connection. What breaks later is reported and never
  tried again: nobody knows whether the command took effect.
- No more than two channels are open at a time: one command, and SFTP.
"""

from __future__ import annotations

import functools
import logging
import posixpath
import select
import stat
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from hpcpool.errors import ConfigError, SSHError
from hpcpool.providers.commands import CommandResult
from hpcpool.providers.ssh.connection import Connection, close_quietly, connect, execute, limited
from hpcpool.providers.ssh.login import SSHLogin, login_of
from hpcpool.providers.ssh.remote_shell import command_line, result_of

if TYPE_CHECKING:
    import paramiko

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: One answer of SFTP; files here are small.
_SFTP_TIMEOUT_S = 60.0
_HOME_TIMEOUT_S = 60.0
_REMOVE_TIMEOUT_S = 120.0
#: What a command may take longer on the other machine than we wait for it: it is ended there.
_GRACE_S = 2.0
#: How long to leave a machine alone that could not be reached, doubled each time.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
#: While the other side takes no more stdin: nothing wakes us when it does.
_SEND_POLL_S = 0.02
_CHUNK_BYTES = 64 * 1024


class SSHRunner:
    """A `Runner` on the machine of a login. Connects when it is first used, and again when the connection was lost.

    Args:
        login: the machine, or the text of a destination.
        connect: makes a connection.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        login: SSHLogin | str,
        *,
        connect: Callable[[SSHLogin], Connection] = connect,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._login = login_of(login)
        self._connect = connect
        self._clock = clock
        self._connection: Connection | None = None
        self._sftp: paramiko.SFTPClient | None = None
        self._home = ""
        self._is_closed = False
        #: Why the last connection could not be made, until when no other is tried, and how long that pause is.
        self._problem = ""
        self._retry_at = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def __str__(self) -> str:
        return self._login.destination

    # Runner

    def run(self, argv: Sequence[str], *, timeout_s: float, stdin: str | None = None) -> CommandResult:
        """Run a command to its end, without a shell, in the C locale. Never raises: see `CommandResult.code`."""
        line = command_line(argv, limit_s=timeout_s + _GRACE_S, login_shell=self._login.login_shell)
        try:
            channel = self._session(timeout_s)
        except (SSHError, ConfigError) as error:
            reason = f"{argv[0]} was not started on {self}: {error}"
            return CommandResult(tuple(argv), None, "", reason, was_not_started=True)
        try:
            code, stdout, stderr = self._converse(channel, line, (stdin or "").encode(), timeout_s)
        except TimeoutError:
            reason = f"{argv[0]} did not answer within {timeout_s:g} s on {self}"
            return CommandResult(tuple(argv), None, "", reason)
        except SSHError as error:
            self._drop()
            reason = f"{error} while {argv[0]} ran; whether it took effect is not known"
            return CommandResult(tuple(argv), None, "", reason)
        finally:
            close_quietly(channel)
        return result_of(argv, code, stdout, stderr, str(self))

    def home(self) -> str:
        """Return the user's home directory there, an absolute path; `OSError` if that cannot be found out."""
        if not self._home:
            done = self.run(("sh", "-c", 'printf %s "$HOME"'), timeout_s=_HOME_TIMEOUT_S)
            if done.code != 0 or not done.stdout.startswith("/"):
                raise SSHError(f"the home directory on {self} cannot be found out: {done.words}")
            self._home = done.stdout
        return self._home

    def write_files(self, folder: str, files: Mapping[str, bytes], mode: int = 0o600) -> None:
        """Write files that only the user can read into a folder, which is made (with those above it) if need be.

        Each file appears at once, whole and with its mode: it is written in a private folder beside it and moved.

        Raises:
            OSError: it could not be done.
        """
        self._by_sftp(lambda sftp: _write_files(sftp, folder, files, mode), f"cannot write into {folder}")

    def tail_of(self, path: str, most_bytes: int) -> str:
        """Return the end of a file as text; empty if it is not there or cannot be read."""
        try:
            return self._by_sftp(lambda sftp: _tail(sftp, path, most_bytes), f"cannot read {path}")
        except OSError as error:
            logger.info("%s", error)
            return ""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and all that is in it; nothing happens if it is not there."""
        done = self.run(("rm", "-rf", "--", folder), timeout_s=_REMOVE_TIMEOUT_S)
        if done.code != 0:
            logger.warning("%s stays on %s: %s", folder, self, done.words)

    def close(self) -> None:
        """Let go of connections; a second call does nothing."""
        self._is_closed = True
        self._drop()

    # The connection

    def _session(self, timeout_s: float) -> paramiko.Channel:
        """A channel for one command; a connection that turns out to be gone, or full, is replaced once."""
        if self._connection is not None:
            try:
                return self._connection.open_session(timeout_s)
            except SSHError as error:
                logger.info("%s; connecting again", error)
                self._drop()
        return self._connected().open_session()

    def _connected(self) -> Connection:
        if self._is_closed:
            raise SSHError("this runner has been closed")
        if self._connection is not None and not self._connection.is_alive:
            self._drop()
        if self._connection is None:
            self._connection = self._reconnect()
        return self._connection

    def _reconnect(self) -> Connection:
        wait_s = self._retry_at - self._clock()
        if wait_s > 0:
            raise SSHError(f"{self._problem} (tried again in {wait_s:.0f} s)")
        try:
            connection = self._connect(self._login)
        except (SSHError, ConfigError) as error:
            self._problem = str(error)
            self._retry_at = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            raise
        self._pause_s = _FIRST_PAUSE_S
        return connection

    def _drop(self) -> None:
        connection, self._connection, self._sftp = self._connection, None, None
        if connection is not None:
            connection.close()

    # Commands

    def _converse(self, channel: paramiko.Channel, line: str, stdin: bytes, timeout_s: float) -> tuple[int, str, str]:
        """Send a command and its stdin, and read until it has ended.

        Raises:
            TimeoutError: it has not ended in time.
            SSHError: the connection was lost.
        """
        import paramiko

        deadline = self._clock() + timeout_s
        channel.settimeout(max(0.001, timeout_s))
        try:
            execute(channel, line, timeout_s)
            stdout, stderr = self._exchange(channel, stdin, deadline)
            is_over = channel.status_event.wait(max(0.0, deadline - self._clock()))
        except TimeoutError:
            raise
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise SSHError(f"the connection to {self} was lost ({str(error) or type(error).__name__})") from error
        if not is_over:
            raise TimeoutError
        if channel.exit_status == -1:  # the channel was closed without one
            raise SSHError(f"the connection to {self} was lost")
        return channel.exit_status, stdout.decode(errors="replace"), stderr.decode(errors="replace")

    def _exchange(self, channel: paramiko.Channel, stdin: bytes, deadline: float) -> tuple[bytearray, bytearray]:
        """Send what there is to send and gather both outputs until they end."""
        stdout, stderr = bytearray(), bytearray()
        unsent = memoryview(stdin)
        fd = channel.fileno()
        is_ended = False
        while True:
            if unsent and channel.send_ready():
                unsent = unsent[channel.send(unsent[:_CHUNK_BYTES]) :]  # type: ignore[arg-type]  # any buffer will do
            if not unsent and not is_ended:
                channel.shutdown_write()
                is_ended = True
            is_over = channel.eof_received or channel.closed  # looked at before the last data is
            while channel.recv_ready():
                stdout += channel.recv(_CHUNK_BYTES)
            while channel.recv_stderr_ready():
                stderr += channel.recv_stderr(_CHUNK_BYTES)
            if is_over:
                return stdout, stderr
            left_s = deadline - self._clock()
            if left_s <= 0:
                raise TimeoutError
            _wait_readable(fd, min(left_s, _SEND_POLL_S) if unsent else left_s)

    # Files

    def _by_sftp(self, action: Callable[[paramiko.SFTPClient], _T], failure: str) -> _T:
        """Do something that can be done twice; on a new connection if the one at hand turns out to be gone."""
        import paramiko

        for is_last in (False, True):
            try:
                return action(self._sftp_client())
            except ConfigError as error:
                raise SSHError(f"{failure} on {self}: {error}") from error
            except (paramiko.SSHException, EOFError, OSError) as error:
                is_lost = isinstance(error, paramiko.SSHException | EOFError | TimeoutError) or self._is_lost
                if is_lost:
                    self._drop()
                if is_last or not is_lost or isinstance(error, SSHError):
                    said = f"{failure} on {self}: {str(error) or type(error).__name__}"
                    raise _translated(error, said, is_lost=is_lost) from error
                logger.info("%s: %s; connecting again", self, error)
        raise AssertionError("not reached: the last round returns or raises")

    @property
    def _is_lost(self) -> bool:
        """Whether the connection is gone. Its channels end a moment before it says so."""
        channel = self._sftp.get_channel() if self._sftp is not None else None
        is_gone = self._connection is None or not self._connection.is_alive
        return is_gone or (channel is not None and channel.closed)

    def _sftp_client(self) -> paramiko.SFTPClient:
        connection = self._connected()  # may drop the one that `_sftp` belongs to
        if self._sftp is None:
            import paramiko

            channel = connection.open_session()
            channel.settimeout(_SFTP_TIMEOUT_S)
            with limited(functools.partial(close_quietly, channel), _SFTP_TIMEOUT_S):
                channel.invoke_subsystem("sftp")
            self._sftp = paramiko.SFTPClient(channel)
        return self._sftp


def _translated(error: Exception, text: str, *, is_lost: bool) -> OSError:
    """The error to raise for one of paramiko's or of a connection."""
    if isinstance(error, SSHError):
        return type(error)(text)
    if is_lost:
        return SSHError(text)
    number = getattr(error, "errno", None)
    return OSError(text) if number is None else OSError(number, text)


def _wait_readable(fd: int, timeout_s: float) -> None:
    """Return when something came, or after a while."""
    poll = select.poll()  # `select.select` cannot watch descriptors from 1024 on
    poll.register(fd, select.POLLIN)
    poll.poll(timeout_s * 1000)


def _write_files(sftp: paramiko.SFTPClient, folder: str, files: Mapping[str, bytes], mode: int) -> None:
    _make_folders(sftp, folder)
    private = posixpath.join(folder, f".hpcpool-{uuid.uuid4().hex}")
    sftp.mkdir(private, 0o700)
    try:
        for name, content in files.items():
            path = posixpath.join(private, name)
            with sftp.open(path, "wx") as file:
                file.set_pipelined(True)
                file.write(content)
            sftp.chmod(path, mode)
            sftp.posix_rename(path, posixpath.join(folder, name))
    finally:
        _remove(sftp, private)


def _remove(sftp: paramiko.SFTPClient, folder: str) -> None:
    """Remove a folder of files; what cannot be removed stays, and is said."""
    try:
        for name in sftp.listdir(folder):
            sftp.remove(posixpath.join(folder, name))
        sftp.rmdir(folder)
    except (OSError, EOFError) as error:
        logger.warning("%s stays: %s", folder, error)


def _make_folders(sftp: paramiko.SFTPClient, folder: str) -> None:
    """Make a folder and those above it, for the user alone."""
    if _is_folder(sftp, folder):
        return
    _make_folders(sftp, posixpath.dirname(folder))
    try:
        sftp.mkdir(folder, 0o700)
    except OSError:
        if not _is_folder(sftp, folder):  # else another machine that sees it has made it just now
            raise


def _is_folder(sftp: paramiko.SFTPClient, path: str) -> bool:
    """False if it is not there; `NotADirectoryError` if it is something else."""
    try:
        mode = sftp.stat(path).st_mode
    except FileNotFoundError:
        return False
    if mode is not None and not stat.S_ISDIR(mode):
        raise NotADirectoryError(f"{path} is not a folder")
    return True


def _tail(sftp: paramiko.SFTPClient, path: str, most_bytes: int) -> str:
    with sftp.open(path, "rb") as file:
        size = file.stat().st_size or 0
        file.seek(max(0, size - most_bytes))
        return file.read(most_bytes).decode(errors="replace")
