"""A stream that outlives its connection: when that breaks, the two ends go on over another one, and nothing is lost.

Both ends count the messages. Each tells the other now and then how many have come, and keeps what it has sent until
then. Over a new connection each tells that first, and sends again what the other has not had.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

from hpcpool.wire.messages import MessageError
from hpcpool.wire.stream import Message, Stream

#: A header that is a number is a confirmation: how many messages have come. All others are arrays (MessagePack).
_CONFIRMATION = struct.Struct("!cQ")
_NUMBER = b"\xcf"
#: It is told after so many messages, or so many bytes, that have come since the last time.
_MOST_MESSAGES = 32
_MOST_BYTES = 1024 * 1024


class LastingStream(Stream):
    """One end; see `Stream`."""

    _unconfirmed: deque[tuple[bytes, Sequence[Any]]]

    def __init__(self, end: Any) -> None:
        super().__init__(end)
        #: What was sent and is not known to have come, oldest first; and the number of messages that have.
        self._unconfirmed = deque()
        self._confirmed = 0
        #: How many messages have come, and what of that the other side has not been told.
        self.received = 0
        self._untold_messages = self._untold_bytes = 0
        #: The other side will tell first what it has had; then the rest is sent again.
        self._is_waiting = False
        #: Connections that were given up, until the other side is known to have the next one.
        self._given_up: list[Any] = []

    def send(self, header: bytes, frames: Sequence[Any] = ()) -> None:
        """As of `Stream`; without a connection it is kept for the next."""
        self._unconfirmed.append((header, frames))
        if self.is_open and not self._is_waiting:
            super().send(header, frames)

    def receive(self) -> list[Message]:
        """As of `Stream`; also raises `MessageError` for a confirmation of what was never sent."""
        messages: list[Message] = []
        for message in super().receive():
            header, frames = message
            if header[:1] == _NUMBER:
                self._on_confirmation(header)
                continue
            messages.append(message)
            self._untold_bytes += len(header) + sum(map(len, frames))
        self.received += len(messages)
        self._untold_messages += len(messages)
        if self.is_open and (self._untold_messages >= _MOST_MESSAGES or self._untold_bytes >= _MOST_BYTES):
            self._confirm()
        return messages

    def break_off(self) -> None:
        """Let go of the connection. What is sent from now on waits for the next one."""
        super().close()
        self._unsent.clear()

    def give_up(self) -> None:
        """As `break_off`, of a connection that has fallen silent.

        It stays open until the other side goes on over the next one: should it carry again, its end would come first,
        and be taken for the end of this process.
        """
        self.is_open = False
        self._unsent.clear()
        self._given_up.append(self._socket)

    def close(self) -> None:
        """Close this end."""
        super().close()
        self._close_given_up()

    def confirmed(self, has_had: int) -> None:
        """The other side has had so many messages: they need not be kept. `MessageError` if that cannot be."""
        count = has_had - self._confirmed
        if not 0 <= count <= len(self._unconfirmed):
            raise MessageError(f"{has_had} messages confirmed, of {self._confirmed + len(self._unconfirmed)}")
        for _ in range(count):
            self._unconfirmed.popleft()
        self._confirmed = has_had

    def go_on(self, fresh: Stream, has_had: int | None = None) -> None:
        """Go on over the connection of another stream, which is of no use by itself any more.

        Args:
            fresh: nothing but what introduced the other side has come by it.
            has_had: how many messages the other side has had; None: it will say so itself, before all else.

        Raises:
            MessageError: it cannot have had so many; then nothing has changed.
        """
        if has_had is not None:
            self.confirmed(has_had)
        if self._socket not in self._given_up:
            self.break_off()
        self._take_over(fresh)
        self._is_waiting = has_had is None
        if has_had is not None:
            self._confirm()
            self._send_again()

    def _on_confirmation(self, header: bytes) -> None:
        if len(header) != _CONFIRMATION.size:
            raise MessageError(f"a confirmation of {len(header)} bytes")
        _, has_had = _CONFIRMATION.unpack(header)
        self.confirmed(has_had)
        if self._is_waiting:
            self._is_waiting = False
            self._close_given_up()
            self._send_again()

    def _close_given_up(self) -> None:
        for end in self._given_up:
            end.close()
        self._given_up.clear()

    def _send_again(self) -> None:
        for header, frames in self._unconfirmed:
            super().send(header, frames)

    def _confirm(self) -> None:
        self._untold_messages = self._untold_bytes = 0
        super().send(_CONFIRMATION.pack(_NUMBER, self.received))
