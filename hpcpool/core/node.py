"""What a manager decides: which worker gets which task, when to take tasks back, to report, to end a worker. Pure.

The rule: a worker holds one running task and, only while tasks are measured to be short, a few unstarted ones behind
it. As soon as the running one turns out not to be short, or another worker has nothing to do, the unstarted ones are
taken back. So no task ever waits behind a long one while a slot is free.

A wide task, which takes several slots, gets a worker of its own, started for it and retired after it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

from hpcpool.core.orders import (
    Crashed,
    End,
    Ended,
    EndWorker,
    Give,
    Hopeless,
    Order,
    ReportStarted,
    RetireWorker,
    Run,
    StartWideWorker,
    StartWorker,
    TakeBack,
)
from hpcpool.core.pace import node_depth, worker_depth, worth_moving
from hpcpool.core.starts import START_AGAIN_S, Starts
from hpcpool.core.wide_tasks import WideTasks
from hpcpool.core.worker import Worker, warmest

#: A task that has run for so long is reported as started, and a cancelled one is ended (seconds).
STARTED_AFTER_S = 0.02
#: With a task that has run for so long, no unstarted one stays (seconds).
LONG_TASK_S = 0.015
#: A look at the running tasks goes through all workers, so the next comes no sooner than this (seconds) for each.
TICK_S_PER_WORKER = 1e-5
#: How long a worker that has served enough may take to leave (seconds): exit handlers run in this time.
LEAVE_S = 5.0
#: Weight of the newest run time in the moving mean.
_NEWEST = 0.1


class Node:
    """The tasks and workers of one node."""

    def __init__(self, slots: int, max_tasks_per_child: int | None = None) -> None:
        self.slots = slots
        self._max_served = max_tasks_per_child
        self._workers: dict[int, Worker] = {}
        self._usable = 0
        #: Usable, ready workers without a task; the one that became idle last, the warmest, at the end.
        self._idle: dict[int, Worker] = {}
        #: Workers that are ended with their task: until they have gone, no other is given one on their slots.
        self._ending: dict[int, Worker] = {}
        #: Workers that may take tasks ahead, in turn. One that cannot is struck off and comes back when half of its
        #: tasks are done: so finding one costs the same however many workers are full.
        self._takers: deque[Worker] = deque()
        #: Workers that have served enough and have no task, but have not been told to leave.
        self._spent: list[Worker] = []
        #: How many were told and have not gone.
        self._leaving = 0
        #: How many workers have a task, and how many tasks wait behind a running one.
        self._active = 0
        self._behind = 0
        self._wide = WideTasks(slots)
        self._next_worker = 1
        self._queue: deque[int] = deque()
        #: Tasks here, queued or given, that have a time limit (seconds).
        self._timeouts: dict[int, float] = {}
        #: Given tasks whose outcome nobody wants any more.
        self._dropped: set[int] = set()
        self._mean_s: float | None = None
        self._starts = Starts()
        #: When `tick` wants to be called; inf: no need.
        self.tick_at = math.inf
        self._withdrawing = False
        #: How many tasks others have asked for in vain.
        self._owed = 0

    # -- what others want to know --

    @property
    def limit(self) -> int:
        """How many tasks the node takes in all, by how long they run."""
        return self.slots * node_depth(self._mean_s)

    def slots_of(self, number: int) -> tuple[int, ...]:
        """Return which of the node's slots a worker has."""
        return self._workers[number].slots

    def newest_of(self, number: int, count: int) -> list[int]:
        """Return the last tasks that a worker was given, oldest first."""
        return list(self._workers[number].given)[-count:] if count else []

    # -- events --

    def warm_up(self) -> list[Order]:
        """Start the first worker before the first task has come."""
        return self._start_workers(at_least=1)

    def arrived(
        self,
        tasks: Iterable[tuple[int, float]],
        now: float,
        widths: Mapping[int, int] | None = None,
    ) -> list[Order]:
        """Take tasks, each with its timeout in seconds (0: none).

        Those in `widths` take so many slots, and a worker of their own.
        """
        self._owed = 0  # whoever sends tasks has more of them than others can take
        for task, timeout_s in tasks:
            if widths and task in widths:
                self._wide.claim(task, widths[task])
            else:
                self._queue.append(task)
            if timeout_s:
                self._timeouts[task] = timeout_s
        return self._fill(now)

    def worker_ready(self, number: int, now: float) -> list[Order]:
        """A started worker waits for its first call."""
        worker = self._workers[number]
        worker.ready = True
        self._starts.ready()
        if (task := worker.awaits) is not None:
            worker.awaits = None
            self._wide.begun(1)
            self._give(worker, task, now)
            return [Give(number, task), *self._fill(now)]
        if worker.usable:
            self._idle[number] = worker
        return self._fill(now)

    def finished(self, number: int, task: int, elapsed_s: float, now: float) -> bool:
        """A worker has sent an outcome; say whether anybody wants it. Call `refill` after a batch of these."""
        worker = self._workers[number]
        given = worker.given
        if task not in given:
            return False
        given.remove(task)
        mean = self._mean_s
        self._mean_s = elapsed_s if mean is None else mean + _NEWEST * (elapsed_s - mean)
        self._starts.barren = 0
        if self._timeouts or self._wide.widths:
            self._forget(task)
        if given:
            self._behind -= 1
            self._now_runs(worker, now)
            if 2 * len(given) <= worker_depth(self._mean_s):  # a message costs as much as several tasks in it
                self._list(worker)
        else:
            self._active -= 1
            self._rest(worker)
        if task in self._dropped:
            self._dropped.discard(task)
            return False
        return True

    def refill(self, now: float) -> list[Order]:
        """Give out tasks after outcomes have come; take tasks back for workers that have none."""
        orders = self._fill(now)
        if self._behind and not self._queue and self._next_idle() is not None:
            orders += self._share()
        return orders

    def taken_back(self, number: int, tasks: list[int], now: float) -> list[Order]:
        """These unstarted tasks were read back from a worker's channel, oldest first."""
        return [*self._unread(self._workers[number], tasks, now), *self._fill(now)]

    def cancelled(self, task: int, now: float) -> list[Order]:
        """Nobody wants this task any more."""
        holder = self._holder(task)
        if holder is None:
            return [*(self._drop(task) or ()), *self._fill(now)]
        self._dropped.add(task)
        if holder.given[0] == task:
            self._tick_by(now if holder.reported else holder.since + STARTED_AFTER_S)
            return []
        return [TakeBack(holder.number)]

    def killed(self, task: int, now: float) -> list[Order]:
        """The user wants this task ended although it runs."""
        holder = self._holder(task)
        if holder is None:
            dropped = self._drop(task)
            return [] if dropped is None else [*dropped, Ended(task, End.KILLED), *self._fill(now)]
        if holder.given[0] == task and holder.victim in (None, task):
            return self._end(holder, End.KILLED)
        if task in self._dropped:
            return []
        self._dropped.add(task)
        return [TakeBack(holder.number), Ended(task, End.KILLED)]

    def give_back(self, count: int) -> list[int]:
        """Hand unstarted tasks back to the interchange, the newest first. What is missing is owed: see `pay_back`."""
        returned: list[int] = []
        while self._queue and len(returned) < count:
            task = self._queue.pop()
            self._forget(task)
            returned.append(task)
        self._owed = count - len(returned)
        return returned

    def pay_back(self) -> list[int]:
        """Hand over what is owed and has come back from workers since: tasks that were behind a long one."""
        return self.give_back(self._owed) if self._owed and self._queue else []

    def withdraw(self) -> list[Order]:
        """Begin to give up what does not run: obey the orders, then call `withdrawn`."""
        self._withdrawing = True
        return [TakeBack(worker.number) for worker in self._workers.values() if worker.given]

    def withdrawn(self, keep: int, now: float) -> tuple[list[int], list[Order]]:
        """Return the tasks beyond this id that did not run, now given up; and how to go on with the rest."""
        self._withdrawing = False
        given_up = [task for task in self._queue if task > keep]
        self._queue = deque(task for task in self._queue if task <= keep)
        for task in given_up:
            self._forget(task)
        orders: list[Order] = []
        for task in [task for task in self._wide.widths if task > keep]:
            if (dropped := self._drop(task)) is not None:
                given_up.append(task)
                orders += dropped
        return given_up, [*orders, *self._fill(now)]

    def worker_ended(self, number: int, unread: list[int], now: float) -> list[Order]:
        """A worker is gone; `unread` are the tasks still in its channel. All its outcomes have been told before."""
        worker = self._workers.pop(number)
        self._idle.pop(number, None)
        self._ending.pop(number, None)
        self._leaving -= worker.leaving and worker.ending is None
        worker.leaving = True
        orders = self._unread(worker, unread, now)
        self._look_at_usability(worker)
        self._wide.gone(worker)
        self._look_at_neighbours(worker.slots)
        if worker.given:
            orders += self._died_running(worker)
        elif worker.ending is None and not worker.served and self._starts.died(worker, unread):
            return [*orders, Hopeless(number)]
        return [*orders, *self._fill(now)]

    def not_started(self, number: int, now: float) -> list[Order]:
        """The system has no room for this worker: those there are go on, and after a while it is tried again."""
        worker = self._workers.pop(number)
        self._usable -= worker.usable
        self._wide.gone(worker)
        self._look_at_neighbours(worker.slots)
        is_hopeless = self._starts.no_room(now, is_alone=not self._workers)
        self._tick_by(now + START_AGAIN_S)
        return [Hopeless(number)] if is_hopeless else []

    def tick(self, now: float) -> list[Order]:
        """Look after the running tasks: report, take back what waits behind them, end what is over its time."""
        self.tick_at = math.inf
        orders: list[Order] = []
        started: list[Run] = []
        for worker in self._workers.values():
            if worker.ending is not None:
                continue
            if worker.given:
                orders += self._look_at_running(worker, started, now)
            elif worker.leaving:
                orders += self._look_at_leaving(worker, now)
        if started:
            orders.append(ReportStarted(started))
        if self._starts.are_due(now):
            orders += [*self._start_wide(), *self._start_workers(at_least=1)]
        elif self._starts.again_at is not None:
            self._tick_by(self._starts.again_at)
        self.tick_at = max(self.tick_at, now + TICK_S_PER_WORKER * len(self._workers))
        return orders

    # -- giving --

    def _fill(self, now: float) -> list[Order]:
        if self._withdrawing:
            return []
        orders = self._retire_spent(now) if self._spent else []
        if self._wide.queue:
            orders += self._start_wide()
        queue = self._queue
        if queue:
            depth = worker_depth(self._mean_s)
            while queue and (worker := self._next_taker(now, depth)) is not None:
                task = queue.popleft()
                self._give(worker, task, now)
                orders.append(Give(worker.number, task))
        if queue or self._max_served is not None:
            orders += self._start_workers()
        return orders

    def _next_taker(self, now: float, depth: int) -> Worker | None:
        if (idle := self._next_idle()) is not None:
            return self._idle.pop(idle.number)
        if depth == 1:
            return None
        takers = self._takers
        while takers:
            worker = takers.popleft()
            # Nothing goes behind a task that has turned out to be long.
            if worker.usable and 0 < len(worker.given) < depth and now < worker.since + LONG_TASK_S:
                takers.append(worker)
                return worker
            worker.listed = False
        return None

    def _next_idle(self) -> Worker | None:
        return warmest(self._idle, self._ending) if self._active < self._wide.most_active else None

    def _give(self, worker: Worker, task: int, now: float) -> None:
        worker.given.append(task)
        worker.served += 1
        if len(worker.given) == 1:
            self._active += 1
            self._now_runs(worker, now)
            self._list(worker)
        else:
            self._behind += 1
            self._tick_by(worker.since + LONG_TASK_S)
        if self._max_served is not None:
            self._look_at_usability(worker)

    def _list(self, worker: Worker) -> None:
        if not worker.listed:
            worker.listed = True
            self._takers.append(worker)

    def _rest(self, worker: Worker) -> None:
        """A worker has no task any more."""
        if worker.is_wide:
            self._wide.begun(-1)
        if worker.usable:
            if worker.ready:
                self._idle[worker.number] = worker
        elif worker.ending is None and not worker.leaving:
            self._spent.append(worker)

    def _share(self) -> list[Order]:
        """Take work back from the worker that holds most, if that is worth the trouble."""
        worth = worth_moving(self._mean_s)
        if self._behind < worth:
            return []
        holder = max(self._workers.values(), key=lambda worker: len(worker.given))
        return [TakeBack(holder.number)] if len(holder.given) - 1 >= worth else []

    # -- starting and leaving --

    def _start_workers(self, at_least: int = 0) -> list[Order]:
        orders: list[Order] = []
        if not self._starts.are_possible:
            return orders
        active = self._active - self._wide.active
        wanted = min(self._wide.narrow, max(at_least, len(self._queue) + active))
        # A worker that leaves is replaced at once, one that has served enough while it runs its last call. The bound is
        # for workers that take long to leave: their replacements must not pile up.
        while self._usable < wanted and self._leaving < 2 * self.slots:
            worker = self._new_worker((self._wide.slot_for_worker(self._workers.values()),))
            self._usable += 1
            orders.append(StartWorker(worker.number))
        return orders

    def _new_worker(self, slots: tuple[int, ...]) -> Worker:
        worker = self._workers[self._next_worker] = Worker(self._next_worker, slots)
        self._next_worker += 1
        return worker

    def _retire_spent(self, now: float) -> list[Order]:
        """Let workers go that have served enough, once another one is up."""
        spent = [worker for worker in self._spent if worker.number in self._workers]
        is_up = any(worker.ready and worker.usable for worker in self._workers.values())
        gone = [worker for worker in spent if is_up or worker.is_wide]
        self._spent = [worker for worker in spent if not is_up and not worker.is_wide]
        for worker in gone:
            worker.leaving, worker.since = True, now
            self._leaving += 1
            self._tick_by(now + LEAVE_S)
        return [RetireWorker(worker.number) for worker in gone]

    def _look_at_usability(self, worker: Worker) -> None:
        """Note whether a worker may (still, again) be given tasks."""
        is_spent = self._max_served is not None and worker.served >= self._max_served
        is_kept_out = worker.is_wide or worker.slots[0] in self._wide.blocked
        usable = not (is_spent or is_kept_out or worker.leaving) and worker.ending is None
        self._usable += usable - worker.usable
        worker.usable = usable

    # -- wide tasks --

    def _start_wide(self) -> list[Order]:
        """Start the workers of wide tasks that have room."""
        orders: list[Order] = []
        while self._starts.are_possible and (ready := self._wide.next(self._workers.values())) is not None:
            task, slots = ready
            worker = self._new_worker(slots)
            worker.is_wide, worker.usable, worker.awaits = True, False, task
            self._look_at_neighbours(slots)
            orders.append(StartWideWorker(worker.number, task))
        return orders

    def _look_at_neighbours(self, slots: tuple[int, ...]) -> None:
        """Idle workers rest while a wide one has their slots, and serve again when it has gone."""
        for worker in self._workers.values():
            if worker.is_wide or worker.slots[0] not in slots:
                continue
            self._look_at_usability(worker)
            if not worker.usable:
                self._idle.pop(worker.number, None)
            elif worker.ready and not worker.given:
                self._idle[worker.number] = worker

    def _requeue(self, task: int) -> None:
        """Put a task that no worker has begun back at the head of its queue."""
        if task in self._wide.widths:
            self._wide.claim(task, self._wide.widths[task], first=True)
        else:
            self._queue.appendleft(task)

    # -- running and ending --

    def _now_runs(self, worker: Worker, now: float) -> None:
        worker.since = now
        worker.reported = False
        self._tick_by(self._next_look(worker))
        if self._timeouts:
            timeout_s = self._timeouts.get(worker.given[0])
            if timeout_s is not None:
                self._tick_by(now + timeout_s)

    def _next_look(self, worker: Worker) -> float:
        """When the running task will be long, if that matters to a task behind it, or worth a report."""
        return worker.since + (LONG_TASK_S if len(worker.given) > 1 else STARTED_AFTER_S)

    def _tick_by(self, moment: float) -> None:
        if moment < self.tick_at:
            self.tick_at = moment

    def _look_at_running(self, worker: Worker, started: list[Run], now: float) -> list[Order]:
        task, since = worker.given[0], worker.since
        timeout_s = self._timeouts.get(task)
        if timeout_s is not None:
            if now >= since + timeout_s:
                return self._end(worker, End.TIMED_OUT)
            self._tick_by(since + timeout_s)
        if now < since + LONG_TASK_S:
            self._tick_by(self._next_look(worker))
            return []
        orders: list[Order] = [TakeBack(worker.number)] if len(worker.given) > 1 else []
        if now < since + STARTED_AFTER_S:
            self._tick_by(since + STARTED_AFTER_S)
        elif task in self._dropped:
            return self._end(worker, End.DROPPED)
        elif not worker.reported:
            worker.reported = True
            started.append(Run(task, worker.number, since))
        return orders

    def _look_at_leaving(self, worker: Worker, now: float) -> list[Order]:
        if now < worker.since + LEAVE_S:
            self._tick_by(worker.since + LEAVE_S)
            return []
        worker.ending = End.DROPPED
        self._leaving -= 1
        return [EndWorker(worker.number)]

    def _end(self, worker: Worker, reason: End) -> list[Order]:
        if worker.ending is not None:
            return []
        worker.ending, worker.victim = reason, worker.given[0]
        self._ending[worker.number] = worker
        self._look_at_usability(worker)
        take_back = [TakeBack(worker.number)] if len(worker.given) > 1 else []
        return [*take_back, EndWorker(worker.number)]

    def _died_running(self, worker: Worker) -> list[Order]:
        """A dead worker had read its first task and not finished it."""
        self._starts.barren = 0
        self._active -= 1
        self._wide.begun(-worker.is_wide)
        self._behind -= len(worker.given) - 1
        task = worker.given.popleft()
        self._queue.extendleft(reversed(worker.given))
        worker.given.clear()
        if worker.ending is not None and task != worker.victim and task not in self._dropped:
            # It had begun when its worker was already being ended for another one: not its fault, it runs again.
            self._queue.appendleft(task)
            return []
        self._forget(task)
        if task in self._dropped:
            self._dropped.discard(task)
            return []
        return [Crashed(worker.number, task) if worker.ending is None else Ended(task, worker.ending)]

    # -- taking back --

    def _unread(self, worker: Worker, tasks: list[int], now: float) -> list[Order]:
        """Put tasks that the worker never saw back at the head of the queue."""
        if not tasks:
            return []
        orders: list[Order] = []
        first, count = worker.given[0], len(worker.given)
        for task in reversed(tasks):
            worker.given.remove(task)
            if task in self._dropped:
                self._dropped.discard(task)
                self._forget(task)
            elif task == worker.victim and worker.ending is End.KILLED:
                self._forget(task)
                orders.append(Ended(task, End.KILLED))
            else:
                self._requeue(task)
        worker.served -= len(tasks)
        self._look_at_usability(worker)
        self._behind -= count - max(1, len(worker.given))
        if not worker.given:
            self._active -= 1
            self._rest(worker)
        else:
            if worker.given[0] != first:
                self._now_runs(worker, now)
            self._list(worker)
        return orders

    def _holder(self, task: int) -> Worker | None:
        return next((worker for worker in self._workers.values() if task in worker.given), None)

    def _drop(self, task: int) -> list[Order] | None:
        """Give up a task that no worker was given; None: it is not here, or one was."""
        orders: list[Order] = []
        if (worker := self._wide.awaiting(task, self._workers.values())) is not None:
            worker.awaits, worker.ending = None, End.DROPPED
            orders.append(EndWorker(worker.number))
        elif not self._wide.give_up(task):
            if task not in self._queue:
                return None
            self._queue.remove(task)
        self._forget(task)
        return orders

    def _forget(self, task: int) -> None:
        """A task is not here any more."""
        self._timeouts.pop(task, None)
        self._wide.widths.pop(task, None)
