"""Starts fork servers, which then wait to be told what for.

It imports next to nothing: so the interchange starts one before all else, and both load their modules at the same time.
"""

from __future__ import annotations

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


#: What `start_ahead` has started, until it is wanted.
_ahead: list[ForkServerProcess] = []


def start(census: int) -> ForkServerProcess:
    """Return a fork server, which may have been started ahead; it waits for its orders.

    Args:
        census: a descriptor that it keeps open; below 0: none.

    Raises `OSError` if it cannot be started.
    """
    return _ahead.pop() if _ahead else _start(census)


def start_ahead(census: int) -> None:
    """Start the fork server that will be wanted first. It ends with this process."""
    _ahead.append(_start(census))


def _start(census: int) -> ForkServerProcess:
    channel, end = socket.socketpair(socket.AF_UNIX, CHANNEL_TYPE)
    with end:
        try:
            process = subprocess.Popen(
                start_command("fork-server", end.fileno(), census),
                stdin=subprocess.DEVNULL,
                pass_fds=(end.fileno(), census) if census >= 0 else (end.fileno(),),
            )
        except BaseException:
            channel.close()
            raise
    return ForkServerProcess(process, channel)
