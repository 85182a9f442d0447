"""What is told is sent, whenever it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hpcpool.processes.sender import Sender
from hpcpool.wire.messages import Cancel, Closing, from_client


class Wire:
    """A stream that takes everything, and calls back while it does."""

    wants_to_write = False

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def send(self, header: bytes, frames: Sequence[Any]) -> None:
        self.meanwhile()
        self.sent += from_client.decode(header)


def test_what_is_told_by_the_very_thread_that_sends_goes_with_the_next_message():
    wire = Wire()
    sender = Sender(wire, 1, [])  # type: ignore[arg-type]
    sender.tell(Cancel(1))
    wire.meanwhile = lambda: sender.tell(Closing())  # as an executor does that the collector drops
    sender.flush()
    wire.meanwhile = lambda: None
    sender.flush()
    assert wire.sent == [Cancel(1), Closing()]
