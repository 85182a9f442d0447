"""Queued tasks that need the same, and what has been tried for the first of them. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from hpcpool.core.needs import Needs, Shape
from hpcpool.core.priority_queue import PriorityQueue

#: So many ids that are no longer queued may stay in a line, besides as many as are queued.
_STALE_LIMIT = 256


class Line:
    """Tasks with equal needs, the highest priority first, and first come first served.

    Args:
        needs: of each of them, but for the time.
        is_queued: says of a task whether it still waits here.
    """

    __slots__ = (
        "_is_queued",
        "_queue",
        "_stale",
        "can_be_narrow",
        "is_offered",
        "needs",
        "queued",
        "reserved",
        "tried",
        "widths",
    )

    def __init__(self, needs: Needs, is_queued: Callable[[int], bool]) -> None:
        self.needs = needs
        self.queued = 0
        #: Some manager runs these in a worker like any other.
        self.can_be_narrow = False
        #: Some manager could run these if nothing else ran there.
        self.is_offered = False
        #: The managers that are kept free for the first task.
        self.reserved: tuple[bytes, ...] = ()
        #: For which task, at which version of the managers, none was found.
        self.tried: tuple[int, int] | None = None
        #: How many slots each task takes on nodes of a shape.
        self.widths: dict[Shape, int | None] = {}
        self._queue: PriorityQueue[int] = PriorityQueue()
        self._is_queued = is_queued
        self._stale = 0

    def push(self, task: int, priority: int, *, first: bool) -> None:
        """Add a task behind its equals, or in front of them."""
        self._queue.push(task, priority, first=first)
        self.queued += 1

    def head(self) -> tuple[int, int]:
        """Return the next task, with its priority before it; only called while there is one."""
        while not self._is_queued((head := self._queue.peek())[1]):
            self._queue.pop()
        return head

    def pop(self) -> None:
        """Remove what `head` has returned."""
        self._queue.pop()
        self.queued -= 1

    def forget(self) -> None:
        """One of the tasks does not wait any more."""
        self.queued -= 1
        self._stale += 1
        if self._stale > _STALE_LIMIT + self.queued:
            self._queue.keep(self._is_queued)
            self._stale = 0

    def __iter__(self) -> Iterator[int]:
        """Return the tasks that wait."""
        return filter(self._is_queued, self._queue)


def line_key(needs: Needs, time_s: float) -> Needs:
    """Return what tasks of one line have in common: their times may differ by a factor of two.

    If each time had a line of its own there might be as many lines as tasks; if all times had the same, short ones
    would wait behind a long one that finds no manager with so much time left.
    """
    return needs._replace(time_s=float(math.frexp(time_s)[1]) if time_s else 0.0)
