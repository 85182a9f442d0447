"""How threads wait for a call's future, by itself: nothing runs here but the threads that wait."""

from __future__ import annotations

import contextlib
import pickle
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pytest

from hpcpool.processes.task_future import TaskFuture
from hpcpool.wire.packing import Payload
from tests.interrupts import interrupted_at
from tests.live.processes import until


def finish(future: TaskFuture[int]) -> None:
    assert future._complete(None, Payload(pickle.dumps(7)), None)


def waiting_on_condition(future: TaskFuture[int]) -> int:
    return len(future._lazy_condition._waiters) if future._lazy_condition is not None else 0  # type: ignore[attr-defined]


def is_waited_for(future: TaskFuture[int]) -> bool:
    """Whether a thread waits for the bell (or has left it there), or on the condition."""
    return (future._bell is not None and future._bell.locked()) or waiting_on_condition(future) > 0


def until_waited_for(future: TaskFuture[int]) -> None:
    until(lambda: is_waited_for(future), "somebody waits")


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as threads:
        yield threads


def test_the_only_thread_that_waits_needs_no_condition(threads):
    future: TaskFuture[int] = TaskFuture()
    result = threads.submit(future.result)
    until_waited_for(future)
    finish(future)
    assert result.result() == 7
    assert future._lazy_condition is None


def test_a_second_thread_that_waits_hears_of_it_too(threads):
    future: TaskFuture[int] = TaskFuture()
    first = threads.submit(future.result)
    until_waited_for(future)
    second = threads.submit(future.result)
    until(lambda: waiting_on_condition(future) == 2, "both wait")
    finish(future)
    assert (first.result(), second.result()) == (7, 7)


def test_who_waits_hears_of_it_although_others_look_by_the_standard_ways(threads):
    future: TaskFuture[int] = TaskFuture()
    result = threads.submit(future.result)
    until_waited_for(future)
    assert wait([future], timeout=0).not_done == {future}
    called = threading.Event()
    future.add_done_callback(lambda done: called.set())
    finish(future)
    assert result.result() == 7
    assert called.is_set()


@pytest.mark.parametrize("end", [TaskFuture.cancel, TaskFuture._withdraw], ids=["cancel", "withdraw"])
def test_who_waits_hears_that_it_was_cancelled(threads, end):
    future: TaskFuture[int] = TaskFuture()
    result = threads.submit(future.result)
    until_waited_for(future)
    end(future)
    with pytest.raises(CancelledError):
        result.result()


def test_who_waits_hears_of_a_result_that_the_program_sets(threads):
    future: TaskFuture[int] = TaskFuture()
    result = threads.submit(future.result)
    until_waited_for(future)
    future.set_result(8)
    assert result.result() == 8


def test_who_waits_for_some_time_only_and_who_waits_for_ever_both_hear_of_it(threads):
    future: TaskFuture[int] = TaskFuture()
    for_ever = threads.submit(future.result)
    until_waited_for(future)
    for_some_time = threads.submit(future.result, timeout=60)
    until(lambda: waiting_on_condition(future) == 2, "both wait")
    finish(future)
    assert (for_ever.result(), for_some_time.result()) == (7, 7)


def test_a_bell_that_ctrl_c_has_left_does_no_harm(threads):
    future: TaskFuture[int] = TaskFuture()
    future._bell = threading.Lock()
    future._bell.acquire()
    result = threads.submit(future.result)
    until(lambda: waiting_on_condition(future) == 1, "it waits")
    finish(future)
    assert result.result() == 7


def finish_when_waited_for(future: TaskFuture[int], is_over: threading.Event) -> None:
    until(lambda: is_over.is_set() or is_waited_for(future), "somebody waits, or does no longer")
    if not is_over.is_set():
        finish(future)


#: More places than the code below has. It is called by other threads meanwhile, whom nobody traces: Python 3.13 then
#: shows only few of the places.
PLACES = range(40)
LEAST_STRUCK = 1 if sys.version_info >= (3, 13) else 4


def test_after_ctrl_c_while_waiting_it_can_be_waited_for_again(threads):
    struck = 0
    for place in PLACES:
        future: TaskFuture[int] = TaskFuture()
        is_over = threading.Event()
        finishing = threads.submit(finish_when_waited_for, future, is_over)
        with contextlib.suppress(KeyboardInterrupt), interrupted_at(place, "/processes/task_future.py") as interrupter:
            future.result()
        is_over.set()
        finishing.result()
        again = threads.submit(future.result)
        if not future.done():
            until_waited_for(future)
            finish(future)
        assert again.result() == 7
        struck += interrupter.has_struck
    assert struck >= LEAST_STRUCK


def test_after_ctrl_c_while_somebody_is_told_the_next_tells_him(threads):
    struck = 0
    for place in PLACES:
        future: TaskFuture[int] = TaskFuture()
        result = threads.submit(future.result)
        until_waited_for(future)
        with contextlib.suppress(KeyboardInterrupt), interrupted_at(place, "/processes/task_future.py") as interrupter:
            future.cancel()
        future.cancel()
        with pytest.raises(CancelledError):
            result.result()
        struck += interrupter.has_struck
    assert struck >= LEAST_STRUCK
