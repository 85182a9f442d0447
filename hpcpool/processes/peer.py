"""What the interchange knows of a manager, besides its leases and what has been sent to it. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from hpcpool.core.needs import Shape
from hpcpool.wire.messages import Hello


@dataclass(slots=True)
class Peer:
    """A manager that has greeted."""

    hello: Hello
    block: str = ""
    #: The block that its key is of; None: it came over the local socket.
    proved: str | None = None
    registered: bool = False
    slots: int = 0
    #: How its node is divided; None: it has not registered.
    shape: Shape | None = None
