"""Results that stay at the nodes that made them (`options(keep=True)`), as the client sees them.

A future has the segments of such a result, whose content is away. Whoever opens it has the content fetched and waits
for that: in any thread, also in the client's own, where callbacks of futures run.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from hpcpool.processes.incoming import Incoming
from hpcpool.wire.messages import Drop, Fetch, Fetched, Outcome, Struct
from hpcpool.wire.packing import discard, segments_in
from hpcpool.wire.segment_files import Buffer
from hpcpool.wire.segments import Segment, SegmentStore


class _Client(Protocol):
    @property
    def is_io_thread(self) -> bool:
        """True in the client's own thread."""

    def tell(self, message: Struct) -> None:
        """Have the interchange told something; called from any thread."""

    def call_soon(self, action: Callable[[], None]) -> None:
        """Have the client's own thread do something; called from any thread."""


class KeptResults:
    """The segments that are away, and who waits for them.

    Args:
        store: of the client's segments.
        client: let go of when it ends: it has this.
        incoming: its way from the interchange, for its own thread.
    """

    def __init__(self, store: SegmentStore, client: _Client, incoming: Incoming) -> None:
        self._store = store
        self._client: _Client | None = client
        self._incoming = incoming
        self._changed = threading.Condition()
        #: Those whose content is away and may come, by their paths.
        self._away: weakref.WeakValueDictionary[str, Segment] = weakref.WeakValueDictionary()
        #: Those of them that nobody has asked for.
        self._unasked: weakref.WeakValueDictionary[str, Segment] = weakref.WeakValueDictionary()

    # -- from any thread --

    def adopt(self, reference: Buffer) -> Segment:
        """Take over a segment that stays where it was made."""
        segment = self._store.adopt_kept(reference, self)
        self._away[segment.path] = self._unasked[segment.path] = segment
        return segment

    def bring(self, segment: Segment, until: float | None) -> None:
        """Wait until a segment's content is here, or can never be; see `Segment.bring`."""
        if os.getpid() != self._store.pid:
            segment.loss = segment.loss or "kept at its node, and only the process that submitted the call can fetch it"
            return
        client = self._client
        if client is not None:
            self._ask(segment, client)
            if client.is_io_thread:
                self._incoming.wait(self.on_fetched, lambda: _is_settled(segment), until)
            else:
                self._wait(segment, until)
        if not _is_settled(segment):
            segment.loss = "kept at its node, and the pool has ended"

    def _wait(self, segment: Segment, until: float | None) -> None:
        with self._changed:
            left_s = None if until is None else max(0.0, until - time.monotonic())
            if not self._changed.wait_for(lambda: _is_settled(segment) or self._client is None, left_s):
                raise TimeoutError

    def let_go(self, path: str) -> None:
        """Nobody needs a segment any more."""
        client = self._client
        if client is not None:
            # Not told here: the collector may have come by while this very thread sends.
            client.call_soon(functools.partial(client.tell, Drop([path])))

    def _ask(self, segment: Segment, client: _Client) -> None:
        with self._changed:
            if self._unasked.pop(segment.path, None) is None or _is_settled(segment):
                return
        client.tell(Fetch([segment.reference]))

    # -- in the client's thread --

    def on_fetched(self, message: Fetched) -> None:
        """The interchange has a segment's content here, or knows that it will never have it."""
        with self._changed:
            segment = self._away.pop(message.path, None)
            if segment is not None:  # else it was let go of in the meantime
                segment.loss = message.error
                if not message.error:
                    segment.has_come()
                self._changed.notify_all()

    def discard(self, outcome: Outcome) -> None:
        """Nobody wants an outcome any more: let go of its segments."""
        if not outcome.is_kept:
            discard(self._store.run_directory, outcome.data, outcome.layout)
        elif self._client is not None:
            self._client.tell(Drop([path for path, _ in segments_in(outcome.data, outcome.layout)]))

    def settle(self) -> bool:
        """The pool is about to end: have all fetched that somebody may still ask for; True when there is none left."""
        if self._unasked and (client := self._client) is not None:
            for segment in list(self._unasked.values()):
                self._ask(segment, client)
        return not self._away

    def close(self, reason: str) -> None:
        """The pool has ended: what is still away is lost."""
        with self._changed:
            for segment in list(self._away.values()):
                segment.loss = f"kept at its node, and the pool ended before anybody had asked for it: {reason}"
            self._away.clear()
            self._client = None
            self._changed.notify_all()


def _is_settled(segment: Segment) -> bool:
    return not segment.is_away or bool(segment.loss)
