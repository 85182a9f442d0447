"""Where managers come in: a local socket and, for other hosts, a TCP port. What they say is not known here."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hpcpool.processes.connection import TCP, TUNNEL, Connection
from hpcpool.processes.event_loop import EventLoop
from hpcpool.processes.listener import Listener
from hpcpool.wire.file_transfer import manager_name
from hpcpool.wire.messages import Hello
from hpcpool.wire.stream import Stream

if TYPE_CHECKING:
    import ssl

    from hpcpool.processes.file_desk import FileDesk
    from hpcpool.processes.guests import Guests

#: Takes who has come in, and the block that it has proved to be of; None: a process of this user on this host.
Admit = Callable[[Stream, str | None], None]
#: Takes who has been here before, and its block.
Readmit = Callable[["ssl.SSLSocket", str], None]


class Entrance:
    """The listening sockets of an interchange, on its event loop.

    Args:
        loop: the interchange's.
        path: of the local socket.
        admit: called for each who has come in.
        readmit: called for each who comes back.
    """

    def __init__(self, loop: EventLoop, path: str, admit: Admit, readmit: Readmit) -> None:
        self._loop = loop
        self._admit = admit
        self._readmit = readmit
        local = socket.socket(socket.AF_UNIX)
        local.bind(path)
        self._neighbours = Listener(loop, local, lambda connection: admit(Stream(connection), None))
        self._guests: Guests | None = None
        #: For the files of the client that nodes on other hosts need.
        self._files: FileDesk | None = None

    def open_to_hosts(self, ports: tuple[int, int]) -> None:
        """Listen on a TCP port of all interfaces, too.

        Args:
            ports: the first and the last port to try; (0, 0): any that is free.

        Raises:
            OSError: all of them are taken.
        """
        from hpcpool.processes.file_desk import FileDesk
        from hpcpool.processes.guests import Guests  # loads OpenSSL: a pool on one machine starts without it
        from hpcpool.wire.tls import FILES_PROTOCOL, REJOIN_PROTOCOL

        self._files = FileDesk()
        others = {FILES_PROTOCOL: self._files.admit, REJOIN_PROTOCOL: self._readmit}
        self._guests = Guests(self._loop, ports, self._admit, others)

    def connection_for(
        self, block: str, reach: Callable[[int], Sequence[str]], *, start_method: str, hosts: Sequence[str] | None
    ) -> Connection:
        """Return what the managers of a block on other hosts must know, with a key of its own.

        May be called in another thread.

        Args:
            block: its key is good until `revoke`.
            reach: makes the port reachable in other ways, and returns them as `host:port`.
            start_method: of their workers.
            hosts: names or addresses of this host; None: all that it has.
        """
        from hpcpool.processes.addresses import own_addresses

        assert self._guests is not None
        port = self._guests.port
        ways = [f"{TCP}{host}:{port}" for host in hosts or own_addresses()]
        ways += [f"{TUNNEL}{way}" for way in reach(port)]
        authority, key = self._guests.keys.authority.decode("ascii"), self._guests.keys.issue(block).decode("ascii")
        return Connection(ways, start_method, authority=authority, key=key)

    def revoke(self, block: str) -> None:
        """Let nobody in any more with the key of this block, and give up its files that are on the way."""
        if self._guests is not None:
            self._guests.keys.revoke(block)
        if self._files is not None:
            self._files.end(block)

    def lost(self, block: str, hello: Hello) -> None:
        """A manager has gone: its workers bring no files any more."""
        if self._files is not None:
            self._files.lost(block, manager_name(hello.host, hello.pid))

    @property
    def step_at(self) -> float:
        """When `step` must be called next (monotonic clock); inf: there is no need."""
        return self._guests.step_at if self._guests is not None else math.inf

    def step(self) -> None:
        """Turn away who has taken too long."""
        if self._guests is not None:
            self._guests.step()

    def close(self) -> None:
        """Let nobody in any more."""
        self._neighbours.close()
        if self._guests is not None:
            self._guests.close()
        if self._files is not None:
            self._files.close()
