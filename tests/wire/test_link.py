from __future__ import annotations

import random
import select
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpool.wire.link import (
    ANNOUNCEMENT,
    CALLS_BYTES,
    CALLS_TYPE,
    OutcomeReader,
    encode_call,
    is_announced,
    read_call,
    write_outcome,
)
from hpcpool.wire.messages import Crash, Outcome, Task, decode_task


class Pipe:
    """A byte stream without a kernel: what was sent can be received, in pieces of at most `piece` bytes."""

    def __init__(self, piece: int = 1 << 30) -> None:
        self.data = bytearray()
        self._piece = piece

    def sendall(self, data: Any) -> None:
        self.data += memoryview(data).cast("B")

    def recv_into(self, view: memoryview) -> int:
        size = min(len(view), len(self.data), self._piece)
        view[:size] = self.data[:size]
        del self.data[:size]
        return size


OUTCOMES = st.lists(
    st.tuples(
        st.builds(
            Outcome,
            st.integers(0, 2**63),
            st.integers(0, 6),
            data=st.binary(max_size=300),
            layout=st.lists(st.integers(-1, 100), max_size=4).map(tuple),
            host=st.text(max_size=10),
            crash=st.none() | st.builds(Crash, st.integers(0, 255), st.integers(0, 64), st.booleans(), st.text()),
        ),
        st.lists(st.binary(max_size=200), max_size=4),
    ),
    max_size=6,
)


# -- outcomes


@given(outcomes=OUTCOMES, seed=st.integers(0, 2**32))
def test_outcomes_arrive_in_whatever_pieces_the_bytes_come(outcomes, seed):
    pipe, chance, reader = Pipe(), random.Random(seed), OutcomeReader()
    for outcome, frames in outcomes:
        write_outcome(pipe, outcome, frames)  # type: ignore[arg-type]
    arrived = []
    while pipe.data:
        size = chance.choice([1, 2, 11, 12, 13, 50, 1000])
        arrived += list(reader.feed(bytes(pipe.data[:size])))
        del pipe.data[:size]
    assert arrived == outcomes


def test_an_outcome_is_there_as_soon_as_its_last_byte_is():
    pipe, reader = Pipe(), OutcomeReader()
    write_outcome(pipe, Outcome(1, 0, data=b"x"), [b"frame"])  # type: ignore[arg-type]
    assert list(reader.feed(bytes(pipe.data[:-1]))) == []
    assert list(reader.feed(bytes(pipe.data[-1:]))) == [(Outcome(1, 0, data=b"x"), [b"frame"])]
    assert list(reader.feed(b"")) == []


def test_frames_may_be_any_buffers_and_large():
    pipe, reader = Pipe(), OutcomeReader()
    frames = [bytearray(b"a"), memoryview(bytes(1_000_000)), b""]
    write_outcome(pipe, Outcome(1, 0), frames)  # type: ignore[arg-type]
    ((_, arrived),) = reader.feed(bytes(pipe.data))
    assert arrived == [b"a", bytes(1_000_000), b""]


# -- calls


@pytest.fixture
def calls():
    """The manager's and the worker's end, and a poll object with the latter."""
    manager, worker = socket.socketpair(socket.AF_UNIX, CALLS_TYPE)
    waiting = select.poll()
    waiting.register(worker, select.POLLIN)
    with manager, worker:
        yield manager, worker, waiting


def give(manager: socket.socket, link: Pipe, task: Task, frames: list[Any]) -> bytes:
    message, following = encode_call(task, frames)
    for piece in following:
        link.sendall(piece)
    manager.send(message)
    return message


def test_small_calls_are_messages_of_their_own(calls):
    manager, worker, waiting = calls
    link = Pipe()
    tasks = [Task(number, b"data", (1, 4), blobs=(b"key",)) for number in range(5)]
    for task in tasks:
        assert decode_task(give(manager, link, task, [])) == task
    assert not link.data
    assert [read_call(worker, link, waiting) for _ in tasks] == [(task, []) for task in tasks]  # type: ignore[arg-type]


@pytest.mark.parametrize("piece", [1000, 1 << 30])
def test_calls_with_frames_are_announced_and_come_over_the_link(calls, piece):
    manager, worker, waiting = calls
    link = Pipe(piece)
    frames = [b"a" * 100_000, bytearray(b"b"), memoryview(b"")]
    task = Task(1, b"x" * 10, frames=3)
    assert give(manager, link, task, frames) == ANNOUNCEMENT
    give(manager, link, Task(2, b""), [])
    arrived = read_call(worker, link, waiting)  # type: ignore[arg-type]
    assert arrived == (task, frames)
    assert all(type(frame) is bytearray for frame in arrived[1])
    assert read_call(worker, link, waiting) == (Task(2, b""), [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "task",
    [
        Task(1, b"x" * CALLS_BYTES),
        Task(1, b"x" * (CALLS_BYTES - 4200)),
        Task(1, b"x" * (CALLS_BYTES - 4096)),
        Task(1, b"", (10_000,) * 13_000),
        Task(2**63, b"", blobs=(b"k" * 16,) * 10, priority=-(2**60), timeout_s=1e300, crash_limit=2**60),
    ],
    ids=["data", "less data", "at the limit", "layout", "the rest"],
)
def test_a_call_of_any_size_arrives(calls, task):
    manager, worker, waiting = calls
    link = Pipe()
    message = give(manager, link, task, [])
    assert len(message) <= CALLS_BYTES
    assert (message == ANNOUNCEMENT) == is_announced(task, [])
    assert read_call(worker, link, waiting) == (task, [])  # type: ignore[arg-type]


@given(st.builds(Task, st.integers(0, 2**63), st.binary(max_size=5), st.lists(st.integers(-1, 2**20)).map(tuple)))
def test_no_call_looks_like_an_announcement(task):
    message, _ = encode_call(task, [])
    assert message != ANNOUNCEMENT


def test_what_was_not_read_can_be_taken_back(calls):
    manager, worker, waiting = calls
    with worker.dup() as managers_copy:
        for number in range(4):
            give(manager, Pipe(), Task(number, b""), [])
        assert read_call(worker, Pipe(), waiting)[0].id == 0  # type: ignore[arg-type, index]
        taken = [decode_task(managers_copy.recv(CALLS_BYTES, socket.MSG_DONTWAIT)).id for _ in range(3)]
        assert taken == [1, 2, 3]
        with pytest.raises(BlockingIOError):
            worker.recv(CALLS_BYTES, socket.MSG_DONTWAIT)


def test_a_closed_channel_is_the_end_but_only_behind_the_last_call(calls):
    manager, worker, waiting = calls
    give(manager, Pipe(), Task(1, b""), [])
    manager.shutdown(socket.SHUT_WR)
    assert read_call(worker, Pipe(), waiting) == (Task(1, b""), [])  # type: ignore[arg-type]
    assert read_call(worker, Pipe(), waiting) is None  # type: ignore[arg-type]


def test_a_link_that_ends_in_the_middle_of_a_call_is_the_managers_end(calls):
    manager, worker, waiting = calls
    link = Pipe()
    give(manager, link, Task(1, b"", frames=1), [b"x" * 1000])
    del link.data[-1:]
    with pytest.raises(EOFError, match="the manager has gone"):
        read_call(worker, link, waiting)  # type: ignore[arg-type]
