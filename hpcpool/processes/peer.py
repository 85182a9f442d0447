"""What the interchange knows of a manager, besides its leases and what has been sent to it. Values only."""

from __future__ import annotations

import msgspec

from hpcpool.core.needs import Shape
from hpcpool.wire.messages import Hello


class Peer(msgspec.Struct):
    """A manager that has greeted."""

    hello: Hello
    block: str = ""
    #: The block that its key is of; None: it came over the local socket.
    proved: str | None = None
    registered: bool = False
    slots: int = 0
    #: How many tasks it takes in all.
    limit: int = 0
    #: Its node has as much data as it should have at once.
    is_laden: bool = False
    #: With this it may come back when its connection breaks; b"": it will not.
    token: bytes = b""
    #: Its connection is gone, and it has not come back yet.
    is_cut_off: bool = False
    #: That connection has ended in order: most likely it has died.
    has_ended: bool = False
    #: Its block is to be given back: it gets no tasks any more.
    is_retiring: bool = False
    #: How its node is divided; None: it has not registered.
    shape: Shape | None = None

    @property
    def capacity(self) -> tuple[int, int]:
        """Slots, and tasks in all, that it is given work for: leaving or cut off none, laden none ahead."""
        if self.is_cut_off or self.is_retiring:
            return 0, 0
        return self.slots, min(self.slots, self.limit) if self.is_laden else self.limit
