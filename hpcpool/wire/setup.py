"""What every worker is told before its first call: made by the client, opened by the workers only."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Callable
from multiprocessing import process
from typing import Any

import msgspec

from hpcpool.wire.packing import Payload
from hpcpool.wire.payload import dumps_by_value, unpickle


class WorkerSetup(msgspec.Struct, frozen=True):
    """A worker's surroundings and first act."""

    #: The client's host: on another one its files may not be there.
    host: str

    sys_path: tuple[str, ...]
    #: The working directory; None: the one that the worker was started in.
    cwd: str | None
    argv: tuple[str, ...]
    authkey: bytes
    #: The user's program; None: it is in no file.
    main_file: str | None
    #: The start method of multiprocessing inside the worker; None: Python's default.
    start_method: str | None
    #: How many files a call may have open: managers allow themselves more, and that would be inherited.
    open_files: int
    initializer: Callable[..., Any] | None
    initargs: tuple[Any, ...]

    def to_bytes(self) -> bytes:
        """Pickle for the way; raises whatever makes the initializer or its arguments impossible to pickle."""
        call = dumps_by_value((self.initializer, self.initargs))
        rest = (
            self.host,
            self.sys_path,
            self.cwd,
            self.argv,
            self.authkey,
            self.main_file,
            self.start_method,
            self.open_files,
        )
        return dumps_by_value((rest, call))


def local_setup(start_method: str | None, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]) -> bytes:
    """Return the set-up of workers on the client's own host: they share its sys.path, directory and secrets."""
    here = _working_directory()
    return WorkerSetup(
        host=socket.gethostname(),
        sys_path=tuple((here or entry) if entry in ("", ".") else entry for entry in sys.path),
        cwd=here,
        argv=tuple(sys.argv),
        authkey=bytes(process.current_process().authkey),
        main_file=getattr(sys.modules["__main__"], "__file__", None),
        start_method=start_method,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        initializer=initializer,
        initargs=initargs,
    ).to_bytes()


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it has been removed
        return None


def open_setup(data: bytes) -> tuple[tuple[Any, ...], bytes]:
    """Return the surroundings, and the initializer still pickled: it may need the surroundings to be opened."""
    rest, call = unpickle(Payload(data))
    return rest, call
