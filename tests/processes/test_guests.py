"""Those who come over TCP and are nobody: they cost nothing and stop nothing."""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Iterator

import pytest

from hpcpool.processes.event_loop import EventLoop
from hpcpool.processes.guests import Guests
from hpcpool.wire.stream import Stream
from hpcpool.wire.tls import FILES_PROTOCOL


class Port:
    """A port on a loop, and who has come in there."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.admitted: list[tuple[Stream, str]] = []
        self.asking: list[tuple[socket.socket, str]] = []
        self.guests = Guests(
            self.loop,
            (0, 0),
            lambda stream, block: self.admitted.append((stream, block)),
            {FILES_PROTOCOL: lambda end, block: self.asking.append((end, block))},
        )

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.guests.port), timeout=10)


@pytest.fixture
def port() -> Iterator[Port]:
    port = Port()
    yield port
    for end, _ in [*port.admitted, *port.asking]:
        end.close()
    port.guests.close()


@pytest.mark.parametrize("said", [b"", b"x"], ids=["silently", "after a word"])
def test_who_resets_the_connection_before_it_is_looked_at_stops_nobody(said: bytes, port: Port):
    peer = port.connect()
    peer.sendall(said)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends a reset
    peer.close()
    port.loop.wait(10)
    assert port.guests.step_at == math.inf  # nobody is waited for
    assert not port.admitted


def test_ports_that_are_taken_are_named():
    with socket.create_server(("", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot come in at port {number}: .*; change ports in the Config"):
            Guests(EventLoop(), (number, number), lambda stream, block: None, {})
