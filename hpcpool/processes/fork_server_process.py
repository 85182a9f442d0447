"""Starts fork servers, which then wait to be told what for.

It imports next to nothing: so the interchange starts one before all else, and both load their modules at the same time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import NamedTuple

from hpcpool.processes.start_command import start_command

#: macOS has no SEQPACKET for local sockets; its datagram sockets preserve messages, too.
CHANNEL_TYPE = socket.SOCK_DGRAM if sys.platform == "darwin" else socket.SOCK_SEQPACKET


class ForkServerProcess(NamedTuple):
    """A fork server and the manager's end of the channel to it (see `wire.fork_channel`)."""

    process: subprocess.Popen[bytes]
    channel: socket.socket


#: What `start_ahead` has started, until it is wanted, and where its stderr goes.
_ahead: list[tuple[ForkServerProcess, str]] = []


def start(census: int, log_path: str | None) -> ForkServerProcess:
    """Return a fork server, which may have been started ahead; it waits for its orders.

    Args:
        census: a descriptor that it keeps open; below 0: none.
        log_path: where its stderr goes; None: where this process's own goes.

    Raises `OSError` if it cannot be started.
    """
    if not _ahead or log_path is None:
        return _start(census, log_path)
    started, its_log = _ahead.pop()
    try:
        os.rename(its_log, log_path)  # what it has open; also what it may have said before it died
    except OSError:
        started.channel.close()
        started.process.wait()
        raise
    return started


def start_ahead(census: int, log_path: str) -> None:
    """Start the fork server that will be wanted first, if that can be done. It ends with this process.

    Args:
        census: as of `start`.
        log_path: where its stderr goes until it is wanted; on the same file system as where it goes then.
    """
    with contextlib.suppress(OSError):  # no room: who wants it tries again, and can say so
        _ahead.append((_start(census, log_path), log_path))


def _start(census: int, log_path: str | None) -> ForkServerProcess:
    channel, end = socket.socketpair(socket.AF_UNIX, CHANNEL_TYPE)
    with end, contextlib.ExitStack() as files:
        try:
            log_file = files.enter_context(open(log_path, "ab")) if log_path is not None else None
            process = subprocess.Popen(
                start_command("fork-server", end.fileno(), census),
                stdin=subprocess.DEVNULL,
                stderr=log_file,
                pass_fds=(end.fileno(), census) if census >= 0 else (end.fileno(),),
            )
        except BaseException:
            channel.close()
            raise
    return ForkServerProcess(process, channel)
