"""Those who come over TCP: they have to prove with the key of a block that they belong here before a word is read."""

from __future__ import annotations

import errno
import functools
import logging
import math
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from hpcpool.processes.event_loop import READ, WRITE, EventLoop
from hpcpool.processes.keys import RunKeys
from hpcpool.processes.listener import BACKLOG, Listener
from hpcpool.wire.lasting_stream import LastingStream
from hpcpool.wire.tls import TlsEnd, trouble_of

log = logging.getLogger(__name__)

#: How long a handshake may take (seconds): a few round trips, with room for thousands of nodes that come at once.
_HANDSHAKE_S = 30.0
#: So many may be in the midst of their handshakes; the oldest makes room for the newest.
_MOST_GUESTS = 1024


class Guests:
    """A TCP port, the keys that open it, and the handshakes that go on.

    Args:
        loop: the interchange's.
        ports: the first and the last port to try; (0, 0): any that is free.
        admit: takes who has proved to be of a block, and the block.
        others: by the protocol (ALPN) that they name in the handshake: takes who has come for something else.

    Raises:
        OSError: all of the ports are taken.
    """

    def __init__(
        self,
        loop: EventLoop,
        ports: tuple[int, int],
        admit: Callable[[LastingStream, str], None],
        others: Mapping[str, Callable[[ssl.SSLSocket, str], None]],
    ) -> None:
        self._loop = loop
        self._admit = admit
        self._others = others
        self.keys = RunKeys()
        self._context = self.keys.context()
        #: Those who have not proved yet who they are, and until when they must have; the oldest first.
        self._waiting: OrderedDict[ssl.SSLSocket, float] = OrderedDict()
        listening = _bound(ports)
        self.port: int = listening.getsockname()[1]
        self._listener = Listener(loop, listening, self._accept)

    @property
    def step_at(self) -> float:
        """When `step` must be called next (monotonic clock); inf: there is no need."""
        return next(iter(self._waiting.values()), math.inf)

    def step(self) -> None:
        """Turn away who has taken too long."""
        now = time.monotonic()
        while self._waiting and next(iter(self._waiting.values())) <= now:
            self._turn_out(next(iter(self._waiting)), f"did not finish its handshake in {_HANDSHAKE_S:g} s")

    def close(self) -> None:
        """Let nobody in any more."""
        for guest in list(self._waiting):
            self._forget(guest)
            guest.close()
        self._listener.close()

    def _accept(self, connection: socket.socket) -> None:
        if len(self._waiting) >= _MOST_GUESTS:
            self._turn_out(next(iter(self._waiting)), "too many others wait to come in")
        try:
            connection.getpeername()  # `wrap_socket` asks, too, but leaves a socket unclosed if there is none
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            guest = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except OSError as error:  # it was reset before we looked, as port scanners do
            log.debug("a peer went away: %s", error)
            connection.close()
            return
        self._waiting[guest] = time.monotonic() + _HANDSHAKE_S
        self._loop.add(guest, functools.partial(self._shake_hands, guest))

    def _shake_hands(self, guest: ssl.SSLSocket, events: int) -> None:
        try:
            guest.do_handshake()
        except ssl.SSLWantReadError:
            self._loop.change(guest, READ)
        except ssl.SSLWantWriteError:
            self._loop.change(guest, WRITE)
        except (ssl.SSLEOFError, ConnectionResetError):  # a manager that has come in by another address, most likely
            log.debug("peer=%s went away", _address(guest))
            self._forget(guest)
            guest.close()
        except OSError as error:
            self._turn_out(guest, trouble_of(error))
        else:
            self._let_in(guest)

    def _let_in(self, guest: ssl.SSLSocket) -> None:
        block = self.keys.block_of(guest)
        if block is None:
            self._turn_out(guest, "its key was revoked, as its block is over")
            return
        self._forget(guest)
        if (protocol := guest.selected_alpn_protocol()) is not None:
            self._others[protocol](guest, block)
        else:
            self._admit(LastingStream(TlsEnd(guest)), block)

    def _turn_out(self, guest: ssl.SSLSocket, reason: str) -> None:
        log.warning("peer=%s turned away: %s", _address(guest), reason)
        self._forget(guest)
        guest.close()

    def _forget(self, guest: ssl.SSLSocket) -> None:
        del self._waiting[guest]
        self._loop.remove(guest)


def _bound(ports: tuple[int, int]) -> socket.socket:
    """Return a socket on the first of these ports that is free, on IPv4 and, where the system has it, IPv6."""
    first, last = ports
    for port in range(first, last + 1):
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
            return socket.create_server(("", port), backlog=BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == last:
                which = f"port {first}" if first == last else f"any port from {first} to {last}"
                what = f"managers on other hosts cannot come in at {which}: {error.strerror}"
                raise OSError(error.errno, f"{what}; change ports in the Config") from error
    raise AssertionError("no port was tried")


def _address(guest: ssl.SSLSocket) -> str:
    try:
        return str(guest.getpeername()[0])
    except OSError:  # it has gone
        return "unknown"
