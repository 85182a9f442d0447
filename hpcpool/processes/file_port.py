"""How the workers of a node on another host reach the client's files: the manager leaves word in the run directory."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Sequence

import msgspec

from hpcpool.processes.connection import TUNNEL, Connection
from hpcpool.processes.dialling import Unreachable, connect
from hpcpool.wire.file_transfer import FileLine, Greeting
from hpcpool.wire.staged import FOLDER_VARIABLE
from hpcpool.wire.tls import FILES_PROTOCOL, client_context

_FILE = "files.json"
#: How long it may take to find the interchange (seconds): the manager has found it at the same address. A tunnel may be
#: broken in this moment, so it is dialled again after a pause.
_DIAL_S = 60.0
_PAUSE_S = 1.0
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
        end = self._connect(context, time.monotonic() + _DIAL_S)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # macOS has other names
                end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        end.setblocking(True)
        line = FileLine(end)
        line.say(Greeting(self.manager))
        return line

    def _connect(self, context: ssl.SSLContext, deadline: float) -> ssl.SSLSocket:
        while True:
            try:
                return connect(self.addresses, context, deadline - time.monotonic())[0]
            except Unreachable as error:
                is_tunnelled = any(address.startswith(TUNNEL) for address in self.addresses)
                if not is_tunnelled or time.monotonic() + _PAUSE_S >= deadline:
                    raise ConnectionError(str(error)) from error
            time.sleep(_PAUSE_S)


def leave_word(run_directory: str, connection: Connection, addresses: Sequence[str], manager: str) -> None:
    """Tell those that this process starts how to get files of the client.

    Args:
        run_directory: the node's own, for this user alone.
        connection: what proves that they belong here.
        addresses: where the interchange is.
        manager: its name.
    """
    port = FilePort(list(addresses), connection.authority, connection.key, manager)
    descriptor = os.open(os.path.join(run_directory, _FILE), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(port))
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


def ways_to(connection: Connection, address: str, peer: tuple[object, ...]) -> list[str]:
    """Return where an interchange is found again by who has found it at `address`, connected to `peer`.

    A tunnel that has been lost may be at another of its addresses when it is back.
    """
    if address.startswith(TUNNEL):
        return [way for way in connection.addresses if way.startswith(TUNNEL)]
    return [address_of(peer)]


def address_of(peer: tuple[object, ...]) -> str:
    """Return the form that `dial` takes of what `socket.getpeername` says; of IPv6, with the number of the link."""
    host, port, *rest = peer
    if len(rest) == 2:
        host = f"[{host}%{rest[1]}]" if rest[1] else f"[{host}]"
    return f"tcp://{host}:{port}"
