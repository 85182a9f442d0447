"""Segments cross to nodes on other hosts and back; a node may name its own tasks and segments, and nobody else's."""

from __future__ import annotations

import os

import pytest

from hpcpool.processes.carrier import Carrier, fetched, with_segments
from hpcpool.processes.connection import node_prefix
from hpcpool.wire.messages import Drop, Fetched, MessageError, Outcome, Place, Status, Task
from hpcpool.wire.packing import Payload, pack
from hpcpool.wire.segments import SEGMENT_BYTES, Segment, SegmentStore

A, B = b"a", b"b"


@pytest.fixture
def carrier(directory: str) -> Carrier:
    carrier = Carrier(directory)
    for node in (A, B):
        carrier.joined(node, is_far=True)
    return carrier


@pytest.fixture
def argument(directory: str) -> Segment:
    return SegmentStore(directory, "client").write(bytes(SEGMENT_BYTES))


def task(number: int, argument: Segment) -> Task:
    packed = pack([Payload(argument)])
    return Task(number, packed.data, packed.layout)


def outcome(segment: Segment) -> Outcome:
    packed = pack([Payload(segment)])
    return Outcome(1, Status.OK, packed.data, packed.layout)


def placed(carried: list) -> list[bytes]:
    return [message.reference for message, _ in carried if type(message) is Place]


def test_a_segment_goes_to_each_node_once(carrier: Carrier, argument: Segment):
    assert placed(carrier.leased(A, task(1, argument))) == [argument.reference]
    assert placed(carrier.leased(A, task(2, argument))) == []
    assert placed(carrier.leased(B, task(3, argument))) == [argument.reference]


def test_a_segment_that_cannot_be_read_now_goes_with_the_next_task(carrier: Carrier, argument: Segment, directory: str):
    file = os.path.join(directory, argument.path)
    os.rename(file, f"{file}.away")
    assert placed(carrier.leased(A, task(1, argument))) == []
    os.rename(f"{file}.away", file)
    assert placed(carrier.leased(A, task(2, argument))) == [argument.reference]


def test_a_node_cannot_have_another_one_let_go_of_what_its_tasks_need(directory: str, argument: Segment):
    carrier = Carrier(directory, idle_bytes=0)
    for node in (A, B):
        carrier.joined(node, is_far=True)
    carrier.leased(A, task(1, argument))
    assert carrier.released(B, [1]) is None
    assert placed(carrier.leased(A, task(2, argument))) == []
    assert carrier.released(A, [1]) is None
    assert carrier.released(A, [2]) == Drop([argument.path])


def test_the_outcome_of_a_node_refers_to_segments_of_its_own_only(carrier: Carrier, argument: Segment, directory: str):
    own = SegmentStore(directory, f"{node_prefix('a-0')}x.1").write(bytes(SEGMENT_BYTES))
    assert carrier.is_own(A, "a-0", outcome(own))
    assert not carrier.is_own(A, "a-0", outcome(argument)), "the client would lose it"
    assert not carrier.is_own(B, "b-0", outcome(own)), "another node would"


def test_a_node_cannot_put_anything_in_the_place_of_what_is_not_its_own(carrier: Carrier, argument: Segment):
    with pytest.raises(MessageError, match="not a name that it may use"):
        carrier.keep("a-0", Place(argument.reference), [bytes(SEGMENT_BYTES)])


def test_a_segment_that_a_node_has_made_and_keeps_does_not_go_there(directory: str, argument: Segment):
    carrier = Carrier(directory, is_kept=lambda node, path: (node, path) == (A, argument.path))
    for node in (A, B):
        carrier.joined(node, is_far=True)
    assert placed(carrier.leased(A, task(1, argument))) == []
    assert placed(carrier.leased(B, task(2, argument))) == [argument.reference]


def test_the_content_of_an_outcome_leaves_its_node_with_it_unless_it_is_kept(directory: str):
    made, kept = (SegmentStore(directory, f"{node_prefix('a-0')}x.{n}").write(bytes(SEGMENT_BYTES)) for n in (1, 2))
    leaves, stays = outcome(made), outcome(kept)
    stays.is_kept = True
    messages, frames = with_segments(directory, [leaves, stays], [])
    assert list(messages) == [Place(made.reference), leaves, stays]
    assert len(frames) == 1
    assert [os.path.exists(os.path.join(directory, segment.path)) for segment in (made, kept)] == [False, True]
    answer, content = fetched(directory, kept.reference)
    assert (answer, bytes(content[0])) == (Fetched(kept.path, frames=1), bytes(SEGMENT_BYTES))
    os.unlink(os.path.join(directory, kept.path))
    answer, content = fetched(directory, kept.reference)
    assert "No such file" in answer.error
    assert content == []
