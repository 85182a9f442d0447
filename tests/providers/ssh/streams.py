"""Servers for what comes through a tunnel, each in threads of its own until it is closed. No test is here."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

PATIENCE_S = 30.0
#: How much is sent at a time.
_PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def serving(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on the loopback address, which handles each connection in a thread; gives its port."""
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    stream = listener.accept()[0]
                except OSError:
                    return
                thread = threading.Thread(target=run, args=(stream,))
                threads.append(thread)
                thread.start()

        def run(stream: socket.socket) -> None:
            with stream, contextlib.suppress(OSError):
                stream.settimeout(PATIENCE_S)
                handle(stream)

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join()


def echo(stream: socket.socket) -> None:
    while data := stream.recv(1 << 16):
        stream.sendall(data)


def to_end(stream: socket.socket) -> bytes:
    """All that comes until the other side ends."""
    received = bytearray()
    while data := stream.recv(1 << 16):
        received += data
    return bytes(received)


def connect_to(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port), timeout=PATIENCE_S)


def answer_of(address: str, port: int, sent: bytes) -> bytes:
    """What comes back when this is sent and then nothing more."""
    with connect_to(address, port) as stream:
        writer = threading.Thread(target=send_and_end, args=(stream, sent))
        writer.start()
        received = to_end(stream)
        writer.join()
    return received


def send_and_end(stream: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        for start in range(0, len(data), _PIECE_BYTES):  # the time limit of `sendall` is for all that it is given
            stream.sendall(data[start : start + _PIECE_BYTES])
        stream.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port of the loopback address on which nobody listens, and which nobody else is given."""
    with socket.socket() as stream:
        stream.bind(("127.0.0.1", 0))
        yield stream.getsockname()[1]


def is_refused(address: str, port: int) -> bool:
    """Whether nobody listens there."""
    try:
        connect_to(address, port).close()
    except OSError:
        return True
    return False
