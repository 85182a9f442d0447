"""Futures among the arguments, with real workers: where they may be, what becomes of failures, and how far it goes."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import Any

import pytest

from hpcpool import DependencyError, HPCPoolExecutor, PayloadError, TaskFuture
from tests.conftest import wait_until
from tests.gate import Gate, pass_gate

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def pool() -> Iterator[HPCPoolExecutor]:
    with HPCPoolExecutor(2) as pool:
        assert list(pool.map(abs, [-1])) == [1]
        yield pool


@pytest.fixture
def gate(tmp_path: Any) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


def echo(*args: Any, **kwargs: Any) -> Any:
    return (args, kwargs) if kwargs or len(args) != 1 else args[0]


def add(*numbers: int) -> int:
    return sum(numbers)


def after_gate(path: str, value: Any) -> Any:
    pass_gate(path)
    return value


def fail_after_gate(path: str) -> None:
    pass_gate(path)
    raise KeyError("late")


@dataclasses.dataclass
class Record:
    value: Any
    others: list[Any]


class Custom:
    def __init__(self, value: Any) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Reduced:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return (Reduced, (self.value,))


class Unpicklable:
    def __init__(self) -> None:
        self.lock = threading.Lock()


class Counted:
    """Counts how often it is pickled."""

    times = 0

    def __reduce__(self) -> Any:
        Counted.times += 1
        return (int, ("7",))


class OpenedHere:
    """Notes where it is opened."""

    openings: list[int] = []  # noqa: RUF012

    def __init__(self, size: int) -> None:
        self.data = b"x" * size

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        OpenedHere.openings.append(len(self.data))


def size_of(opened: OpenedHere) -> int:
    return len(opened.data)


class CannotOpen:
    def __reduce__(self) -> Any:
        return (int, ("no number",))


def make_unopenable() -> CannotOpen:
    return CannotOpen()


def attribute(holder: Any) -> Any:
    return holder.value


# Where futures may be


def test_a_future_stands_for_its_result(pool: HPCPoolExecutor):
    five = pool.submit(int, "5")
    assert pool.submit(echo, five).result() == 5
    assert pool.submit(echo, five, five, key=five).result() == ((5, 5), {"key": 5})


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda f: [f, [f]], lambda v: [v, [v]]),
        (lambda f: (1, (f,)), lambda v: (1, (v,))),
        (lambda f: {"a": {"b": f}, f: 1}, lambda v: {"a": {"b": v}, v: 1}),
        (lambda f: {f, 1}, lambda v: {v, 1}),
        (lambda f: frozenset([f]), lambda v: frozenset([v])),
        (lambda f: Record(f, [f]), lambda v: Record(v, [v])),
        (lambda f: collections.deque([f]), lambda v: collections.deque([v])),
        (lambda f: collections.OrderedDict(a=f), lambda v: collections.OrderedDict(a=v)),
    ],
    ids=["list", "tuple", "dict", "set", "frozenset", "dataclass", "deque", "OrderedDict"],
)
def test_a_future_is_found_inside(pool: HPCPoolExecutor, wrap: Callable[[Any], Any], unwrap: Callable[[Any], Any]):
    assert pool.submit(echo, wrap(pool.submit(int, "5"))).result() == unwrap(5)
    done = pool.submit(int, "6")
    wait([done])
    assert pool.submit(echo, wrap(done)).result() == unwrap(6)


@pytest.mark.parametrize("kind", [Custom, Slotted, Reduced])
def test_a_future_is_found_in_any_object(pool: HPCPoolExecutor, kind: type):
    assert pool.submit(attribute, kind(pool.submit(int, "5"))).result() == 5
    assert pool.submit(attribute, kind([Custom(pool.submit(int, "5"))])).result()[0].value == 5


def test_a_future_is_found_in_partials_and_bound_methods(pool: HPCPoolExecutor):
    five = pool.submit(int, "5")
    assert pool.submit(functools.partial(add, five, 1), five).result() == 11
    assert pool.submit(functools.partial(lambda a, b: (a, b), b=five), 1).result() == (1, 5)
    assert pool.submit([five, 6].index, 5).result() == 0


def test_a_function_may_itself_be_a_result(pool: HPCPoolExecutor):
    double = pool.submit(functools.partial, add, 2)
    assert pool.submit(double, 5).result() == 7  # type: ignore[arg-type]


def test_a_function_that_goes_by_value_takes_futures(pool: HPCPoolExecutor):
    five = pool.submit(int, "5")
    factor = 3
    assert pool.submit(lambda n, more: n * factor + sum(more), five, [five, 1]).result() == 21


def test_a_future_deep_inside_is_found(pool: HPCPoolExecutor):
    value: Any = pool.submit(int, "5")
    expected: Any = 5
    for _ in range(100):
        value, expected = [value], [expected]
    assert pool.submit(echo, value).result() == expected


def test_a_future_in_what_a_function_closes_over_is_an_error_that_says_what_to_do(pool: HPCPoolExecutor):
    future = pool.submit(int, "5")
    error = pool.submit(lambda: future).exception()
    assert type(error) is TypeError
    assert "pass the future as an argument" in str(error)


def test_map_takes_futures_too(pool: HPCPoolExecutor):
    numbers = [pool.submit(int, str(n)) for n in range(5)]
    assert list(pool.map(add, numbers, numbers)) == [0, 2, 4, 6, 8]
    assert list(pool.map(add, numbers, [1] * 5, chunksize=2)) == [1, 2, 3, 4, 5]


def test_a_future_as_a_result_is_an_error_of_that_call(pool: HPCPoolExecutor):
    error = pool.submit(eval, "__import__('concurrent.futures').futures.Future()").exception()
    assert isinstance(error, TypeError)
    assert pool.submit(abs, -1).result() == 1


# Futures of others


def test_futures_of_other_executors_are_dependencies(pool: HPCPoolExecutor):
    with ThreadPoolExecutor(1) as threads, HPCPoolExecutor(1) as other:
        started = threading.Event()
        slow = threads.submit(lambda: started.wait(30) and 5)
        far = other.submit(abs, -6)
        future = pool.submit(add, slow, far, pool.submit(abs, -7))
        assert not future.done()
        started.set()
        assert future.result(timeout=30) == 18
        assert pool.submit(add, slow, far).result(timeout=30) == 11


def test_a_future_made_by_hand_is_a_dependency(pool: HPCPoolExecutor):
    by_hand: Future[int] = Future()
    futures = [pool.submit(add, by_hand, n) for n in range(3)]
    assert not any(future.running() or future.done() for future in futures)
    by_hand.set_result(10)
    assert [future.result(timeout=30) for future in futures] == [10, 11, 12]


def test_the_result_of_a_foreign_future_is_pickled_once_for_all_who_wait(pool: HPCPoolExecutor):
    by_hand: Future[Any] = Future()
    futures = [pool.submit(echo, by_hand) for _ in range(20)]
    assert wait_until(lambda: len(by_hand._done_callbacks) > 0, timeout_s=30)  # type: ignore[attr-defined]
    Counted.times = 0
    by_hand.set_result(Counted())
    assert [future.result(timeout=30) for future in futures] == [7] * 20
    assert Counted.times <= 2


def test_a_foreign_result_that_cannot_be_pickled_fails_those_who_depend_on_it(pool: HPCPoolExecutor):
    late: Future[Any] = Future()
    early: Future[Any] = Future()
    early.set_result(Unpicklable())
    futures = [pool.submit(echo, late), pool.submit(echo, early), pool.submit(echo, [early, late])]
    after = pool.submit(echo, futures[0])
    late.set_result(Unpicklable())
    for future in futures:
        error = future.exception(timeout=30)
        assert type(error) is TypeError
        assert "cannot pickle" in str(error)
    assert isinstance(after.exception(timeout=30), DependencyError)
    assert pool.submit(abs, -1).result(timeout=30) == 1


# Results that travel on


def test_a_result_that_only_travels_on_is_not_opened_here(pool: HPCPoolExecutor):
    OpenedHere.openings.clear()
    small, large = pool.submit(OpenedHere, 10), pool.submit(OpenedHere, 300_000)
    assert pool.submit(size_of, small).result() == 10
    wait([large])
    assert pool.submit(size_of, large).result() == 300_000
    assert OpenedHere.openings == []
    assert size_of(large.result()) == 300_000
    assert OpenedHere.openings == [300_000]
    assert pool.submit(size_of, large).result() == 300_000
    assert OpenedHere.openings == [300_000]


def test_a_large_array_travels_on_and_can_be_written_to(pool: HPCPoolExecutor):
    numpy = pytest.importorskip("numpy")
    ones = pool.submit(numpy.ones, 500_000)
    doubled = pool.submit(numpy.add, ones, ones)
    assert pool.submit(numpy.sum, [ones, doubled]).result() == 1_500_000
    array = doubled.result()
    array[0] = 0
    assert pool.submit(numpy.sum, doubled).result() in (999_998, 1_000_000)


def test_a_result_that_cannot_be_opened_fails_the_calls_that_depend_on_it(pool: HPCPoolExecutor):
    bad = pool.submit(make_unopenable)
    error = pool.submit(echo, bad).exception()
    assert isinstance(error, PayloadError)
    assert "no number" in str(error)


# Shapes


def test_a_diamond(pool: HPCPoolExecutor):
    top = pool.submit(int, "1")
    left, right = pool.submit(add, top, 1), pool.submit(add, top, 2)
    assert pool.submit(add, left, right, top).result() == 6


def test_a_call_starts_only_after_its_dependencies(pool: HPCPoolExecutor, gate: Gate):
    first = pool.submit(after_gate, gate.path, 1)
    second = pool.submit(add, first, 1)
    third = pool.submit(add, second, first)
    other = pool.submit(add, 5, 5)
    assert other.result() == 10
    assert not second.running()
    assert not third.done()
    gate.open()
    assert third.result() == 3


def test_ten_thousand_dependencies_of_one_call(pool: HPCPoolExecutor):
    assert pool.submit(sum, [pool.submit(int, n) for n in range(10_000)]).result() == 49_995_000


def test_ten_thousand_calls_that_depend_on_one(pool: HPCPoolExecutor, gate: Gate):
    one = pool.submit(after_gate, gate.path, 1)
    futures = [pool.submit(add, one, n) for n in range(10_000)]
    gate.open()
    assert sum(future.result() for future in futures) == 50_005_000


def test_a_chain_of_a_thousand_calls(pool: HPCPoolExecutor):
    future = pool.submit(int, "0")
    for _ in range(1000):
        future = pool.submit(add, future, 1)
    assert future.result() == 1000


def chain_on(pool: HPCPoolExecutor, first: Any, length: int) -> list[TaskFuture[Any]]:
    futures = [pool.submit(abs, first)]
    for _ in range(length - 1):
        futures.append(pool.submit(abs, futures[-1]))
    return futures


def test_a_chain_of_a_hundred_thousand_calls_fails_as_a_whole(pool: HPCPoolExecutor):
    first: Future[int] = Future()
    futures = chain_on(pool, first, 100_000)
    first.set_exception(KeyError("at the root"))
    error = futures[-1].exception(timeout=60)
    assert type(error) is DependencyError
    assert error.__cause__ is first.exception()
    assert len(str(error)) < 500
    assert wait_until(lambda: all(future.done() for future in futures), timeout_s=30)


def test_a_long_chain_of_calls_is_cancelled_as_a_whole(pool: HPCPoolExecutor):
    first: Future[int] = Future()
    futures = chain_on(pool, first, 20_000)
    assert futures[0].cancel()
    assert wait_until(lambda: futures[-1].done(), timeout_s=60)
    assert all(future.cancelled() for future in futures)
    first.set_result(1)


# Failures


def test_a_failed_dependency_fails_its_dependents_and_does_not_run_them(pool: HPCPoolExecutor, tmp_path: Any):
    bad = pool.submit(int, "x")
    path = tmp_path / "ran"
    future = pool.submit(path.write_text, bad)
    error = future.exception()
    assert type(error) is DependencyError
    assert error.__cause__ is bad.exception()
    assert type(error.__cause__) is ValueError
    assert not path.exists()
    with pytest.raises(DependencyError):
        future.result()


def test_the_error_names_the_chain_of_calls(pool: HPCPoolExecutor, gate: Gate):
    bad = pool.options(name="root").submit(fail_after_gate, gate.path)
    middle = pool.options(name="middle").submit(abs, bad)
    last = pool.options(name="last").submit(abs, middle)
    gate.open()
    error = last.exception()
    assert "root -> middle -> last" in str(error)
    assert "KeyError: 'late'" in str(error)
    assert error is not None
    assert error.__cause__ is bad.exception()
    after = pool.options(name="after").submit(abs, last)
    assert "root -> middle -> last -> after" in str(after.exception())
    assert after.exception().__cause__ is bad.exception()  # type: ignore[union-attr]


def test_a_long_chain_is_shortened(pool: HPCPoolExecutor):
    future: TaskFuture[Any] = pool.options(name="root").submit(int, "x")
    for number in range(50):
        future = pool.options(name=f"call{number}").submit(abs, future)
    text = str(future.exception())
    assert "(root -> call0 -> … -> " in text
    assert "-> call49)" in text
    assert len(text) < 300


def test_one_failure_among_many_dependencies_is_enough(pool: HPCPoolExecutor, gate: Gate):
    blocked = pool.submit(after_gate, gate.path, 1)
    future = pool.submit(add, blocked, pool.submit(int, "x"), pool.submit(int, "y"))
    assert isinstance(future.exception(timeout=30), DependencyError)
    assert not blocked.done()
    gate.open()
    assert blocked.result() == 1


def test_a_foreign_failure_is_the_cause_too(pool: HPCPoolExecutor):
    late: Future[int] = Future()
    futures = [pool.submit(abs, late), pool.submit(abs, [late])]
    late.set_exception(OSError("far away"))
    futures.append(pool.submit(abs, late))
    for future in futures:
        error = future.exception(timeout=30)
        assert type(error) is DependencyError
        assert error.__cause__ is late.exception()
        assert "OSError: far away" in str(error)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_dependency_may_fail_by_any_exception(pool: HPCPoolExecutor, kind: type[BaseException]):
    late: Future[int] = Future()
    future = pool.submit(abs, late)
    late.set_exception(kind("stop"))
    error = future.exception(timeout=30)
    assert type(error) is DependencyError
    assert type(error.__cause__) is kind


def test_callbacks_of_a_failed_dependent_are_called_once(pool: HPCPoolExecutor, gate: Gate):
    called: list[Any] = []
    bad = pool.submit(fail_after_gate, gate.path)
    also_bad = pool.submit(fail_after_gate, gate.path)
    future = pool.submit(add, bad, also_bad)
    future.add_done_callback(called.append)
    gate.open()
    wait([bad, also_bad, future, pool.submit(abs, 1)])
    assert wait_until(lambda: called == [future], timeout_s=30)


def test_a_call_that_failed_before_it_was_sent_fails_its_dependents(pool: HPCPoolExecutor):
    bad = pool.submit(echo, Unpicklable())
    error = pool.submit(echo, bad).exception()
    assert type(error) is DependencyError
    assert type(error.__cause__) is TypeError


def test_a_dependent_is_retried_by_itself_only(pool: HPCPoolExecutor):
    bad = pool.submit(int, "x")
    future = pool.options(retries=3).submit(abs, bad)
    assert isinstance(future.exception(), DependencyError)
    assert future.info.attempt == 1


# Cancelling


def test_a_cancelled_dependency_cancels_its_dependents(pool: HPCPoolExecutor):
    by_hand: Future[int] = Future()
    first = pool.submit(abs, by_hand)
    second = pool.submit(abs, first)
    third = pool.submit(add, second, 1)
    assert second.cancel()
    assert wait_until(third.cancelled, timeout_s=30)
    with pytest.raises(CancelledError):
        third.result()
    assert not first.cancelled()
    by_hand.set_result(-5)
    assert first.result(timeout=30) == 5


def test_a_cancelled_foreign_dependency_cancels_too(pool: HPCPoolExecutor):
    waiting: Future[int] = Future()
    futures = [pool.submit(abs, waiting)]
    waiting.cancel()
    waiting.set_running_or_notify_cancel()
    futures.append(pool.submit(abs, waiting))
    futures.append(pool.submit(abs, futures[0]))
    assert wait(futures, timeout=30).not_done == set()
    assert all(future.cancelled() for future in futures)


def test_a_call_that_waits_for_others_can_be_cancelled(pool: HPCPoolExecutor):
    waiting: Future[int] = Future()
    called: list[Any] = []
    future = pool.submit(abs, waiting)
    future.add_done_callback(called.append)
    assert future.cancel()
    waiting.set_result(1)
    assert pool.submit(abs, -1).result() == 1
    assert called == [future]
    assert wait([future], timeout=30).done == {future}


def test_a_dependent_of_a_call_that_is_killed_fails(pool: HPCPoolExecutor, gate: Gate):
    first = pool.submit(after_gate, gate.path, 1)
    second = pool.submit(abs, first)
    assert wait_until(first.running, timeout_s=30)
    assert first.kill()
    assert isinstance(second.exception(timeout=30), DependencyError)


# The end of the pool


def test_shutdown_waits_for_dependents():
    pool = HPCPoolExecutor(1)
    by_hand: Future[int] = Future()
    futures = chain_on(pool, by_hand, 5)
    closing = threading.Thread(target=pool.shutdown)
    closing.start()
    assert not futures[0].done()
    by_hand.set_result(-3)
    closing.join(30)
    assert not closing.is_alive()
    assert [future.result(timeout=0) for future in futures] == [3] * 5


def test_shutdown_can_cancel_what_waits_for_others():
    pool = HPCPoolExecutor(1)
    never: Future[int] = Future()
    futures = chain_on(pool, never, 3)
    start = time.monotonic()
    pool.shutdown(cancel_futures=True)
    assert time.monotonic() - start < 60
    assert all(future.cancelled() for future in futures)


def test_a_dependency_of_a_closed_executor_is_as_good_as_any(pool: HPCPoolExecutor):
    with HPCPoolExecutor(1) as other:
        number = other.submit(int, "5")
        bad = other.submit(int, "x")
    assert pool.submit(abs, number).result() == 5
    assert isinstance(pool.submit(abs, bad).exception(), DependencyError)


# What a call gets that depends on a result which the user has taken, and changed


@pytest.mark.parametrize("size", [10, 200_000], ids=["small", "large"])
def test_a_call_gets_the_result_as_it_was_when_it_was_submitted(pool: HPCPoolExecutor, gate: Gate, size: int):
    numpy = pytest.importorskip("numpy")
    made = pool.submit(numpy.zeros, size)
    waiting_since_before = pool.submit(echo, made, pool.submit(pass_gate, gate.path))
    array = made.result()
    held = pool.submit(pass_gate, gate.path)
    waiting = pool.submit(echo, made, held)
    array[:] = 1
    after = pool.submit(echo, array, held)
    gate.open()
    assert waiting_since_before.result()[0][0].sum() == 0
    assert waiting.result()[0][0].sum() == 0
    assert after.result()[0][0].sum() == size
    assert array.sum() == size
