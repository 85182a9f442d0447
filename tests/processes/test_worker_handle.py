"""The manager's side of a worker's channels, with a worker's end that the test holds."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hpcpool.processes.event_loop import READ, WRITE
from hpcpool.processes.worker_handle import WorkerHandle
from hpcpool.wire.link import TaskReader
from hpcpool.wire.messages import Task
from tests.conftest import open_descriptors


class Loop:
    """Knows what the handle waits for."""

    events = READ

    def change(self, watched: Any, events: int) -> None:
        self.events = events


class Worker:
    """A handle and the worker's end of it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.handle = WorkerHandle(1)
        permits, _, _ = self.handle.worker_ends
        self.link = self.handle._worker_link.dup()
        self.reader = TaskReader(permits, self.link)
        self.handle.handed_over()

    def send(self, *tasks: Task, frames: tuple[bytes, ...] = ()) -> None:
        for task in tasks:
            self.handle.give(task, frames)
        self.handle.send(self.loop)  # type: ignore[arg-type]


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.handle.close()
    worker.link.close()


def test_what_a_link_has_no_room_for_is_sent_when_it_has(worker: Worker):
    frame = bytes(5_000_000)
    worker.send(Task(1, b"", frames=1), frames=(frame,))
    assert worker.loop.events == READ | WRITE
    worker.send(Task(2, b""))  # behind it
    read: list[Any] = []
    reading = threading.Thread(target=lambda: read.extend([worker.reader.next(), worker.reader.next()]))
    reading.start()
    while worker.loop.events & WRITE:
        worker.handle.has_room(worker.loop)  # type: ignore[arg-type]
    reading.join()
    assert read == [(Task(1, b"", frames=1), [frame]), (Task(2, b""), [])]


def test_what_was_taken_back_in_the_middle_of_its_way_is_passed_over(worker: Worker):
    worker.send(Task(1, b"", frames=1), frames=(bytes(5_000_000),))
    assert worker.handle.take_back() == 1
    worker.send(Task(2, b""))
    reading = threading.Thread(target=lambda: read.append(worker.reader.next()))
    read: list[Any] = []
    reading.start()
    while worker.loop.events & WRITE:
        worker.handle.has_room(worker.loop)  # type: ignore[arg-type]
    reading.join()
    assert read == [(Task(2, b""), [])]


def test_what_was_given_and_not_sent_is_taken_back_with_what_was_not_begun(worker: Worker):
    worker.send(Task(1, b""), Task(2, b""))
    assert worker.reader.next() == (Task(1, b""), [])
    worker.handle.give(Task(3, b"", frames=1), [b"frame"])
    assert worker.handle.take_back() == 2
    worker.send(Task(4, b""))
    assert worker.reader.next() == (Task(4, b""), [])


def test_a_worker_that_has_died_leaves_what_it_was_sent_to_be_taken_back(worker: Worker):
    worker.send(Task(1, b"", frames=1), frames=(bytes(5_000_000),))
    worker.link.close()
    worker.handle.has_room(worker.loop)  # type: ignore[arg-type]
    worker.send(Task(2, b""))
    assert worker.loop.events == READ
    assert worker.handle.take_back() == 2
    assert worker.handle.drain_outcomes() == []


def test_a_worker_that_is_to_retire_does_what_it_holds_first(worker: Worker):
    worker.send(Task(1, b""))
    worker.handle.retire()
    assert worker.reader.next() == (Task(1, b""), [])
    assert worker.reader.next() is None


@pytest.mark.parametrize("room", range(6))
def test_nothing_stays_open_where_there_is_no_room_for_all_of_it(room: int):
    is_open = open_descriptors()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, is_open)) + 20, limits[1]))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                fillers.append(os.dup(0))
        for filler in fillers[:room]:
            os.close(filler)
        with pytest.raises(OSError, match="Too many open files"):
            WorkerHandle(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for filler in fillers[room:]:
            os.close(filler)
    assert open_descriptors() == is_open
