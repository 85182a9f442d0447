"""The wide tasks of a node, and which of its slots are theirs. Pure.

They hold as many slots as they need from the moment that they come, though it may take a while until so many have no
running call: no other call is started in their place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from hpcpool.core.slots import choose
from hpcpool.core.worker import Worker


class WideTasks:
    """Those that are here, and the slots that are left for others."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        #: How many slots each takes that is here, with a worker or without.
        self.widths: dict[int, int] = {}
        #: Those without a worker.
        self.queue: deque[int] = deque()
        self._claimed = 0
        #: Slots of wide workers, until these have gone.
        self.blocked: set[int] = set()
        #: How many wide workers have their task.
        self.active = 0
        #: How many slots are left for calls that take any worker; how many workers may have a task in all.
        self.narrow = self.most_active = slots

    def claim(self, task: int, width: int, *, first: bool = False) -> None:
        """A task waits for a worker."""
        self.widths[task] = width
        self._claimed += width
        if first:
            self.queue.appendleft(task)
        else:
            self.queue.append(task)
        self._count()

    def give_up(self, task: int) -> bool:
        """It does not wait any more; False: it has not waited."""
        if task not in self.queue:
            return False
        self.queue.remove(task)
        self._claimed -= self.widths.pop(task)
        self._count()
        return True

    def next(self, workers: Iterable[Worker]) -> tuple[int, tuple[int, ...]] | None:
        """Return a task that can have its worker now, and its slots; None: no such room, or no task.

        Slots of idle workers are taken only if there are too few others: those workers cannot serve meanwhile.
        """
        if not self.queue:
            return None
        workers = list(workers)
        busy = [worker for worker in workers if worker.given or worker.ending is not None]
        width = self.widths[self.queue[0]]
        # The slots of wide workers are blocked until those have gone. A worker that runs its last call and the one in
        # its place may have the same slot: so there is never more room than is free.
        if self._slots - len(self.blocked) - sum(not worker.is_wide for worker in busy) < width:
            return None
        free = set(range(self._slots)) - {slot for worker in busy for slot in worker.slots} - self.blocked
        vacant = free - {slot for worker in workers for slot in worker.slots}
        slots = choose(vacant if len(vacant) >= width else free, width)
        self.blocked.update(slots)
        self._claimed -= width
        self._count()
        return self.queue.popleft(), slots

    def awaiting(self, task: int, workers: Iterable[Worker]) -> Worker | None:
        """Return the worker that is being started for a task."""
        return next((worker for worker in workers if worker.awaits == task), None) if task in self.widths else None

    def begun(self, count: int) -> None:
        """So many more workers have their task, or (-1) one less has."""
        self.active += count
        self._count()

    def gone(self, worker: Worker) -> None:
        """A worker has gone; if it was a wide one, a task that it was not even given waits for another."""
        if not worker.is_wide:
            return
        self.blocked.difference_update(worker.slots)
        if worker.awaits is not None:
            self.claim(worker.awaits, len(worker.slots), first=True)
            worker.awaits = None
        self._count()

    def slot_for_worker(self, workers: Iterable[Worker]) -> int:
        """Return the slot for one more worker that takes any call: the first of those with the fewest.

        Among equals one with a worker that is being ended comes last: it is not free before that has gone.
        """
        taken = [(0, False)] * self._slots
        for worker in workers:
            count, is_held = taken[worker.slots[0]]
            taken[worker.slots[0]] = count + worker.usable, is_held or worker.ending is not None
        return min((slot for slot in range(self._slots) if slot not in self.blocked), key=taken.__getitem__)

    def _count(self) -> None:
        self.narrow = self._slots - self._claimed - len(self.blocked)
        self.most_active = self.narrow + self.active
