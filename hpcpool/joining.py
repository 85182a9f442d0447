"""Calls that run at the client and return futures: how a graph grows while it runs. No worker takes part."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from hpcpool.processes import outcomes
from hpcpool.processes.client import Client, Hold
from hpcpool.processes.task_future import TaskFuture


def start(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    take_hold: Callable[[Callable[[bool], None]], tuple[Hold, Client]],
    name: str = "",
) -> TaskFuture[Any]:
    """Call `fn` in a thread when the futures in its arguments have finished; return the future of what it returns."""
    future: TaskFuture[Any] = TaskFuture(name or f"join({getattr(fn, '__qualname__', type(fn).__qualname__)})")
    # A join is pending work: the pool does not end before it, and its thread may submit until then.
    hold, client = take_hold(lambda cancel: _cancel(future) if cancel else None)
    future.add_done_callback(lambda _: client.release(hold))

    def call() -> None:
        # A thread for each call: one that waits for another (against advice) must not keep that one from starting.
        threading.Thread(target=_run, args=(future, hold, fn, args, kwargs), name=future.info.name, daemon=True).start()

    _when_done(future, list(futures_in((args, kwargs))), call)
    return future


def _cancel(future: TaskFuture[Any]) -> None:
    if future.cancel():
        future._acknowledge_cancel()


def _run(future: TaskFuture[Any], hold: Hold, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
    hold.thread = threading.get_ident()
    if not future.set_running_or_notify_cancel():
        return
    try:
        returned = fn(*with_results(args), **with_results(kwargs))
    except BaseException as error:  # noqa: BLE001 - the user's function may raise anything
        future._finish(outcomes.raising(error))
        return
    _when_done(future, list(futures_in(returned)), lambda: future.set_result(with_results(returned)), inner=True)


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
        if done.cancelled():
            if not future.cancel() and not future.done():
                future._finish(outcomes.raising(outcomes.cancelled_inside(future, done)))
            future._acknowledge_cancel()
            return
        if (error := done.exception()) is not None:
            if inner:  # what fn returned: its failure is the result
                future._finish(outcomes.raising(error))
            else:
                outcomes.fail_by_dependency(future, done)
            return
        with lock:
            left -= 1
            is_last = left == 0
        if is_last and not future.done():
            then()

    for one in awaited:
        one.add_done_callback(one_done)


def futures_in(value: Any) -> Iterator[Future[Any]]:
    """Return the futures in a value: itself, or in lists, tuples, sets and dictionaries, at any depth."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Future):
            yield item
        elif isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack += item


def with_results(value: Any) -> Any:
    """Return the value with each finished future in it replaced by its result; containers without any stay."""
    if isinstance(value, Future):
        return value.result()
    if isinstance(value, dict):
        return {with_results(key): with_results(item) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [with_results(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, (list, set, frozenset)):
        return type(value)(with_results(item) for item in value)
    return value
