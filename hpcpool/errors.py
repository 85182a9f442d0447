"""The errors of hpcpool; each also descends from the standard class that programs already catch.

An option that does not fit is an `OptionError`, a `ConfigError` (`hpcpool.config.options`). What a provider raises, a
`SubmitError` (`hpcpool.providers`), stays in the pool: a program sees a `BrokenPool`.

All of them survive pickling: the message is the only positional argument, everything else is an attribute.
"""

from __future__ import annotations

import signal
import subprocess
from concurrent.futures.process import BrokenProcessPool


class HPCPoolError(Exception):
    """Base class of every error that hpcpool itself raises."""


class ConfigError(HPCPoolError, ValueError):
    """A configuration value is unknown, of the wrong type or impossible; the message says where and what is valid."""


class UnsharableError(HPCPoolError, RuntimeError):
    """An argument only works in children of the user's process (a lock, a queue, an event of `multiprocessing`)."""


class BrokenPool(HPCPoolError, BrokenProcessPool):
    """The pool cannot go on: its interchange died, its initializer failed, or its workers were terminated."""


class PayloadError(HPCPoolError, BrokenProcessPool):
    """A call or an outcome could not be unpickled; the cause carries the real error. Only that future fails."""


class WorkerCrashed(HPCPoolError, BrokenProcessPool):
    """The worker died while it ran the call (segmentation fault, `os._exit`, kill, out of memory).

    Attributes: `exit_code` (int or None), `signal` (number or None), `host`, `pid`, `out_of_memory` (bool),
    `stderr_tail` (the last lines that the worker wrote to stderr).
    """

    def __init__(
        self,
        message: str = "",
        *,
        exit_code: int | None = None,
        signal: int | None = None,
        host: str = "",
        pid: int = 0,
        out_of_memory: bool = False,
        stderr_tail: str = "",
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.signal = signal
        self.host = host
        self.pid = pid
        self.out_of_memory = out_of_memory
        self.stderr_tail = stderr_tail


class NodeLost(HPCPoolError, BrokenProcessPool):
    """The node that ran the call vanished more often than `loss_limit` allows, or lost calls are not run again."""


class ResultLost(HPCPoolError, BrokenProcessPool):
    """A result was kept where it was made (`options(keep=True)`), and has gone with its node before anybody asked.

    Also when the pool broke or was ended by force before. The call has run; submit it again if its result is needed.
    """


class ResourcesUnavailable(HPCPoolError, RuntimeError):
    """No node of any pool has what the call needs: it was not run. The message says what nodes there are."""


class TaskTimeout(HPCPoolError, TimeoutError):
    """The call ran longer than its `timeout` and was ended with its whole process group."""


class TaskKilled(HPCPoolError):
    """The running call was ended by `TaskFuture.kill()`."""


class DependencyError(HPCPoolError):
    """A future among the arguments failed, so the call was not run; `__cause__` is the original exception."""


class RemoteError(HPCPoolError):
    """Stands for an exception that could not be brought back: its class is unknown or cannot be rebuilt here.

    Attributes: `type_name` (the qualified name of the original class) and `traceback_text`.
    """

    def __init__(self, message: str = "", *, type_name: str = "", traceback_text: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.traceback_text = traceback_text


class BashError(HPCPoolError, subprocess.CalledProcessError):
    """A bash call ended with a non-zero code or a signal.

    Attributes: `cmd` (the command as run), `returncode` (negative: the signal), `stdout`, `stderr` (their tails).
    """

    def __init__(
        self, message: str = "", *, cmd: object = "", returncode: int = 1, stdout: str = "", stderr: str = ""
    ) -> None:
        Exception.__init__(self, message)
        self.cmd = cmd
        self.returncode = returncode
        self.output = stdout
        self.stderr = stderr

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BashTimeout(TaskTimeout):
    """A bash call passed its `timeout`; its process group was sent TERM, then KILL.

    Attributes: `cmd` (the command as run), `timeout_s`, `stdout`, `stderr` (their tails).
    """

    def __init__(
        self, message: str = "", *, cmd: object = "", timeout_s: float = 0.0, stdout: str = "", stderr: str = ""
    ) -> None:
        super().__init__(message)
        self.cmd = cmd
        self.timeout_s = timeout_s
        self.stdout = stdout
        self.stderr = stderr


class MPIError(HPCPoolError, RuntimeError):
    """The ranks of an MPI step could not be started, or ended without an answer.

    Attribute `returncode`: that of the program that started them (negative: the signal); None if it was not started.
    """

    def __init__(self, message: str = "", *, returncode: int | None = None) -> None:
        super().__init__(message)
        self.returncode = returncode


class SSHError(HPCPoolError, ConnectionError):
    """A machine cannot be reached over SSH, refuses the login, or was lost; the message says which and what to do."""


class HostKeyError(SSHError):
    """A machine shows a host key that is not known, or another one than before. Nothing was sent to it."""


class MissingOutputs(HPCPoolError, FileNotFoundError):
    """A bash call succeeded but did not make all its `outputs`. Attribute `missing`: the paths."""

    def __init__(self, message: str = "", *, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing


class FileMismatch(HPCPoolError, OSError):
    """A file is not the one that it must be: its size or its hash differs."""


def signal_name(number: int) -> str:
    """Return what a message calls a signal; most real-time signals have only a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def is_from_handler(error: BaseException) -> bool:
    """Say whether an error is one that a signal's handler has raised, as for an alarm: an `OSError` without a number.

    Whoever deals with what the system refuses must pass it on: the program waits for it.
    """
    return isinstance(error, OSError) and error.errno is None
