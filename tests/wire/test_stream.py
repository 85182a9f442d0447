from __future__ import annotations

import contextlib
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcpool.wire.messages import MessageError
from hpcpool.wire.stream import Stream
from tests.interrupts import interrupted_at

Ends = tuple[Stream, Stream]


@pytest.fixture
def ends() -> Iterator[Ends]:
    yield from open_ends()


def open_ends() -> Iterator[Ends]:
    first, second = map(Stream, socket.socketpair())
    try:
        yield first, second
    finally:
        first.close()
        second.close()


def carried(sender: Stream, receiver: Stream, count: int) -> list[tuple[bytes, list[bytes]]]:
    """The next messages, the sender being let go on as often as it wants."""
    messages: list[tuple[bytes, list[bytes]]] = []
    for _ in range(10_000):
        messages += [(header, [bytes(frame) for frame in frames]) for header, frames in receiver.receive()]
        if len(messages) >= count:
            return messages
        sender.flush()
    raise AssertionError(f"{len(messages)} of {count} messages have come")


KIB = 1024
SIZES = st.integers(0, 300) | st.sampled_from(
    [64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 128 * KIB, 256 * KIB, 300_000, 2_000_000]
)
MESSAGES = st.lists(st.tuples(SIZES, st.lists(SIZES, max_size=4)), max_size=8)


@given(shape=MESSAGES, seed=st.integers(0, 2**32))
@settings(max_examples=60, suppress_health_check=[HealthCheck.data_too_large])
def test_messages_arrive_whole_and_in_order(shape, seed):
    chance = random.Random(seed)
    sent = [(chance.randbytes(size), [chance.randbytes(frame) for frame in frames]) for size, frames in shape]
    for first, second in open_ends():
        received = []
        for header, frames in sent:
            first.send(header, frames)
            if chance.random() < 0.5:
                received += [(header, [bytes(frame) for frame in frames]) for header, frames in second.receive()]
        received += carried(first, second, len(sent) - len(received))
        assert received == sent
        assert not first.wants_to_write
        assert second.receive() == []
        assert second.is_open


def test_both_ends_can_speak_at_once(ends):
    first, second = ends
    first.send(b"question", [b"x" * 3_000_000])
    second.send(b"answer", [b"y" * 3_000_000])
    (question,), (answer,) = carried(first, second, 1), carried(second, first, 1)
    assert question == (b"question", [b"x" * 3_000_000])
    assert answer == (b"answer", [b"y" * 3_000_000])


def test_sending_never_blocks_but_keeps_what_there_is_no_room_for(ends):
    first, second = ends
    for number in range(20):
        first.send(b"%d" % number, [bytes(1_000_000)])
    assert first.wants_to_write
    assert [header for header, _ in carried(first, second, 20)] == [b"%d" % number for number in range(20)]
    assert not first.wants_to_write


def test_small_messages_behind_a_full_channel_keep_their_turn(ends):
    first, second = ends
    while not first.wants_to_write:
        first.send(b"x" * 100_000)
    first.send(b"last")
    first.send(b"very last", [b"f"])
    messages = carried(first, second, 1)
    while messages[-1][0] != b"very last":
        messages += carried(first, second, 1)
    assert messages[-2:] == [(b"last", []), (b"very last", [b"f"])]


def test_receiving_without_a_message_gives_nothing(ends):
    assert ends[0].receive() == []
    assert ends[0].is_open


def test_a_message_that_has_come_in_part_is_not_there_yet(ends):
    first, second = ends
    whole = [(b"header", [b"frame" * 20_000, b"", b"end"])]
    raw = raw_bytes(*whole[0])
    for cut in (1, 7, 8, 20, 40, 41, 5000, 100_000, len(raw) - 1):
        first._socket.send(raw[:cut])
        assert second.receive() == []
        assert second.is_open
        first._unsent.append(memoryview(raw[cut:]))
        assert carried(first, second, 1) == whole


def raw_bytes(header: bytes, frames: list[bytes]) -> bytes:
    """What `send` puts on the wire."""
    for first, second in open_ends():
        first.send(header, frames)
        raw = b""
        while True:
            try:
                raw += second._socket.recv(1 << 20)
            except BlockingIOError:
                return raw
    raise AssertionError


@pytest.mark.parametrize("size", [0, 10, 100_000, 1_000_000])
def test_frames_may_be_any_buffer_and_can_be_written_to_when_they_arrive(ends, size):
    first, second = ends
    frames = [np.arange(size, dtype=np.uint8).data, bytearray(size), memoryview(bytes(8 * size)).cast("d")]
    first.send(b"h", frames)
    received: list[tuple[bytes, list[bytearray]]] = []
    while not received:
        received += second.receive()
        first.flush()
    ((_, arrived),) = received
    assert [bytes(frame) for frame in arrived] == [bytes(frame) for frame in frames]
    assert all(not memoryview(frame).readonly for frame in arrived)


def test_many_frames_in_one_message(ends):
    first, second = ends
    frames = [b"%d" % number for number in range(3000)]
    first.send(b"h", frames)
    assert carried(first, second, 1) == [(b"h", frames)]


def test_what_was_sent_before_the_end_still_arrives(ends):
    first, second = ends
    first.send(b"one")
    first.send(b"two", [b"frame"])
    first.close()
    assert second.is_open
    messages = second.receive()
    while second.is_open:
        messages += second.receive()
    assert [(header, [bytes(frame) for frame in frames]) for header, frames in messages] == [
        (b"one", []),
        (b"two", [b"frame"]),
    ]


def test_an_end_in_the_middle_of_a_message_is_an_end(ends):
    first, second = ends
    first._socket.send(raw_bytes(b"header", [b"x" * 200_000])[:100_000])
    first.close()
    messages = []
    for _ in range(10):
        messages += second.receive()
    assert messages == []
    assert not second.is_open


def test_sending_to_one_who_has_gone_does_no_harm(ends):
    first, second = ends
    second.close()
    first.send(b"x")
    first.send(b"y", [b"frame"])
    assert not first.wants_to_write
    first.receive()
    assert not first.is_open


def test_what_waits_for_one_who_has_gone_is_dropped(ends):
    first, second = ends
    first.send(b"x", [bytes(10_000_000)])
    assert first.wants_to_write
    second.close()
    first.flush()
    assert not first.wants_to_write


def test_a_stream_can_be_polled(ends):
    assert ends[0].fileno() == ends[0]._socket.fileno()
    ends[0].close()
    assert ends[0].fileno() == -1
    assert not ends[0].is_open


def test_an_interrupted_message_goes_out_once_or_not_at_all():
    """Wherever Ctrl-C strikes, and whatever the kernel has taken by then."""
    message = bytes(range(256)) * 4096
    place, struck = -1, True
    while struck or place < 1:
        place += 1
        for first, second in open_ends():
            with contextlib.suppress(KeyboardInterrupt), interrupted_at(place, "wire/stream.py") as interrupter:
                first.send_interruptibly(message)
            struck = interrupter.has_struck
            first.send(b"the next")
            received = carried(first, second, 1)
            if received[0] == (message, []):
                received += carried(first, second, 1) if len(received) < 2 else []
                received = received[1:]
            assert received == [(b"the next", [])]
    assert place > 3


def test_what_an_interrupted_message_was_waiting_behind_is_not_lost(ends):
    first, second = ends
    message = bytes(5_000_000)
    first.send_interruptibly(message)
    assert first.wants_to_write
    first.send(b"after", [b"frame"])
    assert carried(first, second, 2) == [(message, []), (b"after", [b"frame"])]


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("!QI", 2**50, 0),
        struct.pack("!QI", 4, 2**32 - 1),
        struct.pack("!QI", 4, 1) + struct.pack("!Q", 2**63) + b"head",
        struct.pack("!QI", 4, 2) + struct.pack("!QQ", 2**40, 1) + b"head",
    ],
)
def test_what_announces_more_than_any_message_has_is_none(ends, raw):
    first, second = ends
    first._socket.send(raw)
    with pytest.raises(MessageError, match="announced"):
        second.receive()


def test_the_death_of_the_other_end_does_not_raise_sigpipe():
    """A user's program may have asked to be ended by it."""
    code = (
        "import signal, socket\n"
        "from hpcpool.wire.stream import Stream\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "first, second = map(Stream, socket.socketpair())\n"
        "second.close()\n"
        "first.send(b'x'), first.send(b'x', [b'y']), first.flush()\n"
        "first.send_interruptibly(b'x'), first.flush()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
