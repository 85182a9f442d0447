"""The two channels between a manager and one worker, and how messages lie on them.

*calls* is a message-preserving socket: each message is one encoded `Task`. The manager keeps a duplicate of the
worker's end, so it can take back what the worker has not read yet: the kernel gives each message to exactly one of
them. *link* is a byte stream: outcomes up, and the large frames of a task down (behind a task that has frames, which
is only ever sent to an idle worker).
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hpcpool.wire.messages import Outcome, Task, decode_outcome, decode_task, encode_one

#: macOS has no SEQPACKET for local sockets; its datagram sockets preserve messages, too.
CALLS_TYPE = socket.SOCK_DGRAM if sys.platform == "darwin" else socket.SOCK_SEQPACKET
#: Longer messages go over the link: a local socket refuses what is near its buffer size (208 KiB by default).
CALLS_BYTES = 64 * 1024
#: Says that the next task comes over the link; no encoded task is one byte long.
ANNOUNCEMENT = b"\x01"
#: More than all of a task but its data and layout.
_HEADER_BYTES = 4096
#: How much a manager reads from a link at once.
READ_BYTES = 256 * 1024
_SIZES = struct.Struct("!IQ")  # bytes of the header, bytes of all frames
_FRAME = struct.Struct("!Q")
_NO_FRAMES: list[bytes] = []


def write_outcome(link: socket.socket, outcome: Outcome, frames: Sequence[Any]) -> None:
    """Send one outcome and its frames up the link; returns when the kernel has taken everything."""
    header = encode_one(outcome)
    if not frames:
        link.sendall(_SIZES.pack(len(header), 0) + header)
        return
    views = [memoryview(frame).cast("B") for frame in frames]
    total = sum(view.nbytes + _FRAME.size for view in views)
    link.sendall(_SIZES.pack(len(header), total) + header)
    for view in views:
        link.sendall(_FRAME.pack(view.nbytes))
        link.sendall(view)


class OutcomeReader:
    """Cuts the bytes of one link into outcomes; feed it what was read."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _SIZES.size

    def feed(self, data: bytes) -> list[tuple[Outcome, list[bytes]]]:
        """Add bytes and return the outcomes that are complete now."""
        buffer = self._buffer
        buffer += data
        complete: list[tuple[Outcome, list[bytes]]] = []
        start, size = 0, len(buffer)
        with memoryview(buffer) as view:
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
        del buffer[:start]
        return complete


def _cut_frames(view: memoryview, position: int, end: int) -> Iterator[bytes]:
    while position < end:
        (size,) = _FRAME.unpack_from(view, position)
        position += _FRAME.size
        yield bytes(view[position : position + size])
        position += size


def is_announced(task: Task, frames: Sequence[Any]) -> bool:
    """Say whether a task may be too much for *calls*, so that it goes over the link."""
    return bool(frames) or len(task.data) + 5 * len(task.layout) > CALLS_BYTES - _HEADER_BYTES


def encode_call(task: Task, frames: Sequence[Any]) -> tuple[bytes, list[Any]]:
    """Return the message for *calls* and what must follow on the link, in order.

    A task with frames, or one that is too long for the socket, is only announced; all of it follows on the link.
    """
    message = encode_one(task)
    if not is_announced(task, frames):
        return message, []
    following: list[Any] = []
    for piece in (message, *frames):
        view = memoryview(piece).cast("B")
        following += [_FRAME.pack(view.nbytes), view]
    return ANNOUNCEMENT, following


def read_call(calls: socket.socket, link: socket.socket, waiting: select.poll) -> tuple[Task, list[bytearray]] | None:
    """Wait for the next call and its frames; None when the manager has closed the channel.

    `waiting` is a poll object with `calls` registered.
    """
    # A process that waits in recv() takes what arrives in the moment it is killed, and the call would count as the one
    # that it ran. So wait without taking, and take only what is there.
    try:
        message = calls.recv(CALLS_BYTES, socket.MSG_DONTWAIT)
    except BlockingIOError:
        waiting.poll()
        message = calls.recv(CALLS_BYTES)
    if not message:
        return None
    if message != ANNOUNCEMENT:
        return decode_task(message), []
    task = decode_task(_read_frame(link))
    return task, [_read_frame(link) for _ in range(task.frames)]


def _read_frame(link: socket.socket) -> bytearray:
    return _read_exactly(link, _FRAME.unpack(_read_exactly(link, _FRAME.size))[0])


def _read_exactly(link: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, position = memoryview(data), 0
    while position < size:
        count = link.recv_into(view[position:])
        if not count:
            raise EOFError("the manager has gone")
        position += count
    return data
