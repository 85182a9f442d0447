"""`map`: its arguments, and the order in which results come. What is submitted when is decided by its feed."""

from __future__ import annotations

import functools
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future
from typing import Any, Literal

from hpcpool.feeds import AtOnce, Feed, OnDemand, Source, Submit, TakeHold, Threaded
from hpcpool.progress_bar import ProgressBar
from hpcpool.quantities import integer


def run_map(
    submit: Submit,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    *,
    hold: TakeHold,
    workers: int,
    timeout_s: float | None,
    chunksize: int | Literal["auto"],
    buffersize: int | None,
    unordered: bool,
    progress: bool,
) -> Iterator[Any]:
    """Submit the calls of a map and return the iterator over their results; see `HPCPoolExecutor.map`."""
    if chunksize != "auto":
        chunksize = _whole(chunksize, 'chunksize must be an integer or "auto"', "chunksize must be >= 1.")
    if buffersize is not None:
        buffersize = _whole(buffersize, "buffersize must be an integer or None", "buffersize must be None or > 0")
    end = None if timeout_s is None else timeout_s + time.monotonic()
    total = min((len(items) for items in iterables if isinstance(items, Sized)), default=None)
    has_length = all(isinstance(items, Sized) for items in iterables)
    bar = ProgressBar(total) if progress else None
    source = Source(submit, fn, iterables, chunksize, bar)
    try:
        if buffersize is not None:
            feed: Feed = OnDemand(source, buffersize)
        elif chunksize == "auto" or not has_length:
            feed = Threaded(source, hold, workers, total if has_length else None)
        else:
            feed = AtOnce(source)
    except BaseException:
        if bar is not None:
            bar.close()
        raise
    take = _in_any_order if unordered else _in_order
    results = _results(feed, functools.partial(take, feed, end), bar, is_chunked=source.is_chunked)
    next(results)  # from here on it is told of its end, also when nobody ever takes a result
    return results


def _whole(value: Any, if_none: str, if_too_small: str) -> int:
    """Return a number of at least 1 as a plain integer; errors say what the standard library says."""
    number = integer(value, if_none)
    if number < 1:
        raise ValueError(if_too_small)
    return number


def _results(
    feed: Feed, take: Callable[[], Iterator[list[Any]]], bar: ProgressBar | None, *, is_chunked: bool
) -> Iterator[Any]:
    """The iterator that `map` returns. Once it is begun, closing or dropping it cancels what does not run."""
    is_begun = False
    try:
        yield None  # taken by `run_map`
        is_begun = True
        feed.consumed()
        # No name may hold a future or a result while the consumer has it: it could not be freed then.
        for taken in take():
            if is_chunked:
                (chunk,) = taken
                taken.clear()
                chunk.reverse()
                while chunk:
                    yield chunk.pop()
            else:
                yield taken.pop()
    finally:
        if is_begun:
            feed.cancel()
            if bar is not None:
                bar.close()
        else:
            feed.release()


def _in_order(feed: Feed, end: float | None) -> Iterator[list[Any]]:
    """Each result in a list of its own, in the order of the input."""
    while True:
        feed.wait_for_next(_left(end))
        feed.awaited = future = feed.pop()
        try:
            if future is None:
                feed.raise_input_error()
                return
            taken = [_result_or_cancel(future, end)]
        finally:
            feed.awaited = None
            del future  # break the cycle through the traceback
        yield taken


def _in_any_order(feed: Feed, end: float | None) -> Iterator[list[Any]]:
    """Each result in a list of its own, as they come."""
    finished: queue.SimpleQueue[Future[Any] | None] = queue.SimpleQueue()
    feed.listen(finished)
    while feed.futures or not feed.has_ended:
        try:
            future = finished.get(timeout=_left(end))
        except queue.Empty:
            raise TimeoutError from None
        if future is not None:
            feed.futures.pop(future, None)
            feed.taken()
            try:
                taken = [_result_or_cancel(future, end)]
            finally:
                del future  # break the cycle through the traceback
            yield taken
    feed.raise_input_error()


def _result_or_cancel(future: Future[Any], end: float | None) -> Any:
    try:
        return future.result(_left(end))
    except BaseException:
        future.cancel()
        raise
    finally:
        del future  # break the cycle through the traceback


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())
