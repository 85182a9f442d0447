"""Passes bytes between channels of an SSH connection and sockets of this machine, in one thread for all pairs.

Each direction holds at most one chunk. While that cannot be passed on nothing more is read, so a slow reader slows down
its writer and nobody else. A channel has a descriptor that tells of data to read; that it takes data again is told by
the condition that paramiko notifies when the other side has made room.

Only what the other side has ended in order ends in order here. Whatever else ends a channel, above all a lost SSH
connection, is a reset of the socket: its reader must not take a cut for an end.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from hpcpool.providers.ssh.connection import close_quietly

if TYPE_CHECKING:
    import paramiko

logger = logging.getLogger(__name__)

#: What one direction holds; the window of a channel is 32 times as large.
_CHUNK_BYTES = 64 * 1024
#: To a port of this machine: it takes the connection at once, or refuses it.
_CONNECT_TIMEOUT_S = 5.0
#: Should paramiko ever stop to notify when a channel has room again, this is how late we see it.
_STALLED_S = 0.1
#: How long a channel that was closed without an EOF may belong to a connection that lives, until that is believed: when
#: paramiko's thread ends it closes the channels first, and then says that it has ended. OpenSSH always sends an EOF;
#: with a server that does not, each end is passed on so much later.
_DOUBT_S = 5.0
#: `SO_LINGER` of 0 s: closing is a reset.
_RESET = struct.pack("ii", 1, 0)


class Pump:
    """Connects each channel that it is given to one address of this machine, until it is closed.

    Args:
        target: host and port to connect to, for each channel anew.
        name: of its thread.
    """

    def __init__(self, target: tuple[str, int], name: str) -> None:
        self._target = target
        self._selector = selectors.DefaultSelector()
        self._wake_up, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_up, selectors.EVENT_READ)
        #: Channels that have come and are not yet connected; filled by the connection's thread.
        self._arrived: deque[paramiko.Channel] = deque()
        self._pairs: set[_Pair] = set()
        #: When something was heard from the other side for the last time (monotonic clock).
        self.heard_at = time.monotonic()
        self._is_closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, channel: paramiko.Channel) -> None:
        """Take a channel; called by the thread of its connection, which must not wait."""
        # No adjustment of the window can have come yet: this thread would have had to read it.
        channel.out_buffer_cv = _WakingCondition(channel.lock, self.wake)
        self._arrived.append(channel)
        self.wake()

    def wake(self) -> None:
        """Let the thread look at everything again; from any thread."""
        with self._lock:
            if not self._is_closing:
                self._write_wake()

    def _write_wake(self) -> None:
        try:
            os.write(self._wake, b"\0")
        except BlockingIOError:
            pass  # it has been woken often enough

    def close(self) -> None:
        """Close all pairs and end the thread; a second call does nothing."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            self._write_wake()
        self._thread.join()
        for channel in self._arrived:
            close_quietly(channel)
        os.close(self._wake_up)
        os.close(self._wake)

    def _run(self) -> None:
        while not self._is_closing:
            timeout_s = _STALLED_S if any(pair.needs_looks for pair in self._pairs) else None
            ready = {id(key.data): key.data for key, _ in self._selector.select(timeout_s) if key.data is not None}
            self._drain_wake_up()
            self._connect_arrived()
            moved = {**ready, **{id(pair): pair for pair in self._pairs if pair.needs_looks}}
            for pair in moved.values():
                if pair.step():
                    self._watch(pair)
                else:
                    self._drop(pair)
        for pair in list(self._pairs):
            self._drop(pair)
        self._selector.close()

    def _drain_wake_up(self) -> None:
        try:
            os.read(self._wake_up, 65536)
        except BlockingIOError:
            pass

    def _connect_arrived(self) -> None:
        while self._arrived:
            channel = self._arrived.popleft()
            try:
                stream = socket.create_connection(self._target, timeout=_CONNECT_TIMEOUT_S)
            except OSError as error:
                logger.warning("no connection to %s:%d for a tunnel: %s", *self._target, error)
                close_quietly(channel)
                continue
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._note_heard()
            pair = _Pair(channel, stream, self._note_heard)
            self._pairs.add(pair)
            self._watch(pair)

    def _note_heard(self) -> None:
        self.heard_at = time.monotonic()

    def _watch(self, pair: _Pair) -> None:
        """Register what a pair waits for now."""
        for fd, events in pair.interests():
            is_known = fd in self._selector.get_map()
            if events and is_known:
                self._selector.modify(fd, events, pair)
            elif events:
                self._selector.register(fd, events, pair)
            elif is_known:
                self._selector.unregister(fd)

    def _drop(self, pair: _Pair) -> None:
        for fd, _ in pair.interests():
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        pair.close()
        self._pairs.discard(pair)


class _WakingCondition(threading.Condition):
    """Also calls `wake` whenever it is notified: paramiko does so when a channel has room again, or is closed."""

    def __init__(self, lock: threading.Lock, wake: Callable[[], None]) -> None:
        super().__init__(lock)
        self._wake = wake

    def notify_all(self) -> None:
        super().notify_all()
        self._wake()


class _Pair:
    """A channel and a socket, each with one chunk that is on its way to the other.

    Args:
        note_heard: called when the other side has sent data, or has made room for ours.
    """

    def __init__(self, channel: paramiko.Channel, stream: socket.socket, note_heard: Callable[[], None]) -> None:
        self.channel = channel
        self.stream = stream
        self._note_heard = note_heard
        channel.settimeout(0.0)
        stream.setblocking(False)
        self._channel_fd = channel.fileno()
        self._stream_fd = stream.fileno()
        #: Read and not yet passed on.
        self._to_stream = memoryview(b"")
        self._to_channel = memoryview(b"")
        #: Nothing more comes from this side, which has ended in order, and the other side has been told.
        self._channel_ended = self._stream_ended = False
        #: Until when (monotonic clock) the end of the channel may turn out to be that of the connection.
        self._doubt_until: float | None = None

    @property
    def needs_looks(self) -> bool:
        """True while it waits for what no descriptor tells: that the channel takes more, or why it was closed."""
        return bool(self._to_channel) or self._doubt_until is not None

    def interests(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """What to wait for, for each of the two descriptors."""
        wants_channel = not self._to_stream and not self._channel_ended and self._doubt_until is None
        wants_stream = not self._to_channel and not self._stream_ended
        stream_events = (selectors.EVENT_READ if wants_stream else 0) | (
            selectors.EVENT_WRITE if self._to_stream else 0
        )
        return (self._channel_fd, selectors.EVENT_READ if wants_channel else 0), (self._stream_fd, stream_events)

    def step(self) -> bool:
        """Pass on what can be passed on; False: this pair is over."""
        import paramiko

        try:
            self._channel_to_stream()
            self._stream_to_channel()
        except (OSError, EOFError, paramiko.SSHException) as error:
            logger.debug("a tunnelled connection broke: %s", error)
            return False
        return not (self._channel_ended and self._stream_ended and not self._to_stream and not self._to_channel)

    def _channel_to_stream(self) -> bool:
        """Pass on one chunk at most; True: there may be more."""
        if not self._to_stream and not self._channel_ended:
            try:
                self._to_stream = memoryview(self.channel.recv(_CHUNK_BYTES))
            except TimeoutError:
                return False
            if self._to_stream:
                self._note_heard()
            else:
                self._end_stream()
        if not self._to_stream:
            return False
        try:
            self._to_stream = self._to_stream[self.stream.send(self._to_stream) :]
        except BlockingIOError:
            return False
        return not self._to_stream

    def _end_stream(self) -> None:
        """Pass on that the channel has ended, as soon as it is known to have done so in order.

        Raises:
            ConnectionResetError: it was cut.
        """
        if not self.channel.eof_received:
            if not self.channel.get_transport().is_active():
                raise ConnectionResetError("the SSH connection was lost")
            now = time.monotonic()
            self._doubt_until = self._doubt_until or now + _DOUBT_S
            if now < self._doubt_until:
                return
        self._doubt_until = None
        self._channel_ended = True
        self.stream.shutdown(socket.SHUT_WR)

    def _stream_to_channel(self) -> None:
        if self.channel.closed:  # what it has brought before is still passed on
            self._stream_ended, self._to_channel = True, memoryview(b"")
            return
        if self._to_channel and self.channel.send_ready():
            self._note_heard()
        if not self._to_channel and not self._stream_ended:
            try:
                self._to_channel = memoryview(self.stream.recv(_CHUNK_BYTES))
            except BlockingIOError:
                return
            if not self._to_channel:
                self._stream_ended = True
                self.channel.shutdown_write()
                return
        self._send()

    def _send(self) -> None:
        try:
            while self._to_channel and self.channel.send_ready():
                self._to_channel = self._to_channel[self.channel.send(self._to_channel) :]  # type: ignore[arg-type]
        except (OSError, EOFError):
            if not self.channel.closed:
                raise  # else the next look sees that, too

    def close(self) -> None:
        """Close both; the socket in order only if the channel has ended so and all that it brought was passed on."""
        if self.channel.closed:
            self._pass_on_the_rest()
        if self._to_stream or not self._channel_ended:
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.stream.close()
        close_quietly(self.channel)

    def _pass_on_the_rest(self) -> None:
        """Pass on what the socket takes at once."""
        try:
            while self._channel_to_stream():
                pass
        except (OSError, EOFError) as error:
            logger.debug("a tunnelled connection broke: %s", error)
