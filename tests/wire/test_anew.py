from __future__ import annotations

import pickle
import queue
import threading
from contextvars import ContextVar

import pytest

from hpcpool.wire.anew import recipe_of


def made(value):
    recipe = recipe_of(value)
    assert recipe is not None
    return pickle.loads(pickle.dumps(recipe, 5))


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_a_lock_is_made_free_even_if_somebody_holds_this_one(make):
    lock = make()
    with lock:
        other = made(lock)
    assert type(other) is type(lock)
    assert other.acquire(blocking=False)


@pytest.mark.parametrize("is_set", [False, True])
def test_an_event_keeps_its_state(is_set):
    event = threading.Event()
    if is_set:
        event.set()
    assert made(event).is_set() is is_set


@pytest.mark.parametrize("lock", [None, threading.Lock()])
def test_a_condition_keeps_the_kind_of_its_lock(lock):
    condition = threading.Condition(lock)
    with made(condition) as is_held:
        assert is_held
        assert made(condition).acquire(blocking=False) is True
    assert type(made(condition)._lock) is type(condition._lock)


@pytest.mark.parametrize("kind", [threading.Semaphore, threading.BoundedSemaphore])
def test_a_semaphore_keeps_the_permits_that_are_left(kind):
    semaphore = kind(3)
    semaphore.acquire()
    other = made(semaphore)
    assert type(other) is kind
    assert [other.acquire(blocking=False) for _ in range(3)] == [True, True, False]


def test_a_bounded_semaphore_keeps_its_bound():
    other = made(threading.BoundedSemaphore(1))
    with pytest.raises(ValueError, match="too many"):
        other.release()


def test_a_barrier_waits_for_as_many():
    assert made(threading.Barrier(7, timeout=3)).parties == 7


@pytest.mark.parametrize("kind", [queue.Queue, queue.LifoQueue, queue.PriorityQueue])
def test_a_queue_keeps_what_is_in_it_and_its_bound(kind):
    waiting = kind(3)
    for item in (2, 1, 3):
        waiting.put(item)
    other = made(waiting)
    assert other.full()
    assert [other.get_nowait() for _ in range(3)] == [waiting.get_nowait() for _ in range(3)]


def test_a_simple_queue_is_made_empty():
    waiting = queue.SimpleQueue()
    waiting.put(1)
    assert made(waiting).empty()


def test_a_thread_local_keeps_what_this_thread_has_in_it():
    local = threading.local()
    local.number = 3
    assert made(local).number == 3


def test_a_context_variable_keeps_its_default_and_its_value():
    without, with_default = ContextVar("without"), ContextVar("with", default=3)
    with pytest.raises(LookupError):
        made(without).get()
    other = made(with_default)
    assert (other.name, other.get(), other.get(4)) == ("with", 3, 4)
    with_default.set(5)
    assert made(with_default).get(4) == 5


@pytest.mark.parametrize("value", [3, None, [threading.Lock()], threading.Thread()])
def test_anything_else_travels_as_it_is(value):
    assert recipe_of(value) is None


class Lock(threading.local):
    pass


def test_a_class_of_the_user_says_itself_how_it_travels():
    assert recipe_of(Lock()) is None


def test_a_function_of_main_may_name_a_lock(main, worker):
    main.run(
        """
import threading
lock = threading.Lock()
same = lock
count = 0
def add():
    global count
    with lock:
        count += 1
        return count, lock is same, same.locked()
def apply(function):
    return function()
class Counter:
    def add(self):
        return add()
"""
    )
    assert worker.call(main.add) == (1, True, True)
    assert worker.call(main.apply, main.add) == (2, True, True)
    assert worker.call(main.Counter().add) == (3, True, True)


def test_a_function_of_main_sees_a_context_variable_as_the_user_has_set_it(main, worker):
    main.run(
        """
import contextvars
level = contextvars.ContextVar("level", default=1)
def look():
    return level.get()
"""
    )
    assert worker.call(main.look) == 1
    main.level.set(2)
    assert worker.call(main.look) == 2


def test_a_lock_among_the_arguments_is_the_standard_library_s_error(main, worker):
    main.run("def look(lock): return lock")
    with pytest.raises(TypeError, match="cannot pickle"):
        worker.call(main.look, threading.Lock())
