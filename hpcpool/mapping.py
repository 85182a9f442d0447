"""`map`: its arguments, and the order in which results come. What is submitted when is decided by its feed."""

from __future__ import annotations

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
    calls = zip(*iterables)  # noqa: B905 - the shortest ends the calls, as in the standard library
    bar = ProgressBar(total) if progress else None
    source = Source(submit, fn, calls, chunksize, bar)
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
    results = (_unordered if unordered else _ordered)(feed, end, source.is_chunked)
    return _Results(feed, results, bar)


def _whole(value: Any, if_none: str, if_too_small: str) -> int:
    """Return a number of at least 1 as a plain integer; errors say what the standard library says."""
    number = integer(value, if_none)
    if number < 1:
        raise ValueError(if_too_small)
    return number


class _Results:
    """The iterator that `map` returns. Closing it, or dropping it half way, cancels what does not run."""

    def __init__(self, feed: Feed, results: Iterator[Any], bar: ProgressBar | None) -> None:
        self._feed = feed
        self._results = results
        self._bar = bar
        self._is_started = False
        self._is_closed = False

    def __iter__(self) -> _Results:
        return self

    def __next__(self) -> Any:
        if self._is_closed:
            raise StopIteration
        self._is_started = True
        self._feed.consumed()
        try:
            return next(self._results)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel what does not run and give no more results."""
        if not self._is_closed:
            self._is_closed = True
            self._feed.cancel()
            if self._bar is not None:
                self._bar.close()

    def __del__(self) -> None:
        if self._is_started:
            self.close()
        else:
            self._feed.release()


def _ordered(feed: Feed, end: float | None, is_chunked: bool) -> Iterator[Any]:
    return _each(lambda: _take_next(feed, end), is_chunked)


def _unordered(feed: Feed, end: float | None, is_chunked: bool) -> Iterator[Any]:
    finished: queue.SimpleQueue[Future[Any] | None] = queue.SimpleQueue()
    feed.listen(finished)
    yield from _each(lambda: _take_finished(feed, finished, end), is_chunked)


def _each(take: Callable[[], list[Any] | None], is_chunked: bool) -> Iterator[Any]:
    # No name may hold a future or a result while the consumer has it: it could not be freed then.
    while (taken := take()) is not None:
        if is_chunked:
            taken[0].reverse()
            while taken[0]:
                yield taken[0].pop()
        else:
            yield taken.pop()


def _take_next(feed: Feed, end: float | None) -> list[Any] | None:
    """Return the next result, alone in a list; None at the end."""
    feed.wait_for_next(_left(end))
    feed.awaited = future = feed.pop()
    try:
        if future is not None:
            return [_result_or_cancel(future, end)]
        feed.raise_input_error()
        return None
    finally:
        feed.awaited = None
        del future  # break the cycle through the traceback


def _take_finished(feed: Feed, finished: queue.SimpleQueue[Future[Any] | None], end: float | None) -> list[Any] | None:
    """Return any result, alone in a list; None at the end."""
    while feed.futures or not feed.has_ended:
        try:
            future = finished.get(timeout=_left(end))
        except queue.Empty:
            raise TimeoutError from None
        if future is not None:
            feed.futures.pop(future, None)
            feed.taken()
            return [_result_or_cancel(future, end)]
    feed.raise_input_error()
    return None


def _result_or_cancel(future: Future[Any], end: float | None) -> Any:
    try:
        try:
            return future.result(_left(end))
        finally:
            future.cancel()
    finally:
        del future  # break the cycle through the traceback


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())
