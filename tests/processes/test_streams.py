"""Streams by name on a loop, and those whose connection breaks and is made anew."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from hpcpool.processes.event_loop import EventLoop
from hpcpool.processes.streams import Streams
from hpcpool.wire.lasting_stream import LastingStream
from hpcpool.wire.messages import Heartbeat, MessageError
from hpcpool.wire.stream import Message, Stream

MIB = 2**20


class Side:
    """Streams on a loop; the other end of the only one of them, and what has come from there."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.streams = Streams(self.loop)
        ours, theirs = map(LastingStream, socket.socketpair())
        self.other = theirs
        self.came: list[Message] = []
        self.is_open = True
        self.streams.add(b"a", ours, self.hear)

    def hear(self, name: bytes, messages: list[Message], is_open: bool) -> None:
        self.came += messages
        self.is_open = is_open

    def arrived(self, count: int) -> list[Message]:
        """The next messages at the other end."""
        messages: list[Message] = []
        while len(messages) < count:
            self.loop.wait(0)
            messages += self.other.receive()
        return messages


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    yield side
    side.streams.close()
    side.other.close()


def test_what_waits_for_room_when_the_connection_breaks_goes_over_the_next_one(side):
    side.streams.send(b"a", [Heartbeat()], [bytes(8 * MIB)])
    side.streams.cut_off(b"a")
    side.streams.send(b"a", [Heartbeat()], [bytes(8 * MIB)])
    side.loop.wait(0)  # nobody waits for room where there is no connection
    fresh, other = map(Stream, socket.socketpair())
    side.streams.go_on(b"a", fresh, 0, side.hear)
    side.other.go_on(other)
    assert [len(frames[0]) for _, frames in side.arrived(2)] == [8 * MIB, 8 * MIB]


def test_what_cannot_go_on_stays_as_it_was(side):
    fresh, other = map(Stream, socket.socketpair())
    with pytest.raises(MessageError, match="7 messages confirmed, of 0"):
        side.streams.go_on(b"a", fresh, 7, side.hear)
    for end in (fresh, other):
        end.close()
    side.streams.send(b"a", [Heartbeat()])
    assert len(side.arrived(1)) == 1


def test_who_is_removed_while_it_is_cut_off_is_forgotten(side):
    side.streams.cut_off(b"a")
    side.streams.remove(b"a")
    assert b"a" not in side.streams
    side.streams.send(b"a", [Heartbeat()])
