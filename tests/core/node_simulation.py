"""A node with simulated workers on a simulated clock: does what a manager does with the node's orders, and judges them.

What is true here (which task a worker has really read, when it really started) is not what the node knows: outcomes
take a while to arrive, and so does everything else.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from hpcpool.core.node import Node
from hpcpool.core.orders import (
    Crashed,
    Ended,
    EndWorker,
    Give,
    Hopeless,
    Order,
    ReportStarted,
    RetireWorker,
    StartWideWorker,
    StartWorker,
    TakeBack,
)

#: As promised by the node (seconds); written here again, so that a change of the promise is a change of the tests.
LONG_S, STARTED_S = 0.015, 0.02
#: The longest that anything but a start or an end takes to arrive.
DELAY_S = 0.0003
#: How much later than promised something may happen: what is late by a delay at both ends.
SLACK_S = 0.001


@dataclass
class Fate:
    """One task, and what has become of it."""

    task: int
    run_s: float
    timeout_s: float = 0.0
    #: How many slots it takes, with a worker of its own; 0: it runs in any worker.
    width: int = 0
    #: It kills its worker in the middle.
    crashes: bool = False
    ends: list[str] = field(default_factory=list)
    cancelled_at: float | None = None
    killed: bool = False
    #: How often workers have begun it, and how often it was reported as running since the last time.
    executions: int = 0
    reports: int = 0
    #: How often its worker was ended because of the task before it.
    bystander: int = 0

    @property
    def is_over(self) -> bool:
        return bool(self.ends)


@dataclass(eq=False)
class FakeWorker:
    number: int
    slots: tuple[int, ...] = ()
    #: The only task that it may be given; None: any that is not wide.
    own: int | None = None
    ready: bool = False
    unread: deque[int] = field(default_factory=deque)
    running: int | None = None
    started_at: float = 0.0
    reads: int = 0
    #: Outcomes on their way: task and run time.
    outcomes: deque[tuple[int, float]] = field(default_factory=deque)
    retired: bool = False
    doomed: bool = False
    dead: bool = False

    @property
    def is_idle(self) -> bool:
        return self.ready and self.running is None and not self.unread and not self.outcomes


class SimulatedNode:
    """A `Node`, its workers and its tasks."""

    def __init__(self, slots: int, max_tasks: int | None = None, seed: int = 0) -> None:
        self.node = Node(slots, max_tasks)
        self.slots, self.max_tasks = slots, max_tasks
        self.now = 1000.0
        self.fates: dict[int, Fate] = {}
        #: Tasks that have arrived and were not handed on by the node in any way.
        self.here: set[int] = set()
        self.workers: dict[int, FakeWorker] = {}
        self.retired_after: list[int] = []
        self.hopeless = 0
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        #: How many of the next workers die before they are ready, and how many did.
        self.failing_starts = self.failed_starts = 0
        self.obey(self.node.warm_up())

    # -- what happens to the node --

    def arrive(self, fates: Iterable[Fate]) -> None:
        new = list(fates)
        for fate in new:
            assert fate.task not in self.here
            self.fates[fate.task] = fate
            self.here.add(fate.task)
        widths = {fate.task: fate.width for fate in new if fate.width}
        self.obey(self.node.arrived([(fate.task, fate.timeout_s) for fate in new], self.now, widths))
        self.judge()

    def cancel(self, task: int) -> None:
        fate = self.fates[task]
        if not fate.is_over:
            fate.ends.append("cancelled")
            fate.cancelled_at = self.now
        self.obey(self.node.cancelled(task, self.now))
        self._forget_ended()
        self.judge()

    def kill(self, task: int) -> None:
        self.fates[task].killed = True
        self.obey(self.node.killed(task, self.now))
        self.judge()

    def give_back(self, count: int) -> None:
        self._hand_over(self.node.give_back(count))
        self.judge()

    def withdraw(self, keep: int) -> None:
        self.obey(self.node.withdraw())
        given_up, orders = self.node.withdrawn(keep, self.now)
        assert all(task > keep for task in given_up)
        assert not any(worker.unread for worker in self.workers.values()), "a task was not withdrawn"
        for task in given_up:
            self._end(task, "withdrawn")
            self.here.discard(task)
        self.obey(orders)
        self.judge()

    def kill_from_outside(self, worker: FakeWorker) -> None:
        self._die(worker)

    def advance(self, duration_s: float) -> None:
        """Let time pass: events and ticks in their order."""
        until = self.now + duration_s
        ticks_here = 0
        while (moment := self.next_moment()) <= until:
            ticks_here = ticks_here + 1 if moment <= self.now else 0
            assert ticks_here < 1000, "the clock does not move"
            self.now = max(self.now, moment)
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            if self.node.tick_at <= self.now:
                self.obey(self.node.tick(self.now))
                assert self.node.tick_at > self.now, "a tick asks for itself"
            self._hand_over(self.node.pay_back())
            self.judge()
        self.now = until

    def next_moment(self) -> float:
        return min(self._events[0][0], self.node.tick_at) if self._events else self.node.tick_at

    def run_to_the_end(self) -> None:
        """Let time pass until nothing is going to happen any more."""
        for _ in range(100_000):
            moment = self.next_moment()
            if moment == math.inf:
                return
            self.advance(max(0.0, moment - self.now))
        raise AssertionError("it never comes to rest")

    # -- what a manager does --

    def obey(self, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case StartWorker(number):
                    self._start(number)
                case StartWideWorker(number, task):
                    assert len(self.node.slots_of(number)) == self.fates[task].width
                    self._start(number, task)
                case Give(number, task):
                    self._give(self.workers[number], task)
                case TakeBack(number):
                    self._take_back(number)
                case EndWorker(number):
                    worker = self.workers[number]
                    assert not worker.doomed, "ended twice"
                    worker.doomed = True
                    self._later(self._random.uniform(0, 0.005), lambda w=worker: self._die(w))
                case RetireWorker(number):
                    self._retire(self.workers[number])
                case ReportStarted(runs):
                    for task, number, since in runs:
                        assert number in self.workers
                        assert since <= self.now
                        assert self.fates[task].executions, "reported before it was begun"
                        self.fates[task].reports += 1
                case Ended(task, reason):
                    self._end(task, reason.value)
                    self._forget_ended()
                case Crashed(_, task):
                    self._end(task, "crashed")
                    self.here.discard(task)
                case Hopeless():
                    self.hopeless += 1

    def _hand_over(self, tasks: list[int]) -> None:
        for task in tasks:
            self._end(task, "returned")
            self.here.discard(task)

    def _start(self, number: int, own: int | None = None) -> None:
        worker = self.workers[number] = FakeWorker(number, self.node.slots_of(number), own)
        delay_s = self._random.choice([0.001, 0.01, 0.03])
        if self.failing_starts:
            self.failing_starts -= 1
            self.failed_starts += 1
            self._later(delay_s, lambda: self._die(worker))
        else:
            self._later(delay_s, lambda: self._become_ready(worker))

    def _become_ready(self, worker: FakeWorker) -> None:
        if not worker.dead:
            worker.ready = True
            self.obey(self.node.worker_ready(worker.number, self.now))

    def _give(self, worker: FakeWorker, task: int) -> None:
        fate = self.fates[task]
        assert task in self.here
        assert not fate.is_over, f"{task} was {fate.ends} and is given to a worker"
        assert worker.ready, "given to a worker that is not ready"
        assert not worker.doomed, "given to a worker that is being ended"
        assert not worker.retired, "given to a worker that leaves"
        assert worker.own == (task if fate.width else None), "in another one's worker"
        worker.unread.append(task)
        if worker.running is None:
            self._later(self._random.uniform(0, DELAY_S), lambda: self._read(worker))

    def _read(self, worker: FakeWorker) -> None:
        if worker.dead or worker.running is not None:
            return
        if not worker.unread:
            if worker.retired:
                self._die(worker)
            return
        worker.running, worker.started_at = worker.unread.popleft(), self.now
        worker.reads += 1
        fate = self.fates[worker.running]
        fate.executions += 1
        fate.reports = 0
        assert fate.executions <= 1 + fate.bystander, "run twice"
        # A task that begins although it was given up was on its way into the worker's hands in that moment.
        assert not fate.is_over or fate.cancelled_at is not None or fate.killed
        assert not fate.killed or worker.doomed, "begun although it was killed"
        token = worker.reads
        if fate.crashes:
            self._later(fate.run_s / 2, lambda: self._die(worker) if worker.reads == token else None)
        self._later(fate.run_s, lambda: self._finish(worker) if worker.reads == token else None)

    def _finish(self, worker: FakeWorker) -> None:
        if worker.dead:
            return
        assert worker.running is not None
        worker.outcomes.append((worker.running, self.now - worker.started_at))
        worker.running = None
        self._later(self._random.uniform(0, DELAY_S), lambda: self._deliver(worker))
        self._read(worker)

    def _deliver(self, worker: FakeWorker) -> None:
        if worker.dead:
            return
        self._tell_outcomes(worker)
        self.obey(self.node.refill(self.now))

    def _tell_outcomes(self, worker: FakeWorker) -> None:
        while worker.outcomes:
            task, elapsed_s = worker.outcomes.popleft()
            wanted = self.node.finished(worker.number, task, elapsed_s, self.now)
            self.here.discard(task)
            if wanted:
                self._end(task, "outcome")

    def _take_back(self, number: int) -> None:
        worker = self.workers.get(number)
        if worker is not None:
            unread, worker.unread = list(worker.unread), deque()
            assert self.node.newest_of(number, len(unread)) == unread
            self.obey(self.node.taken_back(number, unread, self.now))
            self._forget_ended()

    def _retire(self, worker: FakeWorker) -> None:
        assert worker.is_idle, "told to leave with work in hand"
        worker.retired = True
        if worker.own is None:
            assert any(w.ready and not w.doomed and not w.retired and w is not worker for w in self.workers.values())
            self.retired_after.append(worker.reads)
        if self._random.random() < 0.9:  # or its exit handlers never end
            self._later(self._random.choice([0.001, 0.05]), lambda: self._die(worker))

    def _die(self, worker: FakeWorker) -> None:
        if worker.dead:
            return
        self._tell_outcomes(worker)
        worker.dead = True
        if worker.running is not None and worker.doomed:
            self.fates[worker.running].bystander += 1
        orders = self.node.worker_ended(worker.number, list(worker.unread), self.now)
        del self.workers[worker.number]
        self.obey(orders)
        self._forget_ended()
        self.obey(self.node.refill(self.now))

    def _forget_ended(self) -> None:
        """Tasks that are over and in no worker's hands are not here any more."""
        held = set(self._held())
        self.here = {task for task in self.here if not self.fates[task].is_over or task in held}

    def _held(self) -> Iterator[int]:
        for worker in self.workers.values():
            yield from worker.unread
            yield from (task for task, _ in worker.outcomes)
            if worker.running is not None:
                yield worker.running

    def _later(self, delay_s: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay_s, self._count, event))

    def _end(self, task: int, how: str) -> None:
        fate = self.fates[task]
        assert not fate.is_over, f"{task} was {fate.ends} and now {how}"
        assert how != "killed" or fate.killed, "ended for another one's sake"
        assert how != "timed out" or fate.timeout_s, "ended for another one's sake"
        assert how != "dropped", "an end that nobody waits for was told"
        fate.ends.append(how)

    # -- what must be true at any moment --

    def judge(self) -> None:
        running = [worker for worker in self.workers.values() if worker.running is not None]
        self._judge_slots(running)
        for worker in running:
            self._judge_running(worker)
        for worker in self.workers.values():
            if worker.own is not None:
                assert worker.reads <= 1
                continue
            assert self.max_tasks is None or worker.reads <= self.max_tasks
            assert not worker.retired or worker.reads == self.max_tasks
        self._judge_work_is_not_kept_waiting()
        self._judge_books()
        alive = [w for w in self.workers.values() if not w.doomed and not w.retired and w.own is None]
        assert len(alive) <= self.slots if self.max_tasks is None else len(alive) <= 3 * self.slots

    def _judge_slots(self, running: list[FakeWorker]) -> None:
        wide = [worker for worker in self.workers.values() if worker.own is not None]
        narrow = [worker for worker in running if worker.own is None]
        blocked = [slot for worker in wide for slot in worker.slots]
        assert len(blocked) == len(set(blocked)), "two wide calls on one slot"
        assert len(narrow) + len(blocked) <= self.slots, "more slots are in use than there are"
        assert not any(slot in blocked for worker in narrow for slot in worker.slots), "a slot of a wide call is used"
        assert self.max_tasks is not None or len({slot for w in narrow for slot in w.slots}) == len(narrow)

    def _judge_books(self) -> None:
        """What the node counts, counted again."""
        node, workers = self.node, self.node._workers.values()
        assert node._workers.keys() == self.workers.keys()
        assert node._active == sum(1 for worker in workers if worker.given)
        assert node._behind == sum(len(worker.given) - 1 for worker in workers if worker.given)
        assert node._usable == sum(worker.usable for worker in workers) <= 2 * self.slots
        assert node._leaving == sum(worker.leaving and worker.ending is None for worker in workers)
        assert all(w.ready and w.usable and not w.given for w in node._idle.values())
        here = {*node._queue, *node._wide.queue, *(task for worker in workers for task in worker.given)}
        here |= {worker.awaits for worker in workers} - {None}
        assert here == self.here
        assert node._wide.widths.keys() == {task for task in here if self.fates[task].width}
        assert node._wide.active == sum(1 for worker in workers if worker.is_wide and worker.given)
        assert node._wide.blocked == {slot for worker in workers if worker.is_wide for slot in worker.slots}
        claimed = sum(self.fates[task].width for task in node._wide.queue)
        assert node._wide.narrow == self.slots - len(node._wide.blocked) - claimed
        assert node._timeouts.keys() | node._dropped <= here
        usable_is_up = any(worker.ready and worker.usable for worker in workers)
        assert not (usable_is_up and node._spent), "a spent worker is kept"

    def _judge_running(self, worker: FakeWorker) -> None:
        assert worker.running is not None
        fate, age_s = self.fates[worker.running], self.now - worker.started_at - SLACK_S
        if worker.doomed:
            return
        if age_s > LONG_S:
            assert not worker.unread, "a task waits behind a long one"
        if age_s > STARTED_S and not fate.is_over:
            assert fate.reports == 1, "a running task was not reported once"
        assert not fate.timeout_s or age_s <= fate.timeout_s, "a task runs beyond its time"
        if fate.cancelled_at is not None:
            end_by = max(fate.cancelled_at, worker.started_at + STARTED_S) + SLACK_S
            assert self.now <= end_by, "a cancelled task runs on"

    def _judge_work_is_not_kept_waiting(self) -> None:
        # A wide worker that was told to leave has its task no more: it may have been taken back, and claim slots again.
        held = set(self._held()) | {worker.own for worker in self.workers.values() if not worker.retired}
        waiting = [task for task in self.here if task not in held and not self.fates[task].is_over]
        wide = [worker for worker in self.workers.values() if worker.own is not None]
        busy = [w for w in self.workers.values() if w.own is None and (w.running is not None or w.unread or w.outcomes)]
        claimed = sum(self.fates[task].width for task in waiting)
        room = self.slots - sum(len(worker.slots) for worker in wide) - len(busy) - claimed
        dying = [worker for worker in self.workers.values() if worker.doomed]
        idle = [
            worker
            for worker in self.workers.values()
            if worker.is_idle
            and worker.own is None
            and not worker.doomed
            and not worker.retired
            and not any(set(worker.slots) & set(other.slots) for other in [*wide, *dying])
            and (self.max_tasks is None or worker.reads < self.max_tasks)
        ]
        if any(not self.fates[task].width for task in waiting):
            assert not idle or room <= 0, f"{waiting} wait while {idle} are idle"
        wide_waiting = [task for task in waiting if self.fates[task].width]
        doomed = any(worker.doomed for worker in self.workers.values())
        free = self.slots - len({slot for worker in [*wide, *busy] for slot in worker.slots})
        free = min(free, self.slots - sum(len(worker.slots) for worker in wide) - len(busy))
        if wide_waiting and not doomed:
            assert free < self.fates[self.node._wide.queue[0]].width, "a wide call waits although it has room"
