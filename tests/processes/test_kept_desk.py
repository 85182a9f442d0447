"""Kept results at the interchange: content is asked for when need be, and what nodes say of it is not trusted."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcpool.core.kept_segments import KeptSegments
from hpcpool.core.scheduler import Scheduler
from hpcpool.processes.connection import node_prefix
from hpcpool.processes.kept_desk import KeptDesk
from hpcpool.wire import run_directory, segment_files
from hpcpool.wire.messages import Drop, Fetch, Fetched, MessageError, Outcome, Status, Struct, Task
from hpcpool.wire.packing import Payload, pack
from hpcpool.wire.segments import SEGMENT_BYTES, Segment, SegmentStore

A, B = b"a", b"b"
CONTENT = bytes(SEGMENT_BYTES)


class Desk:
    """A desk with two managers, and all that it has said and done."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory / "hpcpool-client")
        self._node = directory / "hpcpool-node"
        self.locks = [prepared(Path(self.directory)), prepared(self._node)]
        self.scheduler = Scheduler(3, True)
        for name in (A, B):
            self.scheduler.manager_joined(name, 1, 1)
        self.said: list[Struct] = []
        self.told: list[tuple[bytes, Any]] = []
        self.tasks: dict[int, tuple[Task, list[Any]]] = {}
        self.desk = KeptDesk(self.directory, self.scheduler, self.tasks, self.said.append, self.tell)
        self._makers = 0

    def tell(self, node: bytes, messages: list[Any]) -> None:
        self.told += [(node, message) for message in messages]

    def kept(self, node: bytes) -> Segment:
        """A result that was made at a node and stays there."""
        self._makers += 1
        maker = f"{node_prefix(node.decode() + '-0')}x.{self._makers}"
        segment = SegmentStore(str(self._node), maker).write(CONTENT)
        self.desk.take(node, outcome(segment))
        return segment

    def here(self, segment: Segment) -> bool:
        return os.path.exists(os.path.join(self.directory, segment.path))

    def submit(self, number: int, *needed: Segment) -> None:
        self.tasks[number] = task(number, *needed), []
        self.scheduler.submitted(number, 0, 1, home=self.desk.home_of(self.tasks[number][0]))

    def dispatch(self) -> dict[bytes, list[int]]:
        """What goes to the managers, as the interchange does it."""
        sent: dict[bytes, list[int]] = {}
        is_all = False
        while not is_all:
            is_all = True
            for name, ids in self.scheduler.dispatch():
                ready, is_whole = self.desk.ready(name, ids)
                is_all &= is_whole
                sent.setdefault(name, []).extend(ready)
        return {name: ids for name, ids in sent.items() if ids}


def prepared(directory: Path) -> int:
    directory.mkdir()
    return run_directory.prepare(str(directory))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    for lock in made.locks:
        os.close(lock)
    for name in ("hpcpool-client", "hpcpool-node"):
        run_directory.remove(str(tmp_path / name))


def outcome(*kept: Segment) -> Outcome:
    packed = pack([Payload(segment) for segment in kept])
    return Outcome(1, Status.OK, packed.data, packed.layout, is_kept=True)


def task(number: int, *needed: Segment) -> Task:
    packed = pack([Payload(b"call"), *(Payload(segment) for segment in needed)])
    return Task(number, packed.data, packed.layout)


def test_what_the_client_asks_for_is_fetched_from_its_node_and_said_when_it_is_there(made: Desk):
    segment = made.kept(A)
    made.desk.on_client(Fetch([segment.reference]))
    made.desk.on_client(Fetch([segment.reference]))
    assert made.told == [(A, Fetch([segment.reference]))]
    assert (made.said, made.here(segment)) == ([], False)
    made.desk.on_fetched(A, Fetched(segment.path, frames=1), [CONTENT])
    assert (made.said, made.here(segment)) == ([Fetched(segment.path)], True)


def test_when_the_client_lets_go_both_files_go(made: Desk):
    segment = made.kept(A)
    made.desk.on_client(Fetch([segment.reference]))
    made.desk.on_fetched(A, Fetched(segment.path, frames=1), [CONTENT])
    made.desk.on_client(Drop([segment.path]))
    assert made.told[-1] == (A, Drop([segment.path]))
    assert not made.here(segment)
    assert not made.desk


def test_content_that_comes_when_the_client_has_let_go_is_not_kept(made: Desk):
    segment = made.kept(A)
    made.desk.on_client(Fetch([segment.reference]))
    made.desk.on_client(Drop([segment.path]))
    made.desk.on_fetched(A, Fetched(segment.path, frames=1), [CONTENT])
    assert (made.said, made.here(segment)) == ([], False)


def test_the_client_cannot_wait_for_what_is_not_known(made: Desk):
    segment = made.kept(A)
    made.desk.on_client(Drop([segment.path]))
    made.desk.on_client(Fetch([segment.reference]))
    (answer,) = made.said
    assert isinstance(answer, Fetched)
    assert "not known any more" in answer.error


@pytest.mark.parametrize("node", [A, B])
def test_content_that_nobody_has_asked_a_node_for_is_refused(node: bytes, made: Desk):
    segment = made.kept(A)
    if node == B:
        made.desk.on_client(Fetch([segment.reference]))
    with pytest.raises(MessageError, match="nobody has asked for"):
        made.desk.on_fetched(node, Fetched(segment.path, frames=1), [CONTENT])
    assert not made.here(segment)


@pytest.mark.parametrize("frames", [[], [b"short"], [CONTENT + b"long"]])
def test_content_of_another_size_is_refused(frames: list[bytes], made: Desk):
    segment = made.kept(A)
    made.desk.on_client(Fetch([segment.reference]))
    with pytest.raises(MessageError, match="a segment that is none"):
        made.desk.on_fetched(A, Fetched(segment.path, frames=len(frames)), frames)
    assert not made.here(segment)


def test_a_node_cannot_claim_what_another_keeps(made: Desk):
    segment = made.kept(A)
    made.desk.take(B, outcome(segment))
    assert made.desk.is_at(A, segment.path)
    assert not made.desk.is_at(B, segment.path)


def test_what_a_node_cannot_send_is_lost(made: Desk):
    segment = made.kept(A)
    made.desk.on_client(Fetch([segment.reference]))
    made.desk.on_fetched(A, Fetched(segment.path, "No such file"), [])
    assert made.said == [Fetched(segment.path, "kept at its node, which cannot send it: No such file")]


def test_what_there_is_no_room_for_is_lost_and_says_so(made: Desk, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    segment = made.kept(A)
    made.desk.on_client(Fetch([segment.reference]))
    monkeypatch.setattr(segment_files, "place", full)
    made.desk.on_fetched(A, Fetched(segment.path, frames=1), [CONTENT])
    (answer,) = made.said
    assert isinstance(answer, Fetched)
    assert "no room for it on the client's host: [Errno 28]" in answer.error


def test_a_task_that_needs_what_another_node_keeps_waits_until_it_has_come(made: Desk):
    segment = made.kept(A)
    made.submit(1, segment)
    made.submit(2, segment)
    made.submit(3)
    assert made.dispatch() == {A: [1], B: [3]}
    assert made.told == [(A, Fetch([segment.reference]))]
    made.scheduler.finished(B, 3)
    assert made.dispatch() == {}
    made.desk.on_fetched(A, Fetched(segment.path, frames=1), [CONTENT])
    assert made.dispatch() == {B: [2]}


def test_a_task_that_needs_what_two_nodes_keep_waits_for_one_of_them(made: Desk):
    first, second = made.kept(A), made.kept(B)
    made.submit(1, first, second)
    assert made.dispatch() == {}
    ((node, message),) = made.told
    fetched = first if node == A else second
    assert message == Fetch([fetched.reference])
    made.desk.on_fetched(node, Fetched(fetched.path, frames=1), [CONTENT])
    assert made.dispatch() == {A if node == B else B: [1]}


def test_a_task_ends_when_what_it_waits_for_is_lost_and_its_slot_does_other_work(made: Desk):
    segment = made.kept(A)
    made.submit(1)
    made.submit(2, segment)
    made.scheduler.dispatch()
    made.scheduler.hold(2, is_at_home=False)
    made.submit(3)
    made.scheduler.manager_lost(A)
    made.desk.node_lost(A, "it died")
    made.scheduler.resume([2])
    made.scheduler.finished(B, 1)
    text = "kept at its node, and lost with it: it died"
    assert made.said == [Fetched(segment.path, text)]
    sent = made.dispatch()
    assert made.said[1:] == [Outcome(2, Status.BEREFT, text.encode())]
    assert 2 not in made.tasks
    assert list(sent.values()) in ([[1]], [[3]])


def test_a_node_that_leaves_is_emptied_first(made: Desk):
    first, second = made.kept(A), made.kept(A)
    assert made.desk.evacuate(B)
    assert not made.desk.evacuate(A)
    assert made.told == [(A, Fetch([first.reference, second.reference]))]
    for segment in (first, second):
        assert not made.desk.evacuate(A)
        made.desk.on_fetched(A, Fetched(segment.path, frames=1), [CONTENT])
    assert made.desk.evacuate(A)
    assert made.said == [Fetched(first.path), Fetched(second.path)]


def test_what_is_made_on_a_node_that_leaves_is_fetched_too(made: Desk):
    assert made.desk.evacuate(A)
    segment = made.kept(A)
    assert made.told == [(A, Fetch([segment.reference]))]


def test_when_a_node_is_lost_it_is_the_turn_of_others(made: Desk):
    made.desk._segments = KeptSegments(total_bytes=1)
    first, second = made.kept(A), made.kept(B)
    made.desk.on_client(Fetch([first.reference, second.reference]))
    assert made.told == [(A, Fetch([first.reference]))]
    made.desk.node_lost(A, "it died")
    assert made.told[1:] == [(B, Fetch([second.reference]))]


def test_an_outcome_that_nobody_wants_is_dropped_at_its_node(made: Desk):
    segment = made.kept(A)
    made.desk.discard(A, outcome(segment))
    assert made.told == [(A, Drop([segment.path]))]


def test_a_malformed_outcome_is_not_kept(made: Desk):
    malformed = Outcome(1, Status.OK, b"nonsense", (1, -10), is_kept=True)
    made.desk.take(A, malformed)
    assert not malformed.is_kept
    assert not made.desk
