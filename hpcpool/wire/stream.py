"""Messages over a byte stream between two processes: a header and frames, over a local socket or TLS (`wire.tls`).

A hop wakes one thread, where a message queue with threads of its own wakes three. The stream's EOF is also how each
side learns of the other's death. Neither side ever blocks in here: what the kernel does not take is kept.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hpcpool.wire.messages import MessageError

if TYPE_CHECKING:
    from hpcpool.wire.tls import TlsEnd  # loads OpenSSL, which processes of one host do without

_SIZES = struct.Struct("!QI")  # bytes of the header, number of frames
_FRAME = struct.Struct("!Q")
#: What announces more than this is no message: a peer that is not ours, or out of step.
_MOST_FRAMES = 1 << 24
_MOST_BYTES = 1 << 40
#: Read into a buffer that stays: a new one of this size for each read would cost more than the read.
_READ_BYTES = 256 * 1024
#: A frame at least this long is read straight to where it stays.
_LARGE_BYTES = 64 * 1024
#: What the kernel should hold for us: a batch of small tasks, so that a busy reader gets many at once.
_SOCKET_BYTES = 1024 * 1024
#: The user's program may have SIGPIPE end it, which the death of another process of ours must not bring about.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
#: sendmsg(2) takes at most IOV_MAX (1024) pieces.
_PIECES = 512

Message = tuple[Any, list[Any]]


class Stream:
    """One end. `send` may be called from several threads if they agree on a lock; all else from one thread."""

    def __init__(self, end: socket.socket | TlsEnd) -> None:
        end.setblocking(False)
        if isinstance(end, socket.socket):  # between hosts the kernel finds the best sizes itself
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
        self._socket = end
        #: What the kernel has not taken yet, besides `_last_word`.
        self._unsent: deque[memoryview] = deque()
        #: The message that `send_interruptibly` is sending, and the number of its bytes that the kernel has taken.
        self._last_word: bytes | None = None
        self._taken: list[int] = []
        self._buffer = bytearray()
        #: A message whose header is here, but not all of its frames.
        self._partial: _Partial | None = None
        self.is_open = True
        #: Why it is not open any more; "": its other end was closed.
        self.trouble = ""

    def fileno(self) -> int:
        """Return the descriptor, for a poll."""
        return self._socket.fileno()

    @property
    def peer_address(self) -> Any:
        """The address of the other end, as of `socket.getpeername`."""
        return self._socket.getpeername()

    @property
    def wants_to_write(self) -> bool:
        """True while something waits for room."""
        return bool(self._unsent) or self._last_word is not None

    def send(self, header: bytes, frames: Sequence[Any] = ()) -> None:
        """Send a message, or keep what the kernel does not take for `flush`."""
        if self._last_word is not None:
            self._keep_the_rest()
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
            sent = self._socket.send(message, _NO_SIGNAL)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            return  # the peer is gone; reading will say so
        if sent < len(message):
            self._unsent.append(memoryview(message)[sent:])

    def send_interruptibly(self, header: bytes) -> None:
        """Send a message without frames from a thread in which a signal handler may raise anywhere (Ctrl-C).

        Only while nothing waits to be written. The message goes out whole or not at all, and once: when this is
        interrupted after the kernel has taken some of it, `flush` sends the rest.
        """
        message = _SIZES.pack(len(header), 0) + header
        self._taken.clear()
        self._last_word = message
        try:
            # Handlers run between bytecodes, so one call must send and note how much was taken.
            self._taken.extend(map(self._socket.send, (message,), (_NO_SIGNAL,)))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass  # no room; or the peer is gone, and reading will say so
        self._keep_the_rest()

    def _keep_the_rest(self) -> None:
        """Put what is left of an interruptible message where the next flush sends it; may be done twice."""
        if self._last_word is not None:
            rest = self._last_word[sum(self._taken) :]
            self._unsent = deque([memoryview(rest)] if rest else [])
            self._last_word = None

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        self._keep_the_rest()
        unsent = self._unsent
        while unsent:
            try:
                pieces = [unsent[index] for index in range(min(len(unsent), _PIECES))]
                sent = self._socket.sendmsg(pieces, (), _NO_SIGNAL)
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
        """Return the messages that are complete; `is_open` becomes False at the end of the stream.

        Raises `MessageError` if what comes is no message, or announces more than there is memory for.
        """
        messages: list[Message] = []
        scratch = _scratch()
        while self.is_open:
            partial = self._partial
            try:
                if partial is not None and partial.missing >= _LARGE_BYTES:
                    self.is_open = partial.read_from(self._socket)
                    size = 0
                else:
                    size = self._socket.recv_into(scratch)
                    self.is_open = size > 0
            except BlockingIOError:
                break
            except ConnectionResetError as error:
                self.is_open = False
                self.trouble = error.strerror or str(error)
                break
            if not self._buffer and partial is None and _is_one_small_message(scratch, size):
                messages.append((bytes(scratch[_SIZES.size : size]), []))
                break
            self._buffer += scratch[:size]
            messages.extend(self._cut())
            if 0 < size < _READ_BYTES // 2 and self._partial is None:
                break  # there was no more: the next read would only say so
        return messages

    def close(self) -> None:
        """Close this end."""
        self.is_open = False
        self._socket.close()

    def _take_over(self, fresh: Stream) -> None:
        """Go on with the connection of another stream, from where that is."""
        self._socket, self._unsent = fresh._socket, fresh._unsent
        self._buffer, self._partial = fresh._buffer, fresh._partial
        self.is_open, self.trouble = fresh.is_open, fresh.trouble

    def _cut(self) -> Iterator[Message]:
        """Take complete messages off the front of the buffer."""
        buffer, position = self._buffer, 0
        while True:
            if self._partial is None:
                if len(buffer) - position < _SIZES.size:
                    break
                header_bytes, count = _SIZES.unpack_from(buffer, position)
                if header_bytes > _MOST_BYTES or count > _MOST_FRAMES:
                    raise MessageError(f"{header_bytes} bytes with {count} frames announced")
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
                self._partial = _partial(header, sizes)
                position = end
            position += self._partial.fill(buffer, position)
            if self._partial.missing:
                break
            done, self._partial = self._partial, None
            yield done.header, list(done.frames)
        del buffer[:position]


_of_thread = threading.local()


def _scratch() -> memoryview:
    """Return this thread's memory to read into: a process may have thousands of streams."""
    scratch: memoryview | None = getattr(_of_thread, "scratch", None)
    if scratch is None:
        scratch = _of_thread.scratch = memoryview(bytearray(_READ_BYTES))
    return scratch


def _is_one_small_message(data: memoryview, size: int) -> bool:
    """Say whether what was just read is one whole message without frames: the usual case when little happens."""
    return _SIZES.size <= size < _READ_BYTES and _SIZES.unpack_from(data) == (size - _SIZES.size, 0)


def _partial(header: bytes, sizes: list[int]) -> _Partial:
    if sum(sizes) > _MOST_BYTES:
        raise MessageError(f"frames of {sum(sizes)} bytes announced")
    try:
        return _Partial(header, sizes)
    except MemoryError:
        raise MessageError(f"no memory for frames of {sum(sizes)} bytes") from None


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

    def read_from(self, end: socket.socket | TlsEnd) -> bool:
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
