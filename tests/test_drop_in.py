"""One program, two executors: whatever `ProcessPoolExecutor` shows to it, `HPCPoolExecutor` shows as well."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import math
import multiprocessing
import operator
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hpcpool import HPCPoolExecutor
from tests.conftest import wait_until
from tests.gate import Gate, pass_gate

pytestmark = pytest.mark.live

#: Forked from a process with threads, a worker may hang; so the standard library's are started the other way.
CONTEXT = multiprocessing.get_context("forkserver")


def standard(max_workers: int, **options: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers, **{"mp_context": CONTEXT, **options})


Make = Callable[..., Executor]
BOTH = pytest.mark.parametrize(
    "make", [pytest.param(standard, id="standard"), pytest.param(HPCPoolExecutor, id="hpcpool")]
)


@pytest.fixture(scope="module", params=[standard, HPCPoolExecutor], ids=["standard", "hpcpool"])
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with request.param(2) as executor:
        with Gate(tmp_path_factory.mktemp("gate")) as gate:
            busy = [executor.submit(pass_gate, gate.path) for _ in range(2)]
        wait(busy)  # all workers are up, and belong to no single test
        yield executor


# What calls run


def keywords(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return (args, kwargs)


def append_line(path: str) -> None:
    with open(path, "a") as file:
        file.write("x\n")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


def start_method() -> str | None:
    return multiprocessing.get_start_method(allow_none=True)


class Adder:
    def __init__(self, number: int) -> None:
        self.number = number

    def add(self, other: int) -> int:
        return self.number + other

    def __call__(self, other: int) -> int:
        return self.number - other

    @classmethod
    def name(cls) -> str:
        return cls.__name__

    @staticmethod
    def double(number: int) -> int:
        return 2 * number


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __call__(self) -> str:
        return "called"


class CarefulError(Exception):
    """Takes two arguments and has an attribute of its own."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


def fail(error: BaseException) -> None:
    raise error  # where it failed


def fail_with_note() -> None:
    error = CarefulError(7, "seven")
    error.add_note("a note")
    raise error


def fail_from() -> None:
    try:
        int("x")
    except ValueError as error:
        raise KeyError("k") from error


def stop_at_one(number: int, *others: int) -> int:
    if number == 1:
        raise StopIteration
    return number


def local_function() -> Callable[[], int]:
    return lambda: 1


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("not this one")


def unpicklable() -> Unpicklable:
    return Unpicklable()


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def die() -> None:
    os._exit(3)


_seen: list[Any] = []


def remember(value: Any) -> None:
    _seen.append(value)


def seen() -> list[Any]:
    return _seen


def fail_to_start() -> None:
    raise ValueError("no start")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ((pow, 2, 3), 8),
        ((max, [1, 5, 2]), 5),
        ((math.sqrt, 9), 3.0),
        (("{}-{}".format, 1, 2), "1-2"),
        ((functools.partial(pow, 2), 5), 32),
        ((functools.partial(functools.partial(int, base=2), "101"),), 5),
        ((Adder(3).add, 4), 7),
        ((Adder(3), 4), -1),
        ((Adder.name,), "Adder"),
        ((Adder.double, 4), 8),
        ((operator.itemgetter(1), "abc"), "b"),
        ((operator.methodcaller("upper"), "abc"), "ABC"),
        ((dict.fromkeys, "ab", 0), {"a": 0, "b": 0}),
        ((Unhashable(),), "called"),
        ((type, 1), int),
    ],
    ids=repr,
)
def test_any_callable_can_be_submitted(pool: Executor, call: tuple[Any, ...], expected: Any):
    assert pool.submit(*call).result() == expected


def test_no_keyword_is_taken_away_from_the_function(pool: Executor):
    names = (
        "self fn func function args kwargs timeout stdout key name priority retries future executor options chunksize"
    )
    given = dict.fromkeys(names.split(), 1)
    assert pool.submit(keywords, **given).result() == ((), given)
    assert pool.submit(keywords, 1, 2, **given).result() == ((1, 2), given)


def test_submit_without_a_function_is_a_type_error(pool: Executor):
    with pytest.raises(TypeError):
        pool.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pool.submit(fn=int)  # type: ignore[call-arg]


def test_a_wrong_number_of_arguments_is_an_error_of_the_call(pool: Executor):
    future = pool.submit(pow)
    with pytest.raises(TypeError, match="pow"):
        future.result()


def test_the_same_call_twice_runs_twice(pool: Executor, tmp_path: Path):
    path = tmp_path / "lines"
    wait([pool.submit(append_line, str(path)) for _ in range(5)])
    assert path.read_text() == "x\n" * 5


def test_a_call_returns_none_if_its_function_does(pool: Executor):
    assert pool.submit(print, end="").result() is None


# Errors


def test_an_error_has_its_type_its_arguments_and_its_attributes(pool: Executor):
    error = pool.submit(fail, CarefulError(7, "seven")).exception()
    assert type(error) is CarefulError
    assert (error.args, error.code) == ((7, "seven"), 7)


def test_an_error_has_its_notes(pool: Executor):
    error = pool.submit(fail_with_note).exception()
    assert isinstance(error, CarefulError)
    assert error.__notes__ == ["a note"]


def test_the_cause_of_an_error_is_the_remote_traceback(pool: Executor):
    error = pool.submit(fail, RuntimeError("here")).exception()
    assert error is not None
    assert type(error.__cause__) is _RemoteTraceback
    assert "raise error  # where it failed" in str(error.__cause__)
    assert "RuntimeError: here" in str(error.__cause__)
    assert "where it failed" in "".join(traceback.format_exception(error))


def test_the_remote_traceback_shows_what_the_error_was_raised_from(pool: Executor):
    error = pool.submit(fail_from).exception()
    assert type(error) is KeyError
    assert "ValueError: invalid literal" in str(error.__cause__)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_whatever_a_call_raises_is_reported(pool: Executor, kind: type[BaseException]):
    future = pool.submit(fail, kind(5))
    error = future.exception()
    assert type(error) is kind
    assert error.args == (5,)
    with pytest.raises(kind):
        future.result()
    assert pool.submit(int, "5").result() == 5


def test_the_same_error_is_raised_each_time(pool: Executor):
    future = pool.submit(int, "x")
    assert future.exception() is future.exception()
    with pytest.raises(ValueError, match="invalid literal") as first:
        future.result()
    assert first.value is future.exception()


def test_an_argument_that_cannot_be_pickled_fails_only_its_call(pool: Executor):
    bad = pool.submit(id, Unpicklable())
    good = pool.submit(int, "5")
    assert type(bad.exception()) is ZeroDivisionError
    assert type(bad.exception().__cause__) is _RemoteTraceback  # type: ignore[union-attr]
    assert good.result() == 5


def test_a_hundred_arguments_that_cannot_be_pickled_do_not_clog_the_pool(pool: Executor):
    futures = [pool.submit(id, Unpicklable()) for _ in range(100)]
    assert {type(future.exception()) for future in futures} == {ZeroDivisionError}
    assert pool.submit(int, "5").result() == 5


def test_a_result_that_cannot_be_pickled_fails_only_its_call(pool: Executor):
    assert type(pool.submit(unpicklable).exception()) is ZeroDivisionError
    assert pool.submit(int, "5").result() == 5


# Futures


def test_a_future_goes_from_pending_over_running_to_done(pool: Executor, gate: Gate):
    future = pool.submit(pass_gate, gate.path)
    assert not future.done()
    assert wait_until(future.running, timeout_s=30)
    assert not future.cancel()
    assert not future.cancelled()
    gate.open()
    assert future.result() == ""
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)
    assert not future.cancel()
    assert future.exception() is None


def test_a_result_can_be_waited_for_only_so_long(pool: Executor, gate: Gate):
    future = pool.submit(pass_gate, gate.path)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    gate.open()
    assert future.result(timeout=30) == ""


def test_a_call_that_waits_can_be_cancelled(pool: Executor, tmp_path: Path, gate: Gate):
    path = tmp_path / "lines"
    busy = [pool.submit(pass_gate, gate.path) for _ in range(20)]
    future = pool.submit(append_line, str(path))
    assert future.cancel()
    assert future.cancel()
    assert future.cancelled()
    assert future.done()
    with pytest.raises(CancelledError):
        future.result()
    with pytest.raises(CancelledError):
        future.exception()
    gate.open()
    futures = [*busy, future, pool.submit(int)]
    assert wait(futures, timeout=30).done == set(futures)
    assert not path.exists()


def test_callbacks_are_called_once_each_and_in_order(pool: Executor, gate: Gate):
    called: list[Any] = []
    future = pool.submit(pass_gate, gate.path)
    for number in range(5):
        future.add_done_callback(lambda done, number=number: called.append((number, done)))
    assert not called
    gate.open()
    pool.submit(int).result()
    assert wait_until(lambda: len(called) == 5, timeout_s=30)
    future.add_done_callback(lambda done: called.append((5, done)))
    assert called == [(number, future) for number in range(6)]


def test_a_callback_that_raises_does_not_keep_the_others_from_being_called(pool: Executor, caplog: Any, gate: Gate):
    called = threading.Event()
    future = pool.submit(pass_gate, gate.path)
    future.add_done_callback(lambda done: 1 / 0)  # type: ignore[arg-type, return-value]
    future.add_done_callback(lambda done: called.set())
    gate.open()
    assert called.wait(30)
    assert pool.submit(int, "5").result() == 5
    assert [record.name for record in caplog.records] == ["concurrent.futures"]
    assert "exception calling callback" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_can_submit(pool: Executor):
    results: list[int] = []
    finished = threading.Event()

    def count_down(future: Future[int]) -> None:
        results.append(future.result())
        if results[-1]:
            pool.submit(abs, results[-1] - 1).add_done_callback(count_down)
        else:
            finished.set()

    pool.submit(abs, 10).add_done_callback(count_down)
    assert finished.wait(30)
    assert results == list(range(10, -1, -1))


def test_wait_and_as_completed_mix_futures_of_all_kinds(pool: Executor, gate: Gate):
    blocked = pool.submit(pass_gate, gate.path)
    by_hand: Future[int] = Future()
    quick = pool.submit(abs, -1)
    done, pending = wait([blocked, by_hand, quick], timeout=30, return_when=FIRST_COMPLETED)
    assert (done, pending) == ({quick}, {blocked, by_hand})
    by_hand.set_result(2)
    gate.open()
    failed = pool.submit(int, "x")
    assert set(as_completed([blocked, by_hand, quick, failed], timeout=30)) == {blocked, by_hand, quick, failed}
    done, pending = wait([failed, blocked], timeout=30, return_when=concurrent.futures.FIRST_EXCEPTION)
    assert failed in done
    with pytest.raises(TimeoutError):
        list(as_completed([quick, Future()], timeout=0.01))


def test_asyncio_can_await_them(pool: Executor, gate: Gate):
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(
            asyncio.wrap_future(pool.submit(abs, -1)),
            loop.run_in_executor(pool, abs, -2),
            loop.run_in_executor(pool, int, "x"),
            return_exceptions=True,
        )
        slow = loop.run_in_executor(pool, pass_gate, gate.path)
        with suppress(TimeoutError):
            await asyncio.wait_for(slow, 0.05)
        together = asyncio.gather(*(asyncio.wrap_future(pool.submit(pass_gate, gate.path)) for _ in range(20)))
        together.cancel()
        with pytest.raises(asyncio.CancelledError):
            await together
        return [*results, slow.cancelled()]

    *results, error, is_cancelled = asyncio.run(main())
    assert results == [1, 2]
    assert type(error) is ValueError
    assert is_cancelled
    gate.open()


# map


def test_map_gives_results_in_order(pool: Executor):
    assert list(pool.map(pow, range(20), range(20))) == [n**n for n in range(20)]


def test_map_ends_with_the_shortest_input(pool: Executor):
    assert list(pool.map(pow, range(5), [1, 2])) == [0, 1]
    assert list(pool.map(pow, [], range(3))) == []
    assert list(pool.map(pow)) == []


@pytest.mark.parametrize("chunksize", [1, 2, 7, 100])
@pytest.mark.parametrize("kind", [list, tuple, iter, dict.fromkeys], ids=["list", "tuple", "iterator", "dict"])
def test_map_takes_chunks_of_any_input(pool: Executor, kind: Callable[[Any], Any], chunksize: int):
    assert list(pool.map(int, kind([str(n) for n in range(20)]), chunksize=chunksize)) == list(range(20))


@pytest.mark.parametrize("chunksize", [0, -1])
def test_map_refuses_a_chunksize_below_one(pool: Executor, chunksize: int):
    with pytest.raises(ValueError, match=r"chunksize must be >= 1\."):
        pool.map(int, ["1"], chunksize=chunksize)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_gives_the_results_before_an_error_and_then_ends(pool: Executor, chunksize: int):
    results = pool.map(divmod, [1, 1, 1, 1, 1, 1], [2, 3, 1, 1, 0, 5], chunksize=chunksize)
    assert [next(results) for _ in range(4)] == [(0, 1), (0, 1), (1, 0), (1, 0)]
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("inputs", [1, 2])
def test_a_call_of_map_that_raises_stop_iteration_does_not_pass_for_the_end(
    pool: Executor, inputs: int, chunksize: int
):
    results = pool.map(stop_at_one, *[range(3)] * inputs, chunksize=chunksize)
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(results)


def test_map_waits_for_the_results_only_so_long(pool: Executor, gate: Gate, monkeypatch: pytest.MonkeyPatch):
    submitted: list[Future[Any]] = []
    submit = pool.submit

    def noting(fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        submitted.append(submit(fn, *args, **kwargs))
        return submitted[-1]

    monkeypatch.setattr(pool, "submit", noting)
    results = pool.map(pass_gate, [os.devnull, os.devnull, gate.path], timeout=0.5)
    wait(submitted[:2])  # results that are there are given although the time is over
    assert [next(results), next(results)] == ["", ""]
    with pytest.raises(TimeoutError):
        next(results)


def test_map_raises_at_once_what_its_input_raises_at_once(pool: Executor):
    with pytest.raises(TypeError):
        pool.map(int, 5)  # type: ignore[arg-type]


def test_map_can_be_closed(pool: Executor):
    results = pool.map(abs, range(100))
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert list(results) == []


@BOTH
def test_map_calls_the_submit_of_a_subclass(make: Make):
    base = ProcessPoolExecutor if make is standard else HPCPoolExecutor
    submitted: list[Any] = []

    class Counting(base):  # type: ignore[misc, valid-type]
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            submitted.append(args)
            return super().submit(fn, *args, **kwargs)

    with Counting(1, mp_context=CONTEXT) as executor:
        assert list(executor.map(abs, [-1, -2, -3])) == [1, 2, 3]
    assert len(submitted) == 3


def test_a_subclass_sees_the_calls_of_views_if_it_puts_something_of_its_own_around_them():
    class Around:
        def __init__(self, executor: Executor, seen: list[Any]) -> None:
            self._executor, self._seen = executor, seen

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            self._seen.append(args)
            return self._executor.submit(fn, *args, **kwargs)

    class Seeing(HPCPoolExecutor):
        seen: ClassVar[list[Any]] = []

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.seen.append(args)
            return super().submit(fn, *args, **kwargs)

        def options(self, **options: Any) -> Any:
            return Around(super().options(**options), self.seen)

    with Seeing(1, mp_context=CONTEXT) as executor:
        view = executor.options(priority=1)
        assert [executor.submit(abs, -1).result(), view.submit(abs, -2).result()] == [1, 2]
    assert executor.seen == [(-1,), (-2,)], "each once"


# Constructor


@BOTH
@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": "2"}, TypeError, None),
        ({"max_workers": 2.5}, TypeError, None),
        ({"initializer": 5}, TypeError, "initializer must be a callable"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be >= 1"),
        ({"max_tasks_per_child": -1}, ValueError, "max_tasks_per_child must be >= 1"),
        ({"max_tasks_per_child": 1.5}, TypeError, "max_tasks_per_child must be an integer"),
        ({"max_tasks_per_child": 1, "mp_context": multiprocessing.get_context("fork")}, ValueError, "incompatible"),
    ],
    ids=repr,
)
def test_the_constructor_refuses_what_the_standard_one_refuses(
    make: Make, arguments: dict[str, Any], kind: type[Exception], text: str | None
):
    kind_of_pool = ProcessPoolExecutor if make is standard else HPCPoolExecutor
    with pytest.raises(kind, match=text):
        kind_of_pool(**arguments)


@BOTH
@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_workers_by_position_is_checked_as_well(make: Make, number: int):
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        make(number)


@BOTH
def test_numbers_of_numpy_are_numbers(make: Make):
    numpy = pytest.importorskip("numpy")
    with make(max_workers=numpy.int64(1)) as executor:
        assert list(executor.map(abs, [-1], chunksize=numpy.int64(2))) == [1]


@BOTH
def test_an_executor_is_an_executor_and_knows_its_number_of_workers(make: Make):
    with make(3) as executor:
        assert isinstance(executor, Executor)
        assert executor._max_workers == 3  # type: ignore[attr-defined]  # dask and others read it


@BOTH
def test_max_tasks_per_child_is_exact(make: Make):
    with make(1, max_tasks_per_child=3, mp_context=CONTEXT) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(7)]
    runs = [pids.count(pid) for pid in dict.fromkeys(pids)]
    assert runs == [3, 3, 1]


@BOTH
def test_an_initializer_runs_in_each_worker_before_its_calls(make: Make):
    with make(2, initializer=remember, initargs=("started",)) as executor:
        assert [future.result() for future in [executor.submit(seen) for _ in range(10)]] == [["started"]] * 10


@pytest.mark.parametrize("make", [ProcessPoolExecutor, HPCPoolExecutor])
def test_arguments_may_be_given_by_position(make: Any):
    with make(1, CONTEXT, remember, ("started",)) as executor:
        assert executor.submit(seen).result() == ["started"]
        assert executor._mp_context is CONTEXT


@BOTH
def test_an_initializer_that_fails_breaks_the_pool(make: Make):
    executor = make(1, initializer=fail_to_start)
    future = executor.submit(abs, 1)
    with pytest.raises(BrokenProcessPool):
        future.result(timeout=30)
    assert wait_until(lambda: bool(executor._broken), timeout_s=30)  # type: ignore[attr-defined]
    with pytest.raises(BrokenExecutor):
        executor.submit(abs, 1)
    executor.shutdown()


@BOTH
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_start_as_the_context_says(make: Make, method: str):
    with make(1, mp_context=multiprocessing.get_context(method)) as executor:
        assert executor.submit(start_method).result() == method
        assert executor.submit(abs, -1).result() == 1


# The end


@BOTH
def test_leaving_the_block_waits_for_all_calls(make: Make):
    with make(2) as executor:
        futures = [executor.submit(nap, 0.02) for _ in range(8)]
    assert all(future.done() for future in futures)
    assert {future.result() for future in futures} == {0.02}


@BOTH
def test_leaving_the_block_by_an_error_waits_as_well(make: Make):
    with pytest.raises(KeyError), make(2) as executor:
        future = executor.submit(nap, 0.1)
        raise KeyError
    assert future.result(timeout=0) == 0.1


@BOTH
def test_a_closed_executor_refuses_calls_with_a_plain_runtime_error(make: Make):
    executor = make(1)
    executor.shutdown()
    for use in (lambda: executor.submit(abs, 1), lambda: list(executor.map(abs, [1]))):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown") as raised:
            use()
        assert type(raised.value) is RuntimeError
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)


@BOTH
def test_an_executor_that_was_used_refuses_calls_after_its_shutdown(make: Make):
    executor = make(1)
    assert executor.submit(abs, -1).result() == 1
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown") as raised:
        executor.submit(abs, 1)
    assert type(raised.value) is RuntimeError


@BOTH
@pytest.mark.parametrize("wait_first", [True, False])
def test_shutdown_can_cancel_what_waits(make: Make, wait_first: bool, gate: Gate):
    executor = make(1)
    running = executor.submit(pass_gate, gate.path)
    assert wait_until(running.running, timeout_s=30)
    waiting = [executor.submit(abs, n) for n in range(30)]
    thread = threading.Thread(target=executor.shutdown, kwargs={"wait": wait_first, "cancel_futures": True})
    thread.start()
    assert wait_until(lambda: sum(future.cancelled() for future in waiting) >= 20, timeout_s=30)
    gate.open()
    thread.join(30)
    assert running.result(timeout=30) == ""
    assert not any(future.exception(timeout=30) for future in waiting if not future.cancelled())


@BOTH
def test_shutdown_without_waiting_lets_calls_finish(make: Make):
    executor = make(1)
    futures = [executor.submit(nap, 0.05) for _ in range(3)]
    executor.shutdown(wait=False)
    assert [future.result(timeout=30) for future in futures] == [0.05] * 3


@BOTH
def test_an_executor_that_is_dropped_finishes_its_calls(make: Make):
    results = make(2).map(nap, [0.05] * 4)
    assert list(results) == [0.05] * 4


@BOTH
def test_a_dead_worker_is_a_broken_process_pool(make: Make):
    executor = make(1)
    with pytest.raises(BrokenProcessPool):
        executor.submit(die).result(timeout=30)
    executor.shutdown()
