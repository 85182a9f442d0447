from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hpcpool.core.leases import Batch, Dropped, Reason, Request
from hpcpool.core.scheduler import Scheduler
from tests.core.counting import count_calls
from tests.core.schedulers import A, B, C, leases, scheduler, submit

# -- leasing


def test_a_task_goes_to_a_manager_with_room():
    made = scheduler(a=(1, 1))
    submit(made, 1)
    assert made.dispatch() == [Batch(A, [1])]
    assert made.manager_of(1) == A
    assert (made.backlog, made.pending) == (0, 1)


def test_without_a_manager_tasks_wait_for_one():
    made = scheduler()
    submit(made, 1)
    assert made.dispatch() == []
    assert (made.backlog, made.manager_of(1)) == (1, None)
    made.manager_joined(A, 1, 1)
    assert made.dispatch() == [Batch(A, [1])]


def test_tasks_are_spread_evenly_over_free_slots():
    made = scheduler(a=(4, 100), b=(4, 100), c=(4, 100))
    submit(made, *range(6))
    assert {name: len(tasks) for name, tasks in leases(made).items()} == {A: 2, B: 2, C: 2}


def test_a_burst_is_spread_over_some_of_many_managers_and_the_next_over_others():
    made = Scheduler(3, True)
    for number in range(1000):
        made.manager_joined(b"%d" % number, 64, 100)
    submit(made, *range(256))
    first = leases(made)
    assert {len(tasks) for tasks in first.values()} == {8}
    submit(made, *range(256, 512))
    second = leases(made)
    assert {len(tasks) for tasks in second.values()} == {8}
    assert not first.keys() & second.keys()


def test_nothing_goes_ahead_while_a_slot_is_free_elsewhere():
    made = scheduler(a=(1, 100), b=(3, 100))
    submit(made, *range(4))
    assert {name: len(tasks) for name, tasks in leases(made).items()} == {A: 1, B: 3}


def test_what_goes_ahead_is_spread_evenly_too():
    made = scheduler(a=(1, 100), b=(1, 100))
    submit(made, *range(42))
    assert {name: len(tasks) for name, tasks in leases(made).items()} == {A: 21, B: 21}


def test_no_manager_gets_more_than_it_takes():
    made = scheduler(a=(1, 2), b=(1, 3))
    submit(made, *range(10))
    assert {name: len(tasks) for name, tasks in leases(made).items()} == {A: 2, B: 3}
    assert made.backlog == 5
    assert made.dispatch() == []


def test_tasks_are_in_excess_only_while_there_are_more_than_slots():
    made = scheduler(a=(2, 10))
    submit(made, 1, 2)
    assert made.excess == 0
    submit(made, 3)
    assert made.excess == 3
    made.dispatch()
    assert made.excess == 3  # one of them only waits at the manager
    made.finished(A, 1)
    assert made.excess == 0


def test_managers_are_served_in_turn():
    made = scheduler(a=(2, 2), b=(2, 2), c=(2, 2))
    served = []
    for task in range(6):
        submit(made, task)
        (batch,) = made.dispatch()
        served.append(batch.manager)
    assert served == [A, B, C, A, B, C]


def test_a_finished_task_makes_room_for_another():
    made = scheduler(a=(1, 1))
    submit(made, 1, 2)
    made.dispatch()
    assert made.finished(A, 1)
    assert made.dispatch() == [Batch(A, [2])]


def test_a_higher_priority_goes_first_and_equals_go_in_order():
    made = scheduler()
    submit(made, 1, 2)
    submit(made, 3, 4, priority=5)
    submit(made, 5, priority=-1)
    made.manager_joined(A, 5, 5)
    assert made.dispatch() == [Batch(A, [3, 4, 1, 2, 5])]


def test_a_manager_may_come_to_take_more_or_fewer():
    made = scheduler(a=(1, 1))
    submit(made, *range(10))
    made.dispatch()
    made.capacity_changed(A, 2, 6)
    assert made.capacity == (2, 6)
    assert [len(batch.tasks) for batch in made.dispatch()] == [5]
    made.capacity_changed(A, 1, 1)
    made.finished(A, 0)
    assert made.dispatch() == []
    made.capacity_changed(b"unknown", 1, 1)
    assert made.capacity == (1, 1)


# -- ends


def test_only_the_holder_of_a_task_finishes_it_and_only_once():
    made = scheduler(a=(1, 1), b=(1, 1))
    submit(made, 1)
    made.dispatch()
    assert not made.finished(B, 1)
    assert made.finished(A, 1)
    assert not made.finished(A, 1)
    assert not made.finished(A, 99)
    assert made.pending == 0


def test_a_task_may_kill_as_many_workers_as_allowed():
    made = scheduler(a=(1, 1))
    submit(made, 1, crash_limit=3)
    for reruns in (1, 2):
        made.dispatch()
        assert made.crashed(A, 1)
        assert made.reruns(1) == reruns
        assert made.manager_of(1) is None
    made.dispatch()
    assert not made.crashed(A, 1)
    assert made.finished(A, 1)
    assert not made.crashed(A, 1)
    assert made.reruns(1) == 0


def test_a_crash_that_only_another_manager_can_have_seen_is_ignored():
    made = scheduler(a=(1, 1), b=(1, 1))
    submit(made, 1, crash_limit=2)
    made.dispatch()
    assert not made.crashed(B, 1)
    assert made.manager_of(1) == A
    assert made.reruns(1) == 0


def test_a_task_that_crashed_is_the_next():
    made = scheduler(a=(1, 1))
    submit(made, 1, 2, crash_limit=2)
    made.dispatch()
    made.crashed(A, 1)
    assert made.dispatch() == [Batch(A, [1])]


def test_a_cancelled_task_in_the_queue_is_gone():
    made = scheduler()
    submit(made, 1, 2)
    assert made.cancelled(1) is None
    assert (made.backlog, made.pending) == (1, 1)
    assert made.cancelled(1) is None
    assert made.backlog == 1
    made.manager_joined(A, 2, 2)
    assert made.dispatch() == [Batch(A, [2])]


def test_the_holder_of_a_cancelled_task_must_be_told_and_has_room_again():
    made = scheduler(a=(1, 1))
    submit(made, 1, 2)
    made.dispatch()
    assert made.cancelled(1) == A
    assert not made.finished(A, 1)
    assert made.dispatch() == [Batch(A, [2])]


def test_what_nobody_holds_is_withdrawn_but_for_the_oldest():
    made = scheduler(a=(1, 1))
    submit(made, 1, 2, 3, 4)
    made.dispatch()
    assert made.withdraw(2) == [3, 4]
    assert (made.backlog, made.pending) == (1, 2)
    made.finished(A, 1)
    assert made.dispatch() == [Batch(A, [2])]


def test_cancelled_tasks_do_not_fill_the_queue():
    made = scheduler()
    submit(made, 0, priority=1)
    for task in range(1, 10_001):
        submit(made, task, priority=task % 3)
        made.cancelled(task)
    assert sum(len(queue) for queue in made._queue._queues.values()) < 3000
    made.manager_joined(A, 5, 5)
    assert made.dispatch() == [Batch(A, [0])]


# -- losses


def test_the_tasks_of_a_lost_manager_run_elsewhere_first_and_in_order():
    made = scheduler(a=(3, 3))
    submit(made, 1, 2, 3, 4)
    made.dispatch()
    assert made.manager_lost(A) == []
    assert (made.capacity, made.backlog) == ((0, 0), 4)
    made.manager_joined(B, 4, 4)
    assert made.dispatch() == [Batch(B, [1, 2, 3, 4])]


def test_a_late_outcome_of_a_lost_manager_is_dropped():
    made = scheduler(a=(1, 1))
    submit(made, 1)
    made.dispatch()
    made.manager_lost(A)
    made.manager_joined(B, 1, 1)
    made.dispatch()
    assert not made.finished(A, 1)
    assert made.finished(B, 1)


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_loss_does_not_count_if_it_turns_out_that_the_batch_system_took_the_block_away(is_taken):
    made = scheduler(loss_limit=1)
    submit(made, 1)
    for number in range(10):
        block = f"p-{number}"
        made.manager_joined(A, 1, 1, "p", block)
        assert leases(made) == {A: [1]}
        dropped = made.manager_lost(A)  # its connection ends before the batch system is asked
        made.block_over(block, was_taken=is_taken)
        if dropped:
            break
    assert (number, dropped) == ((9, []) if is_taken else (1, [Dropped(1, Reason.LOST)]))
    assert made.reruns(1) == (10 if is_taken else 0), "it is told all the same, while the task is there"


@pytest.mark.parametrize(("loss_limit", "rerun_lost", "reruns"), [(2, True, 2), (0, True, 0), (2, False, 0)])
def test_a_task_is_lost_for_good_after_as_many_losses_as_allowed(loss_limit, rerun_lost, reruns):
    made = scheduler(loss_limit, rerun_lost)
    submit(made, 1)
    for number in range(reruns):
        made.manager_joined(b"%d" % number, 1, 1)
        made.dispatch()
        assert made.manager_lost(b"%d" % number) == []
        assert made.reruns(1) == number + 1
    made.manager_joined(A, 1, 1)
    made.dispatch()
    assert made.manager_lost(A) == [Dropped(1, Reason.LOST)]
    assert made.pending == made.backlog == 0


def test_a_manager_is_lost_once():
    made = scheduler(a=(1, 1))
    made.manager_lost(A)
    assert made.manager_lost(A) == []
    assert made.capacity == (0, 0)


# -- killing and withdrawing


def test_a_killed_task_that_nobody_holds_is_forgotten():
    made = scheduler()
    submit(made, 1)
    assert made.kill(1) is None
    assert made.pending == made.backlog == 0
    assert made.kill(1) is None


def test_a_killed_task_does_not_start_again_whatever_was_on_its_way():
    made = scheduler(a=(4, 4))
    submit(made, 1, 2, 3, 4, crash_limit=9)
    made.dispatch()
    assert [made.kill(task) for task in (1, 2, 3)] == [A, A, A]
    assert made.returned(A, [1]) == [Dropped(1, Reason.KILLED)]
    assert not made.crashed(A, 2)
    assert made.finished(A, 2)
    assert made.manager_lost(A) == [Dropped(3, Reason.KILLED)]
    assert made.pending == made.backlog == 1


def test_a_killed_task_may_finish():
    made = scheduler(a=(1, 1))
    submit(made, 1)
    made.dispatch()
    made.kill(1)
    assert made.finished(A, 1)


def test_what_comes_back_after_a_withdrawal_is_withdrawn_too():
    made = scheduler(a=(4, 4))
    submit(made, 1, 2, 3, 4, 5)
    made.dispatch()
    assert made.withdraw(keep=2) == [5]
    assert made.returned(A, [4, 3, 2]) == [Dropped(4, Reason.WITHDRAWN), Dropped(3, Reason.WITHDRAWN)]
    assert made.manager_lost(A) == []  # it runs, for all one knows
    assert made.pending == made.backlog == 2


# -- sharing


def busy_and_idle() -> Scheduler:
    """A manager that holds eight tasks for its two slots, and one with three slots and nothing to do."""
    made = scheduler(a=(2, 100))
    submit(made, *range(8))
    made.dispatch()
    made.manager_joined(B, 3, 3)
    return made


def test_an_idle_manager_gets_tasks_that_a_busy_one_has_not_started():
    made = busy_and_idle()
    assert made.share() == [Request(A, 3)]
    made.returned(A, [7, 6, 5])
    assert made.dispatch() == [Batch(B, [5, 6, 7])]
    assert made.share() == []


def test_nobody_is_asked_while_tasks_wait_anyway():
    made = busy_and_idle()
    submit(made, 100)
    assert made.share() == []


def test_nobody_is_asked_twice_for_the_same_tasks():
    made = busy_and_idle()
    made.manager_joined(C, 1, 100)
    assert made.share() == [Request(A, 4)]
    assert made.share() == []
    made.manager_joined(b"d", 1, 1)
    made.finished(A, 0)
    assert made.share() == []  # it is being asked
    made.returned(A, [7])
    made.dispatch()
    assert made.share() == [Request(A, 4)]


def test_no_more_is_asked_for_than_there_are_free_slots():
    """Also when answers are still to come: else every idle slot would be promised the tasks of all busy managers."""
    made = scheduler(a=(1, 10), b=(1, 10), c=(1, 10))
    submit(made, *range(30))
    made.dispatch()
    made.manager_joined(b"d", 1, 1)
    assert made.share() == [Request(A, 1)]
    assert made.share() == []
    made.returned(A, [])
    assert made.share() == [Request(B, 1)]


def test_one_who_had_nothing_to_give_is_asked_again_when_its_tasks_have_changed():
    made = busy_and_idle()
    made.share()
    made.returned(A, [])
    assert made.share() == []
    made.finished(A, 0)
    assert made.share() == [Request(A, 3)]


def test_new_tasks_in_the_place_of_old_ones_are_a_change():
    made = scheduler(a=(2, 8))
    submit(made, *range(8))
    made.dispatch()
    made.manager_joined(B, 1, 1)
    made.share()
    made.returned(A, [])
    submit(made, 100, 101)
    made.finished(A, 0)
    assert sorted(leases(made).items()) == [(A, [101]), (B, [100])]
    made.finished(B, 100)
    assert made.share() == [Request(A, 1)]


def test_a_task_can_come_back_unasked():
    made = busy_and_idle()
    made.share()
    made.returned(A, [])
    made.returned(A, [7])
    assert made.dispatch() == [Batch(B, [7])]


def test_tasks_that_are_not_the_managers_do_not_come_back():
    made = scheduler(a=(1, 1), b=(1, 1))
    submit(made, 1, 2)
    made.dispatch()
    made.returned(B, [1, 99])
    assert made.manager_of(1) == A
    assert made.backlog == 0
    made.returned(b"unknown", [1])
    assert made.manager_of(1) == A


def test_what_a_lost_manager_was_asked_for_is_asked_of_another():
    made = scheduler(a=(1, 10), b=(1, 10))
    submit(made, *range(4))
    made.dispatch()
    made.manager_joined(C, 1, 1)
    assert made.share() == [Request(A, 1)]
    assert made.manager_lost(A) == []
    made.dispatch()
    assert made._managers.asked == 0


def test_nobody_asks_a_lost_manager():
    made = busy_and_idle()
    made.manager_lost(A)
    for task in range(3):
        made.cancelled(task)
    made.withdraw(0)
    assert made.share() == []


# -- cost


def cost_of_a_task(managers: int) -> int:
    made = Scheduler(3, True)
    for number in range(managers):
        made.manager_joined(b"%d" % number, 2, 6)
    submit(made, *range(managers * 4))
    made.dispatch()
    for number in range(0, managers, 2):  # half of them have nothing to do, and the others nothing to give
        for task in [task for task in range(managers * 4) if made.manager_of(task) == b"%d" % number]:
            made.finished(b"%d" % number, task)
    for _, count in made.share():
        assert count
    task = next(task for task in range(managers * 4) if made.manager_of(task) is not None)
    holder = made.manager_of(task)

    def path_of_a_task():
        made.finished(holder, task)
        made.submitted(task, 0, 1)
        made.dispatch()
        made.share()

    return count_calls(path_of_a_task)


def test_a_task_costs_the_same_however_many_managers_there_are():
    assert cost_of_a_task(640) == cost_of_a_task(64)


# -- anything


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever managers and the client do, no task is lost, doubled, leased without room or out of turn."""

    @initialize(loss_limit=st.integers(0, 2), rerun_lost=st.booleans())
    def begin(self, loss_limit, rerun_lost):
        self.made = Scheduler(loss_limit, rerun_lost)
        self.loss_limit = loss_limit if rerun_lost else 0
        #: name -> (slots, limit); task -> (priority, crash limit); task -> name; what waits, in order of service.
        self.managers: dict[bytes, tuple[int, int]] = {}
        self.tasks: dict[int, tuple[int, int]] = {}
        self.held: dict[int, bytes] = {}
        self.waiting: list[int] = []
        self.crashes: Counter[int] = Counter()
        self.losses: Counter[int] = Counter()
        self.asked: dict[bytes, int] = {}
        self.killed: set[int] = set()
        self.keep: int | None = None
        self.last = 0

    def enqueue(self, task, first=False):
        least = self.tasks[task][0] + (1 if first else 0)
        self.waiting.insert(sum(1 for other in self.waiting if self.tasks[other][0] >= least), task)

    def of(self, name):
        return [task for task, holder in self.held.items() if holder == name]

    def forget(self, task):
        del self.tasks[task]
        self.killed.discard(task)
        for counter in (self.crashes, self.losses):
            counter.pop(task, None)

    @rule(count=st.integers(1, 12), priority=st.integers(-1, 1), crash_limit=st.integers(1, 3))
    def tasks_are_submitted(self, count, priority, crash_limit):
        for _ in range(count):
            self.last += 1
            self.tasks[self.last] = (priority, crash_limit)
            self.made.submitted(self.last, priority, crash_limit)
            self.enqueue(self.last)

    @rule(slots=st.integers(1, 4), ahead=st.integers(0, 6))
    def a_manager_joins(self, slots, ahead):
        self.last += 1
        name = b"%d" % self.last
        self.managers[name] = (slots, slots + ahead)
        self.made.manager_joined(name, slots, slots + ahead)

    @precondition(lambda self: self.managers)
    @rule(data=st.data(), slots=st.integers(1, 4), ahead=st.integers(0, 6))
    def a_managers_capacity_changes(self, data, slots, ahead):
        name = data.draw(st.sampled_from(sorted(self.managers)))
        self.managers[name] = (slots, slots + ahead)
        self.made.capacity_changed(name, slots, slots + ahead)

    @precondition(lambda self: self.managers)
    @rule(data=st.data())
    def a_manager_is_lost(self, data):
        name = data.draw(st.sampled_from(sorted(self.managers)))
        del self.managers[name]
        self.asked.pop(name, None)
        mine = self.of(name)
        ended = self.made.manager_lost(name)
        lost = {task for task, _ in ended}
        assert {task for task, end in ended if end is Reason.LOST} == {
            task for task in mine if self.losses[task] + 1 > self.loss_limit and task not in self.killed
        }
        assert {task for task, end in ended if end is Reason.KILLED} == self.killed & set(mine)
        for task in reversed(mine):
            del self.held[task]
            self.losses[task] += 1
            if task in lost:
                self.forget(task)
            else:
                self.enqueue(task, first=True)

    @rule()
    def tasks_are_dispatched(self):
        before = Counter(self.held.values())
        dispatched = [(task, batch.manager) for batch in self.made.dispatch() for task in batch.tasks]
        assert {task for task, _ in dispatched} == set(self.waiting[: len(dispatched)]), "out of turn, or twice"
        del self.waiting[: len(dispatched)]
        self.held.update(dispatched)
        after = Counter(self.held.values())
        for name in {name for _, name in dispatched}:
            assert after[name] <= self.managers[name][1], "leased without room"
        went_ahead = any(after[name] > max(before[name], slots) for name, (slots, _) in self.managers.items())
        has_free = any(after[name] < slots for name, (slots, _) in self.managers.items())
        assert not (went_ahead and has_free), "leased ahead while a slot was free"
        assert not self.waiting or all(after[name] >= limit for name, (_, limit) in self.managers.items())

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def an_outcome_comes(self, data):
        task = data.draw(st.sampled_from(sorted(self.held)))
        name = data.draw(st.sampled_from([self.held[task], b"another"]))
        assert self.made.finished(name, task) == (name == self.held[task])
        assert not self.made.finished(self.held[task], -1)
        if name == self.held[task]:
            del self.held[task]
            self.forget(task)
            assert not self.made.finished(name, task), "completed twice"

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def a_task_crashes(self, data):
        task = data.draw(st.sampled_from(sorted(self.held)))
        name = self.held[task]
        self.crashes[task] += 1
        again = self.crashes[task] < self.tasks[task][1] and task not in self.killed
        assert self.made.crashed(name, task) == again
        del self.held[task]
        if again:
            self.enqueue(task, first=True)
        else:
            assert self.made.finished(name, task)
            self.forget(task)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def a_task_is_cancelled(self, data):
        task = data.draw(st.sampled_from(sorted(self.tasks)))
        assert self.made.cancelled(task) == self.held.pop(task, None)
        if task in self.waiting:
            self.waiting.remove(task)
        self.forget(task)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def a_task_is_killed(self, data):
        task = data.draw(st.sampled_from(sorted(self.tasks)))
        holder = self.held.get(task)
        assert self.made.kill(task) == holder
        if holder is None:
            self.waiting.remove(task)
            self.forget(task)
        else:
            self.killed.add(task)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def the_rest_is_withdrawn(self, data):
        keep = data.draw(st.sampled_from(sorted(self.tasks)))
        withdrawn = self.made.withdraw(keep)
        self.keep = keep
        assert sorted(withdrawn) == sorted(task for task in self.waiting if task > keep)
        self.waiting = [task for task in self.waiting if task <= keep]
        for task in withdrawn:
            self.forget(task)

    @rule()
    def work_is_shared(self):
        free = sum(max(0, slots - len(self.of(name))) for name, (slots, _) in self.managers.items())
        requests = self.made.share()
        assert not requests or not self.waiting
        for name, wanted in requests:
            assert name not in self.asked, "asked twice"
            assert 0 < wanted <= len(self.of(name)) - self.managers[name][0]
            self.asked[name] = wanted
        assert not requests or sum(self.asked.values()) <= free, "asked for more than there is room for"

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def an_asked_manager_answers(self, data):
        name = data.draw(st.sampled_from(sorted(self.asked)))
        wanted = self.asked.pop(name)
        mine = self.of(name)
        returned = mine[::-1][: data.draw(st.integers(0, wanted))]
        ended = dict(self.made.returned(name, returned))
        for task in returned:
            del self.held[task]
            wanted_end = Reason.KILLED if task in self.killed else None
            if wanted_end is None and self.keep is not None and task > self.keep:
                wanted_end = Reason.WITHDRAWN
            assert ended.get(task) is wanted_end
            if wanted_end is not None:
                self.forget(task)
            else:
                self.enqueue(task, first=True)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def a_task_comes_back_that_is_not_the_senders(self, data):
        task = data.draw(st.sampled_from(sorted(self.held)))
        other = data.draw(st.sampled_from([b"unknown", *sorted(self.managers)]))
        assume(other != self.held[task] and other not in self.asked)
        self.made.returned(other, [task, -1])

    @invariant()
    def the_books_are_right(self):
        if not hasattr(self, "made"):
            return
        assert self.made.backlog == len(self.waiting)
        assert self.made.pending == len(self.tasks)
        slots, limits = zip(*self.managers.values(), strict=True) if self.managers else ((), ())
        assert self.made.capacity == (sum(slots), sum(limits))
        for task in self.tasks:
            assert self.made.manager_of(task) == self.held.get(task)
            assert self.made.reruns(task) == self.crashes[task] + self.losses[task]

    def teardown(self):
        if not hasattr(self, "made"):
            return
        self.a_manager_joins(1, 0)
        while self.tasks:
            self.tasks_are_dispatched()
            assert self.held, "a task is never dispatched"
            for task, name in list(self.held.items()):
                assert self.made.finished(name, task)
                del self.held[task]
                self.forget(task)
        assert (self.made.pending, self.made.backlog) == (0, 0)


SchedulerMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
TestSchedulerAgainstItsPromises = SchedulerMachine.TestCase


def test_it_is_known_how_many_tasks_a_manager_holds():
    scheduler = Scheduler(loss_limit=3, rerun_lost=True)
    scheduler.manager_joined(b"m", 1, 1)
    assert scheduler.held_by(b"m") == 0
    scheduler.submitted(1, 0, 1)
    scheduler.dispatch()
    assert scheduler.held_by(b"m") == 1
    scheduler.finished(b"m", 1)
    assert scheduler.held_by(b"m") == 0
    assert scheduler.held_by(b"never heard of") == 0
