from __future__ import annotations

import pickle
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


@pytest.mark.parametrize("value", [3, None, [threading.Lock()], threading.Semaphore()])
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
