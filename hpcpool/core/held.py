"""Tasks whose turn has come, but not what they need: they wait for that, and run meanwhile only where it is. Pure.

So the slot that they would have had does other work, and one that becomes free where they could run does not wait.
"""

from __future__ import annotations

from collections import OrderedDict

from hpcpool.core.managers import Managers
from hpcpool.core.task import Task

#: In the place of the manager of a task that is held: it is neither leased nor queued.
NOBODY = b""


class Held:
    """The tasks that are held, in the order of service."""

    def __init__(self, managers: Managers, tasks: dict[int, Task]) -> None:
        self._managers = managers
        self._tasks = tasks
        #: Where each can run now; `NOBODY`: nowhere.
        self._homes: dict[int, bytes] = {}
        #: The same by manager; none of these is empty.
        self._waiting: dict[bytes, OrderedDict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._homes)

    def add(self, task: int, home: bytes) -> None:
        """Hold a task; it can run at its home now, unless that is `NOBODY`."""
        self._tasks[task].manager = NOBODY
        self._homes[task] = home
        self._waiting.setdefault(home, OrderedDict())[task] = None

    def discard(self, task: int) -> bool:
        """Hold a task no longer; False if it was not held."""
        home = self._homes.pop(task, None)
        if home is None:
            return False
        del self._waiting[home][task]
        if not self._waiting[home]:
            del self._waiting[home]
        return True

    def serve(self, batches: dict[bytes, list[int]]) -> None:
        """Lease tasks to free slots at home. None is sent ahead: it would be asked back for others, and held again."""
        for home in [home for home in self._waiting if home in self._managers.free]:
            manager = self._managers.by_name[home]
            while len(manager.leases) < manager.slots and (waiting := self._waiting.get(home)):
                task = next(iter(waiting))
                self.discard(task)
                self._tasks[task].manager = home
                manager.leases[task] = None
                batches.setdefault(home, []).append(task)
            self._managers.sort_in(manager)
