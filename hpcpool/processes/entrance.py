"""Where managers come in: a local socket and, for other hosts, a TCP port. What they say is not known here.

Whoever comes over TCP has to prove with the key of a block that it belongs here before a word of it is read.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from hpcpool.processes.addresses import own_addresses
from hpcpool.processes.connection import Connection
from hpcpool.processes.event_loop import READ, WRITE, EventLoop
from hpcpool.processes.keys import RunKeys
from hpcpool.wire.stream import Stream
from hpcpool.wire.tls import TlsEnd, trouble_of

log = logging.getLogger(__name__)

#: How long a handshake may take (seconds): a few round trips, with room for thousands of nodes that come at once.
_HANDSHAKE_S = 30.0
#: So many may be in the midst of their handshakes: the others wait in the kernel.
_MOST_GUESTS = 1024
_BACKLOG = 4096

#: Takes who has come in, and the block that it has proved to be of; None: a process of this user on this host.
Admit = Callable[[Stream, str | None], None]


class Entrance:
    """The listening sockets of an interchange, on its event loop.

    Args:
        loop: the interchange's.
        path: of the local socket.
        admit: called for each who has come in.
    """

    def __init__(self, loop: EventLoop, path: str, admit: Admit) -> None:
        self._loop = loop
        self._admit = admit
        self._listeners: list[socket.socket] = []
        self._keys: RunKeys | None = None
        self._port = 0
        #: Those who have not proved yet who they are, and until when they must have; the oldest first.
        self._guests: OrderedDict[ssl.SSLSocket, float] = OrderedDict()
        #: Given up for a moment when there are no descriptors left, to turn somebody away.
        self._spare = os.open(os.devnull, os.O_RDONLY)
        local = socket.socket(socket.AF_UNIX)
        local.bind(path)
        self._listen(local, functools.partial(self._accept_neighbour, local))

    def open_to_hosts(self, ports: tuple[int, int]) -> None:
        """Listen on a TCP port of all interfaces.

        Args:
            ports: the first and the last port to try; (0, 0): any that is free.

        Raises:
            OSError: all of them are taken.
        """
        listener = _bound(ports)
        self._port = listener.getsockname()[1]
        self._keys = keys = RunKeys()
        self._listen(listener, functools.partial(self._accept_guest, listener, keys.context(), keys))

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
        assert self._keys is not None
        ways = [*(f"{host}:{self._port}" for host in hosts or own_addresses()), *reach(self._port)]
        addresses = [f"tcp://{way}" for way in ways]
        authority, key = self._keys.authority.decode("ascii"), self._keys.issue(block).decode("ascii")
        return Connection(addresses, start_method, authority=authority, key=key)

    def revoke(self, block: str) -> None:
        """Let nobody in any more with the key of this block."""
        if self._keys is not None:
            self._keys.revoke(block)

    @property
    def step_at(self) -> float | None:
        """When `step` must be called next (monotonic clock); None: there is no need."""
        return next(iter(self._guests.values()), None)

    def step(self) -> None:
        """Turn away who has taken too long."""
        now = time.monotonic()
        while self._guests and next(iter(self._guests.values())) <= now:
            guest = next(iter(self._guests))
            self._turn_out(guest, f"did not finish its handshake in {_HANDSHAKE_S:g} s")

    def close(self) -> None:
        """Let nobody in any more."""
        for guest in list(self._guests):
            self._forget(guest)
            guest.close()
        for listener in self._listeners:
            self._loop.remove(listener)
            listener.close()
        self._listeners.clear()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def _listen(self, listener: socket.socket, accept: Callable[[int], None]) -> None:
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        self._listeners.append(listener)
        self._loop.add(listener, accept)

    def _accept_neighbour(self, listener: socket.socket, events: int) -> None:
        if (connection := self._accept(listener)) is not None:
            self._admit(Stream(connection), None)

    def _accept_guest(self, listener: socket.socket, context: ssl.SSLContext, keys: RunKeys, events: int) -> None:
        if len(self._guests) >= _MOST_GUESTS:
            self._turn_out(next(iter(self._guests)), "too many others wait to come in")
        connection = self._accept(listener)
        if connection is None:
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        guest = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._guests[guest] = time.monotonic() + _HANDSHAKE_S
        self._loop.add(guest, functools.partial(self._shake_hands, guest, keys))

    def _shake_hands(self, guest: ssl.SSLSocket, keys: RunKeys, events: int) -> None:
        try:
            guest.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.change(guest, READ)
        except ssl.SSLWantWriteError:
            self._loop.change(guest, WRITE)
        except (ssl.SSLEOFError, ConnectionResetError):  # a manager that has come in by another address, most likely
            log.debug("peer=%s went away", _peer(guest))
            self._forget(guest)
            guest.close()
        except OSError as error:
            self._turn_out(guest, trouble_of(error))
        else:
            block = keys.block_of(guest)
            if block is None:
                self._turn_out(guest, "its key was revoked, as its block is over")
                return
            self._forget(guest)
            self._admit(Stream(TlsEnd(guest)), block)

    def _turn_out(self, guest: ssl.SSLSocket, reason: str) -> None:
        log.warning("peer=%s turned away: %s", _peer(guest), reason)
        self._forget(guest)
        guest.close()

    def _forget(self, guest: ssl.SSLSocket) -> None:
        del self._guests[guest]
        self._loop.remove(guest)

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        try:
            return listener.accept()[0]
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):  # else it has gone again
                log.error("a manager cannot connect: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away(listener)
            return None

    def _turn_away(self, listener: socket.socket) -> None:
        """Close a waiting connection that there is no descriptor for: else it would wake this loop for ever."""
        os.close(self._spare)
        with contextlib.suppress(OSError):  # it may have gone
            listener.accept()[0].close()
        self._spare = os.open(os.devnull, os.O_RDONLY)


def _bound(ports: tuple[int, int]) -> socket.socket:
    """Return a socket on the first of these ports that is free, on IPv4 and, where the system has it, IPv6."""
    first, last = ports
    for port in range(first, last + 1):
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
            return socket.create_server(("", port), backlog=_BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == last:
                raise
    raise AssertionError("no port was tried")


def _peer(guest: ssl.SSLSocket) -> str:
    try:
        return str(guest.getpeername()[0])
    except OSError:  # it has gone
        return "unknown"
