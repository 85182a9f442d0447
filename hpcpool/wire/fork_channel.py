"""What a manager and its fork server say to each other: small messages over one local socket, descriptors alongside."""

from __future__ import annotations

import socket
from typing import Any

import msgspec

#: The longest message; all are far below. A worker's environment may name the thousands of nodes that its call has.
_BYTES = 128 * 1024


class _Struct(msgspec.Struct, array_like=True):
    pass


class Begin(_Struct, tag=6):
    """The first message: serve this node."""

    #: The node's.
    directory: str
    #: How workers are started.
    start_method: str


class StartWorker(_Struct, tag=1):
    """Start a worker; its ends of the permits' pipe, of the link and of its stderr pipe come alongside."""

    worker: int
    #: The cores that it is bound to; (): it is not.
    cores: tuple[int, ...] = ()
    #: Added to its environment.
    environment: dict[str, str] = {}


class EndWorker(_Struct, tag=2):
    """Send a signal to a worker; `session` means to everything that runs in its session."""

    worker: int
    signal: int
    session: bool


class WorkerStarted(_Struct, tag=3):
    """A worker has this process id."""

    worker: int
    pid: int


class WorkerEnded(_Struct, tag=4):
    """A worker is gone, and all of its session with it."""

    worker: int
    #: Its exit code; negative: the signal that ended it.
    exit_code: int
    #: The kernel has killed something for lack of memory in the meantime.
    out_of_memory: bool


class WorkerNotStarted(_Struct, tag=5):
    """The system has no room for another process."""

    worker: int
    reason: str


ToForkServer = Begin | StartWorker | EndWorker
ToManager = WorkerStarted | WorkerEnded | WorkerNotStarted

_encode = msgspec.msgpack.Encoder().encode
_to_fork_server = msgspec.msgpack.Decoder(ToForkServer)
_to_manager = msgspec.msgpack.Decoder(ToManager)


def say(end: socket.socket, message: Any, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message with descriptors alongside."""
    if descriptors:
        socket.send_fds(end, [_encode(message)], list(descriptors))
    else:
        end.send(_encode(message))


def hear_as_fork_server(end: socket.socket) -> tuple[ToForkServer, list[int]] | None:
    """Return the manager's next message and descriptors; None when the manager has gone."""
    data, descriptors, _, _ = socket.recv_fds(end, _BYTES, 3)
    return (_to_fork_server.decode(data), list(descriptors)) if data else None


def hear_as_manager(end: socket.socket) -> ToManager | None:
    """Return the fork server's next message; None when it has gone."""
    data = end.recv(_BYTES)
    return _to_manager.decode(data) if data else None
