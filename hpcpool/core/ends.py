"""When the nodes of blocks will be taken away, and which managers get nothing new because that is near. Pure."""

from __future__ import annotations

import math

from hpcpool.core.managers import Manager, Managers
from hpcpool.core.task import Task


class Ends:
    """The ends of blocks (seconds, the clock of `now`).

    Args:
        managers: all that there are.
        drain_s: so long before its end a manager gets nothing new (seconds).
    """

    def __init__(self, managers: Managers, drain_s: float) -> None:
        self._managers = managers
        self._drain_s = drain_s
        self._by_block: dict[str, float] = {}
        #: Tasks that have lost their nodes, by block, until it is known why.
        self._lost_with: dict[str, list[Task]] = {}
        #: When the next of the managers must be drained.
        self.drain_at = math.inf
        #: Those that were, since somebody has emptied this.
        self.drained: list[bytes] = []

    def of(self, block: str) -> float:
        """Return when a block ends, as far as that is known."""
        return self._by_block.get(block, math.inf)

    def block_ends(self, block: str, at: float) -> list[Manager]:
        """A block ends at this moment; return its managers, which know it now."""
        self._by_block[block] = at
        ending = [manager for manager in self._managers.by_name.values() if manager.block == block]
        for manager in ending:
            manager.ends_at = at
        return ending

    def note(self, manager: Manager) -> bool:
        """Note a manager's end; False: it has none that is known."""
        self.drain_at = min(self.drain_at, manager.ends_at - self._drain_s)
        return manager.ends_at != math.inf

    def task_lost(self, block: str, task: Task, *, is_expected: bool) -> None:
        """A task has lost a node of this block; that counts if nobody expected it, and `block_over` tells no cause."""
        task.losses += 1
        if is_expected:
            task.forgiven += 1
        else:
            self._lost_with.setdefault(block, []).append(task)

    def block_over(self, block: str, *, was_taken: bool) -> None:
        """A block is over; taken: away, by the batch system."""
        for task in self._lost_with.pop(block, ()):
            task.forgiven += was_taken

    def drain(self, now: float) -> list[bytes]:
        """Give nothing new to managers whose end is near; return those for which this is new."""
        if now < self.drain_at:
            return []
        self.drain_at = math.inf
        drained: list[bytes] = []
        for manager in self._managers.by_name.values():
            if manager.is_draining or manager.ends_at == math.inf:
                continue
            if now < manager.ends_at - self._drain_s:
                self.note(manager)
                continue
            manager.is_draining = True
            self._managers.resize(manager)
            drained.append(manager.name)
        self.drained += drained
        return drained
