"""Messages over a byte stream between two processes of one host: a header and frames, without ZeroMQ's threads.

Client, interchange and the managers of the same host talk over this: a ZeroMQ hop wakes three threads, a local socket
one. Its EOF is also how each learns of the other's death. Neither side ever blocks in here: what the kernel does not
take is kept.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

_SIZES = struct.Struct("!II")  # bytes of the header, number of frames
_FRAME = struct.Struct("!Q")
#: Read into a buffer that stays: a new one of this size for each read would cost more than the read.
_READ_BYTES = 256 * 1024
#: A frame at least this long is read straight to where it stays.
_LARGE_BYTES = 64 * 1024
#: What the kernel should hold for us: a batch of small tasks, so that a busy reader gets many at once.
_SOCKET_BYTES = 1024 * 1024
#: sendmsg(2) takes at most IOV_MAX (1024) pieces.
_PIECES = 512

Message = tuple[Any, list[Any]]


class Stream:
    """One end. `send` may be called from several threads if they agree on a lock; all else from one thread."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
        self._socket = end
        #: What the kernel has not taken yet.
        self._unsent: deque[memoryview] = deque()
        self._buffer = bytearray()
        self._scratch = memoryview(bytearray(_READ_BYTES))
        #: A message whose header is here, but not all of its frames.
        self._partial: _Partial | None = None
        self.is_open = True

    def fileno(self) -> int:
        """Return the descriptor, for a poll."""
        return self._socket.fileno()

    @property
    def wants_to_write(self) -> bool:
        """True while something waits for room."""
        return bool(self._unsent)

    def send(self, header: bytes, frames: Sequence[Any] = ()) -> None:
        """Send a message, or keep what the kernel does not take for `flush`."""
        if frames:
            views = [memoryview(frame).cast("B") for frame in frames]
            sizes = b"".join(_FRAME.pack(view.nbytes) for view in views)
            self._unsent.append(memoryview(_SIZES.pack(len(header), len(views)) + sizes + header))
            self._unsent.extend(view for view in views if view.nbytes)
            self.flush()
            return
        message = _SIZES.pack(len(header), 0) + header
        if self._unsent:
            self._unsent.append(memoryview(message))
            return
        # By far the most messages: small, and taken whole by the kernel.
        try:
            sent = self._socket.send(message)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            return  # the peer is gone; reading will say so
        if sent < len(message):
            self._unsent.append(memoryview(message)[sent:])

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        unsent = self._unsent
        while unsent:
            try:
                sent = self._socket.sendmsg([unsent[index] for index in range(min(len(unsent), _PIECES))])
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                unsent.clear()  # the peer is gone; reading will say so
                return
            while sent:
                first = unsent[0].nbytes
                if first <= sent:
                    sent -= first
                    unsent.popleft()
                else:
                    unsent[0] = unsent[0][sent:]
                    break

    def receive(self) -> list[Message]:
        """Return the messages that are complete; `is_open` becomes False at the end of the stream."""
        messages: list[Message] = []
        while self.is_open:
            partial = self._partial
            try:
                if partial is not None and partial.missing >= _LARGE_BYTES:
                    self.is_open = partial.read_from(self._socket)
                    size = 0
                else:
                    size = self._socket.recv_into(self._scratch)
                    self.is_open = size > 0
            except BlockingIOError:
                break
            except ConnectionResetError:
                self.is_open = False
                break
            if not self._buffer and partial is None and self._is_one_small_message(size):
                messages.append((bytes(self._scratch[_SIZES.size : size]), []))
                break
            self._buffer += self._scratch[:size]
            messages.extend(self._cut())
            if 0 < size < _READ_BYTES // 2 and self._partial is None:
                break  # there was no more: the next read would only say so
        return messages

    def _is_one_small_message(self, size: int) -> bool:
        """Say whether what was just read is one whole message without frames: the usual case when little happens."""
        return _SIZES.size <= size < _READ_BYTES and _SIZES.unpack_from(self._scratch) == (size - _SIZES.size, 0)

    def close(self) -> None:
        """Close this end."""
        self.is_open = False
        self._socket.close()

    def _cut(self) -> Iterator[Message]:
        """Take complete messages off the front of the buffer."""
        buffer, position = self._buffer, 0
        while True:
            if self._partial is None:
                if len(buffer) - position < _SIZES.size:
                    break
                header_bytes, count = _SIZES.unpack_from(buffer, position)
                end = position + _SIZES.size + count * _FRAME.size + header_bytes
                if len(buffer) < end:
                    break
                start = end - header_bytes
                header = bytes(memoryview(buffer)[start:end])
                if not count:
                    position = end
                    yield header, []
                    continue
                sizes = [_FRAME.unpack_from(buffer, position + _SIZES.size + i * _FRAME.size)[0] for i in range(count)]
                self._partial = _Partial(header, sizes)
                position = end
            position += self._partial.fill(buffer, position)
            if self._partial.missing:
                break
            done, self._partial = self._partial, None
            yield done.header, list(done.frames)
        del buffer[:position]


class _Partial:
    """A message whose frames are being filled, in order."""

    def __init__(self, header: bytes, sizes: list[int]) -> None:
        self.header = header
        self.frames = [bytearray(size) for size in sizes]
        self._next = 0
        self._filled = 0
        self._skip_full()

    @property
    def missing(self) -> int:
        """Bytes missing from the frame that is being filled; 0: all frames are full."""
        return len(self.frames[self._next]) - self._filled if self._next < len(self.frames) else 0

    def fill(self, buffer: bytearray, position: int) -> int:
        """Copy from a buffer; return how many bytes were taken."""
        taken = 0
        while (missing := self.missing) and position + taken < len(buffer):
            size = min(missing, len(buffer) - position - taken)
            start = position + taken
            self.frames[self._next][self._filled : self._filled + size] = memoryview(buffer)[start : start + size]
            taken += size
            self._advance(size)
        return taken

    def read_from(self, end: socket.socket) -> bool:
        """Read straight into the frame; False at the end of the stream."""
        with memoryview(self.frames[self._next]) as view:
            size = end.recv_into(view[self._filled :])
        self._advance(size)
        return size > 0

    def _advance(self, size: int) -> None:
        self._filled += size
        self._skip_full()

    def _skip_full(self) -> None:
        while self._next < len(self.frames) and self._filled == len(self.frames[self._next]):
            self._next += 1
            self._filled = 0
