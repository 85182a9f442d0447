"""How the workers of a node on another host reach the client's files: the manager leaves word in the run directory."""

from __future__ import annotations

import os
import socket

import msgspec

from hpcpool.processes.connection import Connection
from hpcpool.processes.dialling import Unreachable, connect
from hpcpool.wire.file_transfer import FileLine, Greeting
from hpcpool.wire.staged import FOLDER_VARIABLE
from hpcpool.wire.tls import FILES_PROTOCOL, client_context

_FILE = "files.json"
#: How long it may take to find the interchange (seconds): the manager has found it at the same address.
_DIAL_S = 60.0
#: A silent connection is tried after so long, then so often, so many times (seconds): a worker may wait long for its
#: turn, and must not wait for a host that is gone.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class FilePort(msgspec.Struct, forbid_unknown_fields=True):
    """Where the interchange is, and what proves that a worker belongs here: see `connection.Connection`."""

    addresses: list[str]
    authority: str
    key: str
    #: The manager's name: see `wire.file_transfer.manager_name`.
    manager: str

    def open(self) -> FileLine:
        """Return a connection; `ConnectionError` if there is none to be had."""
        context = client_context(self.authority.encode(), self.key.encode())
        context.set_alpn_protocols([FILES_PROTOCOL])
        try:
            end, _ = connect(self.addresses, context, _DIAL_S)
        except Unreachable as error:
            raise ConnectionError(str(error)) from error
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # macOS has other names
                end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        end.setblocking(True)
        line = FileLine(end)
        line.say(Greeting(self.manager))
        return line


def leave_word(run_directory: str, connection: Connection, found_at: tuple[object, ...], manager: str) -> None:
    """Tell those that this process starts how to get files of the client; again, when that has changed.

    Args:
        run_directory: the node's own, for this user alone.
        connection: how the manager has found the interchange.
        found_at: the address where it is, as of `socket.getpeername`.
        manager: its name.
    """
    port = FilePort([_address(found_at)], connection.authority, connection.key, manager)
    path = os.path.join(run_directory, _FILE)
    descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(port))
    os.rename(f"{path}.new", path)
    os.environ[FOLDER_VARIABLE] = run_directory


def read_word(run_directory: str) -> FilePort:
    """Return what the manager has left; `FileNotFoundError` where it has not left anything."""
    try:
        with open(os.path.join(run_directory, _FILE), "rb") as file:
            return msgspec.json.decode(file.read(), type=FilePort)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"files of the client cannot be had on {socket.gethostname()} by a process that was started from another "
            "host; let the call itself ask for their paths, and pass those on"
        ) from None


def _address(found_at: tuple[object, ...]) -> str:
    """The form that `dial` takes; of IPv6, with the number of the link if it is an address of one."""
    host, port, *rest = found_at
    if len(rest) == 2:
        host = f"[{host}%{rest[1]}]" if rest[1] else f"[{host}]"
    return f"tcp://{host}:{port}"
