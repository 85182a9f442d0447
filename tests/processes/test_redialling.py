"""How a manager dials its interchange again. Whole pools whose tunnels break are in `tests/live`."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator

import pytest

from hpcpool.processes import redialling
from hpcpool.processes.connection import TUNNEL, Connection
from hpcpool.processes.dialling import Unreachable
from hpcpool.processes.event_loop import EventLoop
from hpcpool.processes.guests import Guests
from hpcpool.processes.redialling import Redialling
from hpcpool.wire.messages import Rejoin, from_returning
from hpcpool.wire.stream import Stream
from hpcpool.wire.tls import REJOIN_PROTOCOL, TlsEnd

PATIENCE_S = 20.0


class Sides:
    """An interchange's entrance and a manager's dialling, on one loop; who has come, and what was found."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.came: list[Stream] = []
        self.found: list[Stream] = []
        self.guests = Guests(self.loop, (0, 0), lambda stream, block: None, {REJOIN_PROTOCOL: self.readmit})
        authority, key = self.guests.keys.authority.decode(), self.guests.keys.issue("p-0").decode()
        connection = Connection([f"{TUNNEL}127.0.0.1:{self.guests.port}"], "fork", authority=authority, key=key)
        self.redialling = Redialling(connection, b"token", self.loop, self.found.append)

    def readmit(self, end: ssl.SSLSocket, block: str) -> None:
        self.came.append(Stream(TlsEnd(end)))

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            self.loop.wait(0.05)

    def close(self) -> None:
        self.redialling.close()
        self.guests.close()
        for stream in (*self.came, *self.found):
            stream.close()


@pytest.fixture
def sides() -> Iterator[Sides]:
    with contextlib.closing(Sides()) as sides:
        yield sides


def test_it_says_who_comes_back_and_how_much_that_has_had(sides):
    sides.redialling.begin(7)
    sides.until(lambda: sides.came and sides.found)
    said: list[tuple[bytes, list[bytes]]] = []
    # Who was too slow for the first attempt comes once more.
    sides.until(lambda: said.extend(message for stream in sides.came for message in stream.receive()) or said)
    assert from_returning.decode(said[0][0]) == [Rejoin(b"token", 7)]


def test_what_breaks_as_soon_as_it_is_found_is_not_dialled_without_a_pause(sides):
    began = time.monotonic()
    for count in (1, 2, 3):
        sides.redialling.begin(0)
        sides.until(lambda count=count: len(sides.found) == count)
    assert time.monotonic() - began >= 2 * redialling._PAUSE_S


def test_it_goes_on_when_a_dial_fails_for_want_of_descriptors(sides, monkeypatch):
    real, failures = redialling.connect, [OSError(24, "Too many open files")]

    def connect(*args):
        if failures:
            raise failures.pop()
        return real(*args)

    monkeypatch.setattr(redialling, "connect", connect)
    sides.redialling.begin(0)
    sides.until(lambda: sides.found)
    assert not failures


def test_it_is_less_patient_at_first_with_addresses_that_say_nothing(sides, monkeypatch):
    real, patience_s = redialling.connect, []

    def connect(addresses, context, timeout_s):
        patience_s.append(timeout_s)
        if len(patience_s) % 5:
            raise Unreachable
        return real(addresses, context, timeout_s)

    monkeypatch.setattr(redialling, "connect", connect)
    monkeypatch.setattr(redialling, "_PAUSE_S", 0.0)
    for count in (1, 2):
        sides.redialling.begin(0)
        sides.until(lambda count=count: len(sides.found) == count)
    assert patience_s == [3.0, 5.0, 10.0, 10.0, 10.0] * 2
