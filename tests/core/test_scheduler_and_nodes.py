"""The scheduler and some nodes together, with a network between them that takes its time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from hpcpool.core.scheduler import Scheduler
from tests.core.node_simulation import LONG_S, Fate, SimulatedNode

#: The longest way between interchange and manager.
WAY_S = 0.001
#: A task that has waited for so long while a whole node was idle was forgotten: the running one before it must first
#: turn out long, then it is taken back, asked for, handed over and leased again; or its worker must start (0.03 s).
PATIENCE_S = 0.03 + LONG_S + 10 * WAY_S


class ClusterNode(SimulatedNode):
    """Tells the cluster of each end of a task here."""

    def __init__(self, slots: int, seed: int, on_end: Callable[[int, str], None]) -> None:
        super().__init__(slots, seed=seed)
        self.on_end = on_end

    def _end(self, task: int, how: str) -> None:
        super()._end(task, how)
        self.on_end(task, how)

    def is_idle(self) -> bool:
        return not self.here and any(worker.is_idle for worker in self.workers.values())

    def unstarted(self) -> set[int]:
        begun = {worker.running for worker in self.workers.values()}
        begun |= {task for worker in self.workers.values() for task, _ in worker.outcomes}
        return self.here - begun


class Cluster:
    """What interchange and managers do, without processes."""

    def __init__(self, slots: list[int], seed: int) -> None:
        self.random = random.Random(seed)
        self.scheduler = Scheduler(loss_limit=100, rerun_lost=True)
        self.now = 1000.0
        self.runs: dict[int, float] = {}
        self.crashing: set[int] = set()
        self.ends: dict[int, list[str]] = {}
        self.nodes: dict[bytes, ClusterNode] = {}
        self.limits: dict[bytes, int] = {}
        #: Since when each unstarted task has waited while a node was idle.
        self.waiting_since: dict[int, float] = {}
        self._network: list[tuple[float, int, Callable[[], None]]] = []
        #: When the last message in each direction arrives: a stream keeps the order.
        self._last: dict[tuple[bytes, str], float] = {}
        self._count = 0
        for number, count in enumerate(slots):
            self.join(b"%d" % number, count, seed + number)

    def join(self, name: bytes, slots: int, seed: int) -> None:
        def on_end(task: int, how: str) -> None:
            self._send(name, "up", lambda: self._heard_of_end(name, task, how))

        self.nodes[name] = ClusterNode(slots, seed, on_end)
        self.nodes[name].now = self.now
        self.limits[name] = slots
        self.scheduler.manager_joined(name, slots, slots)

    def lose(self, name: bytes) -> None:
        del self.nodes[name]
        for task, _ in self.scheduler.manager_lost(name):
            self.ends[task].append("lost")

    def submit(self, run_times_s: list[float], crash_share: float = 0.0) -> None:
        for run_s in run_times_s:
            task = len(self.runs) + 1
            self.runs[task], self.ends[task] = run_s, []
            if self.random.random() < crash_share:
                self.crashing.add(task)
            self.scheduler.submitted(task, priority=0, crash_limit=2)
        self._decide()

    def advance(self, duration_s: float) -> None:
        until = self.now + duration_s
        while (moment := self._next_moment()) is not None and moment <= until:
            self.now = max(self.now, moment)
            for node in list(self.nodes.values()):
                node.advance(self.now - node.now)
            while self._network and self._network[0][0] <= self.now:
                heapq.heappop(self._network)[2]()
            self._announce_capacities()
            self._decide()
            self._judge()
        self.now = until
        for node in self.nodes.values():
            node.advance(self.now - node.now)

    def run_to_the_end(self) -> None:
        for _ in range(100_000):
            moment = self._next_moment()
            if moment is None:
                return
            self.advance(max(0.0, moment - self.now))
        raise AssertionError("it never comes to rest")

    def _next_moment(self) -> float | None:
        moments = [moment for node in self.nodes.values() if (moment := node.next_moment()) is not None]
        return min([*moments, *(entry[0] for entry in self._network[:1])], default=None)

    def _send(self, name: bytes, direction: str, deliver: Callable[[], None]) -> None:
        arrives = max(self._last.get((name, direction), 0.0), self.now + self.random.uniform(0, WAY_S))
        self._last[name, direction] = arrives
        self._count += 1
        heapq.heappush(self._network, (arrives, self._count, lambda: deliver() if name in self.nodes else None))

    def _heard_of_end(self, name: bytes, task: int, how: str) -> None:
        if how == "returned":
            self.scheduler.returned(name, [task])
        elif how == "crashed" and self.scheduler.crashed(name, task):
            self.crashing.discard(task)
        elif self.scheduler.finished(name, task):
            self.ends[task].append(how)

    def _decide(self) -> None:
        for name, tasks in self.scheduler.dispatch():
            fates = [Fate(task, self.runs[task], crashes=task in self.crashing) for task in tasks]
            self._send(name, "down", lambda name=name, fates=fates: self.nodes[name].arrive(fates))
        for name, count in self.scheduler.share():
            self._send(name, "down", lambda name=name, count=count: self._asked(name, count))

    def _asked(self, name: bytes, count: int) -> None:
        before = {task for task, fate in self.nodes[name].fates.items() if fate.ends == ["returned"]}
        self.nodes[name].give_back(count)
        if before == {task for task, fate in self.nodes[name].fates.items() if fate.ends == ["returned"]}:
            self._send(name, "up", lambda: self.scheduler.returned(name, []))

    def _announce_capacities(self) -> None:
        for name, node in self.nodes.items():
            limit = node.node.limit
            if not 0.8 * limit <= self.limits[name] <= 1.25 * limit:
                self.limits[name] = limit
                self._send(
                    name,
                    "up",
                    lambda name=name, node=node, limit=limit: self.scheduler.capacity_changed(name, node.slots, limit),
                )

    def _judge(self) -> None:
        is_idle = any(node.is_idle() for node in self.nodes.values())
        unstarted = set().union(*(node.unstarted() for node in self.nodes.values())) if is_idle else set()
        self.waiting_since = {task: self.waiting_since.get(task, self.now) for task in unstarted}
        for task, since in self.waiting_since.items():
            assert self.now - since <= PATIENCE_S, f"{task} waits although a node has nothing to do"


RUN_TIMES_S = [(1e-5, 1e-5), (1e-4, 1e-3), (0.002, 0.02), (0.1, 3.0)]


@pytest.mark.parametrize("seed", range(40))
def test_all_work_is_done_once_and_no_node_is_idle_while_another_has_work_to_give(seed):
    chance = random.Random(seed)
    cluster = Cluster([chance.randint(1, 3) for _ in range(chance.randint(1, 4))], seed)
    for _ in range(chance.randint(3, 10)):
        kinds = chance.sample(RUN_TIMES_S, chance.randint(1, 2))
        count = chance.choice([1, 3, 20, 100])
        cluster.submit([chance.uniform(*chance.choice(kinds)) for _ in range(count)], chance.choice([0.0, 0.02]))
        cluster.advance(chance.choice([0.0, 0.001, 0.02, 0.3]))
        if chance.random() < 0.2:
            cluster.join(b"new%d" % len(cluster.limits), chance.randint(1, 3), seed)
        if chance.random() < 0.1 and len(cluster.nodes) > 1:
            cluster.lose(chance.choice(sorted(cluster.nodes)))
    cluster.run_to_the_end()
    assert {task: ends for task, ends in cluster.ends.items() if ends != ["outcome"]} == {}
    assert cluster.scheduler.pending == cluster.scheduler.backlog == 0


def test_tasks_behind_a_long_one_move_to_a_node_that_comes_later():
    cluster = Cluster([1], seed=1)
    cluster.submit([1e-4] * 100)
    cluster.advance(1.0)
    cluster.submit([10.0] + [1e-4] * 10)
    cluster.advance(0.005)
    cluster.join(b"later", 1, seed=2)
    cluster.advance(0.2)
    assert sum(ends == [] for ends in cluster.ends.values()) == 1
