"""What the unfinished tasks ask of each node pool. Pure.

Tasks that several pools could run are counted once, for the first of these that has room: else each pool would start
blocks for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec


class Demand(NamedTuple):
    """Unfinished tasks that ask for the same."""

    tasks: int
    #: How many slots of a node each of them takes.
    slots_per_task: int = 1
    #: The names of the node pools that can run them; None: all of them.
    pools: frozenset[str] | None = None
    #: How long they run (seconds); 0: nobody knows.
    time_s: float = 0.0

    def suits(self, pool: str) -> bool:
        """Whether a node pool can run them."""
        return self.pools is None or pool in self.pools


class Room(msgspec.Struct, frozen=True):
    """What a node pool could run at once."""

    pool: str
    #: Slots of the blocks that there are.
    now: int
    #: Slots when it has all of its blocks.
    most: int
    #: Its last blocks have failed, so others are asked first.
    is_failing: bool = False
    #: Of each block whose end is known: its slots, and the seconds that it can still run tasks.
    slots_left: tuple[tuple[int, float], ...] = ()

    def too_late(self, time_s: float) -> int:
        """Return the slots of blocks that end before a task that runs so long would; none if nobody knows how long."""
        return 0 if not time_s else sum(slots for slots, left_s in self.slots_left if left_s < time_s)


def share_out(demands: Iterable[Demand], rooms: Sequence[Room]) -> dict[str, int]:
    """Return the slots wanted of each pool; what none has room for is wanted of the first that could run it.

    Blocks that there are come first, then pools in the order in which the user gave them, but those that fail last.
    """
    wanted = {room.pool: 0 for room in rooms}
    order = sorted(rooms, key=lambda room: room.is_failing)
    # Those that have the least choice choose first.
    for demand in sorted(demands, key=lambda demand: len(demand.pools) if demand.pools is not None else len(rooms)):
        able = [room for room in order if demand.suits(room.pool)]
        slots = demand.tasks * demand.slots_per_task
        for room in able:
            # They are there, and another block is wanted besides.
            wanted[room.pool] = max(wanted[room.pool], room.too_late(demand.time_s))
        for limits in ([(room, room.now) for room in able], [(room, room.most) for room in able]):
            for room, limit in limits:
                taken = min(slots, max(0, limit - wanted[room.pool]))
                wanted[room.pool] += taken
                slots -= taken
        if able:
            wanted[able[0].pool] += slots
    return wanted
