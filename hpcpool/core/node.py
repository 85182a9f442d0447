"""What a manager decides: which worker gets which task, when to take tasks back, to report, to end a worker. Pure.

The rule: a worker holds one running task and, only while tasks are measured to be short, a few unstarted ones behind
it. As soon as the running one turns out not to be short, or another worker has nothing to do, the unstarted ones are
taken back. So no task ever waits behind a long one while a slot is free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

#: A task that has run for so long is reported as started, and a cancelled one is ended (seconds).
STARTED_AFTER_S = 0.02
#: With a task that has run for so long, no unstarted one stays (seconds).
LONG_TASK_S = 0.01
#: How much measured work a worker holds in advance (seconds), to hide the way to the manager and back.
WORKER_AHEAD_S = 0.002
#: The same for a node and the way to the interchange.
NODE_AHEAD_S = 0.01
WORKER_AHEAD_LIMIT = 64
#: Moving work between workers costs some tens of microseconds: less work than this (seconds) is not worth it.
WORTH_MOVING_S = 0.0005
#: So many workers that die before their first call in a row break the pool.
START_FAILURE_LIMIT = 3
#: Weight of the newest run time in the moving mean.
_NEWEST = 0.1


class End(Enum):
    """Why a worker is being ended by us."""

    TIMED_OUT = "timed out"
    KILLED = "killed"
    DROPPED = "dropped"


class StartWorker(NamedTuple):
    """Start a worker with this number."""

    worker: int


class Give(NamedTuple):
    """Send a task to a worker."""

    worker: int
    task: int


class TakeBack(NamedTuple):
    """Read back what a worker has not read yet, then call `taken_back`."""

    worker: int


class EndWorker(NamedTuple):
    """Kill a worker and all that its call has started."""

    worker: int


class RetireWorker(NamedTuple):
    """Close a worker's channel: it ends in good order."""

    worker: int


class ReportStarted(NamedTuple):
    """Tell the client that these tasks run."""

    tasks: list[int]


class Crashed(NamedTuple):
    """The worker died while it ran this task."""

    worker: int
    task: int


class Ended(NamedTuple):
    """We ended the worker of this task, for this reason."""

    task: int
    reason: End


class Hopeless(NamedTuple):
    """Workers die before their first call, again and again."""

    worker: int


Order = StartWorker | Give | TakeBack | EndWorker | RetireWorker | ReportStarted | Crashed | Ended | Hopeless


@dataclass(slots=True)
class _Worker:
    number: int
    ready: bool = False
    #: Tasks sent to it, the running one first; never also in the node's queue.
    given: deque[int] = field(default_factory=deque)
    #: When the first of `given` began to run, as far as is known here.
    since: float = 0.0
    reported: bool = False
    #: How many calls it has been given in all.
    served: int = 0
    ending: End | None = None
    #: The task because of which it is being ended.
    ending_for: int | None = None
    retiring: bool = False


class Node:
    """The tasks and workers of one node."""

    def __init__(self, slots: int, max_tasks_per_child: int | None = None) -> None:
        self.slots = slots
        self._max_served = max_tasks_per_child
        self._workers: dict[int, _Worker] = {}
        #: Ready workers without a task that may take one; the one that became idle last, the warmest, at the end.
        self._idle: dict[int, _Worker] = {}
        self._active = 0
        self._next_worker = 1
        self._queue: deque[int] = deque()
        self._timeouts: dict[int, float] = {}
        #: Given tasks whose outcome nobody wants any more.
        self._dropped: set[int] = set()
        self._mean_s: float | None = None
        self._start_failures = 0
        self._tick_at: float | None = None
        self._withdrawing = False

    # -- what others want to know --

    @property
    def workers(self) -> int:
        """How many workers there are, starting and ending ones included."""
        return len(self._workers)

    @property
    def tick_at(self) -> float | None:
        """When `tick` wants to be called; None: no need."""
        return self._tick_at

    @property
    def limit(self) -> int:
        """How many tasks the node takes in all, by how long they run."""
        if self._mean_s is None or self._mean_s >= 1.0:
            return self.slots
        ahead = min(256, 1 + int(NODE_AHEAD_S / max(self._mean_s, 1e-6)))
        return self.slots * (1 + ahead)

    def running(self, worker: int) -> int | None:
        """Return the task that a worker runs, as far as is known here."""
        known = self._workers.get(worker)
        return known.given[0] if known is not None and known.given else None

    # -- events --

    def warm_up(self) -> list[Order]:
        """Start the first worker before the first task has come."""
        return self._start_workers(at_least=1)

    def arrived(self, tasks: Iterable[tuple[int, float]], now: float) -> list[Order]:
        """Take tasks, each with its timeout in seconds (0: none)."""
        for task, timeout_s in tasks:
            self._queue.append(task)
            if timeout_s:
                self._timeouts[task] = timeout_s
        return self._fill(now)

    def worker_ready(self, number: int, now: float) -> list[Order]:
        """A started worker waits for its first call."""
        worker = self._workers[number]
        worker.ready = True
        self._start_failures = 0
        self._idle[number] = worker
        return [*self._retire_spent(), *self._fill(now)]

    def finished(self, number: int, task: int, elapsed_s: float, now: float) -> bool:
        """A worker has sent an outcome; say whether anybody wants it. Call `refill` after a batch of these."""
        worker = self._workers[number]
        if not worker.given or worker.given[0] != task:
            return False
        worker.given.popleft()
        mean = self._mean_s
        self._mean_s = elapsed_s if mean is None else mean + _NEWEST * (elapsed_s - mean)
        if self._timeouts:
            self._timeouts.pop(task, None)
        if worker.given:
            self._now_runs(worker, now)
        else:
            self._active -= 1
            if not self._is_spent(worker):
                self._idle[number] = worker
        if task in self._dropped:
            self._dropped.discard(task)
            return False
        return True

    def refill(self, now: float) -> list[Order]:
        """Give out tasks after outcomes have come; take tasks back for workers that have none."""
        orders = self._fill(now)
        if self._idle and not self._queue and self._active:
            orders += self._share(now)
        if self._max_served is not None:
            orders += self._retire_spent()
        return orders

    def taken_back(self, number: int, tasks: list[int], now: float) -> list[Order]:
        """These unstarted tasks were read back from a worker's channel."""
        self._unread(self._workers[number], tasks)
        return self._fill(now)

    def cancelled(self, task: int, now: float) -> list[Order]:
        """Nobody wants this task any more."""
        holder = self._holder(task)
        if holder is None:
            self._unqueue(task)
            return []
        self._dropped.add(task)
        if holder.given[0] == task:
            self._tick_by(now if holder.reported else holder.since + STARTED_AFTER_S)
            return []
        return [TakeBack(holder.number)]

    def killed(self, task: int) -> list[Order]:
        """The user wants this task ended although it runs."""
        holder = self._holder(task)
        if holder is None:
            return [Ended(task, End.KILLED)] if self._unqueue(task) else []
        if holder.given[0] != task:
            self._dropped.add(task)
            return [TakeBack(holder.number), Ended(task, End.KILLED)]
        return self._end(holder, End.KILLED)

    def give_back(self, count: int) -> list[int]:
        """Hand unstarted tasks back to the interchange, the newest first."""
        returned: list[int] = []
        while self._queue and len(returned) < count:
            task = self._queue.pop()
            self._timeouts.pop(task, None)
            returned.append(task)
        return returned

    def withdraw(self) -> list[Order]:
        """Begin to give up what does not run: obey the orders, then call `withdrawn`."""
        self._withdrawing = True
        return [TakeBack(worker.number) for worker in self._workers.values() if worker.given]

    def withdrawn(self, keep: int, now: float) -> tuple[list[int], list[Order]]:
        """Return the tasks beyond this id that did not run, now given up; and how to go on with the rest."""
        self._withdrawing = False
        kept = [task for task in self._queue if task <= keep]
        given_up = [task for task in self._queue if task > keep]
        for task in given_up:
            self._timeouts.pop(task, None)
        self._queue = deque(kept)
        return given_up, self._fill(now)

    def worker_ended(self, number: int, unread: list[int], now: float) -> list[Order]:
        """A worker is gone; `unread` are the tasks still in its channel."""
        worker = self._workers.pop(number)
        self._idle.pop(number, None)
        had_tasks = bool(worker.given)
        self._unread(worker, unread)
        if had_tasks and worker.given:
            self._active -= 1
        orders: list[Order] = []
        if worker.given:
            task = worker.given.popleft()
            timeout_s = self._timeouts.pop(task, None)
            if task in self._dropped:
                self._dropped.discard(task)
            elif worker.ending is not None and worker.ending_for == task:
                orders.append(Ended(task, worker.ending))
            elif worker.ending is not None:
                # The task that we ended the worker for had just finished, and this one had begun: not its fault.
                self._queue.appendleft(task)
                if timeout_s is not None:
                    self._timeouts[task] = timeout_s
            else:
                orders.append(Crashed(number, task))
        elif not worker.ready and worker.ending is None:
            self._start_failures += 1
            if self._start_failures >= START_FAILURE_LIMIT:
                return [Hopeless(number)]
        return [*orders, *self._fill(now)]

    def tick(self, now: float) -> list[Order]:
        """Look after the running tasks: report, take back what waits behind them, end what is over its time."""
        self._tick_at = None
        orders: list[Order] = []
        started: list[int] = []
        for worker in self._workers.values():
            if not worker.given or worker.ending is not None:
                continue
            task, age_s = worker.given[0], now - worker.since
            timeout_s = self._timeouts.get(task)
            if timeout_s is not None:
                if age_s >= timeout_s:
                    orders += self._end(worker, End.TIMED_OUT)
                    continue
                self._tick_by(worker.since + timeout_s)
            if age_s >= LONG_TASK_S and len(worker.given) > 1:
                orders.append(TakeBack(worker.number))
            if worker.reported and task not in self._dropped:
                continue
            if age_s < STARTED_AFTER_S:
                self._tick_by(worker.since + STARTED_AFTER_S)
            elif task in self._dropped:
                orders += self._end(worker, End.DROPPED)
            else:
                worker.reported = True
                started.append(task)
        if started:
            orders.append(ReportStarted(started))
        return orders

    # -- how --

    def _fill(self, now: float) -> list[Order]:
        if self._withdrawing:
            return []
        orders: list[Order] = []
        queue, dropped = self._queue, self._dropped
        while queue:
            task = queue[0]
            if task in dropped:
                queue.popleft()
                dropped.discard(task)
                continue
            worker = self._next_taker()
            if worker is None:
                break
            queue.popleft()
            if not worker.given:
                self._active += 1
                self._now_runs(worker, now, task)
            elif len(worker.given) == 1:
                self._tick_by(max(now, worker.since + LONG_TASK_S))  # to see whether the one in front is a long one
            worker.given.append(task)
            worker.served += 1
            orders.append(Give(worker.number, task))
        return orders + self._start_workers() if queue or self._max_served is not None else orders

    def _next_taker(self) -> _Worker | None:
        if self._idle:
            return self._idle.popitem()[1] if self._active < self.slots else None
        depth = self._depth()
        if depth == 1:
            return None
        for worker in self._workers.values():
            if self._may_wait_behind(worker, depth):
                # Keep the dictionary's order turning, so that all workers get their share.
                self._workers[worker.number] = self._workers.pop(worker.number)
                return worker
        return None

    def _may_wait_behind(self, worker: _Worker, depth: int) -> bool:
        """Say whether a worker may hold one more task: never behind one that is known to be long."""
        return (
            0 < len(worker.given) < depth
            and not worker.reported
            and worker.ending is None
            and not self._is_spent(worker)
        )

    def _depth(self) -> int:
        if self._mean_s is None:
            return 1
        return 1 + min(WORKER_AHEAD_LIMIT, int(WORKER_AHEAD_S / max(self._mean_s, 1e-6)))

    def _share(self, now: float) -> list[Order]:
        """Take work back from the worker that holds most, if that is worth the trouble."""
        holder = max(self._workers.values(), key=lambda worker: len(worker.given))
        waiting = len(holder.given) - 1
        if waiting < 1 or waiting * (self._mean_s or 0.0) < WORTH_MOVING_S:
            return []
        return [TakeBack(holder.number)]

    def _start_workers(self, at_least: int = 0) -> list[Order]:
        usable = sum(
            1
            for worker in self._workers.values()
            if worker.ending is None and not worker.retiring and not self._is_spent(worker)
        )
        spent_running = sum(1 for worker in self._workers.values() if self._is_spent(worker) and worker.given)
        wanted = min(self.slots, max(at_least, len(self._queue) + self._active))
        orders: list[Order] = []
        # A spent worker's replacement starts while the spent one still runs its last call.
        while usable < wanted and len(self._workers) < self.slots + spent_running + self._leaving():
            worker = _Worker(self._next_worker)
            self._workers[worker.number] = worker
            self._next_worker += 1
            usable += 1
            orders.append(StartWorker(worker.number))
        return orders

    def _leaving(self) -> int:
        return sum(
            1
            for worker in self._workers.values()
            if worker.ending is not None or worker.retiring or (self._is_spent(worker) and not worker.given)
        )

    def _retire_spent(self) -> list[Order]:
        """Let workers go that have served enough, once another one is up."""
        if self._max_served is None:
            return []
        spent = [
            worker
            for worker in self._workers.values()
            if self._is_spent(worker) and not worker.given and not worker.retiring and worker.ending is None
        ]
        fresh = sum(1 for worker in self._workers.values() if worker.ready and not self._is_spent(worker))
        orders: list[Order] = []
        for worker in spent:
            if fresh or not self._queue:
                worker.retiring = True
                self._idle.pop(worker.number, None)
                orders.append(RetireWorker(worker.number))
        return orders

    def _is_spent(self, worker: _Worker) -> bool:
        return self._max_served is not None and worker.served >= self._max_served

    def _now_runs(self, worker: _Worker, now: float, task: int | None = None) -> None:
        worker.since = now
        worker.reported = False
        if self._tick_at is None:
            self._tick_at = now + STARTED_AFTER_S
        if self._timeouts:
            timeout_s = self._timeouts.get(worker.given[0] if task is None else task)
            if timeout_s is not None:
                self._tick_by(now + timeout_s)

    def _tick_by(self, moment: float) -> None:
        if self._tick_at is None or moment < self._tick_at:
            self._tick_at = moment

    def _unread(self, worker: _Worker, tasks: list[int]) -> None:
        """Put tasks that the worker never saw back at the head of the queue."""
        for task in reversed(tasks):
            worker.given.remove(task)
            worker.served -= 1
            if task in self._dropped:
                self._dropped.discard(task)
                self._timeouts.pop(task, None)
            else:
                self._queue.appendleft(task)
        if tasks and not worker.given:
            self._active -= 1
            if worker.ready and worker.number in self._workers:
                self._idle[worker.number] = worker

    def _end(self, worker: _Worker, reason: End) -> list[Order]:
        if worker.ending is not None:
            return []
        worker.ending, worker.ending_for = reason, worker.given[0]
        return (
            [TakeBack(worker.number), EndWorker(worker.number)] if len(worker.given) > 1 else [EndWorker(worker.number)]
        )

    def _holder(self, task: int) -> _Worker | None:
        for worker in self._workers.values():
            if task in worker.given:
                return worker
        return None

    def _unqueue(self, task: int) -> bool:
        try:
            self._queue.remove(task)
        except ValueError:
            return False
        self._timeouts.pop(task, None)
        return True
