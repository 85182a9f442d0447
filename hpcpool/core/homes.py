"""Which queued tasks would rather run on one certain manager, as what they need is there. Pure.

It is a preference: who has a free slot takes the task when its home has none. Every look-up and change costs the same
however many managers and tasks there are.
"""

from __future__ import annotations

from collections import OrderedDict

from hpcpool.core.managers import Manager, Managers
from hpcpool.core.task import Task

#: So many tasks go before the first of the queue at most, because they are at home where there is room.
PATIENCE = 64


class Homes:
    """The queued tasks that have a home, in the order of service."""

    def __init__(self, managers: Managers) -> None:
        self._managers = managers
        #: By manager and priority; none of these is empty.
        self._queued: dict[tuple[bytes, int], OrderedDict[int, None]] = {}
        #: The task that was first in the queue when others went before it last, and how many have.
        self._passed_over = 0
        self._times = 0

    def __bool__(self) -> bool:
        return bool(self._queued)

    def add(self, task: int, known: Task, *, first: bool = False) -> None:
        """A task that has a home is queued, behind its equals or in front of them."""
        assert known.home is not None
        queued = self._queued.setdefault((known.home, known.priority), OrderedDict())
        queued[task] = None
        if first:
            queued.move_to_end(task, last=False)

    def next(self, manager: bytes, head: int, known: Task) -> int | None:
        """Return the task that goes to a manager before the first of the queue; None: that goes first.

        It does, if it would rather run there, or anywhere. If it has another home, those of this home go before it, but
        not for ever: that home may be busy for long.
        """
        if known.home is None or known.home == manager:
            return None
        queued = self._queued.get((manager, known.priority))
        if queued is None:
            return None
        if self._passed_over != head:
            self._passed_over, self._times = head, 0
        self._times += 1
        return next(iter(queued)) if self._times <= PATIENCE else None

    def leave(self, task: int, known: Task, *, ahead: bool) -> Manager | None:
        """A task is leased; return its home if there is room, so that it goes there."""
        assert known.home is not None
        self.discard(task, known)
        home = self._managers.by_name.get(known.home)
        return home if home is not None and len(home.leases) < (home.limit if ahead else home.slots) else None

    def discard(self, task: int, known: Task) -> None:
        """A task is not queued any more; nothing happens if it has no home."""
        if known.home is None:
            return
        queued = self._queued.get((known.home, known.priority))
        if queued is not None:
            queued.pop(task, None)
            if not queued:
                del self._queued[known.home, known.priority]
