"""The connection file: what a manager must know to find its interchange. Written by the interchange, mode 0600."""

from __future__ import annotations

import os

import msgspec

#: What addresses begin with that are no paths: `host:port` of the interchange itself, or of what leads there and may
#: break while the interchange lives.
TCP, TUNNEL = "tcp://", "tunnel://"


class Connection(msgspec.Struct, forbid_unknown_fields=True):
    """Where the interchange listens, and how workers are to be started."""

    #: Paths of local sockets, `tcp://host:port` or `tunnel://host:port`; see `dialling`.
    addresses: list[str]
    start_method: str
    #: Where managers on this host keep their files; "" on another host: each makes a folder of its own.
    directory: str = ""
    #: By this certificate (PEM) the interchange is recognised, and with this one and its private key a manager proves
    #: itself; "" where they meet at a local socket.
    authority: str = ""
    key: str = ""

    def to_json(self) -> bytes:
        """Return what the file holds."""
        return msgspec.json.encode(self)


def managers_path(directory: str) -> str:
    """Return where the interchange of a run directory listens for managers on this host."""
    return os.path.join(directory, "managers.sock")


def connection_path(directory: str) -> str:
    """Return where the interchange of a run directory writes what managers on this host must know."""
    return os.path.join(directory, "connection.json")


def node_prefix(block: str) -> str:
    """Return what the names of a block's node directories, and of the segments made there, begin with."""
    return f"node-{block}+"  # no name of a block has a "+"


def write_connection(path: str, connection: Connection) -> None:
    """Write the file so that nobody ever reads half of it."""
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(connection.to_json())
    os.rename(temporary, path)


def read_connection(path: str) -> Connection:
    """Read the file; `msgspec.DecodeError` or `OSError` if it is not one."""
    with open(path, "rb") as file:
        return msgspec.json.decode(file.read(), type=Connection)
