"""How a manager finds its interchange where some of the ways lead nowhere. Whole pools do it in `tests/live`."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from hpcpool.processes import dialling
from hpcpool.processes.dialling import Unreachable, dial
from hpcpool.processes.event_loop import EventLoop
from hpcpool.processes.guests import Guests
from hpcpool.wire.stream import Stream

#: A family of addresses that no kernel knows: what IPv6 is to one that was started without it.
_UNKNOWN_FAMILY = 99


@pytest.fixture
def _without_ipv6(monkeypatch):
    real = socket.getaddrinfo

    def find(host, port, **options):
        found = real(host, port, **options)
        return [(_UNKNOWN_FAMILY if entry[0] == socket.AF_INET6 else entry[0], *entry[1:]) for entry in found]

    monkeypatch.setattr(dialling.socket, "getaddrinfo", find)


@pytest.mark.usefixtures("_without_ipv6")
def test_a_node_without_ipv6_comes_in_by_another_address():
    came: list[Stream] = []
    loop = EventLoop()
    guests = Guests(loop, (0, 0), lambda stream, block: came.append(stream), {})
    ways = [f"tcp://[::1]:{guests.port}", f"tcp://127.0.0.1:{guests.port}"]
    authority, key = guests.keys.authority, guests.keys.issue("a-0")
    found: list[Stream] = []
    dialler = threading.Thread(target=lambda: found.append(dial(ways, authority, key, timeout_s=30)[0]))
    dialler.start()
    while not came and (dialler.is_alive() or found):  # it is through before the other side has heard its last word
        loop.wait(0.1)
    dialler.join()
    with contextlib.closing(guests), contextlib.closing(came[0]), contextlib.closing(found[0]):
        assert found[0].is_open


@pytest.mark.usefixtures("_without_ipv6")
def test_that_an_address_needs_ipv6_is_told():
    guests = Guests(EventLoop(), (0, 0), lambda stream, block: None, {})
    with contextlib.closing(guests), pytest.raises(Unreachable, match="Address family not supported"):
        dial([f"tcp://[::1]:{guests.port}"], guests.keys.authority, guests.keys.issue("a-0"), timeout_s=10)
