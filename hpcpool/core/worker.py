"""What a node knows of its workers. The node changes it."""

from __future__ import annotations

from collections import deque

import msgspec

from hpcpool.core.orders import End


class Worker(msgspec.Struct, eq=False):
    """A worker that has been started and has not gone."""

    number: int
    #: Which of the node's slots it has.
    slots: tuple[int, ...]
    ready: bool = False
    #: Tasks sent to it, the running one first; never also in the node's queue.
    given: deque[int] = msgspec.field(default_factory=deque)
    #: When the first of `given` began to run, as far as is known here; of a retiring worker: when it was told to leave.
    since: float = 0.0
    reported: bool = False
    #: How many calls it has been given in all, but for those that were taken back.
    served: int = 0
    #: Why we end it, and the task that is the reason.
    ending: End | None = None
    victim: int | None = None
    #: It leaves, or has left, in good order.
    leaving: bool = False
    #: It may be given tasks, now or when it is ready; `Node._usable` counts these.
    usable: bool = True
    #: It is in `Node._takers`.
    listed: bool = False
    #: It was started for one wide task, and leaves with it.
    is_wide: bool = False
    #: The wide task that it will be given when it is ready; never also in `given` or in a queue.
    awaits: int | None = None


def warmest(idle: dict[int, Worker], ending: dict[int, Worker]) -> Worker | None:
    """Return the last of the idle workers, but for those whose slot one still has that is being ended."""
    if not ending:
        return next(reversed(idle.values()), None)
    held = {slot for worker in ending.values() for slot in worker.slots}
    return next((worker for worker in reversed(idle.values()) if worker.slots[0] not in held), None)
