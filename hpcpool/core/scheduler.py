"""What the interchange decides: which manager gets which task, and what becomes of tasks whose worker or node is gone.

Pure: tasks and managers are names here. Every decision on the task path costs the same however many managers, tasks
and nodes there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from hpcpool.core.priority_queue import PriorityQueue


class Batch(NamedTuple):
    """Lease these tasks to this manager."""

    manager: bytes
    tasks: list[int]


class Request(NamedTuple):
    """Ask this manager to give back up to `wanted` unstarted tasks."""

    manager: bytes
    wanted: int


class Reason(Enum):
    """Why a task that its manager has not finished is not queued again."""

    LOST = "lost too often"
    KILLED = "killed"
    WITHDRAWN = "withdrawn"


class Dropped(NamedTuple):
    """A task that ends without an outcome from a manager."""

    task: int
    reason: Reason


@dataclass(slots=True)
class _Task:
    priority: int
    crash_limit: int
    #: The user has killed it, so it must not start again.
    is_killed: bool = False
    #: Who holds it; None: it is in the queue.
    manager: bytes | None = None
    crashes: int = 0
    losses: int = 0


@dataclass(slots=True)
class _Manager:
    slots: int
    limit: int
    #: The tasks leased to this manager; each also names it in `_Task.manager`.
    leases: dict[int, None] = field(default_factory=dict)
    #: How many of its slots are free; `Scheduler._free_slots` is the sum of these.
    free_slots: int = 0
    #: How many tasks it was asked for and has not answered about; `Scheduler._asked` is the sum of these.
    asked: int = 0


#: So many ids that are no longer queued may stay in the queue, besides as many as are queued.
_STALE_LIMIT = 1024


#: A burst of tasks is spread over so many managers at most: to spread it over thousands would take a message for each
#: task. The next burst goes to the next managers.
_SPREAD = 32


class Scheduler:
    """The tasks of one client and the managers that run them."""

    def __init__(self, loss_limit: int, rerun_lost: bool) -> None:
        self._loss_limit = loss_limit if rerun_lost else 0
        self._tasks: dict[int, _Task] = {}
        #: How many tasks can run at once on all managers together, and how many they take in all.
        self.slots = 0
        self.limit = 0
        #: Queued tasks; may hold ids that are no longer queued, which are passed over.
        self._queue: PriorityQueue[int] = PriorityQueue()
        self._queued = 0
        #: Unstarted tasks beyond this id are given up; None: there was no withdrawal.
        self._keep: int | None = None
        #: How many tasks have been cancelled in the queue since it was last swept.
        self._stale = 0
        self._managers: dict[bytes, _Manager] = {}
        #: Managers with a free slot, those that only take tasks ahead, and those that take none; in order of service.
        self._free: OrderedDict[bytes, None] = OrderedDict()
        self._ahead: OrderedDict[bytes, None] = OrderedDict()
        self._full: OrderedDict[bytes, None] = OrderedDict()
        self._free_slots = 0
        self._asked = 0
        #: Managers that may have unstarted tasks to give. One that is asked is struck off until it has answered and its
        #: leases have changed: before that it would give the same answer.
        self._givers: OrderedDict[bytes, None] = OrderedDict()

    @property
    def backlog(self) -> int:
        """How many tasks wait in the queue."""
        return self._queued

    @property
    def pending(self) -> int:
        """How many tasks are not finished."""
        return len(self._tasks)

    def manager_of(self, task: int) -> bytes | None:
        """Return who holds a task; None if nobody does."""
        known = self._tasks.get(task)
        return known.manager if known is not None else None

    def held_by(self, manager: bytes) -> int:
        """Return how many tasks a manager holds."""
        known = self._managers.get(manager)
        return len(known.leases) if known is not None else 0

    def reruns(self, task: int) -> int:
        """Return how often a task was queued again because its worker or its node was lost."""
        known = self._tasks.get(task)
        return known.crashes + known.losses if known is not None else 0

    # -- tasks --

    def submitted(self, task: int, priority: int, crash_limit: int) -> None:
        """Queue a task."""
        known = _Task(priority, crash_limit)
        self._tasks[task] = known
        self._enqueue(task, known)

    def finished(self, manager: bytes, task: int) -> bool:
        """A manager has an outcome; False if the task is not (any more) its own: a late one, to be dropped."""
        known = self._tasks.get(task)
        if known is None or known.manager != manager:
            return False
        self._release(manager, task)
        del self._tasks[task]
        return True

    def crashed(self, manager: bytes, task: int) -> bool:
        """A task killed its worker; True if it is queued again, False if it has failed for good (or is not known)."""
        known = self._tasks.get(task)
        if known is None or known.manager != manager:
            return False
        known.crashes += 1
        if known.crashes >= known.crash_limit or known.is_killed:
            return False
        self._release(manager, task)
        self._enqueue(task, known, first=True)
        return True

    def cancelled(self, task: int) -> bytes | None:
        """Nobody wants a task any more; returns the manager that must be told, if one holds it."""
        known = self._tasks.pop(task, None)
        if known is None:
            return None
        if known.manager is None:
            self._queued -= 1
            self._note_stale()
        else:
            self._release(known.manager, task)
        return known.manager

    def kill(self, task: int) -> bytes | None:
        """A task must end; returns the manager that must be told. One that no manager holds is forgotten."""
        known = self._tasks.get(task)
        if known is None or known.manager is None:
            return self.cancelled(task)
        known.is_killed = True
        return known.manager

    def withdraw(self, keep: int) -> list[int]:
        """Give up all tasks beyond this id that no manager holds; returns them."""
        self._keep = keep
        withdrawn = [task for task, known in self._tasks.items() if known.manager is None and task > keep]
        for task in withdrawn:
            self.cancelled(task)
        return withdrawn

    def returned(self, manager: bytes, tasks: Iterable[int]) -> list[Dropped]:
        """A manager gives unstarted tasks back; returns those that nobody wants to start any more."""
        holder = self._managers.get(manager)
        if holder is not None:
            self._asked -= holder.asked
            holder.asked = 0
        dropped: list[Dropped] = []
        for task in tasks:
            known = self._tasks.get(task)
            if known is None or known.manager != manager:
                continue
            self._release(manager, task)
            is_withdrawn = self._keep is not None and task > self._keep
            if known.is_killed or is_withdrawn:
                del self._tasks[task]
                dropped.append(Dropped(task, Reason.KILLED if known.is_killed else Reason.WITHDRAWN))
            else:
                self._enqueue(task, known, first=True)
        return dropped

    # -- managers --

    def manager_joined(self, manager: bytes, slots: int, limit: int) -> None:
        """A manager offers its slots."""
        self._managers[manager] = _Manager(slots, limit)
        self.slots += slots
        self.limit += limit
        self._sort_in(manager)

    def capacity_changed(self, manager: bytes, slots: int, limit: int) -> None:
        """A manager takes more or fewer tasks than before."""
        known = self._managers.get(manager)
        if known is not None:
            self.slots += slots - known.slots
            self.limit += limit - known.limit
            known.slots, known.limit = slots, limit
            self._sort_in(manager)

    def manager_lost(self, manager: bytes) -> list[Dropped]:
        """A manager is gone; its tasks are queued again, free of charge. Returns those that are not."""
        known = self._managers.pop(manager, None)
        if known is None:
            return []
        self.slots -= known.slots
        self.limit -= known.limit
        self._free_slots -= known.free_slots
        self._asked -= known.asked
        for group in (self._free, self._ahead, self._full, self._givers):
            group.pop(manager, None)
        dropped: list[Dropped] = []
        for task in reversed(known.leases):
            held = self._tasks[task]
            held.losses += 1
            if held.is_killed or held.losses > self._loss_limit:
                del self._tasks[task]
                dropped.append(Dropped(task, Reason.KILLED if held.is_killed else Reason.LOST))
            else:
                self._enqueue(task, held, first=True)
        return dropped

    # -- decisions --

    def dispatch(self) -> list[Batch]:
        """Lease queued tasks: first to free slots, evenly over some managers at a time, then ahead."""
        batches: dict[bytes, list[int]] = {}
        self._serve(self._free, batches, ahead=False)
        self._serve(self._ahead, batches, ahead=True)
        return [Batch(manager, tasks) for manager, tasks in batches.items()]

    def share(self) -> list[Request]:
        """Ask managers that hold unstarted tasks for some of them, when others have nothing to do."""
        wanted = self._free_slots - self._asked
        if self._queued or wanted <= 0:
            return []
        requests: list[Request] = []
        while wanted > 0 and self._givers:
            name, _ = self._givers.popitem(last=False)
            manager = self._managers[name]
            spare = len(manager.leases) - manager.slots
            if spare > 0:
                manager.asked = min(spare, wanted)
                self._asked += manager.asked
                wanted -= manager.asked
                requests.append(Request(name, manager.asked))
        return requests

    # -- how --

    def _serve(self, managers: OrderedDict[bytes, None], batches: dict[bytes, list[int]], *, ahead: bool) -> None:
        while self._queued and managers:
            for turns_left in range(min(len(managers), _SPREAD), 0, -1):
                self._lease_to(managers.popitem(last=False)[0], -(-self._queued // turns_left), batches, ahead=ahead)
                if not self._queued:
                    return

    def _lease_to(self, name: bytes, fair: int, batches: dict[bytes, list[int]], *, ahead: bool) -> None:
        manager = self._managers[name]
        room = (manager.limit if ahead else manager.slots) - len(manager.leases)
        tasks = batches.setdefault(name, [])
        for _ in range(min(room, fair)):
            task = self._dequeue()
            self._tasks[task].manager = name
            manager.leases[task] = None
            tasks.append(task)
        self._sort_in(name)

    def _sort_in(self, name: bytes) -> None:
        """Put a manager where it belongs by the room that it has."""
        manager = self._managers[name]
        held = len(manager.leases)
        free_slots = max(0, manager.slots - held)
        self._free_slots += free_slots - manager.free_slots
        manager.free_slots = free_slots
        if held > manager.slots and not manager.asked:
            self._givers[name] = None
        belongs = self._free if held < manager.slots else self._ahead if held < manager.limit else self._full
        if name in belongs:
            return
        for group in (self._free, self._ahead, self._full):
            group.pop(name, None)
        belongs[name] = None

    def _release(self, manager: bytes, task: int) -> None:
        known = self._managers.get(manager)
        if known is not None:
            known.leases.pop(task, None)
            self._sort_in(manager)

    def _enqueue(self, task: int, known: _Task, first: bool = False) -> None:
        known.manager = None
        self._queue.push(task, known.priority, first=first)
        self._queued += 1

    def _dequeue(self) -> int:
        """Return the next task; only called while there is one."""
        while True:
            task = self._queue.pop()
            if self._is_queued(task):
                self._queued -= 1
                return task

    def _is_queued(self, task: int) -> bool:
        known = self._tasks.get(task)
        return known is not None and known.manager is None

    def _note_stale(self) -> None:
        """Sweep out the ids that are no longer queued when they have become too many."""
        self._stale += 1
        if self._stale > _STALE_LIMIT + self._queued:
            self._queue.keep(self._is_queued)
            self._stale = 0
