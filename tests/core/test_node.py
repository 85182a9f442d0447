from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.core.node_simulation import Fate, SimulatedNode

RUN_TIMES_S = {
    "tiny": (1e-6, 1e-5),
    "short": (1e-4, 1e-3),
    "medium": (0.002, 0.015),
    "long": (0.05, 2.0),
}


class NodeMachine(RuleBasedStateMachine):
    """Anything may happen to a node in any order; `SimulatedNode.judge` says what must never come of it."""

    @initialize(
        slots=st.integers(1, 4), max_tasks=st.sampled_from([None, None, 1, 2, 7]), seed=st.integers(0, 2**32 - 1)
    )
    def begin(self, slots, max_tasks, seed):
        self.sim = SimulatedNode(slots, max_tasks, seed)
        self.random = random.Random(seed + 1)
        self.next_task = 1

    @rule(count=st.integers(1, 40), kinds=st.lists(st.sampled_from(sorted(RUN_TIMES_S)), min_size=1, max_size=2))
    def tasks_arrive(self, count, kinds):
        fates = []
        for _ in range(count):
            run_s = self.random.uniform(*RUN_TIMES_S[self.random.choice(kinds)])
            chance = self.random.random
            fates.append(
                Fate(
                    self.next_task,
                    run_s,
                    timeout_s=self.random.choice([0.001, 0.03, 0.5]) if chance() < 0.1 else 0.0,
                    alone=chance() < 0.1,
                    crashes=chance() < 0.03,
                )
            )
            self.next_task += 1
        self.sim.arrive(fates)

    @rule(duration_s=st.sampled_from([0.0, 1e-4, 1e-3, 0.01, 0.02, 0.1, 1.0]))
    def time_passes(self, duration_s):
        self.sim.advance(duration_s)

    @precondition(lambda self: self.sim.fates)
    @rule(count=st.integers(1, 5))
    def tasks_are_cancelled(self, count):
        for _ in range(count):
            self.sim.cancel(self.any_task())

    @precondition(lambda self: self.sim.fates)
    @rule()
    def a_task_is_killed(self):
        self.sim.kill(self.any_task())

    @rule(count=st.integers(1, 50))
    def tasks_are_asked_back(self, count):
        self.sim.give_back(count)

    @precondition(lambda self: self.sim.fates)
    @rule(data=st.data())
    def tasks_that_ended_come_again(self, data):
        again = [
            Fate(fate.task, fate.run_s, fate.timeout_s, fate.alone)
            for fate in self.sim.fates.values()
            if fate.task not in self.sim.here and fate.ends != ["cancelled"]
        ]
        assume(again)
        self.sim.arrive(data.draw(st.lists(st.sampled_from(again), min_size=1, max_size=5, unique_by=lambda f: f.task)))

    @rule(share=st.floats(0, 1))
    def what_does_not_run_is_withdrawn(self, share):
        self.sim.withdraw(int(share * self.next_task))

    @precondition(lambda self: any(w.is_idle or w.running is not None for w in self.sim.workers.values()))
    @rule()
    def a_worker_dies_by_itself(self):
        self.sim.kill_from_outside(
            self.random.choice([w for w in self.sim.workers.values() if w.is_idle or w.running is not None])
        )

    @precondition(lambda self: self.sim.failed_starts < 2)
    @rule()
    def a_worker_fails_to_start(self):
        self.sim.failing_starts = 1

    def any_task(self):
        # The newest are likelier to be here still.
        tasks = list(self.sim.fates)
        return tasks[-min(len(tasks), 1 + int(self.random.expovariate(1 / 20)))]

    def teardown(self):
        if not hasattr(self, "sim"):
            return
        self.sim.failing_starts = 0
        self.sim.run_to_the_end()
        assert self.sim.hopeless == 0
        assert {task: fate.ends for task, fate in self.sim.fates.items() if len(fate.ends) != 1} == {}
        assert self.sim.here == set()


NodeMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestNodeAgainstItsPromises = NodeMachine.TestCase
