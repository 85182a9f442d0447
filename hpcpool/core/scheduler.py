"""What the interchange decides: which manager gets which task, and what becomes of tasks whose worker or node is gone.

Pure: tasks and managers are names here. Every decision on the task path costs the same however many managers, tasks
and nodes there are. Tasks that need nothing in particular are in one queue and are leased in bulk; those that do are in
lines (`core.placement`), and are leased one by one.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from hpcpool.core.ends import Ends
from hpcpool.core.held import NOBODY, Held
from hpcpool.core.homes import Homes
from hpcpool.core.leases import Batch, Dropped, Reason, Request
from hpcpool.core.managers import Manager, Managers
from hpcpool.core.needs import NO_NEEDS, Needs, Shape
from hpcpool.core.placement import Asked, Placement
from hpcpool.core.priority_queue import PriorityQueue
from hpcpool.core.sharing import Sharing
from hpcpool.core.task import Special, Task

#: So long before its end a manager gets nothing new (seconds): what has been started may finish, and outcomes arrive.
DRAIN_S = 10.0
NO_LABELS: Mapping[str, Sequence[str]] = {}
#: So many ids that are no longer queued may stay in the queue, besides as many as are queued.
_STALE_LIMIT = 1024
#: A burst of tasks is spread over so many managers at most: to spread it over thousands would take a message for each
#: task. The next burst goes to the next managers.
_SPREAD = 32


class Scheduler:
    """The tasks of one client and the managers that run them.

    Args:
        loss_limit: how often a task is run again because its node was lost.
        rerun_lost: False: never.
        pools: the node pools that managers come from. A task that needs what none of them has is given up when each has
            shown what its nodes are like.
        drain_s: so long before a manager's end it gets nothing new (seconds).
        labels: the pools that a task can choose by one word; a word that is not here is the name of one.
    """

    def __init__(
        self,
        loss_limit: int,
        rerun_lost: bool,
        pools: Iterable[str] = (),
        drain_s: float = DRAIN_S,
        labels: Mapping[str, Sequence[str]] = NO_LABELS,
    ) -> None:
        self._loss_limit = loss_limit
        self._rerun_lost = rerun_lost
        self._tasks: dict[int, Task] = {}
        #: Queued tasks without needs; may hold ids that are no longer queued, which are passed over.
        self._queue: PriorityQueue[int] = PriorityQueue()
        self._queued = 0
        #: Unstarted tasks beyond this id are given up; None: there was no withdrawal.
        self._keep: int | None = None
        #: How many tasks have been cancelled in the queue since it was last swept.
        self._stale = 0
        self._managers = Managers()
        self._homes = Homes(self._managers)
        self._held = Held(self._managers, self._tasks)
        self._placement = Placement(self._managers, self._tasks, pools, labels)
        self._ends = Ends(self._managers, drain_s)
        self._sharing = Sharing(self._managers, self._placement)
        self._orders_to_kill: list[tuple[bytes, int]] = []

    @property
    def capacity(self) -> tuple[int, int]:
        """How many tasks can run at once on all managers together, and how many these take in all."""
        return self._managers.slots, self._managers.limit

    @property
    def backlog(self) -> int:
        """How many tasks wait: in the queue, in lines, or for what they need."""
        return self._queued + self._placement.waiting + len(self._held)

    @property
    def excess(self) -> int:
        """How many tasks are not finished, if those are more than there are slots; else how many wait in lines.

        A few tasks may wait too: with needs of their own they find no slot among many that are free.
        """
        pending = len(self._tasks)
        return pending if pending > self._managers.slots else self._placement.waiting

    @property
    def pending(self) -> int:
        """How many tasks are not finished."""
        return len(self._tasks)

    @property
    def wake_at(self) -> float:
        """When `dispatch` must be called next, whatever happens; inf: there is no need."""
        return self._ends.drain_at

    def waiting(self) -> list[tuple[Needs, int]]:
        """Return how many tasks wait, by what they need; the time in `Needs` is not that of any one of them."""
        return [(NO_NEEDS, self._queued), *self._placement.waiting_by_needs()]

    def asked(self) -> list[Asked]:
        """Return what all unfinished tasks ask for, to find out how many blocks there should be."""
        special = list(self._placement.asked())
        rest = len(self._tasks) - sum(asked.tasks for asked in special)
        return [*special, Asked(rest)] if rest else special

    def manager_of(self, task: int) -> bytes | None:
        """Return who holds a task; None if nobody does."""
        known = self._tasks.get(task)
        return known.manager or None if known is not None else None

    def held_by(self, manager: bytes) -> int:
        """Return how many tasks a manager holds, those included that run on another and have its node, too."""
        known = self._managers.by_name.get(manager)
        return len(known.leases) + len(known.wide) if known is not None else 0

    def reruns(self, task: int) -> int:
        """Return how often a task was queued again because its worker or its node was lost."""
        known = self._tasks.get(task)
        return known.crashes + known.losses if known is not None else 0

    # -- tasks --

    def submitted(
        self,
        task: int,
        priority: int,
        crash_limit: int,
        needs: Needs | None = None,
        time_s: float = 0.0,
        home: bytes | None = None,
    ) -> None:
        """Queue a task.

        Args:
            task, priority, crash_limit, needs: as the client says.
            time_s: it runs no longer than this (seconds); 0: nobody knows.
            home: the manager that has what it needs; None: none in particular.
        """
        known = Task(priority, crash_limit)
        known.home = home
        if needs is not None or time_s:
            known.special = Special((needs or NO_NEEDS)._replace(time_s=0.0), time_s)
        self._tasks[task] = known
        self._enqueue(task, known)

    def finished(self, manager: bytes, task: int) -> bool:
        """A manager has an outcome; False if the task is not (any more) its own: a late one, to be dropped."""
        return self.all_finished(manager, (task,))[0] is not None

    def all_finished(self, manager: bytes, tasks: Sequence[int]) -> list[int | None]:
        """A manager has outcomes of all these tasks.

        Returns how often each was queued again before, because its worker or its node was lost; None: it is not (any
        more) the manager's own.
        """
        holder = self._managers.by_name.get(manager)
        leases = holder.leases if holder is not None else {}
        reruns: list[int | None] = []
        for task in tasks:
            known = self._tasks.get(task)
            if known is None or known.manager != manager:
                reruns.append(None)
                continue
            del self._tasks[task]
            if leases.pop(task, 0) is not None and known.special is not None:
                self._placement.release(manager, task, known.special)
            reruns.append(known.crashes + known.losses)
        if holder is not None:
            if holder.tied:
                holder.tied.difference_update(tasks)
            self._managers.sort_in(holder)  # once: it costs as much as all the rest
        return reruns

    def crashed(self, manager: bytes, task: int) -> bool:
        """A task killed its worker; True if it is queued again, False if it has failed for good (or is not known)."""
        known = self._tasks.get(task)
        if known is None or known.manager != manager:
            return False
        known.crashes += 1
        if known.crashes >= known.crash_limit or known.is_killed:
            return False
        self._release(manager, task, known)
        self._enqueue(task, known, first=True)
        return True

    def recalled(self, manager: bytes, task: int) -> list[Dropped] | None:
        """A task has ended because we had it ended (see `orders_to_kill`): it runs elsewhere, or is returned.

        None: that is not why it has ended.
        """
        known = self._tasks.get(task)
        if known is None or known.manager != manager or known.special is None or not known.special.is_recalled:
            return None
        self._release(manager, task, known)
        return self._lost(task, known)

    def cancelled(self, task: int) -> bytes | None:
        """Nobody wants a task any more; returns the manager that must be told, if one holds it."""
        known = self._tasks.pop(task, None)
        if known is None:
            return None
        if known.manager is None:
            self._unqueue(task, known)
        elif not self._held.discard(task):
            self._release(known.manager, task, known)
        return known.manager or None

    def kill(self, task: int) -> bytes | None:
        """A task must end; returns the manager that must be told. One that no manager holds is forgotten."""
        known = self._tasks.get(task)
        if known is None or not known.manager:
            return self.cancelled(task)
        known.is_killed = True
        return known.manager

    def withdraw(self, keep: int) -> list[int]:
        """Give up all tasks beyond this id that no manager holds; returns them."""
        self._keep = keep
        withdrawn = [task for task, known in self._tasks.items() if not known.manager and task > keep]
        for task in withdrawn:
            self.cancelled(task)
        return withdrawn

    def returned(self, manager: bytes, tasks: Iterable[int]) -> list[Dropped]:
        """A manager gives unstarted tasks back; returns those that nobody wants to start any more."""
        holder = self._managers.by_name.get(manager)
        if holder is not None:
            self._managers.asked -= holder.asked
            holder.asked = 0
        dropped: list[Dropped] = []
        for task in tasks:
            known = self._tasks.get(task)
            if known is None or known.manager != manager:
                continue
            self._release(manager, task, known)
            is_withdrawn = self._keep is not None and task > self._keep
            if known.is_killed or is_withdrawn:
                del self._tasks[task]
                dropped.append(Dropped(task, Reason.KILLED if known.is_killed else Reason.WITHDRAWN))
            else:
                self._enqueue(task, known, first=True)
        return dropped

    def hold(self, task: int, *, is_at_home: bool) -> None:
        """A leased task cannot go to its manager yet, which lacks something.

        Args:
            task: waits until `resume` is called.
            is_at_home: it could run at its home now, and does as soon as there is room.
        """
        known = self._tasks[task]
        self._release(known.manager or NOBODY, task, known)
        self._held.add(task, (known.home if is_at_home and known.special is None else None) or NOBODY)

    def resume(self, tasks: Sequence[int]) -> None:
        """What these tasks have waited for is there, or never will be; others it may name at will."""
        for task in reversed(tasks):
            if self._held.discard(task):
                self._enqueue(task, self._tasks[task], first=True)

    # -- managers --

    def manager_joined(
        self, manager: bytes, slots: int, limit: int, pool: str = "", block: str = "", shape: Shape | None = None
    ) -> None:
        """A manager offers its slots.

        Args:
            manager: its name.
            slots: how many tasks it runs at once.
            limit: how many it takes in all.
            pool, block: where it comes from.
            shape: its node; None: slots of one core.
        """
        shape = (shape or Shape(slots))._replace(slots=slots)
        known = Manager(manager, shape, slots, limit, pool, block, self._ends.of(block))
        self._managers.join(known)
        self._note_end(known)
        self._placement.seen(pool, shape)

    def capacity_changed(self, manager: bytes, slots: int, limit: int) -> None:
        """A manager takes more or fewer tasks than before."""
        known = self._managers.by_name.get(manager)
        if known is not None:
            self._managers.change_capacity(known, slots, limit)
            if slots:
                self._placement.seen(known.pool, known.shape)

    def block_ends(self, block: str, at: float, pool: str, now: float) -> None:
        """The nodes of a block of this pool will be taken away at this moment (the clock of `dispatch`)."""
        for manager in self._ends.block_ends(block, at):
            self._note_end(manager)
        self._placement.lasts(pool, at - now)

    def block_over(self, block: str, *, was_taken: bool) -> None:
        """A block is over; if the batch system has taken it away, what it had does not count as lost after all."""
        self._ends.block_over(block, was_taken=was_taken)

    def _note_end(self, manager: Manager) -> None:
        if self._ends.note(manager) and not self._placement.heeds_time:
            self._placement.heeds_time = True
            self._move_timed_tasks()

    def _move_timed_tasks(self) -> None:
        """From now on it matters how long a task runs: those that have said so leave the queue."""
        # One that has gone home past others, and has come back, is in the queue twice.
        queued = dict.fromkeys(filter(self._is_queued, self._queue))
        timed = [task for task in queued if self._tasks[task].special is not None]
        for task in timed:
            self._queued -= 1
            self._homes.discard(task, self._tasks[task])
            self._enqueue(task, self._tasks[task])
        moved = set(timed)
        self._queue.keep(lambda task: task not in moved)

    def manager_lost(self, manager: bytes, *, is_expected: bool = False) -> list[Dropped]:
        """A manager is gone; its tasks are queued again, free of charge. Returns those that are not.

        Args:
            manager: its name.
            is_expected: the node was taken away or given back. That does not count for `loss_limit`, nor does what
                happens when its end, as told by `block_ends`, is near.
        """
        known = self._managers.leave(manager)
        if known is None:
            return []
        is_expected |= known.is_draining
        self._placement.lost(known)
        dropped: list[Dropped] = []
        for task in reversed([*known.leases, *known.wide]):
            held = self._tasks[task]
            # A block takes all of its nodes along, one after the other: that is one loss.
            if held.special is None or not held.special.is_recalled:
                self._ends.task_lost(known.block, held, is_expected=is_expected)
            if held.manager == manager:
                self._release(manager, task, held)
                dropped += self._lost(task, held)
            elif held.special is not None and not held.special.is_recalled:
                # It runs on another node, and had this one, too: without it, it cannot go on.
                held.special.is_recalled = True
                assert held.manager is not None
                self._orders_to_kill.append((held.manager, task))
        return dropped

    def _lost(self, task: int, known: Task) -> list[Dropped]:
        if self._rerun_lost and not known.is_killed and known.losses - known.forgiven <= self._loss_limit:
            self._enqueue(task, known, first=True)
            return []
        del self._tasks[task]
        return [Dropped(task, Reason.KILLED if known.is_killed else Reason.LOST)]

    def take_drained(self) -> list[bytes]:
        """Return the managers whose end has come near since this was asked last."""
        names, self._ends.drained = self._ends.drained, []
        return names

    def orders_to_kill(self) -> list[tuple[bytes, int]]:
        """Return the managers that must end a task, and which: the task has lost another of its nodes."""
        orders, self._orders_to_kill = self._orders_to_kill, []
        return orders

    def company_of(self, task: int) -> tuple[bytes, ...]:
        """Return the managers whose nodes a leased task has, the one that runs it first."""
        known = self._tasks[task]
        assert known.manager is not None
        return (known.manager, *(known.special.company if known.special is not None else ()))

    # -- decisions --

    def dispatch(self, now: float = 0.0) -> list[Batch]:
        """Lease queued tasks: first to free slots, evenly over some managers at a time, then ahead.

        Args:
            now: the clock of `block_ends`; it does not matter as long as no block has an end.
        """
        if now >= self._ends.drain_at:
            for name in self._ends.drain(now):
                self._sharing.recall(name)
        batches: dict[bytes, list[int]] = {}
        if self._held:
            self._held.serve(batches)
        has_lines = bool(self._placement.waiting)
        if has_lines:
            self._serve_lines(batches, now, ahead=False)
        self._serve(self._managers.free, batches, ahead=False)
        if has_lines:
            self._serve_lines(batches, now, ahead=True)
        if self._queued:
            self._serve(self._managers.ahead, batches, ahead=True)
        return [Batch(manager, tasks) for manager, tasks in batches.items()]

    @property
    def has_requests(self) -> bool:
        """Whether `share` has something to say although there is only one manager."""
        return self._sharing.has_recalls

    def share(self) -> list[Request]:
        """Return which managers are to be asked for unstarted tasks (see `core.sharing`)."""
        return self._sharing.requests(has_queued=bool(self._queued))

    @property
    def has_unavailable(self) -> bool:
        """Whether `unavailable` returns any."""
        return self._placement.has_hopeless

    def unavailable(self) -> list[Dropped]:
        """Return the tasks that no node could ever run, now given up."""
        tasks = self._placement.take_hopeless()
        for task in tasks:
            self._unqueue(task, self._tasks.pop(task))
        return [Dropped(task, Reason.UNAVAILABLE) for task in tasks]

    def offered(self) -> str:
        """Say what nodes there are, for those whose tasks are unavailable."""
        return self._placement.offered()

    # -- how --

    def _serve(self, managers: OrderedDict[bytes, None], batches: dict[bytes, list[int]], *, ahead: bool) -> None:
        while self._queued and managers:
            for turns_left in range(min(len(managers), _SPREAD), 0, -1):
                self._lease_to(name := next(iter(managers)), -(-self._queued // turns_left), batches, ahead=ahead)
                if name in managers:
                    managers.move_to_end(name)
                if not self._queued or not managers:  # tasks that went home have filled others, too
                    break

    def _lease_to(self, name: bytes, fair: int, batches: dict[bytes, list[int]], *, ahead: bool) -> None:
        manager = self._managers.by_name[name]
        room = min((manager.limit if ahead else manager.slots) - len(manager.leases), fair)
        if self._homes:
            while room > 0 and self._queued:
                room -= self._lease_to_one(name, batches, ahead=ahead) is manager
            self._managers.sort_in(manager)
            return
        tasks = batches.setdefault(name, [])
        for _ in range(room):
            task, known = self._dequeue()
            known.manager = name
            manager.leases[task] = None
            tasks.append(task)
        self._managers.sort_in(manager)

    def _serve_lines(self, batches: dict[bytes, list[int]], now: float, *, ahead: bool) -> None:
        """Lease tasks of lines, and of the queue what comes before them, in the order of service.

        It ends with the last task of a line that can be leased; what is then left in the queue is leased in bulk.
        """
        heads = self._placement.heads(narrow_only=ahead)
        is_full = False
        while heads:
            turn, line = heads[0]
            if self._queued and not is_full and (plain := self._plain_head()) < turn:
                name = self._placement.next_in_turn(-plain[0], ahead=ahead)
                if name is not None:
                    self._lease_to_one(name, batches, ahead=ahead)
                    continue
                is_full = True
            heapq.heappop(heads)
            if is_full and not line.reserved:
                continue  # what is in the queue comes before it, and will be leased first
            leased = self._placement.lease(line, now, ahead=ahead)
            if leased is not None:
                batches.setdefault(leased[0], []).append(leased[1])
                if line.queued:
                    heapq.heappush(heads, (self._placement.turn(line), line))

    def _lease_to_one(self, name: bytes, batches: dict[bytes, list[int]], *, ahead: bool) -> Manager:
        """Lease the next task of the queue to a manager, or to its home if there is room; return who has got it."""
        manager = self._managers.by_name[name]
        task = None
        if self._homes:
            head = self._plain_head()[1]
            task = self._homes.next(name, head, self._tasks[head])
        if task is None:
            task, known = self._dequeue()
        else:
            known = self._tasks[task]
            self._queued -= 1
            self._note_stale()
        if known.home is not None:
            manager = self._homes.leave(task, known, ahead=ahead) or manager
        known.manager = manager.name
        manager.leases[task] = None
        batches.setdefault(manager.name, []).append(task)
        self._managers.sort_in(manager)
        return manager

    def _plain_head(self) -> tuple[int, int]:
        """Return the place of the next task of the queue in the order of service; only called while there is one."""
        while not self._is_queued((head := self._queue.peek())[1]):
            self._queue.pop()
        return -head[0], head[1]

    def _release(self, name: bytes, task: int, known: Task) -> None:
        manager = self._managers.by_name.get(name)
        if manager is not None and manager.leases.pop(task, 0) is None:
            if manager.tied:
                manager.tied.discard(task)
            self._managers.sort_in(manager)
        elif known.special is not None:
            self._placement.release(name, task, known.special)

    def _enqueue(self, task: int, known: Task, first: bool = False) -> None:
        known.manager = None
        if (special := known.special) is not None:
            special.is_recalled = False
            if self._placement.wants(special):
                self._placement.enqueue(task, known.priority, special, first=first)
                return
        self._queue.push(task, known.priority, first=first)
        self._queued += 1
        if known.home is not None:
            self._homes.add(task, known, first=first)

    def _unqueue(self, task: int, known: Task) -> None:
        """A queued task is not to be leased any more."""
        self._homes.discard(task, known)
        if known.special is not None and known.special.line is not None:
            self._placement.forget(known.special)
        else:
            self._queued -= 1
            self._note_stale()

    def _dequeue(self) -> tuple[int, Task]:
        """Return the next task; only called while there is one."""
        while True:
            task = self._queue.pop()
            known = self._tasks.get(task)
            if known is not None and known.manager is None:
                self._queued -= 1
                return task, known

    def _is_queued(self, task: int) -> bool:
        known = self._tasks.get(task)
        return known is not None and known.manager is None

    def _note_stale(self) -> None:
        """Sweep out the ids that are no longer queued when they have become too many."""
        self._stale += 1
        if self._stale > _STALE_LIMIT + self._queued:
            self._queue.keep(self._is_queued)
            self._stale = 0
