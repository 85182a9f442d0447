"""Tasks go to a node with what they need, and none goes ahead when the node has enough."""

from __future__ import annotations

from typing import Any

from hpcpool.core.scheduler import Scheduler
from hpcpool.processes.carrier import Carrier
from hpcpool.processes.loading import Loading
from hpcpool.processes.peer import Peer
from hpcpool.wire.messages import Hello, Place, Task
from hpcpool.wire.packing import Payload, pack
from hpcpool.wire.segments import SEGMENT_BYTES, SegmentStore

NODE, OTHER = b"node", b"other"
SLOTS, LIMIT = 2, 10


class Pool:
    """The part of an interchange that sends tasks."""

    def __init__(self, directory: str, *, is_far: bool = True) -> None:
        self.store = SegmentStore(directory, "client")
        self.scheduler = Scheduler(1, True)
        self.carrier = Carrier(directory, laden_bytes=3 * SEGMENT_BYTES)
        self.tasks: dict[int, tuple[Task, list[Any]]] = {}
        self.managers: dict[bytes, Peer] = {}
        self.loading = Loading(self.scheduler, self.carrier, self.tasks, self.managers)
        self.segments: list[Any] = []
        self.join(NODE, is_far=is_far)

    def join(self, name: bytes, *, is_far: bool) -> None:
        self.managers[name] = Peer(Hello(1, "", "", ""), slots=SLOTS, limit=LIMIT)
        self.carrier.joined(name, is_far=is_far)
        self.scheduler.manager_joined(name, SLOTS, LIMIT)

    def submit(self, count: int, *, shared: bool = False) -> None:
        for _ in range(count):
            if not (shared and self.segments):
                self.segments.append(self.store.write(bytes(SEGMENT_BYTES)))
            packed = pack([Payload(self.segments[-1])])
            number = len(self.tasks) + 1
            self.tasks[number] = Task(number, packed.data, packed.layout), []
            self.scheduler.submitted(number, 0, 1)

    def dispatch(self) -> dict[bytes, list[int]]:
        """The tasks that each manager is sent now."""
        sent: dict[bytes, list[int]] = {}
        is_all = False
        while not is_all:
            is_all = True
            for name, ids in self.scheduler.dispatch():
                messages, frames, is_whole = self.loading.load(name, ids)
                assert len(frames) == sum(type(message) is Place for message in messages)
                sent.setdefault(name, []).extend(message.id for message in messages if type(message) is Task)
                is_all &= is_whole
        return {name: ids for name, ids in sent.items() if ids}

    def finish(self, name: bytes, task: int) -> None:
        self.scheduler.finished(name, task)
        self.carrier.released(name, [task])
        self.loading.relieve(name)


def test_a_node_that_has_enough_gets_nothing_ahead_until_it_has_less(directory):
    pool = Pool(directory)
    pool.submit(8)
    assert pool.dispatch() == {NODE: [1, 2, 3, 4]}  # with the fourth it has more than three
    pool.finish(NODE, 1)
    assert pool.dispatch() == {NODE: [5]}
    pool.finish(NODE, 2)
    pool.finish(NODE, 3)
    assert pool.dispatch() == {NODE: [6, 7]}


def test_free_slots_are_filled_however_much_a_node_has(directory):
    pool = Pool(directory)
    pool.carrier.caches[NODE].laden_limit = 0
    pool.submit(5)
    assert pool.dispatch() == {NODE: [1, 2]}
    pool.finish(NODE, 1)
    assert pool.dispatch() == {NODE: [3]}


def test_what_one_node_does_not_get_goes_to_another(directory):
    pool = Pool(directory)
    pool.submit(9)
    assert pool.dispatch() == {NODE: [1, 2, 3, 4]}
    pool.join(OTHER, is_far=True)
    assert pool.dispatch() == {OTHER: [5, 6, 7, 8]}


def test_what_many_tasks_share_counts_once(directory):
    pool = Pool(directory)
    pool.submit(10, shared=True)
    assert pool.dispatch() == {NODE: list(range(1, 11))}


def test_a_node_that_shares_the_clients_memory_is_never_laden(directory):
    pool = Pool(directory, is_far=False)
    pool.submit(10)
    assert pool.dispatch() == {NODE: list(range(1, 11))}
