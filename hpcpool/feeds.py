"""The input of a map, turned into submitted calls: what is submitted, and when. Results are not looked at here.

Input with a length is submitted at once, in the caller's thread, as the standard library does. Of input without one the
first window is, too: a short one (a file that is closed after the call, a database cursor that belongs to this thread)
is read as the standard library reads it. What comes after it, and `chunksize="auto"`, are fed by a thread, in a copy of
the caller's context: it reads at most a window ahead of the consumer, and of the calls that finish.

When the pool closes, a map that nobody has taken a result of is read to its end, so that all its calls run, as in the
standard library. One that somebody has begun to consume is read as far as its window lets it, and then ends with an
error: its input may have no end.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Literal

from hpcpool.naming import name_of
from hpcpool.processes.client import Client
from hpcpool.processes.hold import Hold
from hpcpool.progress_bar import ProgressBar

#: An input without a length is read this far ahead of the results that are taken; for few workers, the lower bound.
_WINDOW_CHUNKS_PER_WORKER = 8
_WINDOW_LEAST = 1024
#: A chunk of measured size should run for so long (seconds): far more than it costs to send.
_CHUNK_S = 0.01
_LARGEST_CHUNK = 65536
#: Towards the end of the input chunks become smaller, so that all workers end together; not below this (seconds).
_LEAST_CHUNK_S = 0.001
#: With measured chunks so many are on the way for each worker: enough to hide the way, few enough to go on measuring.
_AUTO_CHUNKS_PER_WORKER = 3

Submit = Callable[..., Future[Any]]
#: Keeps the pool open; called with what is to be done when it closes (True: cancel).
TakeHold = Callable[[Callable[[bool], None]], tuple[Hold, Client]]


def _run_each(fn: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Run in a worker: the calls of one chunk, which take one argument each."""
    return [fn(item) for item in items]  # a `map` would end, without a word, where a call raises StopIteration


def _run_each_with(fn: Callable[..., Any], items: list[tuple[Any, ...]]) -> list[Any]:
    """Run in a worker: the calls of one chunk, which take several arguments."""
    return [fn(*args) for args in items]


def _closed(*args: Any) -> Any:
    raise RuntimeError("the input of this map has ended")


class Source:
    """Turns the input into submitted tasks, one at a time."""

    def __init__(
        self,
        submit: Submit,
        fn: Callable[..., Any],
        iterables: Sequence[Iterable[Any]],
        chunksize: int | Literal["auto"],
        bar: ProgressBar | None,
    ) -> None:
        self._submit = submit
        self._fn = fn
        self.is_chunked = chunksize != 1
        # A chunk of plain items is pickled and unpickled three times as fast as one of tuples.
        self._is_plain = self.is_chunked and len(iterables) == 1
        #: The arguments of one call after another; of plain items: the items.
        self._items: Iterator[Any] = iter(iterables[0]) if self._is_plain else zip(*iterables, strict=False)
        #: Submits a call for each, if they are not to be in chunks.
        self._calls = itertools.starmap(functools.partial(submit, fn), self._items)
        self.is_measured = chunksize == "auto"
        self.size = 1 if chunksize == "auto" else chunksize
        #: Fewer items are not worth a task.
        self._least = 1
        self._bar = bar

    def next(self) -> Future[Any] | None:
        """Submit the next task; None when the input has ended."""
        if not self.is_chunked:
            future = next(self._calls, None)
            if future is not None:
                return self._with_bar(future, 1)
            self.let_go()
            return None
        chunk = list(itertools.islice(self._items, self.size))
        if not chunk:
            self.let_go()
            return None
        run = functools.partial(_run_each if self._is_plain else _run_each_with, self._fn)
        run.__qualname__ = name_of(self._fn)  # type: ignore[attr-defined]  # what messages call it
        future = self._with_bar(self._submit(run, chunk), len(chunk))
        if self.is_measured:
            future.add_done_callback(functools.partial(self._measure, len(chunk)))
        return future

    def rest(self) -> Iterator[Future[Any]]:
        """Return the futures of all that is left, submitted as they are taken: mostly without Python code for each.

        Call `let_go` behind the last.
        """
        return iter(self.next, None) if self.is_chunked or self._bar is not None else self._calls

    def let_go(self) -> None:
        """The input has ended: the results must not keep the executor (or the input) alive."""
        self._submit, self._fn, self._items = _closed, _closed, iter(())
        self._calls = itertools.starmap(_closed, ())

    def _with_bar(self, future: Future[Any], items: int) -> Future[Any]:
        if self._bar is not None:
            future.add_done_callback(functools.partial(self._bar.advance, items))
        return future

    def _measure(self, items: int, future: Future[Any]) -> None:
        info = getattr(future, "info", None)
        if info is None or info.ended_at is None or info.started_at is None:
            return
        item_s = max((info.ended_at - info.started_at) / items, 1e-7)
        # At most eight times the last size: one lucky measurement must not make one chunk of everything.
        most = min(items * 8, _LARGEST_CHUNK)
        self.size = max(1, min(int(_CHUNK_S / item_s), most))
        self._least = max(1, min(int(_LEAST_CHUNK_S / item_s), most))

    def leave(self, shares: int, left: int) -> None:
        """Take no more than one of so many shares of what is left, if that is worth a task."""
        self.size = max(self._least, min(self.size, left // shares))


class Feed:
    """The submitted tasks of one map whose results have not been taken, in order."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.futures: OrderedDict[Future[Any], None] = OrderedDict()
        #: The one that the consumer waits for just now; it has left `futures`.
        self.awaited: Future[Any] | None = None
        #: The input has been read to its end.
        self.has_ended = False
        #: Gets each task when it has finished, and None when the input has ended; only for results as they come.
        self._finished: queue.SimpleQueue[Future[Any] | None] | None = None

    def wait_for_next(self, timeout_s: float | None) -> None:
        """Wait until there is a task to be taken, or none will come. Raises `TimeoutError`."""

    def pop(self) -> Future[Any] | None:
        """Return the next task in order; None when there is none left."""
        if not self.futures:
            return None
        self.taken()  # first: if the input raises, this one is still there to be cancelled
        return self.futures.popitem(last=False)[0]

    def listen(self, finished: queue.SimpleQueue[Future[Any] | None]) -> None:
        """Put each task into this queue when it has finished, and None when the input has ended."""
        self._finished = finished
        for future in list(self.futures):
            future.add_done_callback(finished.put)
        if self.has_ended:
            finished.put(None)

    def raise_input_error(self) -> None:
        """What the input raised while nobody looked is raised here, behind the results before it."""

    def taken(self) -> None:
        """The consumer has taken a task's result."""

    def cancel(self) -> None:
        """Submit no more and cancel what does not run."""
        for future in (self.awaited, *list(self.futures)):
            if future is not None:
                future.cancel()

    def consumed(self) -> None:
        """Somebody takes the results."""

    def release(self) -> None:
        """Nobody will take the results: run everything all the same, as the standard library does."""

    def _keep(self, future: Future[Any]) -> None:
        self.futures[future] = None
        if self._finished is not None:
            future.add_done_callback(self._finished.put)


class AtOnce(Feed):
    """All tasks are submitted before the first result is asked for."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.futures = OrderedDict.fromkeys(source.rest())
        source.let_go()
        self.has_ended = True


class OnDemand(Feed):
    """A fixed number of tasks ahead; each result that is taken lets one more be submitted."""

    def __init__(self, source: Source, buffersize: int) -> None:
        super().__init__(source)
        for _ in range(buffersize):
            if self.has_ended:
                break
            self.taken()

    def taken(self) -> None:
        if self.has_ended:
            return
        future = self.source.next()
        if future is not None:
            self._keep(future)
            return
        self.has_ended = True
        if self._finished is not None:
            self._finished.put(None)


class Threaded(Feed):
    """A thread submits, within a window."""

    def __init__(self, source: Source, hold: TakeHold, workers: int, total: int | None) -> None:
        super().__init__(source)
        self._changed = threading.Condition()
        self._total = total
        self._unfinished = 0
        self._unfinished_limit = workers * _AUTO_CHUNKS_PER_WORKER if source.is_measured else 2**62
        self._unconsumed = 0
        self._window = max(_WINDOW_LEAST, workers * _WINDOW_CHUNKS_PER_WORKER)
        self._workers = workers
        self._submitted_items = 0
        self._is_held_back = total is None
        self._is_consumed = False
        #: The pool closes, so there is no waiting for the consumer any more.
        self._is_last_call = False
        self._is_cancelled = False
        self._error: BaseException | None = None
        # The pool ends only after the input has been read: what is not read yet is pending work, too.
        self._hold, self._client = hold(lambda cancel: self.cancel() if cancel else self._pool_closes())
        try:
            self._read_first_window()
            if not self.has_ended:
                run = functools.partial(contextvars.copy_context().run, self._run)
                threading.Thread(target=run, name="hpcpool map", daemon=True).start()
        except BaseException:  # the user's input may raise anything; as in the standard library, what is submitted runs
            self._end()
            raise

    def wait_for_next(self, timeout_s: float | None) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self.futures or self.has_ended, timeout_s):
                raise TimeoutError

    def listen(self, finished: queue.SimpleQueue[Future[Any] | None]) -> None:
        with self._changed:
            super().listen(finished)

    def taken(self) -> None:
        with self._changed:
            self._unconsumed -= 1
            self._changed.notify_all()

    def raise_input_error(self) -> None:
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        with self._changed:
            self._is_cancelled = True
            self._changed.notify_all()
        super().cancel()

    def consumed(self) -> None:
        self._is_consumed = True

    def release(self) -> None:
        with self._changed:
            self._is_held_back = False
            self._changed.notify_all()

    def _pool_closes(self) -> None:
        with self._changed:
            if self._is_consumed:
                self._is_last_call = True
            else:
                self._is_held_back = False
            self._changed.notify_all()

    def _run(self) -> None:
        self._hold.thread = threading.get_ident()
        try:
            while self._wait_for_room():
                if self._total is not None and self.source.is_measured:
                    # Of a known length leave enough chunks that all workers end at about the same time.
                    self.source.leave(self._workers * 4, self._total - self._submitted_items)
                if not self._submit_one():
                    return
        except BaseException as error:  # noqa: BLE001 - the user's input may raise anything; the consumer sees it
            self._error = error
        finally:
            self._end()

    def _read_first_window(self) -> None:
        """Submit here, in the caller's thread, as much as may be ahead of a consumer who takes nothing."""
        if self.source.is_measured:
            return  # sizes must be measured first
        for _ in range(self._window):
            if not self._submit_one():
                self._end()
                return

    def _submit_one(self) -> bool:
        """Submit the next task; False if the input has ended."""
        self._submitted_items += self.source.size
        future = self.source.next()
        if future is None:
            return False
        with self._changed:
            self._unfinished += 1
            self._unconsumed += 1
            self._keep(future)
            self._changed.notify_all()
        future.add_done_callback(self._one_finished)
        if self._is_cancelled:  # since it was looked at
            future.cancel()
        return True

    def _end(self) -> None:
        """No more is read: tell the consumer, and let the pool go."""
        with self._changed:
            self.source.let_go()
            self.has_ended = True
            if self._finished is not None:
                self._finished.put(None)
            self._changed.notify_all()
        self._client.release(self._hold)
        del self._client, self._hold  # the hold knows this feed: a cycle

    def _wait_for_room(self) -> bool:
        """Wait until one more may be submitted; False if none is wanted any more."""
        with self._changed:
            self._changed.wait_for(self._may_look_on)
            if self._is_last_call and self._waits_for_consumer() and not self._is_cancelled:
                raise RuntimeError("cannot schedule new futures after shutdown: this map has not read all of its input")
            return not self._is_cancelled

    def _may_look_on(self) -> bool:
        if self._is_cancelled:
            return True
        if self._unfinished >= min(self._unfinished_limit, self._window):
            return False
        return self._is_last_call or not self._waits_for_consumer()

    def _waits_for_consumer(self) -> bool:
        return self._is_held_back and self._unconsumed >= self._window

    def _one_finished(self, future: Future[Any]) -> None:
        with self._changed:
            self._unfinished -= 1
            self._changed.notify_all()
