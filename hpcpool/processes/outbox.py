"""What the interchange has for the client: gathered while there is something to do, and sent as one message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcpool.wire.messages import Capacity


class Outbox:
    """Messages in order, and the frames that belong to them."""

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._frames: list[Any] = []
        self._announced = 0, 0

    @property
    def has_messages(self) -> bool:
        """Whether anything was put since the last `take`; what the pool offers may have changed besides."""
        return bool(self._messages)

    def put(self, message: Any, frames: Sequence[Any] = ()) -> None:
        """Have a message sent with the next batch."""
        self._messages.append(message)
        if frames:
            self._frames.extend(frames)

    def take(self, slots: int, limit: int) -> tuple[list[Any], list[Any]] | None:
        """Return what has gathered, with what the pool offers now if that has changed; None if there is nothing."""
        if (slots, limit) != self._announced:
            self._announced = slots, limit
            self._messages.append(Capacity(slots, limit))
        if not self._messages:
            return None
        batch = self._messages, self._frames
        self._messages, self._frames = [], []
        return batch
