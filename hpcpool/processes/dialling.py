"""How the interchange is found from other hosts: by all addresses at once; the first that proves to be it is kept."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import time
from collections.abc import Sequence

from hpcpool.processes.connection import TCP, TUNNEL
from hpcpool.wire.lasting_stream import LastingStream
from hpcpool.wire.stream import Stream
from hpcpool.wire.tls import TlsEnd, client_context, trouble_of

#: An interchange to which thousands come at once turns some away: they try again after so long (seconds).
_PAUSES_S = (1.0, 3.0)


class Unreachable(Exception):
    """No address led to the interchange; the message has a line for each attempt."""


def dial(addresses: Sequence[str], authority: bytes, key: bytes, timeout_s: float) -> tuple[Stream, str]:
    """Return a stream to the interchange, and the address that led there.

    Args:
        addresses: paths of local sockets, `tcp://host:port` and `tunnel://host:port`.
        authority: the certificate (PEM) by which the interchange is recognised; b"": local sockets only.
        key: this block's certificate and private key (PEM).
        timeout_s: for all attempts together.

    Raises:
        Unreachable: none of them is the interchange.
    """
    for path in addresses:
        if not path.startswith((TCP, TUNNEL)):
            return Stream(_local(path)), path
    end, address = connect(addresses, client_context(authority, key), timeout_s)
    return LastingStream(TlsEnd(end)), address


def connect(addresses: Sequence[str], context: ssl.SSLContext, timeout_s: float) -> tuple[ssl.SSLSocket, str]:
    """Return a non-blocking connection to the interchange after its handshake, and the address that led there.

    Arguments and errors are as of `dial`.
    """
    deadline = time.monotonic() + timeout_s
    for pause_s in _PAUSES_S:
        try:
            return _first(addresses, context, deadline, timeout_s)
        except Unreachable:
            if time.monotonic() + pause_s >= deadline:
                raise
        time.sleep(pause_s)
    return _first(addresses, context, deadline, timeout_s)


def _first(
    addresses: Sequence[str], context: ssl.SSLContext, deadline: float, timeout_s: float
) -> tuple[ssl.SSLSocket, str]:
    """Try all addresses once."""
    attempts = _Attempts(addresses, context)
    try:
        return attempts.first(deadline, timeout_s)
    finally:
        attempts.close()


def _local(path: str) -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    try:
        end.connect(path)
    except OSError as error:
        end.close()
        raise Unreachable(f"{path}: {trouble_of(error)}") from error
    return end


class _Attempts:
    """Connections that are being made, each to one address."""

    def __init__(self, addresses: Sequence[str], context: ssl.SSLContext) -> None:
        self._context = context
        self._selector = selectors.DefaultSelector()
        #: What became of the attempts that are over.
        self._failures: dict[str, str] = {}
        self._pending: dict[socket.socket, str] = {}
        for address in addresses:
            self._begin(address)

    def _begin(self, address: str) -> None:
        host, _, port = address.partition("://")[2].rpartition(":")
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            self._failures[address] = str(error)
            return
        for family, kind, protocol, _, target in found:
            try:
                end = socket.socket(family, kind, protocol)
            except OSError as error:  # a node without IPv6, for one; another address may do
                self._failures[address] = trouble_of(error)
                continue
            end.setblocking(False)
            code = end.connect_ex(target)
            if code not in (0, errno.EINPROGRESS):
                self._failures[address] = os.strerror(code)
                end.close()
                continue
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pending[end] = address
            self._selector.register(end, selectors.EVENT_WRITE)

    def first(self, deadline: float, timeout_s: float) -> tuple[ssl.SSLSocket, str]:
        """Return the first that completes its handshake, and its address."""
        while self._pending:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            for selected, _ in self._selector.select(left_s):
                end = selected.fileobj
                assert isinstance(end, socket.socket)
                if (found := self._advance(end)) is not None:
                    return found
        for address in self._pending.values():
            self._failures.setdefault(address, f"no answer in {timeout_s:g} s")
        lines = "".join(f"\n  {address}: {failure}" for address, failure in self._failures.items())
        raise Unreachable(f"the interchange cannot be reached from {socket.gethostname()}:{lines}")

    def _advance(self, end: socket.socket) -> tuple[ssl.SSLSocket, str] | None:
        """Take the next step of an attempt; return the connection and its address if it was the last."""
        if not isinstance(end, ssl.SSLSocket):
            code = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._fail(end, os.strerror(code))
                return None
            wrapped = self._wrapped(end)
            if wrapped is None:
                return None
            end = wrapped
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            self._selector.modify(end, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._selector.modify(end, selectors.EVENT_WRITE)
        except OSError as error:
            self._fail(end, trouble_of(error))
        else:
            self._selector.unregister(end)
            return end, self._pending.pop(end)
        return None

    def _wrapped(self, end: socket.socket) -> ssl.SSLSocket | None:
        """Begin the handshake on a connection; None: it was reset in this moment."""
        self._selector.unregister(end)
        address = self._pending.pop(end)
        try:
            wrapped = self._context.wrap_socket(end, do_handshake_on_connect=False)
        except OSError as error:
            self._failures[address] = trouble_of(error)
            end.close()
            return None
        self._pending[wrapped] = address
        self._selector.register(wrapped, selectors.EVENT_WRITE)
        return wrapped

    def _fail(self, end: socket.socket, reason: str) -> None:
        self._failures[self._pending.pop(end)] = reason
        self._selector.unregister(end)
        end.close()

    def close(self) -> None:
        """Give up the attempts that are left."""
        for end in list(self._pending):
            end.close()
        self._pending.clear()
        self._selector.close()
