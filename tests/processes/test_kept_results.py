"""What a client asks for of the results that are away, and how often it looks at them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpcpool.processes.kept_results import KeptResults
from hpcpool.wire.messages import Fetch, Fetched, Struct
from hpcpool.wire.segments import Segment, SegmentStore
from tests.core.counting import count_calls


class Client:
    """Remembers what the interchange is told."""

    is_io_thread = False

    def __init__(self) -> None:
        self.told: list[Struct] = []

    def tell(self, message: Struct) -> None:
        self.told.append(message)

    def call_soon(self, action: Callable[[], None]) -> None:
        action()


@pytest.mark.parametrize("count", [50, 2000])
def test_when_the_pool_ends_each_is_asked_for_once_and_to_hear_of_one_costs_the_same_however_many_there_are(count):
    client = Client()
    kept = KeptResults(SegmentStore("/none", "client"), client, None)
    segments = [kept.adopt(Segment(kept._store, f"shm/node-a-0.{n}", 1, 0).reference) for n in range(count)]
    assert not kept.settle()
    assert client.told == [Fetch([segment.reference]) for segment in segments]

    def hear_of_some() -> None:
        for segment in segments[:10]:
            assert not kept.settle()
            kept.on_fetched(Fetched(segment.path))

    assert count_calls(hear_of_some) < 10 * 30
    for segment in segments[10:]:
        kept.on_fetched(Fetched(segment.path))
    assert kept.settle()
    assert len(client.told) == count
