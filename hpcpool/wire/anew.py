"""Globals that a process makes anew instead of getting them: what threads share, and variables of one or of a context.

A function of `__main__` brings the globals that it names. With `ProcessPoolExecutor` each worker has a lock of its own
there, by a fork or since it imports the program again; so it has here. Only globals are looked at, not what is in
them: a lock that is passed as an argument cannot be pickled, as in the standard library.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any


class Recipe:
    """Is pickled in the place of a global, and opened as what it makes."""

    __slots__ = ("arguments", "make")

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self.make = make
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.make, self.arguments


def recipe_of(value: Any) -> Recipe | None:
    """Return how another process makes a global of this kind; None for all that travels as it is."""
    writer = _WRITERS.get(type(value))
    return None if writer is None else writer(value)


def _lock(_: Any) -> Recipe:
    return Recipe(threading.Lock)  # free: who holds it is a thread of this process


def _rlock(_: Any) -> Recipe:
    return Recipe(threading.RLock)


def _event(event: threading.Event) -> Recipe:
    return Recipe(make_event, event.is_set())


def make_event(is_set: bool) -> threading.Event:
    """Return an event in this state; called by pickle."""
    event = threading.Event()
    if is_set:
        event.set()
    return event


def _condition(condition: threading.Condition) -> Recipe:
    has_lock = type(condition._lock) is type(threading.Lock())  # type: ignore[attr-defined]
    return Recipe(make_condition, has_lock)


def make_condition(has_lock: bool) -> threading.Condition:
    """Return a condition with a plain lock, or with one that a thread can take again; called by pickle."""
    return threading.Condition(threading.Lock() if has_lock else None)


def _semaphore(semaphore: threading.Semaphore) -> Recipe:
    return Recipe(type(semaphore), _permits(semaphore))


def _bounded(semaphore: threading.BoundedSemaphore) -> Recipe:
    return Recipe(make_bounded, semaphore._initial_value, _permits(semaphore))  # type: ignore[attr-defined]


def make_bounded(most: int, permits: int) -> threading.BoundedSemaphore:
    """Return a bounded semaphore with some of its permits taken; called by pickle."""
    semaphore = threading.BoundedSemaphore(most)
    for _ in range(most - permits):
        semaphore.acquire()
    return semaphore


def _permits(semaphore: threading.Semaphore) -> int:
    return semaphore._value


def _barrier(barrier: threading.Barrier) -> Recipe:
    action, timeout = barrier._action, barrier._timeout  # type: ignore[attr-defined]
    return Recipe(threading.Barrier, barrier.parties, action, timeout)


def _queue(waiting: queue.Queue[Any]) -> Recipe:
    with waiting.mutex:
        return Recipe(make_queue, type(waiting), waiting.maxsize, list(waiting.queue))


def make_queue(kind: type[queue.Queue[Any]], maxsize: int, items: list[Any]) -> queue.Queue[Any]:
    """Return a queue of this kind with these items; called by pickle."""
    waiting = kind(maxsize)
    for item in items:
        waiting.put_nowait(item)
    return waiting


def _simple_queue(_: Any) -> Recipe:
    return Recipe(queue.SimpleQueue)  # empty: nobody can look into one without taking what is there


def _local(local: threading.local) -> Recipe:
    return Recipe(make_local, dict(local.__dict__))


def make_local(attributes: dict[str, Any]) -> threading.local:
    """Return an object with these attributes in this thread; called by pickle."""
    local = threading.local()
    local.__dict__.update(attributes)
    return local


def _context_variable(variable: contextvars.ContextVar[Any]) -> Recipe:
    is_set = variable in contextvars.copy_context()
    return Recipe(make_context_variable, variable.name, _default_of(variable), (variable.get(),) if is_set else ())


def _default_of(variable: contextvars.ContextVar[Any]) -> tuple[Any, ...]:
    try:
        return (contextvars.Context().run(variable.get),)  # in an empty context nothing but a default can be there
    except LookupError:
        return ()


def make_context_variable(name: str, defaults: tuple[Any, ...], values: tuple[Any, ...]) -> contextvars.ContextVar[Any]:
    """Return a context variable with at most one default, and at most one value in this context; called by pickle."""
    variable: contextvars.ContextVar[Any] = (
        contextvars.ContextVar(name, default=defaults[0]) if defaults else contextvars.ContextVar(name)
    )
    for value in values:
        variable.set(value)
    return variable


_WRITERS: dict[type, Callable[[Any], Recipe]] = {
    type(threading.Lock()): _lock,
    type(threading.RLock()): _rlock,
    threading.Event: _event,
    threading.Condition: _condition,
    threading.Semaphore: _semaphore,
    threading.BoundedSemaphore: _bounded,
    threading.Barrier: _barrier,
    queue.Queue: _queue,
    queue.LifoQueue: _queue,
    queue.PriorityQueue: _queue,
    queue.SimpleQueue: _simple_queue,
    threading.local: _local,
    contextvars.ContextVar: _context_variable,
}
