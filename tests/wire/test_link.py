from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpool.wire.link import OutcomeReader, TaskReader, encode_tasks, permits_for, take_permits, write_outcome
from hpcpool.wire.messages import Crash, Outcome, Task


class Pipe:
    """A byte stream without a kernel: what was sent can be received, in pieces of at most `piece` bytes."""

    def __init__(self, piece: int = 1 << 30) -> None:
        self.data = bytearray()
        self._piece = piece

    def sendall(self, data: Any) -> None:
        self.data += memoryview(data).cast("B")

    def recv(self, most: int) -> bytes:
        data = bytes(self.data[: min(most, self._piece)])
        del self.data[: len(data)]
        return data

    def recv_into(self, view: memoryview) -> int:
        data = self.recv(len(view))
        view[: len(data)] = data
        return len(data)


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


# -- tasks

TASKS = st.lists(
    st.lists(
        st.tuples(
            st.builds(
                Task,
                st.integers(0, 2**63),
                st.binary(max_size=300),
                layout=st.lists(st.integers(-1, 2**20), max_size=4).map(tuple),
            ),
            st.lists(st.binary(max_size=200), max_size=3),
        ),
        min_size=1,
        max_size=4,
    ),
    max_size=4,
)


class Manager:
    """The manager's end of a link and of its permits, and the worker's reader."""

    def __init__(self, piece: int = 1 << 30) -> None:
        self.link = Pipe(piece)
        self.permits, self.permit = os.pipe()
        os.set_blocking(self.permits, False)
        self.reader = TaskReader(self.permits, self.link)  # type: ignore[arg-type]
        self.sent = 0

    def send(self, *batch: tuple[Task, list[Any]]) -> None:
        tasks = [task for task, _ in batch]
        for task, frames in batch:
            task.frames = len(frames)
        for piece in encode_tasks(tasks, [frame for _, frames in batch for frame in frames]):
            self.link.sendall(piece)
        os.write(self.permit, permits_for(self.sent, len(tasks)))
        self.sent += len(tasks)

    def read(self) -> int:
        read = self.reader.next()
        assert read is not None
        return read[0].id


@pytest.fixture
def manager():
    manager = Manager()
    yield manager
    os.close(manager.permits)
    with contextlib.suppress(OSError):  # the test has closed it
        os.close(manager.permit)


@given(batches=TASKS, piece=st.sampled_from([1, 7, 1000, 1 << 30]))
def test_tasks_arrive_in_whatever_batches_and_pieces_they_come(batches, piece):
    manager = Manager(piece)
    try:
        for batch in batches:
            manager.send(*batch)
        assert [manager.reader.next() for batch in batches for _ in batch] == [
            task for batch in batches for task in batch
        ]
    finally:
        os.close(manager.permits)
        os.close(manager.permit)


def test_a_task_of_any_size_arrives(manager):
    frames = [b"a" * 3_000_000, bytearray(b"b"), memoryview(b"")]
    manager.send((Task(1, b"x" * 1_000_000, (10_000,) * 13_000), frames), (Task(2, b""), []))
    task, arrived = manager.reader.next()
    assert (len(task.data), arrived) == (1_000_000, frames)
    assert all(type(frame) is bytearray for frame in arrived)
    assert manager.read() == 2


def test_a_large_frame_is_in_memory_once(manager):
    frame = bytes(50_000_000)
    pieces = encode_tasks([Task(1, b"", frames=1)], [frame])
    os.write(manager.permit, permits_for(0, 1))
    link, worker_link = socket.socketpair()
    with link, worker_link:
        reader = TaskReader(manager.permits, worker_link)
        sender = threading.Thread(target=lambda: [link.sendall(piece) for piece in pieces])
        sender.start()
        tracemalloc.start()
        try:
            assert reader.next() == (Task(1, b"", frames=1), [frame])
            assert tracemalloc.get_traced_memory()[1] < 1.5 * len(frame)
        finally:
            tracemalloc.stop()
            sender.join()


def test_what_was_not_begun_can_be_taken_back_and_is_passed_over(manager):
    manager.send(*((Task(number, b""), []) for number in range(4)))
    manager.send((Task(4, b"", frames=1), [b"frame"]))
    assert manager.read() == 0
    assert take_permits(manager.permits) == 4
    assert take_permits(manager.permits) == 0
    manager.send((Task(10, b""), []), (Task(11, b""), []))
    assert [manager.read(), manager.read()] == [10, 11]


def test_each_task_goes_to_exactly_one_of_worker_and_manager(manager):
    """However the two race for it."""
    total, read, taken = 2000, [], []
    for number in range(total):
        manager.send((Task(number, b""), []))
    worker = threading.Thread(target=lambda: read.extend(iter(manager.reader.next, None)))
    worker.start()
    while len(read) + sum(taken) < total:
        taken.append(take_permits(manager.permits))
    os.close(manager.permit)
    worker.join()
    assert [task.id for task, _ in read] == sorted({task.id for task, _ in read})
    assert len(read) + sum(taken) == total


def test_closed_permits_are_the_end_but_only_behind_the_last_task(manager):
    manager.send((Task(1, b""), []))
    os.close(manager.permit)
    assert manager.read() == 1
    assert manager.reader.next() is None


def test_a_worker_waits_for_a_task(manager):
    sender = threading.Timer(0.05, lambda: manager.send((Task(1, b""), [])))
    sender.start()
    assert manager.read() == 1
    sender.join()


def test_a_link_that_ends_in_the_middle_of_a_task_is_the_managers_end(manager):
    manager.send((Task(1, b""), [b"x" * 1000]))
    del manager.link.data[-1:]
    with pytest.raises(EOFError, match="the manager has gone"):
        manager.reader.next()
