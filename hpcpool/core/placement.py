"""Which manager gets a task that needs something: a pool, several slots, whole nodes, or enough time. Pure.

Tasks with equal needs wait in one line. The first of each line is tried in the order of service; a wide one, which
takes several slots, for which no manager has room has one *reserved*: it gets nothing new of that priority or less,
gives back what it has not started, and so will have room. A wide task is never sent ahead. A *narrow* one takes
one slot and a worker like any other, and may be.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from hpcpool.core.line import Line, line_key
from hpcpool.core.managers import Manager, Managers
from hpcpool.core.needs import NO_NEEDS, Needs, Shape, width
from hpcpool.core.task import Special, Task

#: A call is not started where less than its time and this (seconds) is left: it must get there, and its outcome back.
GRACE_S = 5.0

#: A line's place in the order of service, and the line.
Head = tuple[tuple[int, int], Line]


class Asked(NamedTuple):
    """What unfinished tasks ask for."""

    tasks: int
    #: How many slots each of them takes, on all its nodes together.
    slots_per_task: int = 1
    #: The node pools that can run them; None: all.
    pools: frozenset[str] | None = None
    #: How long the next of them runs (seconds); 0: nobody knows, or it runs already.
    time_s: float = 0.0


class Placement:
    """The lines, and the managers that are reserved for them.

    Args:
        managers: those of the scheduler; what they hold is changed here.
        tasks: those of the scheduler, by their ids.
        pools, labels: as for `Scheduler`.
    """

    def __init__(
        self, managers: Managers, tasks: Mapping[int, Task], pools: Iterable[str], labels: Mapping[str, Sequence[str]]
    ) -> None:
        self._managers = managers
        self._tasks = tasks
        self._pools = tuple(pools)
        self._labels = labels
        self._lines: dict[Needs, Line] = {}
        #: How many tasks wait in lines.
        self.waiting = 0
        #: Some node has an end, so that tasks with a known time are not like any other.
        self.heeds_time = False
        #: What the nodes of each pool are, or were, like.
        self._shapes: dict[str, dict[Shape, None]] = {}
        #: Managers that were reserved and are to be asked for what they have not started.
        self.recalls: dict[bytes, None] = {}
        #: Lines that no node can ever serve.
        self._hopeless: dict[Needs, Line] = {}
        #: The longest time (seconds) that a block of each pool has had before it when its end became known.
        self._lasts: dict[str, float] = {}
        #: Tasks that run longer than any block lasts; may hold some that do not wait any more.
        self._too_long: list[int] = []

    # -- lines --

    def wants(self, special: Special) -> bool:
        """Say whether a task belongs into a line."""
        return special.needs != NO_NEEDS or (special.time_s > 0 and self.heeds_time)

    def enqueue(self, task: int, priority: int, special: Special, *, first: bool) -> None:
        """Put a task into its line."""
        key = line_key(special.needs, special.time_s)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key, self._is_queued)
            self._look_at_offers(line)
        special.line = line
        line.push(task, priority, first=first)
        self.waiting += 1
        if self._is_too_long(special):
            self._too_long.append(task)

    def forget(self, special: Special) -> None:
        """A task of a line does not wait any more."""
        assert special.line is not None
        special.line.forget()
        self._left(special.line, special)

    def _left(self, line: Line, special: Special) -> None:
        special.line = None
        self.waiting -= 1
        if not line.queued:
            self._unreserve(line)
            del self._lines[line.needs]
            self._hopeless.pop(line.needs, None)

    def _is_queued(self, task: int) -> bool:
        known = self._tasks.get(task)
        return known is not None and known.manager is None

    def waiting_by_needs(self) -> Iterator[tuple[Needs, int]]:
        """Return how many tasks wait in each line."""
        return ((line.needs, line.queued) for line in self._lines.values())

    def asked(self) -> Iterator[Asked]:
        """Return what the tasks in lines ask for, and those that run on several slots."""
        for line in self._lines.values():
            first = self._tasks[line.head()[1]].special
            yield self._asked(line.needs, line.queued)._replace(time_s=first.time_s if first is not None else 0.0)
        for manager in self._managers.by_name.values():
            for task in manager.wide:
                known = self._tasks[task]
                if known.manager == manager.name and known.special is not None:
                    yield self._asked(known.special.needs, 1)

    def _asked(self, needs: Needs, tasks: int) -> Asked:
        pools = self._chosen(needs) if needs.pool else self._pools
        fitting = {pool: self._least_width(needs, pool) for pool in pools}
        able = {pool: slots for pool, slots in fitting.items() if slots is not None}
        return Asked(tasks, max(able.values(), default=1) * needs.node_count, frozenset(able))

    def _chosen(self, needs: Needs) -> Sequence[str]:
        """Return the pools that a task has chosen."""
        return self._labels.get(needs.pool) or (needs.pool,)

    def _least_width(self, needs: Needs, pool: str) -> int | None:
        """Return how many slots a task takes on a pool's nodes; None: it cannot run there. Unknown nodes: 1."""
        if pool not in self._shapes:
            return 1
        widths = [slots for shape in self._shapes[pool] if (slots := width(needs, shape)) is not None]
        return min(widths, default=None)

    # -- what there is --

    def seen(self, pool: str, shape: Shape) -> None:
        """A pool has such a node."""
        shapes = self._shapes.setdefault(pool, {})
        if shape not in shapes:
            shapes[shape] = None
            for line in self._lines.values():
                self._look_at_offers(line)
            if self._lasts:
                self._look_at_times()

    def _look_at_offers(self, line: Line) -> None:
        pools = self._chosen(line.needs) if line.needs.pool else self._pools or tuple(self._shapes)
        widths = {width(line.needs, shape) for pool in pools for shape in self._shapes.get(pool, ())}
        line.can_be_narrow = 1 in widths and not line.needs.wants_whole_nodes
        line.is_offered = bool(widths - {None})
        line.tried = None
        is_all_known = all(pool in self._shapes or pool not in self._pools for pool in pools)
        if self._pools and is_all_known and not line.is_offered:
            self._hopeless[line.needs] = line
        else:
            self._hopeless.pop(line.needs, None)

    def lasts(self, pool: str, seconds: float) -> None:
        """A block of this pool has so much time before it."""
        is_first = pool not in self._lasts
        self._lasts[pool] = max(seconds, self._lasts.get(pool, 0.0))
        if is_first:  # what is longer than that makes nothing hopeless that was not
            self._look_at_times()

    def _look_at_times(self) -> None:
        for task in (task for line in self._lines.values() for task in line):
            special = self._tasks[task].special
            if special is not None and self._is_too_long(special):
                self._too_long.append(task)

    def _is_too_long(self, special: Special) -> bool:
        """Say whether a task runs longer than any block that could run it lasts, as far as all of these are known."""
        if not special.time_s or not self._lasts:
            return False
        able = self._asked(special.needs, 1).pools or ()
        return bool(able) and all(special.time_s + GRACE_S > self._lasts.get(pool, math.inf) for pool in able)

    @property
    def has_hopeless(self) -> bool:
        """Whether `take_hopeless` may return any."""
        return bool(self._hopeless or self._too_long)

    def take_hopeless(self) -> list[int]:
        """Return the tasks that no node can ever run; the caller gives them up."""
        tasks = dict.fromkeys(task for line in self._hopeless.values() for task in line)
        tasks |= dict.fromkeys(filter(self._is_queued, self._too_long))
        self._too_long.clear()
        return list(tasks)

    def offered(self) -> str:
        """Say what nodes there are."""
        return f"nodes of {'; '.join(map(self._offered, self._shapes | self._lasts))}"

    def _offered(self, pool: str) -> str:
        shapes = " or ".join(map(str, self._shapes.get(pool, ())))
        known = f"{pool!r}: {shapes}" if shapes else repr(pool)
        return f"{known}, for calls of up to {self._lasts[pool] - GRACE_S:.0f} s" if pool in self._lasts else known

    # -- leasing --

    def heads(self, *, narrow_only: bool) -> list[Head]:
        """Return a heap of the lines that may find a manager."""
        heads = [
            (self.turn(line), line)
            for line in self._lines.values()
            if line.is_offered and (line.can_be_narrow or not narrow_only)
        ]
        heapq.heapify(heads)
        return heads

    @staticmethod
    def turn(line: Line) -> tuple[int, int]:
        """Return the place of a line's first task in the order of service."""
        priority, task = line.head()
        return -priority, task

    def next_in_turn(self, priority: int, *, ahead: bool) -> bytes | None:
        """Return a manager for a task of this priority that needs nothing; None: there is no room."""
        group = self._managers.ahead if ahead else self._managers.free
        if group:
            name = next(iter(group))
            group.move_to_end(name)
            return name
        if not ahead:
            for name in self._reserved_below(priority):
                if self._managers.by_name[name].room > 0:
                    return name
        return None

    def lease(self, line: Line, now: float, *, ahead: bool) -> tuple[bytes, int] | None:
        """Lease the first task of a line; None: no manager has room for it."""
        priority, task = line.head()
        special = self._tasks[task].special
        assert special is not None
        if ahead:
            names = self._find_ahead(line, special, now)
        else:
            names = self._find_or_reserve(line, task, priority, special, now)
        if names is None:
            return None
        self._take(line, task, special, names, ahead=ahead)
        return names[0], task

    def _take(self, line: Line, task: int, special: Special, names: tuple[bytes, ...], *, ahead: bool) -> None:
        self._unreserve(line)
        line.pop()
        self._left(line, special)
        self._tasks[task].manager = names[0]
        first = self._managers.by_name[names[0]]
        if self._slots(line, first) == 1 and not line.needs.wants_whole_nodes:
            first.leases[task] = None
            if ahead and self._managers.free:
                # What is free does not do for it: it would come back here if it were asked for.
                first.tied.add(task)
            self._managers.sort_in(first)
            return
        special.company = names[1:]
        for name in names:
            manager = self._managers.by_name[name]
            self._managers.take_wide(manager, task, self._slots(line, manager) or 0)

    def release(self, name: bytes, task: int, special: Special) -> None:
        """A wide task has left its managers."""
        for holder in (name, *special.company):
            self._managers.drop_wide(holder, task)
        special.company = ()

    # -- finding --

    def _find_ahead(self, line: Line, special: Special, now: float) -> tuple[bytes, ...] | None:
        for name in self._managers.ahead:
            if self._fit(line, special, self._managers.by_name[name], now) == 1:
                self._managers.ahead.move_to_end(name)
                return (name,)
        return None

    def _find_or_reserve(
        self, line: Line, task: int, priority: int, special: Special, now: float
    ) -> tuple[bytes, ...] | None:
        if line.reserved:
            self._look_at_reservation(line, priority, special, now)
        if line.tried == (task, self._managers.version):
            return None
        names = self._find(line, priority, special, now, self._tasks[task].home)
        if names is None:
            if not line.reserved:
                self._reserve(line, priority, special, now)
            line.tried = (task, self._managers.version)
        return names

    def _find(
        self, line: Line, priority: int, special: Special, now: float, home: bytes | None
    ) -> tuple[bytes, ...] | None:
        nodes: dict[str, list[bytes]] = {}
        first = (home,) if home is not None and home in self._managers.free else ()
        for name in chain(first, self._managers.free, line.reserved, self._reserved_below(priority)):
            manager = self._managers.by_name[name]
            slots = self._fit(line, special, manager, now)
            if slots is None or manager.room < slots:
                continue
            if line.needs.node_count == 1:
                if name in self._managers.free:
                    self._managers.free.move_to_end(name)
                return (name,)
            found = nodes.setdefault(manager.block, [])
            if name not in found:
                found.append(name)
            if len(found) == line.needs.node_count:
                return tuple(found)
        return None

    def _fit(self, line: Line, special: Special, manager: Manager, now: float) -> int | None:
        """Return how many slots of a manager a task would take; None: it must not go there."""
        if manager.is_draining or (line.needs.pool and manager.pool not in self._chosen(line.needs)):
            return None
        if special.time_s and now + special.time_s + GRACE_S > manager.ends_at:
            return None
        return self._slots(line, manager)

    @staticmethod
    def _slots(line: Line, manager: Manager) -> int | None:
        if manager.shape not in line.widths:
            line.widths[manager.shape] = width(line.needs, manager.shape)
        return line.widths[manager.shape]

    # -- reserving --

    def _reserved_below(self, priority: int) -> list[bytes]:
        """Return the managers that are reserved for tasks of a lower priority."""
        return [name for name in self._managers.reserved if (self._managers.by_name[name].reserved_at or 0) < priority]

    def _reserve(self, line: Line, priority: int, special: Special, now: float) -> None:
        """Keep those managers free for a task that will have room for it first, as far as one can tell."""
        #: By block: how many slots are not free that would have to be, and where.
        missing: dict[str, list[tuple[int, bytes]]] = {}
        for manager in self._managers.by_name.values():
            slots = self._fit(line, special, manager, now)
            if slots is None:
                continue
            if slots == 1 and line.can_be_narrow:
                return  # any slot will do
            if manager.reserved_at is None or manager.reserved_at < priority:
                missing.setdefault(manager.block, []).append((max(0, slots - manager.room), manager.name))
        count = line.needs.node_count
        choices = [sorted(found)[:count] for found in missing.values() if len(found) >= count]
        if choices:
            self._reserve_all(line, priority, min(choices, key=lambda found: sum(short for short, _ in found)))

    def _reserve_all(self, line: Line, priority: int, chosen: list[tuple[int, bytes]]) -> None:
        for _, name in chosen:
            if name in self._managers.reserved:
                self._unreserve(self._holder(name))
            manager = self._managers.by_name[name]
            self._managers.reserve(manager, priority)
            # What goes before it anyway is not asked back: it would only be sent there again.
            if all(self._tasks[task].priority <= priority for task in manager.leases):
                self.recalls[name] = None
        line.reserved = tuple(name for _, name in chosen)

    def _look_at_reservation(self, line: Line, priority: int, special: Special, now: float) -> None:
        """Give it up if its managers do not do any more: too little time is left, or the first task is another one."""
        for name in line.reserved:
            manager = self._managers.by_name.get(name)
            if manager is None or self._fit(line, special, manager, now) is None:
                self._unreserve(line)
                return
            manager.reserved_at = priority

    def _unreserve(self, line: Line) -> None:
        for name in line.reserved:
            self._managers.open(name)
            self.recalls.pop(name, None)
        line.reserved = ()
        line.tried = None

    def _holder(self, name: bytes) -> Line:
        return next(line for line in self._lines.values() if name in line.reserved)

    def lost(self, manager: Manager) -> None:
        """A manager has gone: who has waited for it must look for another."""
        if manager.reserved_at is not None:
            self._unreserve(self._holder(manager.name))

    def take_recalls(self) -> list[bytes]:
        """Return the managers that are to be asked for what they have not started."""
        names, self.recalls = list(self.recalls), {}
        return names
