from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from hpcpool.processes.incoming import Incoming
from hpcpool.wire.messages import Capacity, Fetched, MessageError, Warn, encode
from hpcpool.wire.stream import Stream


@pytest.fixture
def ends() -> Iterator[tuple[Stream, Stream]]:
    first, second = map(Stream, socket.socketpair())
    yield first, second
    first.close()
    second.close()


def test_who_waits_hears_of_what_is_fetched_and_all_is_kept_in_order(ends):
    here, there = ends
    incoming = Incoming(here, here.flush)
    heard: list[str] = []
    for batch in ([Warn("1"), Fetched("a")], [Capacity(1, 1), Fetched("b"), Warn("2")], [Fetched("c")]):
        there.send(encode(batch))
    incoming.wait(lambda message: heard.append(message.path), lambda: "b" in heard, None)
    assert heard[:2] == ["a", "b"]
    assert incoming.has_deferred
    taken = incoming.take()
    while len(taken) < 6:
        taken += incoming.take()
    assert [m for m, _ in taken] == [Warn("1"), Fetched("a"), Capacity(1, 1), Fetched("b"), Warn("2"), Fetched("c")]
    assert not incoming.has_deferred


def test_it_waits_until_it_comes_and_no_longer_than_it_may(ends):
    here, there = ends
    incoming = Incoming(here, here.flush)
    heard: list[str] = []
    with pytest.raises(TimeoutError):
        incoming.wait(lambda message: heard.append(message.path), lambda: bool(heard), time.monotonic() + 0.05)
    later = threading.Timer(0.1, lambda: there.send(encode([Fetched("a")])))
    later.start()
    incoming.wait(lambda message: heard.append(message.path), lambda: bool(heard), time.monotonic() + 20)
    assert heard == ["a"]
    later.join()


def test_what_must_go_out_first_does(ends):
    """More than the kernel takes at once, and the other side answers when it has all of it."""
    here, there = ends
    incoming = Incoming(here, here.flush)
    here.send(encode([Warn("x")]), [bytes(8 * 2**20)])
    assert here.wants_to_write

    def answer() -> None:
        while not there.receive():
            time.sleep(0.001)
        there.send(encode([Fetched("a")]))

    thread = threading.Thread(target=answer)
    thread.start()
    heard: list[str] = []
    incoming.wait(lambda message: heard.append(message.path), lambda: bool(heard), time.monotonic() + 20)
    assert heard == ["a"]
    thread.join()


def test_it_does_not_wait_for_a_stream_that_has_ended(ends):
    here, there = ends
    there.close()
    incoming = Incoming(here, here.flush)
    incoming.wait(lambda message: None, lambda: False, None)
    assert not here.is_open


def test_what_is_no_message_is_said_in_its_turn(ends):
    here, there = ends
    incoming = Incoming(here, here.flush)
    there.send(encode([Warn("1")]))
    there.send(b"nonsense")
    incoming.wait(lambda message: None, lambda: False, None)
    assert incoming.has_deferred
    with pytest.raises(MessageError, match="not a message"):
        incoming.take()
