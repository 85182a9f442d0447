"""Calls that run at the client and return futures: how a graph grows while it runs. No worker takes part."""

from __future__ import annotations

import contextvars
import copy
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from hpcpool.naming import name_of
from hpcpool.processes import outcomes
from hpcpool.processes.client import Client
from hpcpool.processes.hold import Hold
from hpcpool.processes.task_future import TaskFuture

_CONTAINERS = (dict, list, tuple, set, frozenset)
#: In a graph of so many calls that wait no cycle is looked for any further: each join would walk all of it.
_MOST_LOOKED_AT = 10_000


def start(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    take_hold: Callable[[Callable[[bool], None]], tuple[Hold, Client]],
    name: str = "",
) -> TaskFuture[Any]:
    """Call `fn` in a thread when the futures in its arguments have finished; return the future of what it returns."""
    future: TaskFuture[Any] = TaskFuture(name or f"join({name_of(fn)})")
    # A join is pending work: the pool does not end before it, and its thread may submit until then.
    hold, client = take_hold(lambda cancel: _pool_closes(future, cancel))
    future.add_done_callback(functools.partial(_let_go, hold, client))
    in_context = functools.partial(contextvars.copy_context().run, fn)  # as if it were called here
    begin = functools.partial(_in_thread, future, _run, hold, in_context, args, kwargs)
    future._awaits = list(futures_in((args, kwargs)))
    _when_done(future, list(future._awaits), begin)
    return future


def _let_go(hold: Hold, client: Client, future: Future[Any]) -> None:
    """The join has finished or was cancelled, perhaps before it ran."""
    assert isinstance(future, TaskFuture)
    future._awaits = ()
    future._acknowledge_cancel()
    client.release(hold)
    hold.close = _nothing  # it knows the future, whose callbacks know the hold: a cycle


def _nothing(cancel: bool) -> None:
    """The join is over."""


def _pool_closes(future: TaskFuture[Any], cancel: bool) -> None:
    if cancel:
        future.cancel()


def _in_thread(future: TaskFuture[Any], step: Callable[..., None], *args: Any) -> None:
    """Take the next step of a join in a thread of its own.

    One for each: a function that waits for another join (against advice) must not keep that one from starting, and
    results must not be opened in the client's thread.
    """
    try:
        threading.Thread(target=step, args=(future, *args), name=future.info.name, daemon=True).start()
    except RuntimeError:
        # The system has no thread left; or the interpreter is ending, and Python 3.12.0 and 3.12.1 allow none by then
        # (https://github.com/python/cpython/issues/113964). Better here than not at all.
        _in_turn(functools.partial(step, future, *args))


def _run(future: TaskFuture[Any], hold: Hold, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Call the function; what it returns may still have to finish."""
    if not future._start():
        return
    hold.thread = threading.get_ident()
    try:
        returned = fn(*map(with_results, args), **{name: with_results(value) for name, value in kwargs.items()})
    except BaseException as error:  # noqa: BLE001 - the user's function may raise anything
        _fail(future, error)
        del future, args, kwargs  # the error's frames lead here, so all this would live as long as it
        return
    finally:
        hold.thread = None
    if awaited := list(futures_in(returned)):
        future._awaits = awaited  # first: of two that wait for each other, at least one sees the other
        if _is_awaited_by(future, awaited):
            text = f"{future._name} returned a future that waits for this join: neither would ever finish"
            future._finish(outcomes.raising(ValueError(text)))
            return
        _when_done(future, awaited, lambda: _in_thread(future, _finish, returned), inner=True)
    else:
        future.set_result(returned)


def _is_awaited_by(future: Future[Any], others: list[Future[Any]]) -> bool:
    """Say whether any of these futures is this one, or waits for it, however indirectly."""
    stack = others.copy()
    seen: set[int] = set()
    while stack and len(seen) < _MOST_LOOKED_AT:
        other = stack.pop()
        if other is future:
            return True
        if id(other) not in seen and isinstance(other, TaskFuture) and not other.done():
            seen.add(id(other))
            stack += other._awaits
    return False


def _finish(future: TaskFuture[Any], returned: Any) -> None:
    """All futures in what the function returned have results."""
    try:
        value = with_results(returned)
    except BaseException as error:  # noqa: BLE001 - a result that cannot be opened, or not be put in a set
        _fail(future, error)
    else:
        future.set_result(value)


def _fail(future: TaskFuture[Any], error: BaseException) -> None:
    # Without our own frame: it has the future, which has the error: a cycle.
    trace = error.__traceback__
    future._finish(outcomes.raising(error.with_traceback(trace.tb_next if trace is not None else None)))


def _when_done(
    future: TaskFuture[Any], awaited: list[Future[Any]], then: Callable[[], None], *, inner: bool = False
) -> None:
    """Call `then` when all have finished; if one fails or is cancelled, so does `future`."""
    if not awaited:
        then()
        return
    lock = threading.Lock()
    left = len(awaited)

    def one_done(done: Future[Any]) -> None:
        nonlocal left
        has_failed = outcomes.has_failed(done)
        with lock:
            if left <= 0:
                return  # another one has failed
            left = 0 if has_failed else left - 1
            is_last = left == 0
        if has_failed:
            _in_turn(functools.partial(_fall, future, done, inner=inner))
        elif is_last and not future.done():
            then()

    for one in awaited:
        one.add_done_callback(one_done)


def _fall(future: TaskFuture[Any], cause: Future[Any], *, inner: bool) -> None:
    """End a join by a future that failed or was cancelled."""
    if cause.cancelled():
        if not future.cancel():
            future._finish(outcomes.raising(outcomes.cancelled_inside(future, cause)))
    elif inner:  # what fn returned: its failure is the result
        origin = cause._origin or cause if isinstance(cause, TaskFuture) else cause
        future._origin = origin
        future._finish(lambda: (None, origin.exception()))
    else:
        future._finish(outcomes.by_dependency(future, cause))


class _Turns(threading.local):
    """What a thread has still to do, while it does something of this kind."""

    waiting: deque[Callable[[], None]] | None = None


_turns = _Turns()


def _in_turn(action: Callable[[], None]) -> None:
    """Do something now or, from within such an action, after that: a chain of joins must not become one of frames.

    What an action raises (Ctrl-C in a callback) is raised when all have had their turn.
    """
    if _turns.waiting is not None:
        _turns.waiting.append(action)
        return
    waiting = _turns.waiting = deque([action])
    raised: BaseException | None = None
    while waiting:
        try:
            while waiting:
                waiting[0]()
                waiting.popleft()
        except Exception as error:  # noqa: BLE001 - raised below
            waiting.popleft()
            raised = error if raised is None else raised
        except BaseException as error:  # noqa: BLE001 - Ctrl-C: what it struck is done again, which does no harm
            raised = error if raised is None else raised
    _turns.waiting = None
    if raised is not None:
        raise raised


def futures_in(value: Any) -> Iterator[Future[Any]]:
    """Return the futures in a value: itself, or in lists, tuples, sets and dictionaries, at any depth."""
    stack = [value]
    seen: set[int] = set()
    while stack:
        item = stack.pop()
        if isinstance(item, Future):
            yield item
        elif isinstance(item, _CONTAINERS) and id(item) not in seen:
            seen.add(id(item))
            stack += [*item.keys(), *item.values()] if isinstance(item, dict) else item


def with_results(value: Any) -> Any:
    """Return the value with each finished future in it replaced by its result; what has none in it stays as it is."""
    return _rebuilt(value, {}) if any(True for _ in futures_in(value)) else value


def _rebuilt(value: Any, known: dict[int, Any]) -> Any:
    """Build the containers in a value anew; `known` are those that have been begun, as one may be inside itself."""
    if isinstance(value, Future):
        return value.result()
    if not isinstance(value, _CONTAINERS):
        return value
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, (tuple, frozenset)):
        items = [_rebuilt(item, known) for item in value]
        return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    new: Any = copy.copy(value)  # a defaultdict keeps its factory
    known[id(value)] = new
    new.clear()
    if isinstance(value, dict):
        for key, item in value.items():
            new[_rebuilt(key, known)] = _rebuilt(item, known)
    else:
        add = new.append if isinstance(value, list) else new.add
        for item in value:
            add(_rebuilt(item, known))
    return new
