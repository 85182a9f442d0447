"""Streams that go on over other connections: whenever those break, every message comes, once, and in order."""

from __future__ import annotations

import random
import socket
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcpool.wire.lasting_stream import LastingStream
from hpcpool.wire.messages import Heartbeat, MessageError, encode
from hpcpool.wire.stream import Stream

#: Bytes of a header and of the frames of one message.
SHAPES = st.tuples(st.integers(1, 40_000), st.lists(st.integers(0, 700_000), max_size=2))
STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "send", "send", "receive", "cut"]), st.booleans(), SHAPES), max_size=60
)


class Pair:
    """Two ends, what each has sent and what has come at each, and the connection between them."""

    def __init__(self) -> None:
        self.ends = [LastingStream(end) for end in socket.socketpair()]
        self.sent: list[list[tuple[bytes, list[bytes]]]] = [[], []]
        self.came: list[list[tuple[bytes, list[bytes]]]] = [[], []]

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *args: object) -> None:
        for end in self.ends:
            end.close()

    def send(self, side: int, header: bytes, *frames: bytes) -> None:
        self.sent[side].append((header, list(frames)))
        self.ends[side].send(header, frames)

    def receive(self, side: int) -> None:
        for header, frames in self.ends[side].receive():
            self.came[side].append((header, [bytes(frame) for frame in frames]))
        self.ends[side].flush()

    def cut(self, *, side: int) -> None:
        """The connection breaks; `side` dials anew and says how much it has had."""
        for end in self.ends:
            end.break_off()
        dialled, accepted = map(Stream, socket.socketpair())
        self.ends[1 - side].go_on(accepted, self.ends[side].received)
        self.ends[side].go_on(dialled)

    def settle(self) -> None:
        while any(len(self.came[side]) < len(self.sent[1 - side]) for side in (0, 1)):
            for side in (0, 1):
                self.ends[side].flush()
                self.receive(side)


def header(size: int) -> bytes:
    return b"\x91" + b"x" * size


@given(steps=STEPS, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
def test_every_message_comes_once_and_in_order_however_often_it_breaks(steps, seed):
    chance = random.Random(seed)
    with Pair() as pair:
        for step, side, (size, frames) in steps:
            if step == "send":
                pair.send(side, b"\x91" + chance.randbytes(size), *map(chance.randbytes, frames))
            elif step == "receive":
                pair.receive(side)
            else:
                pair.cut(side=side)
        pair.settle()
        assert pair.came == [pair.sent[1], pair.sent[0]]


def test_what_is_sent_without_a_connection_waits_for_the_next():
    with Pair() as pair:
        for end in pair.ends:
            end.break_off()
        pair.send(0, header(3), b"frame")
        assert not pair.ends[0].wants_to_write
        pair.cut(side=1)
        pair.settle()
        assert pair.came[1] == [(header(3), [b"frame"])]


def test_what_has_come_is_not_kept():
    with Pair() as pair:
        for _ in range(50):
            pair.send(0, header(10), bytes(500_000))
            pair.settle()
            pair.receive(0)  # confirmations
            assert len(pair.ends[0]._unconfirmed) <= 3
        for _ in range(1000):
            pair.send(0, header(10))
            pair.receive(1)
            pair.receive(0)
            assert len(pair.ends[0]._unconfirmed) <= 33


def test_both_ends_see_that_the_other_has_ended():
    with Pair() as pair:
        pair.ends[1].close()
        assert pair.ends[0].receive() == []
        assert not pair.ends[0].is_open
        pair.ends[0].send(header(1))


@pytest.mark.parametrize("has_had", [3, -1])
def test_the_other_side_cannot_have_had_what_was_not_sent(has_had):
    with Pair() as pair:
        pair.send(0, header(1))
        fresh, other = map(Stream, socket.socketpair())
        with pytest.raises(MessageError, match="messages confirmed, of 1"):
            pair.ends[0].go_on(fresh, has_had)
        for end in (fresh, other):
            end.close()
        pair.send(0, header(2))
        pair.settle()
        assert pair.came[1] == [(header(1), []), (header(2), [])], "nothing has changed"


def test_confirmations_that_make_no_sense_are_malformed_messages():
    for wrong in (struct.pack("!cQ", b"\xcf", 7), b"\xcf", b"\xcf" + b"\0" * 20):
        with Pair() as pair:
            Stream.send(pair.ends[0], wrong)
            with pytest.raises(MessageError, match="confirm"):
                pair.ends[1].receive()


def test_no_batch_of_messages_is_taken_for_a_confirmation():
    for count in (0, 1, 20, 70_000):
        assert encode([Heartbeat()] * count)[0] in (*range(0x90, 0xA0), 0xDC, 0xDD)


def test_a_connection_that_was_given_up_stays_open_until_the_other_side_has_the_next():
    with Pair() as pair:
        silent = pair.ends[0]._socket
        pair.send(0, header(1))
        pair.ends[0].give_up()
        pair.send(0, header(2))
        dialled, accepted = map(Stream, socket.socketpair())
        pair.ends[0].go_on(dialled)
        pair.receive(1)
        assert pair.ends[1].is_open, "it has heard of no end"
        assert silent.fileno() >= 0
        pair.ends[1].go_on(accepted, pair.ends[0].received)
        pair.settle()
        pair.receive(0)
        assert silent.fileno() < 0
        assert [len(message) for message, _ in pair.came[1]] == [2, 3], "each once"


def test_a_stream_that_is_closed_leaves_nothing_open_that_was_given_up():
    with Pair() as pair:
        silent = pair.ends[0]._socket
        pair.ends[0].give_up()
        dialled, other = map(Stream, socket.socketpair())
        pair.ends[0].go_on(dialled)
        other.close()
        pair.ends[0].close()
        assert silent.fileno() < 0
