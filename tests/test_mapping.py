"""`map`: with futures that the test completes itself, to see what is submitted when; then with real workers."""

from __future__ import annotations

import contextlib
import decimal
import gc
import itertools
import os
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from hpcpool import HPCPoolExecutor
from hpcpool.mapping import run_map
from hpcpool.processes.hold import Hold
from tests.conftest import wait_until
from tests.gate import Gate, pass_gate

live = pytest.mark.live

#: How far a map reads an input without a length ahead of its consumer, with few workers.
WINDOW = 1024


class ByHand:
    """Stands for a pool: remembers what is submitted, and runs it when the test says so."""

    def __init__(self, workers: int = 2) -> None:
        self.workers = workers
        self.futures: list[Future[Any]] = []
        self.calls: list[Callable[[], Any]] = []
        self.holds: list[Hold] = []
        self.is_open = True
        self.runs_at_once = False
        self._claiming = threading.Lock()

    def submit(self, fn: Any, /, *args: Any) -> Future[Any]:
        if not self.is_open and threading.get_ident() not in {hold.thread for hold in self.holds}:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Any] = Future()
        self.calls.append(lambda: fn(*args))  # first: another thread may run what is in `futures`
        self.futures.append(future)
        if self.runs_at_once:
            self.run(len(self.futures) - 1)
        return future

    def run(self, *numbers: int) -> None:
        """Run these calls, or all that have not run."""
        for number in numbers or range(len(self.futures)):
            future = self.futures[number]
            if self._claim(future):
                try:
                    future.set_result(self.calls[number]())
                except Exception as error:
                    future.set_exception(error)

    def _claim(self, future: Future[Any]) -> bool:
        """Whether it is to be run here: a map's thread and the test's may both want to."""
        with self._claiming:
            return not (future.done() or future.running()) and future.set_running_or_notify_cancel()

    def close(self, *, cancel: bool = False) -> None:
        """Do what a pool does to those who hold it when it closes."""
        self.is_open = False
        for hold in list(self.holds):
            hold.close(cancel)

    def hold(self, close: Callable[[bool], None]) -> tuple[Hold, Any]:
        self.holds.append(Hold(close))
        return self.holds[-1], self

    def release(self, hold: Hold) -> None:
        self.holds.remove(hold)

    def has_no_holds(self) -> bool:
        return not self.holds

    def map(self, fn: Any, *iterables: Any, **options: Any) -> Any:
        options = {
            "timeout_s": None,
            "chunksize": 1,
            "buffersize": None,
            "unordered": False,
            "progress": False,
        } | options
        return run_map(self.submit, fn, iterables, hold=self.hold, workers=self.workers, **options)


@pytest.fixture
def hand() -> Iterator[ByHand]:
    """Fails if a map still holds the pool after the test has dropped everything."""
    hand = ByHand()
    yield hand
    hand.close(cancel=True)
    hand.run()
    assert wait_until(hand.has_no_holds, timeout_s=30)


def identity(value: Any) -> Any:
    return value


def path_behind(path: str) -> str:
    pass_gate(path)
    return path


class Thing:
    """Can be referenced weakly."""


class Failing(Iterator[int]):
    """Gives some numbers, then an error."""

    def __init__(self, count: int) -> None:
        self._numbers = iter(range(count))

    def __next__(self) -> int:
        try:
            return next(self._numbers)
        except StopIteration:
            raise OSError("the input ended badly") from None


def window_and_then(more: threading.Event) -> Iterator[int]:
    """Give the window that is read in the caller's thread; then, when it may, some more."""
    yield from range(WINDOW)
    more.wait()
    yield from range(WINDOW, WINDOW + 3)


# What is submitted, and when


def test_input_with_a_length_is_submitted_at_once(hand: ByHand):
    results = hand.map(abs, range(5000))
    assert len(hand.futures) == 5000
    hand.run()
    assert list(results) == list(range(5000))


def test_the_shortest_input_ends_the_calls(hand: ByHand):
    results = hand.map(max, [1, 5, 3], (4, 2))
    hand.run()
    assert list(results) == [4, 5]


def test_no_input_at_all_gives_nothing(hand: ByHand):
    assert list(hand.map(abs)) == []
    assert list(hand.map(abs, [])) == []
    assert list(hand.map(abs, iter([]))) == []


def test_a_chunk_is_one_task(hand: ByHand):
    results = hand.map(abs, range(10), chunksize=4)
    assert len(hand.futures) == 3
    hand.run()
    assert list(results) == list(range(10))


def test_an_endless_input_is_read_through_a_window(hand: ByHand):
    results = hand.map(abs, itertools.count())
    assert wait_until(lambda: len(hand.futures) == WINDOW, timeout_s=30)
    hand.run()
    assert [next(results) for _ in range(10)] == list(range(10))
    assert wait_until(lambda: len(hand.futures) == WINDOW + 10, timeout_s=30)
    hand.run()
    assert not wait_until(lambda: len(hand.futures) > WINDOW + 10, timeout_s=0.05)
    results.close()


def test_the_window_holds_back_by_what_is_unfinished_too(hand: ByHand):
    hand.map(abs, iter(range(3000)))  # dropped at once: nobody will take the results
    assert wait_until(lambda: len(hand.futures) == WINDOW, timeout_s=30)
    hand.run()
    assert wait_until(lambda: len(hand.futures) == 2 * WINDOW, timeout_s=30)
    hand.run()
    hand.runs_at_once = True
    hand.run()
    assert wait_until(lambda: len(hand.futures) == 3000, timeout_s=30)


def test_an_iterator_that_nobody_started_runs_everything_all_the_same(hand: ByHand):
    hand.runs_at_once = True
    results = hand.map(abs, iter(range(2000)))
    assert wait_until(lambda: len(hand.futures) == WINDOW, timeout_s=30)
    del results
    assert wait_until(lambda: len(hand.futures) == 2000, timeout_s=30)
    assert not any(future.cancelled() for future in hand.futures)


def test_an_iterator_that_is_dropped_half_way_cancels_the_rest(hand: ByHand):
    results = hand.map(abs, range(10))
    hand.run(0)
    assert next(results) == 0
    del results
    assert [future.cancelled() for future in hand.futures] == [False] + [True] * 9


def test_an_endless_loop_can_be_left_by_break(hand: ByHand):
    hand.runs_at_once = True
    for result in hand.map(abs, itertools.count()):
        if result == 2000:
            break
    assert wait_until(hand.has_no_holds, timeout_s=30)
    assert len(hand.futures) <= 2001 + WINDOW


def test_the_auto_chunksize_starts_small_and_grows_with_what_it_measures(hand: ByHand):
    sizes: list[int] = []

    class Measured(Future[Any]):
        class info:
            started_at = 0.0
            ended_at = 0.0

    def submit(fn: Any, chunk: list[Any]) -> Future[Any]:
        future = Measured()
        sizes.append(len(chunk))
        Measured.info.ended_at = 1e-4 * len(chunk)
        future.set_result(fn(chunk))
        return future

    results = run_map(
        submit,
        abs,
        (iter(range(2000)),),
        hold=hand.hold,
        workers=2,
        timeout_s=None,
        chunksize="auto",
        buffersize=None,
        unordered=False,
        progress=False,
    )
    assert list(results) == list(range(2000))
    assert sizes[:3] == [1, 8, 64]
    assert set(sizes[3:-1]) == {100}  # 10 ms of what takes 0.1 ms each
    assert sum(sizes) == 2000


def test_with_the_auto_chunksize_few_chunks_are_on_the_way(hand: ByHand):
    results = hand.map(abs, range(1000), chunksize="auto")
    assert wait_until(lambda: len(hand.futures) == 6, timeout_s=30)
    assert not wait_until(lambda: len(hand.futures) > 6, timeout_s=0.05)
    hand.runs_at_once = True
    hand.run()
    assert list(results) == list(range(1000))


# Arguments


@pytest.mark.parametrize("chunksize", [0, -1])
def test_a_chunksize_below_one_is_a_value_error(hand: ByHand, chunksize: int):
    with pytest.raises(ValueError, match=r"^chunksize must be >= 1\.$"):
        hand.map(abs, [1], chunksize=chunksize)


@pytest.mark.parametrize("chunksize", [1.5, "many", None])
def test_a_chunksize_that_is_no_number_is_a_type_error(hand: ByHand, chunksize: Any):
    with pytest.raises(TypeError, match='^chunksize must be an integer or "auto"$'):
        hand.map(abs, [1], chunksize=chunksize)


@pytest.mark.parametrize("buffersize", [0, -1])
def test_a_buffersize_below_one_is_a_value_error(hand: ByHand, buffersize: int):
    with pytest.raises(ValueError, match="^buffersize must be None or > 0$"):
        hand.map(abs, [1], buffersize=buffersize)


@pytest.mark.parametrize("buffersize", [1.5, "1", [1]])
def test_a_buffersize_that_is_no_number_is_a_type_error(hand: ByHand, buffersize: Any):
    with pytest.raises(TypeError, match="^buffersize must be an integer or None$"):
        hand.map(abs, [1], buffersize=buffersize)


def test_numbers_of_numpy_are_numbers(hand: ByHand):
    numpy = pytest.importorskip("numpy")
    results = hand.map(abs, [1, 2, 3], chunksize=numpy.int64(2), buffersize=numpy.int32(1))
    assert len(hand.futures) == 1
    hand.runs_at_once = True
    hand.run()
    assert list(results) == [1, 2, 3]


# buffersize


@pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])
@pytest.mark.parametrize("buffersize", [1, 3])
def test_no_more_than_buffersize_is_submitted_ahead(hand: ByHand, buffersize: int, kind: Any):
    hand.runs_at_once = True
    results = hand.map(abs, kind(range(10)), buffersize=buffersize)
    assert len(hand.futures) == buffersize
    for taken in range(1, 11 - buffersize):
        next(results)
        assert len(hand.futures) == buffersize + taken
    assert len(list(results)) == buffersize
    assert len(hand.futures) == 10


def test_buffersize_counts_chunks(hand: ByHand):
    hand.runs_at_once = True
    results = hand.map(abs, range(10), buffersize=2, chunksize=3)
    assert len(hand.futures) == 2
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(hand.futures) == 3
    assert list(results) == list(range(3, 10))


def test_a_larger_buffersize_than_input_submits_it_all(hand: ByHand):
    hand.runs_at_once = True
    assert list(hand.map(abs, range(3), buffersize=100)) == [0, 1, 2]


def test_an_endless_input_with_a_buffersize_is_read_as_it_is_consumed(hand: ByHand):
    hand.runs_at_once = True
    numbers = itertools.count()
    results = hand.map(abs, numbers, buffersize=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert next(numbers) == 5
    results.close()


def test_a_buffered_map_does_not_submit_after_it_was_closed(hand: ByHand):
    hand.runs_at_once = True
    results = hand.map(abs, range(10), buffersize=2)
    next(results)
    results.close()
    assert len(hand.futures) == 3
    assert list(results) == []
    assert len(hand.futures) == 3


def test_the_error_of_a_buffered_input_cancels_what_waits(hand: ByHand):
    results = hand.map(abs, Failing(3), buffersize=2)
    hand.run(0)
    assert next(results) == 0
    hand.run(1)
    with pytest.raises(OSError, match="the input ended badly"):
        next(results)
    assert [future.cancelled() for future in hand.futures] == [False, False, True]
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("unordered", [False, True])
def test_the_unordered_map_honours_its_buffersize(hand: ByHand, unordered: bool):
    hand.runs_at_once = True
    results = hand.map(abs, range(10), buffersize=2, unordered=unordered)
    assert len(hand.futures) == 2
    assert sorted(results) == list(range(10))


# Results


def test_results_come_in_order_whatever_finishes_first(hand: ByHand):
    results = hand.map(abs, range(3))
    hand.run(2, 1, 0)
    assert list(results) == [0, 1, 2]


@pytest.mark.parametrize("chunksize", [1, 2])
@pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])
def test_unordered_results_come_as_they_finish(hand: ByHand, kind: Any, chunksize: int):
    results = hand.map(abs, kind(range(3 * chunksize)), unordered=True, chunksize=chunksize)
    assert wait_until(lambda: len(hand.futures) == 3, timeout_s=30)
    taken: list[int] = []
    for number in (2, 0, 1):
        hand.run(number)
        taken.extend(next(results) for _ in range(chunksize))
    assert taken == [chunksize * number + item for number in (2, 0, 1) for item in range(chunksize)]
    with pytest.raises(StopIteration):
        next(results)


def test_unordered_results_that_were_there_before_come_too(hand: ByHand):
    hand.runs_at_once = True
    assert sorted(hand.map(abs, range(5), unordered=True)) == list(range(5))


@pytest.mark.parametrize("unordered", [False, True])
def test_an_error_comes_in_its_place_and_cancels_the_rest(hand: ByHand, unordered: bool):
    results = hand.map(int, ["0", "1", "x", "3", "4"], unordered=unordered)
    hand.run(0, 1, 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="invalid literal"):
        next(results)
    assert [future.cancelled() for future in hand.futures] == [False] * 3 + [True] * 2
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("unordered", [False, True])
def test_the_timeout_is_for_the_whole_iteration(hand: ByHand, unordered: bool):
    start = time.monotonic()
    results = hand.map(abs, range(3), timeout_s=0.3, unordered=unordered)
    hand.run(0)
    assert next(results) == 0
    with pytest.raises(TimeoutError):
        next(results)
    assert time.monotonic() - start >= 0.3
    assert [future.cancelled() for future in hand.futures] == [False, True, True]


def test_results_that_are_there_are_given_although_the_time_is_over(hand: ByHand):
    hand.runs_at_once = True
    assert list(hand.map(abs, range(3), timeout_s=0)) == [0, 1, 2]
    assert list(hand.map(abs, range(3), timeout_s=-1)) == [0, 1, 2]


def test_the_timeout_covers_a_slow_input_as_well(hand: ByHand):
    hand.runs_at_once = True
    more = threading.Event()
    results = hand.map(abs, window_and_then(more), timeout_s=1)
    assert [next(results) for _ in range(WINDOW)] == list(range(WINDOW))
    with pytest.raises(TimeoutError):
        next(results)
    more.set()


def test_a_future_that_somebody_else_cancelled_is_a_cancelled_error(hand: ByHand):
    results = hand.map(abs, range(3))
    hand.futures[0].cancel()
    with pytest.raises(CancelledError):
        next(results)


@pytest.mark.parametrize("unordered", [False, True])
@pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])
@pytest.mark.parametrize("chunksize", [1, 2])
def test_results_are_freed_as_they_are_consumed(hand: ByHand, kind: Any, chunksize: int, unordered: bool):
    hand.runs_at_once = True
    gc.disable()
    try:
        results = hand.map(lambda _: Thing(), kind(range(4)), chunksize=chunksize, unordered=unordered)
        assert wait_until(lambda: len(hand.futures) == 4 // chunksize, timeout_s=30)
        hand.futures.clear()
        references: list[Any] = []
        for thing in results:
            references.append(weakref.ref(thing))
            del thing
            assert wait_until(lambda: references[-1]() is None, timeout_s=30)
        assert len(references) == 4
    finally:
        gc.enable()


@pytest.mark.parametrize("unordered", [False, True])
def test_a_task_that_has_failed_is_freed_with_its_error(hand: ByHand, unordered: bool, no_collector: None):
    results = hand.map(int, ["x"], unordered=unordered)
    hand.futures[0].set_exception(ValueError("as raised elsewhere"))
    reference = weakref.ref(hand.futures.pop())
    with contextlib.suppress(ValueError):
        next(results)
    assert reference() is None


@pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])
def test_what_is_submitted_does_not_keep_the_pool_alive(kind: Any):
    hand = ByHand()
    results = hand.map(abs, kind([1]))
    hand.run()
    assert next(results) == 1
    assert wait_until(hand.has_no_holds, timeout_s=30)
    reference = weakref.ref(hand)
    del hand
    assert wait_until(lambda: reference() is None, timeout_s=30)
    assert list(results) == []


# An input that fails


@pytest.mark.parametrize("unordered", [False, True])
def test_what_the_input_raises_comes_behind_the_results_before_it(hand: ByHand, unordered: bool):
    hand.runs_at_once = True
    results = hand.map(abs, Failing(WINDOW + 3), unordered=unordered)
    assert [next(results) for _ in range(WINDOW + 3)] == list(range(WINDOW + 3))
    with pytest.raises(OSError, match="the input ended badly"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_a_chunk_that_the_input_did_not_fill_is_not_submitted(hand: ByHand):
    hand.runs_at_once = True
    items = 2 * (WINDOW + 1)
    results = hand.map(abs, Failing(items + 1), chunksize=2)
    assert [next(results) for _ in range(items)] == list(range(items))
    with pytest.raises(OSError, match="the input ended badly"):
        next(results)
    assert len(hand.futures) == items // 2


@pytest.mark.parametrize("unordered", [False, True])
def test_what_a_measured_input_raises_comes_behind_the_results_before_it(hand: ByHand, unordered: bool):
    hand.runs_at_once = True
    results = hand.map(abs, Failing(3), chunksize="auto", unordered=unordered)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the input ended badly"):
        next(results)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_what_the_first_window_raises_is_raised_by_map_and_what_was_submitted_runs(hand: ByHand, chunksize: int):
    with pytest.raises(OSError, match="the input ended badly"):
        hand.map(abs, Failing(4), chunksize=chunksize)
    assert hand.has_no_holds()
    assert len(hand.futures) == 4 // chunksize
    assert not any(future.cancelled() for future in hand.futures)


def test_the_first_window_is_read_in_the_callers_thread_before_map_returns(hand: ByHand):
    numbers = iter(range(4))
    threads: set[int] = set()
    results = hand.map(abs, (threads.add(threading.get_ident()) or number for number in numbers))
    assert list(numbers) == []
    assert threads == {threading.get_ident()}
    hand.run()
    assert list(results) == [0, 1, 2, 3]


def test_a_file_may_be_closed_when_map_has_returned(hand: ByHand, tmp_path: Any):
    path = tmp_path / "lines"
    path.write_text("a\nbb\n")
    with open(path) as lines:
        results = hand.map(len, lines)
    hand.run()
    assert list(results) == [2, 3]


def test_a_database_cursor_is_read_in_its_own_thread(hand: ByHand):
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        results = hand.map(abs, (number for (number,) in connection.execute("values (-1), (-2)")))
        hand.run()
        assert list(results) == [1, 2]


@pytest.mark.parametrize("options", [{}, {"chunksize": "auto"}], ids=["plain", "auto"])
def test_the_input_is_read_in_the_callers_context(hand: ByHand, options: dict[str, Any]):
    hand.runs_at_once = True
    with decimal.localcontext(prec=5):
        results = hand.map(str, (decimal.Decimal(1) / 3 for _ in range(WINDOW + 3)), **options)
    assert set(results) == {"0.33333"}


def test_what_submit_raises_is_raised(hand: ByHand):
    hand.close()
    with pytest.raises(RuntimeError, match="cannot schedule"):
        hand.map(abs, [1])
    with pytest.raises(RuntimeError, match="cannot schedule"):
        hand.map(abs, [1], buffersize=1)


# Closing


def test_closing_cancels_what_waits_and_gives_no_more(hand: ByHand):
    results = hand.map(abs, range(3))
    hand.run(0)
    assert next(results) == 0
    results.close()
    results.close()
    assert [future.cancelled() for future in hand.futures] == [False, True, True]
    with pytest.raises(StopIteration):
        next(results)


def test_what_nobody_has_begun_to_consume_runs_also_when_it_is_closed(hand: ByHand):
    results = hand.map(abs, range(3))
    results.close()
    assert not any(future.cancelled() for future in hand.futures)
    with pytest.raises(StopIteration):
        next(results)


def test_closing_a_map_whose_input_is_being_read_ends_the_reading(hand: ByHand):
    more = threading.Event()
    results = hand.map(abs, window_and_then(more))
    hand.run(0)
    assert next(results) == 0  # so there is room for one more, and the thread waits for the input
    results.close()
    more.set()
    assert wait_until(hand.has_no_holds, timeout_s=30)
    assert all(future.cancelled() for future in hand.futures[1:])
    assert len(hand.futures) <= WINDOW + 1


def test_the_pools_end_lets_an_unread_map_read_on(hand: ByHand):
    results = hand.map(abs, iter(range(3000)))
    assert wait_until(lambda: len(hand.futures) == WINDOW, timeout_s=30)
    hand.runs_at_once = True
    hand.close()
    hand.run()
    assert wait_until(hand.has_no_holds, timeout_s=30)
    assert list(results) == list(range(3000))


def test_the_pools_end_does_not_wait_for_ever_for_an_endless_map(hand: ByHand):
    hand.runs_at_once = True
    results = hand.map(abs, itertools.count())
    assert next(results) == 0
    hand.close()
    assert wait_until(hand.has_no_holds, timeout_s=30)
    taken = [0]
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        taken.extend(results)
    with pytest.raises(StopIteration):
        next(results)
    assert len(hand.futures) <= WINDOW + 1


def test_a_map_that_was_begun_and_fits_its_window_survives_the_pools_end(hand: ByHand):
    hand.runs_at_once = True
    results = hand.map(abs, iter(range(1000)))
    assert next(results) == 0
    hand.close()
    assert list(results) == list(range(1, 1000))


def test_the_pools_end_can_cancel_a_map(hand: ByHand):
    hand.map(abs, itertools.count())
    assert wait_until(lambda: len(hand.futures) == WINDOW, timeout_s=30)
    hand.close(cancel=True)
    assert wait_until(hand.has_no_holds, timeout_s=30)
    assert all(future.cancelled() for future in hand.futures)


# Progress


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    pytest.importorskip("tqdm")
    return lambda: capsys.readouterr().err


@pytest.mark.parametrize(
    ("items", "options", "end"),
    [
        (range(5), {}, "5/5"),
        (range(5), {"chunksize": 2}, "5/5"),
        (range(5), {"buffersize": 2}, "5/5"),
        (range(5), {"unordered": True}, "5/5"),
        (range(5), {"chunksize": "auto"}, "5/5"),
        (iter(range(5)), {}, "5it"),
    ],
    ids=["plain", "chunks", "buffer", "unordered", "auto", "iterator"],
)
def test_the_bar_counts_items(hand: ByHand, stderr: Callable[[], str], items: Any, options: dict[str, Any], end: str):
    hand.runs_at_once = True
    assert sorted(hand.map(abs, items, progress=True, **options)) == list(range(5))
    assert end in stderr().splitlines()[-1]


def test_the_bar_is_left_when_the_map_fails(hand: ByHand, stderr: Callable[[], str]):
    hand.runs_at_once = True
    with pytest.raises(ValueError, match="invalid literal"):
        list(hand.map(int, ["1", "x"], progress=True))
    assert stderr().endswith("\n")


def test_the_bar_needs_tqdm(hand: ByHand, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"hpcpool\[progress\]"):
        hand.map(abs, [1], progress=True)
    assert hand.futures == []


# With workers


@pytest.fixture(scope="module")
def pool() -> Iterator[HPCPoolExecutor]:
    with HPCPoolExecutor(2) as pool:
        assert list(pool.map(abs, [-1])) == [1]
        yield pool


@live
@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
@pytest.mark.parametrize("kind", [list, iter], ids=["list", "iterator"])
def test_workers_give_all_results_in_order(pool: HPCPoolExecutor, kind: Any, chunksize: Any):
    assert list(pool.map(pow, kind(range(2000)), kind([2] * 2000), chunksize=chunksize)) == [n * n for n in range(2000)]


@live
@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
def test_workers_give_all_results_out_of_order(pool: HPCPoolExecutor, chunksize: Any):
    results = pool.map(identity, iter(range(2000)), unordered=True, chunksize=chunksize)
    assert sorted(results) == list(range(2000))


@live
def test_a_quick_result_does_not_wait_for_a_slow_one_if_order_does_not_matter(pool: HPCPoolExecutor, tmp_path: Any):
    with Gate(tmp_path) as gate:
        results = pool.map(path_behind, [gate.path, os.devnull], unordered=True)
        assert next(results) == os.devnull
        gate.open()
        assert list(results) == [gate.path]


@live
def test_lambdas_and_closures_can_be_mapped(pool: HPCPoolExecutor):
    factor = 3
    assert list(pool.map(lambda n: n * factor, range(5), chunksize=2)) == [0, 3, 6, 9, 12]


@live
def test_an_error_in_a_chunk_has_its_remote_traceback(pool: HPCPoolExecutor):
    with pytest.raises(ValueError, match="invalid literal") as raised:
        list(pool.map(int, ["1", "x"], chunksize=2))
    assert "invalid literal" in str(raised.value.__cause__)


@live
def test_map_calls_the_submit_of_the_object_it_is_called_on(pool: HPCPoolExecutor, monkeypatch: pytest.MonkeyPatch):
    submitted: list[Any] = []
    submit = pool.submit

    def counting(fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        submitted.append(args)
        return submit(fn, *args, **kwargs)

    monkeypatch.setattr(pool, "submit", counting)
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
    assert list(pool.map(abs, iter([-3, -4]))) == [3, 4]
    assert submitted == [(-1,), (-2,), (-3,), (-4,)]


@live
def test_leaving_a_loop_cancels_what_workers_have_not_begun(pool: HPCPoolExecutor, tmp_path: Any):
    with Gate(tmp_path) as gate:
        results = pool.map(pass_gate, itertools.chain([os.devnull], itertools.repeat(gate.path)))
        assert next(results) == ""
        results.close()  # type: ignore[attr-defined]
        gate.open()
    assert pool.submit(abs, -1).result(timeout=30) == 1


@live
def test_shutdown_finishes_maps_of_views_and_of_generators():
    pool = HPCPoolExecutor(2)
    with pool.options(name="named") as view:
        results = [
            pool.map(abs, (-n for n in range(1500))),
            view.map(abs, (-n for n in range(1500))),
            pool.map(abs, range(0, -1500, -1), chunksize="auto"),
        ]
    pool.shutdown()
    assert [list(one) for one in results] == [list(range(1500))] * 3


@live
def test_shutdown_does_not_wait_when_it_should_not_although_a_map_reads():
    pool = HPCPoolExecutor(1)
    more = threading.Event()
    results = pool.map(abs, window_and_then(more))
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]  # leaves room for all that comes, and for its end
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.map(abs, [1])
    more.set()
    assert list(results) == list(range(4, WINDOW + 3))


@live
def test_an_executor_that_is_dropped_finishes_its_maps():
    results = HPCPoolExecutor(1).map(abs, (-n for n in range(1500)))
    assert list(results) == list(range(1500))
