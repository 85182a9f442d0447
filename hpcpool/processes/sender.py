"""What the client has sent and is about to send: batches, the window, and which blobs the interchange knows.

Used by the client's I/O thread, and by a submitting thread when the pool is idle; whoever sends holds the lock.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Container
from typing import Any

from hpcpool.core.priority_queue import PriorityQueue
from hpcpool.processes.blob_ledger import BlobLedger
from hpcpool.processes.ticket import SENT, Ticket
from hpcpool.wire.messages import Task, encode
from hpcpool.wire.packing import Packed, pack
from hpcpool.wire.stream import Stream

#: How many tasks go into one message: enough to pay for the message, few enough that the first is not kept waiting.
_BATCH = 256
#: How many tasks are at the interchange at most, for each one that the managers take; the rest waits here.
_WINDOW_FACTOR = 4
_WINDOW_LEAST = 4096
#: Bytes of payload on the way at once.
_WINDOW_BYTES = 512 * 1024 * 1024


class Sender:
    """The way to the interchange.

    Args:
        stream: to the interchange.
        crash_limit: of calls that have none of their own.
        first: the messages that go out before all others.
    """

    def __init__(self, stream: Stream, crash_limit: int, first: list[Any]) -> None:
        self._stream = stream
        self._crash_limit = crash_limit
        # An RLock: the garbage collector may drop an executor, and so close a pool, while a thread has it.
        self._lock = threading.RLock()
        self._out = first
        self._out_frames: list[Any] = []
        self._blobs = BlobLedger()
        self._window = _WINDOW_LEAST
        #: Tasks at the interchange or beyond, and the bytes of their payloads.
        self.in_flight = 0
        self._in_flight_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether the window allows another task."""
        return self.in_flight < self._window and self._in_flight_bytes < _WINDOW_BYTES

    def widen(self, limit: int) -> None:
        """The managers take this many tasks in all."""
        self._window = max(_WINDOW_LEAST, _WINDOW_FACTOR * limit)

    def after_fork(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self._lock = threading.RLock()

    def tell(self, message: Any) -> None:
        """Have a message sent with the next batch."""
        with self._lock:
            self._out.append(message)

    def send_at_once(self, ticket: Ticket) -> bool:
        """Send a ticket from a user's thread if nothing is to be sent before it; else return False. Never waits.

        Ctrl-C may strike anywhere in here: the task is sent whole or not at all then, and the counts of what is in
        flight allow for both.
        """
        with self._lock:
            if self._out or self._stream.wants_to_write or (ticket.blobs and not self._blobs.knows(ticket.blobs)):
                return False
            task, packed, size = self._message(ticket)
            if packed.frames:
                return False
            if ticket.blobs:
                self._blobs.use(ticket.blobs)
            self._note_on_its_way(ticket, packed, size)
            self._stream.send_interruptibly(encode([task]))
            return True

    def send(self, ready: PriorityQueue[Ticket], pending: Container[int]) -> None:
        """Send what is ready (and still pending) as far as there is room, a message for each batch."""
        # Looked at without the lock: who tells something, or leaves something unsent, wakes this thread after that.
        if not (ready or self._out or self._stream.wants_to_write):
            return
        with self._lock:
            while ready and self.has_room and not self._stream.wants_to_write:
                ticket = ready.pop()
                if ticket.id in pending:
                    self._write(ticket)
                    if len(self._out) >= _BATCH:
                        self._flush()
            self._flush()

    def flush(self) -> None:
        """Send what was told, and no tickets."""
        with self._lock:
            self._flush()

    def say_last(self, message: Any) -> None:
        """Send a message behind all others, and wait until it is out or the peer is gone."""
        self.tell(message)
        self.flush()
        poll = select.poll()
        poll.register(self._stream, select.POLLOUT)
        while self._stream.wants_to_write and self._stream.is_open:
            poll.poll()
            self._stream.flush()

    def landed(self, ticket: Ticket, *, has_let_go: bool = False) -> None:
        """A ticket that was on its way is here again.

        Args:
            has_let_go: the worker that ran it no longer looks at its segments.
        """
        if ticket.sent_bytes:
            if ticket.segments:
                if not has_let_go:
                    for segment in ticket.segments:
                        segment.spoil()
                ticket.segments = ()
            with self._lock:
                self.in_flight -= 1
                self._in_flight_bytes -= ticket.sent_bytes
                ticket.sent_bytes = 0
                if ticket.blobs:
                    self._out += self._blobs.release(ticket.blobs)

    def _write(self, ticket: Ticket) -> None:
        task, packed, size = self._message(ticket)
        if ticket.blobs:
            self._out += self._blobs.use(ticket.blobs)
        self._out.append(task)
        if packed.frames:
            self._out_frames += packed.frames
        self._note_on_its_way(ticket, packed, size)

    def _message(self, ticket: Ticket) -> tuple[Task, Packed, int]:
        """Return what tells the interchange of a ticket, what goes with it, and the bytes of both (at least 1)."""
        options = ticket.options
        packed = pack([ticket.call, *ticket.parts] if ticket.parts else [ticket.call])  # type: ignore[list-item]
        data, layout, frames = packed.data, packed.layout, packed.frames
        task = Task(
            ticket.id,
            data,
            layout,
            len(frames),
            tuple(blob.key for blob in ticket.blobs) if ticket.blobs else (),
            options.priority,
            options.timeout_s,
            options.crash_limit or self._crash_limit,
            options.needs,
            ticket.function,
            options.keep,
        )
        size = 1 + len(data)
        if frames:
            size += sum(memoryview(frame).nbytes for frame in frames)
        return task, packed, size

    def _note_on_its_way(self, ticket: Ticket, packed: Packed, size: int) -> None:
        ticket.sent_bytes = size
        ticket.segments = packed.segments
        self.in_flight += 1
        self._in_flight_bytes += size
        if not ticket.options.retries:
            ticket.call, ticket.parts = SENT, []

    def _flush(self) -> None:
        if self._out:
            # Taken first: the collector may drop an executor now, and so have this thread tell something more.
            out, frames = self._out, self._out_frames
            self._out, self._out_frames = [], []
            self._stream.send(encode(out), frames)
        elif self._stream.wants_to_write:
            self._stream.flush()
