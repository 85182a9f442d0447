"""What the interchange says, in order. In a callback the client's thread can wait here for one kind of message."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any

from hpcpool.wire.messages import Fetched, MessageError, ToClient, deal_frames, to_client
from hpcpool.wire.stream import Stream

#: A message and its frames.
Arrived = tuple[ToClient, list[Any]]


class Incoming:
    """Reads the stream from the interchange. Belongs to the client's thread.

    Args:
        stream: from the interchange.
        flush: sends what waits to be sent; other threads may send on the same stream.
    """

    def __init__(self, stream: Stream, flush: Callable[[], None]) -> None:
        self._stream = stream
        self._flush = flush
        #: What came while the thread waited for something else, in order.
        self._deferred: list[Arrived] = []
        self._trouble: MessageError | None = None

    @property
    def has_deferred(self) -> bool:
        """Whether `take` has something although nothing new has come."""
        return bool(self._deferred) or self._trouble is not None

    def take(self) -> list[Arrived]:
        """Return what has come; `MessageError` if it is no message."""
        arrived, self._deferred = self._deferred, []
        if self._trouble is not None:
            raise self._trouble
        for header, frames in self._stream.receive():
            arrived += deal_frames(to_client.decode(header), frames)
        return arrived

    def wait(self, hear: Callable[[Fetched], None], is_done: Callable[[], bool], until: float | None) -> None:
        """Hear of what is fetched, until that is enough or nothing more comes.

        While a callback runs the thread must not complete other futures: all that comes is kept for `take`. What is
        fetched, too: it may be of an outcome that comes before it. So `hear` hears of it twice.

        Args:
            hear: takes what is fetched.
            is_done: says whether that is enough.
            until: the latest (the monotonic clock), then `TimeoutError`; None: as long as it takes.
        """
        self._flush()
        while not is_done() and self._stream.is_open and self._trouble is None:
            poll = select.poll()
            poll.register(self._stream, select.POLLIN | (select.POLLOUT if self._stream.wants_to_write else 0))
            ready = poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1000)
            if not ready:
                raise TimeoutError
            self._flush()
            self._read(hear)

    def _read(self, hear: Callable[[Fetched], None]) -> None:
        try:
            for header, frames in self._stream.receive():
                for message, its_frames in deal_frames(to_client.decode(header), frames):
                    self._deferred.append((message, its_frames))
                    if isinstance(message, Fetched):
                        hear(message)
        except MessageError as error:
            self._trouble = error
