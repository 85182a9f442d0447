"""The two channels between a manager and one worker, and how messages lie on them.

*link* is a byte stream, with tasks down and outcomes up. *permits* is a pipe: behind each task on the link goes its
number (how many were sent before it) on this pipe, and a worker runs a task when it has read its number. The manager
keeps a duplicate of the worker's end, so it can take back what the worker has not begun: the kernel gives each number
to exactly one of them. A task whose number never comes is passed over.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from hpcpool.wire.messages import Outcome, Task, deal_frames, decode_outcome, decode_tasks, encode, encode_one

#: The id of the outcome by which a worker says that it is ready (OK), or that its initializer failed (FAILED).
READY = 0
#: How much is read from a link at once.
READ_BYTES = 256 * 1024
#: The same for a worker, which mostly gets little: what is larger the allocator would fetch from the kernel each time.
_TASKS_BYTES = 32 * 1024
_SIZES = struct.Struct("!IQ")  # bytes of the header, bytes of all frames
_FRAME = struct.Struct("!Q")
#: A permit. Reads and writes of whole ones never tear: the kernel does each as one (pipe(7), below PIPE_BUF bytes).
_PERMIT = struct.Struct("=Q")
#: More than are ever on their way to one worker.
_PERMITS_BYTES = 4096
_NO_FRAMES: list[bytes] = []

# -- outcomes ---------------------------------------------------------------------------------------------------------


def write_outcome(link: socket.socket, outcome: Outcome, frames: Sequence[Any]) -> None:
    """Send one outcome and its frames up the link; returns when the kernel has taken everything."""
    for piece in _pieces(encode_one(outcome), frames):
        link.sendall(piece)


def _pieces(header: bytes, frames: Sequence[Any]) -> list[Any]:
    """Return what must be written one after the other."""
    if not frames:
        return [_SIZES.pack(len(header), 0) + header]
    views = [memoryview(frame).cast("B") for frame in frames]
    pieces: list[Any] = [_SIZES.pack(len(header), sum(view.nbytes + _FRAME.size for view in views)) + header]
    for view in views:
        pieces += [_FRAME.pack(view.nbytes), view]
    return pieces


class OutcomeReader:
    """Cuts the bytes of one link into outcomes; feed it what was read."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _SIZES.size

    def feed(self, data: bytes | bytearray) -> list[tuple[Outcome, list[bytes]]]:
        """Add bytes and return the outcomes that are complete now."""
        if not self._buffer and len(data) >= _SIZES.size:
            header_bytes, frame_bytes = _SIZES.unpack_from(data)
            if len(data) == _SIZES.size + header_bytes and not frame_bytes:  # one outcome: nearly always
                return [(decode_outcome(data[_SIZES.size :]), _NO_FRAMES)]
        if self._buffer:
            self._buffer += data
            data = self._buffer
        complete: list[tuple[Outcome, list[bytes]]] = []
        start, size = 0, len(data)
        with memoryview(data) as view:
            while size - start >= self._needed:
                header_bytes, frame_bytes = _SIZES.unpack_from(view, start)
                header = start + _SIZES.size
                header_end = header + header_bytes
                end = header_end + frame_bytes
                if size < end:
                    self._needed = end - start
                    break
                outcome = decode_outcome(view[header:header_end])
                complete.append((outcome, list(_cut_frames(view, header_end, end)) if frame_bytes else _NO_FRAMES))
                self._needed = _SIZES.size
                start = end
        if data is self._buffer:
            del data[:start]
        elif start < size:
            self._buffer += data[start:]
        return complete


def _cut_frames(view: memoryview, position: int, end: int) -> Iterator[bytes]:
    while position < end:
        (size,) = _FRAME.unpack_from(view, position)
        position += _FRAME.size
        yield bytes(view[position : position + size])
        position += size


# -- tasks ------------------------------------------------------------------------------------------------------------


def encode_tasks(tasks: Sequence[Task], frames: Sequence[Any]) -> list[Any]:
    """Return the pieces of a batch of tasks and their frames, to be written down the link one after the other."""
    return _pieces(encode(tasks), frames)


def permits_for(first: int, count: int) -> bytes:
    """Return the permits for so many tasks, the first of which has this number; to be written in one piece."""
    return b"".join(map(_PERMIT.pack, range(first, first + count)))


def take_permits(permits: int) -> int:
    """Take all permits that are on the pipe; returns how many. The end of the pipe does not block."""
    count = 0
    try:
        while data := os.read(permits, _PERMITS_BYTES):
            count += len(data) // _PERMIT.size
    except BlockingIOError:
        pass
    return count


class TaskReader:
    """The worker's end: reads the tasks that it may run.

    Args:
        permits: the end of the pipe; it does not block.
        link: it does.
    """

    def __init__(self, permits: int, link: socket.socket) -> None:
        self._permits = permits
        self._link = link
        self._waiting = select.poll()
        self._waiting.register(permits, select.POLLIN)
        self._buffer = bytearray()
        #: Tasks that have been read, and the number of the first of them.
        self._tasks: deque[tuple[Task, list[Any]]] = deque()
        self._next = 0

    def next(self) -> tuple[Task, list[Any]] | None:
        """Wait for the next task and its frames; None when there will be none. `EOFError`: the manager has gone."""
        # A process that waits in read() takes what arrives in the moment it is killed, and the task would count as the
        # one that it ran. So wait without taking, and take only what is there.
        while True:
            try:
                permit = os.read(self._permits, _PERMIT.size)
            except BlockingIOError:
                self._waiting.poll()
                continue
            return self._numbered(_PERMIT.unpack(permit)[0]) if permit else None

    def _numbered(self, number: int) -> tuple[Task, list[Any]]:
        while True:
            if not self._tasks:
                self._tasks.extend(self._read_batch())
            task = self._tasks.popleft()
            self._next += 1
            if self._next > number:  # those before it were taken back
                return task

    def _read_batch(self) -> list[tuple[Task, list[Any]]]:
        header_bytes, frame_bytes = _SIZES.unpack(self._take(_SIZES.size))
        tasks = decode_tasks(self._take(header_bytes))
        frames = []
        while frame_bytes:
            frames.append(self._take(*_FRAME.unpack(self._take(_FRAME.size))))
            frame_bytes -= _FRAME.size + len(frames[-1])
        return deal_frames(tasks, frames)

    def _take(self, size: int) -> bytearray:
        """Return so many bytes of the link."""
        buffer = self._buffer
        if size >= len(buffer) + _TASKS_BYTES:
            return self._take_large(size)
        while len(buffer) < size:
            data = self._link.recv(_TASKS_BYTES)
            if not data:
                raise EOFError("the manager has gone")
            buffer += data
        taken = buffer[:size]
        del buffer[:size]
        return taken

    def _take_large(self, size: int) -> bytearray:
        """Return so many bytes, more than have been read by far: straight to where they stay, in memory once."""
        taken = bytearray(size)
        position = len(self._buffer)
        taken[:position] = self._buffer
        self._buffer.clear()
        with memoryview(taken) as view:
            while position < size:
                count = self._link.recv_into(view[position:])
                if not count:
                    raise EOFError("the manager has gone")
                position += count
        return taken
