"""What the scheduler knows of its managers: who has room for how much, who is kept free, who is about to end. Pure.

Every change on the task path costs the same however many managers there are.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import msgspec

from hpcpool.core.needs import Shape


class Manager(msgspec.Struct):
    """One manager, and what it holds."""

    name: bytes
    shape: Shape
    #: How many tasks it runs at once and takes in all, if none of them is wide.
    all_slots: int
    whole_limit: int
    pool: str = ""
    block: str = ""
    #: When its node is taken away (seconds, the clock of `now`).
    ends_at: float = math.inf
    #: The same for narrow tasks, now: what wide ones have left; 0: it gets nothing new.
    slots: int = 0
    limit: int = 0
    #: The narrow tasks leased to this manager; each also names it in `_Task.manager`.
    leases: dict[int, None] = {}
    #: Those of them that no other manager with a free slot could take.
    tied: set[int] = set()
    #: The wide tasks that run here, and those that run on another manager but have this node, too; and their slots.
    wide: dict[int, int] = {}
    #: How many of its slots are free for narrow tasks; `Managers.free_slots` is the sum of these.
    free_slots: int = 0
    #: How many tasks it was asked for and has not answered about; `Managers.asked` is the sum of these.
    asked: int = 0
    #: It gets no narrow task of this priority or a lower one, until a wide task fits; None: it is not reserved.
    reserved_at: int | None = None
    #: Its end is near: it gets nothing new.
    is_draining: bool = False
    #: Which of `Managers.free`, `Managers.ahead` and the full ones it is in; before it has come, one of its own.
    group: OrderedDict[bytes, None] = msgspec.field(default_factory=OrderedDict)

    @property
    def room(self) -> int:
        """How many slots a wide task could have now, were it not for reservations."""
        return 0 if self.is_draining else self.all_slots - sum(self.wide.values()) - len(self.leases)


class Managers:
    """All managers, sorted by the room that they have."""

    def __init__(self) -> None:
        self.by_name: dict[bytes, Manager] = {}
        #: How many tasks can run at once on all managers together, and how many they take in all.
        self.slots = 0
        self.limit = 0
        #: Managers with a free slot, those that only take tasks ahead, and those that take none; in order of service.
        self.free: OrderedDict[bytes, None] = OrderedDict()
        self.ahead: OrderedDict[bytes, None] = OrderedDict()
        self._full: OrderedDict[bytes, None] = OrderedDict()
        self.free_slots = 0
        self.asked = 0
        #: Managers that may have unstarted tasks to give. One that is asked is struck off until it has answered and its
        #: leases have changed: before that it would give the same answer.
        self.givers: OrderedDict[bytes, None] = OrderedDict()
        #: Those that are kept free for a wide task.
        self.reserved: dict[bytes, None] = {}
        #: Grows whenever a task that found no manager might find one.
        self.version = 0

    def join(self, manager: Manager) -> None:
        """A manager has come."""
        self.by_name[manager.name] = manager
        self.slots += manager.all_slots
        self.limit += manager.whole_limit
        self.resize(manager)

    def leave(self, name: bytes) -> Manager | None:
        """A manager is gone."""
        manager = self.by_name.pop(name, None)
        if manager is None:
            return None
        self.slots -= manager.all_slots
        self.limit -= manager.whole_limit
        self.free_slots -= manager.free_slots
        self.asked -= manager.asked
        manager.group.pop(name, None)
        self.givers.pop(name, None)
        self.reserved.pop(name, None)
        return manager

    def change_capacity(self, manager: Manager, slots: int, limit: int) -> None:
        """It takes more or fewer tasks than before."""
        self.slots += slots - manager.all_slots
        self.limit += limit - manager.whole_limit
        if slots != manager.all_slots:
            manager.shape = manager.shape._replace(slots=slots)
        manager.all_slots, manager.whole_limit = slots, limit
        self.resize(manager)

    def resize(self, manager: Manager) -> None:
        """Find out anew what it has for narrow tasks: wide ones have come or gone, or it was reserved or is free."""
        if manager.is_draining or manager.reserved_at is not None:
            manager.slots = manager.limit = 0
        else:
            manager.slots = max(0, manager.all_slots - sum(manager.wide.values()))
            # None goes ahead to slots that a wide task has, perhaps for hours.
            manager.limit = manager.whole_limit * manager.slots // max(1, manager.all_slots)
        self.version += 1
        self.sort_in(manager)

    def reserve(self, manager: Manager, priority: int) -> None:
        """Keep it free for a wide task."""
        manager.reserved_at = priority
        self.reserved[manager.name] = None
        self.resize(manager)

    def open(self, name: bytes) -> None:
        """Keep it free no more."""
        manager = self.by_name.get(name)
        if manager is not None and manager.reserved_at is not None:
            manager.reserved_at = None
            self.reserved.pop(name)
            self.resize(manager)

    def take_wide(self, manager: Manager, task: int, slots: int) -> None:
        """Give slots to a wide task."""
        manager.wide[task] = slots
        self.resize(manager)

    def drop_wide(self, name: bytes, task: int) -> None:
        """Take them back."""
        manager = self.by_name.get(name)
        if manager is not None and manager.wide.pop(task, None) is not None:
            self.resize(manager)

    def sort_in(self, manager: Manager) -> None:
        """Put a manager where it belongs by the room that it has."""
        name = manager.name
        held, slots = len(manager.leases), manager.slots
        free_slots = slots - held if held < slots else 0
        if free_slots != manager.free_slots:
            self.version += free_slots > manager.free_slots
            self.free_slots += free_slots - manager.free_slots
            manager.free_slots = free_slots
        if not slots:
            self.version += 1  # what has ended on a reserved manager makes room for whom it is reserved
        if held > slots and not manager.asked:
            self.givers[name] = None
        group = self.free if held < slots else self.ahead if held < manager.limit else self._full
        if group is not manager.group:
            manager.group.pop(name, None)
            group[name] = None
            manager.group = group
