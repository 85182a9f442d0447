"""The scheduler and some nodes together, with a network between them that takes its time."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable

import pytest

from hpcpool.core.needs import Needs, Shape, width
from hpcpool.core.scheduler import Scheduler
from tests.core.node_simulation import LONG_S, Fate, SimulatedNode

pytestmark = pytest.mark.once

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
        """Tasks that another node could run; not while slots are about to be free, as a wide worker is leaving."""
        if any(worker.own is not None and worker.retired for worker in self.workers.values()):
            return set()
        begun = {worker.running for worker in self.workers.values()}
        begun |= {task for worker in self.workers.values() for task, _ in worker.outcomes}
        return {task for task in self.here - begun if not self.fates[task].width}


class Cluster:
    """What interchange and managers do, without processes."""

    def __init__(self, slots: list[int], seed: int) -> None:
        self.random = random.Random(seed)
        self.scheduler = Scheduler(loss_limit=100, rerun_lost=True, pools=["default"])
        self.now = 1000.0
        self.runs: dict[int, float] = {}
        self.crashing: set[int] = set()
        self.needs: dict[int, Needs] = {}
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

    def join(self, name: bytes, slots: int, seed: int, block: str = "default-0") -> None:
        def on_end(task: int, how: str) -> None:
            self._send(name, "up", lambda: self._heard_of_end(name, task, how))

        self.nodes[name] = ClusterNode(slots, seed, on_end)
        self.nodes[name].now = self.now
        self.limits[name] = slots
        self.scheduler.manager_joined(name, slots, slots, "default", block, Shape(slots))

    def lose(self, name: bytes) -> None:
        del self.nodes[name]
        for task, _ in self.scheduler.manager_lost(name):
            self.ends[task].append("lost")
        for other, task in self.scheduler.orders_to_kill():
            self._send(other, "down", lambda other=other, task=task: self.nodes[other].kill(task))

    def submit(self, run_times_s: list[float], crash_share: float = 0.0, needs: Needs | None = None) -> None:
        priority = self.random.choice([0, 0, 1]) if needs is not None else 0
        for run_s in run_times_s:
            task = len(self.runs) + 1
            self.runs[task], self.ends[task] = run_s, []
            if self.random.random() < crash_share:
                self.crashing.add(task)
            if needs is not None:
                self.needs[task] = needs
            self.scheduler.submitted(task, priority, 2, needs)
        self._decide()

    def advance(self, duration_s: float) -> None:
        until = self.now + duration_s
        while (moment := self._next_moment()) <= until:
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
            if moment == math.inf:
                return
            self.advance(max(0.0, moment - self.now))
        raise AssertionError("it never comes to rest")

    def _next_moment(self) -> float:
        moments = [node.next_moment() for node in self.nodes.values()]
        return min([*moments, *(entry[0] for entry in self._network[:1])], default=math.inf)

    def _send(self, name: bytes, direction: str, deliver: Callable[[], None]) -> None:
        arrives = max(self._last.get((name, direction), 0.0), self.now + self.random.uniform(0, WAY_S))
        self._last[name, direction] = arrives
        self._count += 1
        heapq.heappush(self._network, (arrives, self._count, lambda: deliver() if name in self.nodes else None))

    def _heard_of_end(self, name: bytes, task: int, how: str) -> None:
        if how == "returned":
            self.scheduler.returned(name, [task])
        elif how in ("crashed", "killed") and self._runs_again(name, task, how):
            self.crashing.discard(task)
        elif self.scheduler.finished(name, task):
            self.ends[task].append(how)

    def _runs_again(self, name: bytes, task: int, how: str) -> bool:
        if self.scheduler.recalled(name, task) is not None:
            return True
        return how == "crashed" and self.scheduler.crashed(name, task)

    def _decide(self) -> None:
        for name, tasks in self.scheduler.dispatch():
            fates = [self._fate(name, task) for task in tasks]
            self._send(name, "down", lambda name=name, fates=fates: self.nodes[name].arrive(fates))
        for name, count in self.scheduler.share():
            self._send(name, "down", lambda name=name, count=count: self._asked(name, count))

    def _fate(self, name: bytes, task: int) -> Fate:
        needs, slots = self.needs.get(task), self.nodes[name].slots
        taken = (width(needs, Shape(slots)) or 0) if needs is not None else 0
        is_wide = needs is not None and (taken > 1 or needs.wants_whole_nodes)
        return Fate(task, self.runs[task], crashes=task in self.crashing, width=taken if is_wide else 0)

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
        self._judge_companies()
        known = self.scheduler._managers.by_name
        is_idle = any(node.is_idle() and known[name].slots > 0 for name, node in self.nodes.items())
        unstarted = set().union(*(node.unstarted() for node in self.nodes.values())) if is_idle else set()
        self.waiting_since = {task: self.waiting_since.get(task, self.now) for task in unstarted}
        for task, since in self.waiting_since.items():
            assert self.now - since <= PATIENCE_S, f"{task} waits although a node has nothing to do"

    def _judge_companies(self) -> None:
        """While a task has several nodes, nothing else runs there."""
        for name, manager in self.scheduler._managers.by_name.items():
            assert sum(manager.wide.values()) <= manager.all_slots
            for task in manager.wide:
                if self.scheduler.manager_of(task) != name:
                    assert not self.nodes[name].here, "a node that another task has alone is in use"


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


def any_needs(chance: random.Random, slots: list[int]) -> Needs | None:
    """What some node has, or a pair of nodes."""
    kind = chance.random()
    if kind < 0.4:
        return None
    if kind < 0.5:
        return Needs(pool="default")
    if kind < 0.8:
        return Needs(cores=chance.randint(1, max(slots)))
    return Needs(nodes=chance.randint(1, 2)) if kind < 0.95 else Needs(ranks=4)


@pytest.mark.parametrize("seed", range(80))
def test_wide_and_narrow_tasks_are_all_done_once_and_none_starves(seed):
    chance = random.Random(seed)
    slots = [chance.randint(1, 4) for _ in range(chance.randint(2, 4))]
    cluster = Cluster(slots, seed)
    for _ in range(chance.randint(4, 14)):
        kinds = chance.sample(RUN_TIMES_S, chance.randint(1, 2))
        needs = any_needs(chance, slots)
        count = chance.choice([1, 3, 20, 60] if needs is None else [1, 2, 6])
        runs = [chance.uniform(*chance.choice(kinds)) for _ in range(count)]
        cluster.submit(runs, chance.choice([0.0, 0.05]), needs)
        cluster.advance(chance.choice([0.0, 0.001, 0.02, 0.3]))
        if chance.random() < 0.15:
            # What goes away comes back, as blocks do: else nobody might have what is asked for.
            name = chance.choice(sorted(cluster.nodes))
            size = cluster.nodes[name].slots
            cluster.lose(name)
            cluster.advance(chance.choice([0.0, 0.01]))
            cluster.join(b"new%d" % len(cluster.limits), size, seed)
            cluster.advance(0.0)
    cluster.run_to_the_end()
    assert {task: ends for task, ends in cluster.ends.items() if ends != ["outcome"]} == {}
    assert cluster.scheduler.pending == cluster.scheduler.backlog == 0
    assert not cluster.scheduler._managers.reserved
    assert not any(manager.leases or manager.wide for manager in cluster.scheduler._managers.by_name.values())


@pytest.mark.parametrize("seed", range(10))
def test_a_wide_task_starts_although_short_ones_never_stop_coming(seed):
    cluster = Cluster([2, 2], seed)
    cluster.submit([0.002] * 200)
    cluster.advance(0.05)
    cluster.submit([0.01], needs=Needs(cores=2))
    for _ in range(60):
        cluster.submit([0.002] * 20)
        cluster.advance(0.005)
        if cluster.ends[201]:
            break
    assert cluster.ends[201] == ["outcome"]
    assert cluster.scheduler.backlog > 0
    cluster.run_to_the_end()


def test_tasks_behind_a_long_one_move_to_a_node_that_comes_later():
    cluster = Cluster([1], seed=1)
    cluster.submit([1e-4] * 100)
    cluster.advance(1.0)
    cluster.submit([10.0] + [1e-4] * 10)
    cluster.advance(0.005)
    cluster.join(b"later", 1, seed=2)
    cluster.advance(0.2)
    assert sum(ends == [] for ends in cluster.ends.values()) == 1
