"""Joins: functions that run at the client and return futures, so that a graph grows while it runs."""

from __future__ import annotations

import decimal
import gc
import threading
import weakref
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from typing import Any, NamedTuple

import pytest

from hpcpool import DependencyError, HPCPoolExecutor
from hpcpool.joining import futures_in, with_results
from tests.conftest import wait_until
from tests.gate import Gate, pass_gate

live = pytest.mark.live


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Point(NamedTuple):
    x: Any
    y: Any


class MyList(list[Any]):
    pass


Pair = namedtuple("Pair", "left right")


# Values with futures in them


def test_futures_are_found_at_any_depth_in_containers():
    futures = [done(n) for n in range(7)]
    value = [
        futures[0],
        (futures[1], {"a": futures[2], futures[3]: 1}),
        {futures[4]},
        frozenset([futures[5]]),
        futures[6],
    ]
    assert set(futures_in(value)) == set(futures)
    assert list(futures_in(futures[0])) == [futures[0]]


@pytest.mark.parametrize("value", [None, "text", b"bytes", 5, [], {}, (), [1, (2, {"a": {3}})]], ids=repr)
def test_values_without_futures_have_none(value: Any):
    assert list(futures_in(value)) == []
    assert with_results(value) is value


def test_results_take_the_places_of_futures():
    value = {"list": [done(1), 2], done("key"): (done(3), {done(4)}), "none": None, "set": frozenset([done(5)])}
    assert with_results(value) == {"list": [1, 2], "key": (3, {4}), "none": None, "set": frozenset([5])}
    assert with_results(done(6)) == 6
    assert with_results(()) == ()


def test_containers_keep_their_types():
    assert with_results(Point(done(1), 2)) == Point(1, 2)
    assert type(with_results(Point(done(1), 2))) is Point
    assert type(with_results(Pair(done(1), 2))) is Pair
    assert type(with_results(MyList([done(1)]))) is MyList
    assert type(with_results(OrderedDict(a=done(1)))) is OrderedDict
    by_name = with_results(defaultdict(list, {"a": done(1)}))
    assert by_name == {"a": 1}
    assert by_name["missing"] == []


def test_what_the_user_gave_is_not_changed():
    future = done(1)
    value = {"list": [future], "set": {future}}
    with_results(value)
    assert value == {"list": [future], "set": {future}}


def test_a_container_may_be_inside_itself():
    value: list[Any] = [done(1), {"again": None}]
    value[1]["again"] = value
    rebuilt = with_results(value)
    assert rebuilt[0] == 1
    assert rebuilt[1]["again"] is rebuilt
    alone: list[Any] = []
    alone.append(alone)
    assert list(futures_in(alone)) == []


# With a pool


@pytest.fixture(scope="module")
def pool() -> Iterator[HPCPoolExecutor]:
    with HPCPoolExecutor(2) as pool:
        assert list(pool.map(abs, [-1])) == [1]
        yield pool


@pytest.fixture
def gate(tmp_path: Any) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


def squares(pool: HPCPoolExecutor, count: int) -> list[Future[int]]:
    return [pool.submit(pow, n, 2) for n in range(count)]


class CannotOpen:
    def __reduce__(self) -> Any:
        return (int, ("no number",))


def make_unopenable() -> CannotOpen:
    return CannotOpen()


@live
def test_the_futures_that_the_function_returns_become_their_results(pool: HPCPoolExecutor):
    assert pool.join(squares, pool, pool.submit(int, "4")).result(timeout=30) == [0, 1, 4, 9]


@live
def test_a_function_may_return_no_future(pool: HPCPoolExecutor):
    assert pool.join(max, 3, pool.submit(int, "4")).result(timeout=30) == 4
    assert pool.join(dict).result(timeout=30) == {}


@live
def test_the_function_runs_in_this_process_and_not_in_this_thread(pool: HPCPoolExecutor):
    threads = pool.join(lambda: (threading.current_thread(),)).result(timeout=30)
    assert threads[0] not in threading.enumerate() or threads[0] is not threading.current_thread()
    assert "client" not in threads[0].name


@live
def test_arguments_without_futures_are_the_very_objects(pool: HPCPoolExecutor):
    box: list[int] = []
    assert pool.join(box.append, 5).result(timeout=30) is None
    assert pool.join(lambda given, key: given is box and key is box, box, key=box).result(timeout=30)
    assert box == [5]


@live
def test_nested_containers_are_filled_in(pool: HPCPoolExecutor):
    def make(n: int) -> Any:
        return {"list": [pool.submit(abs, -n)], "point": Point(pool.submit(int, "2"), {3: pool.submit(str, 4)}), "n": n}

    assert pool.join(make, pool.submit(int, "1")).result(timeout=30) == {
        "list": [1],
        "point": Point(2, {3: "4"}),
        "n": 1,
    }


@live
def test_joins_nest(pool: HPCPoolExecutor):
    def fibonacci(n: int) -> Any:
        return n if n < 2 else pool.join(add, pool.join(fibonacci, n - 1), pool.join(fibonacci, n - 2))

    def add(a: int, b: int) -> Any:
        return pool.submit(int.__add__, a, b)

    assert pool.join(fibonacci, 9).result(timeout=60) == 34


@live
def test_a_join_can_be_an_argument_of_a_call_and_of_a_join(pool: HPCPoolExecutor):
    parts = pool.join(squares, pool, 4)
    assert pool.submit(sum, parts).result(timeout=30) == 14
    assert pool.join(lambda parts: pool.submit(max, parts), parts).result(timeout=30) == 9


@live
def test_a_join_of_other_executors_futures(pool: HPCPoolExecutor):
    with ThreadPoolExecutor(1) as threads:
        assert pool.join(lambda n: [threads.submit(abs, -n)], threads.submit(int, "5")).result(timeout=30) == [5]


@live
def test_a_join_has_the_name_of_its_function_or_the_one_given(pool: HPCPoolExecutor):
    assert pool.join(squares, pool, 1).info.name == "join(squares)"
    assert pool.options(name="mine").join(squares, pool, 1).info.name == "mine"


@live
def test_a_join_runs_while_its_function_or_what_it_returned_does(pool: HPCPoolExecutor, gate: Gate):
    future = pool.join(lambda: [pool.submit(pass_gate, gate.path)])
    assert wait_until(future.running, timeout_s=30)
    assert not future.cancel()
    assert not future.done()
    gate.open()
    assert future.result(timeout=30) == [""]


@live
def test_what_the_function_raises_is_the_error_of_the_join(pool: HPCPoolExecutor):
    for kind in (ZeroDivisionError, SystemExit, KeyboardInterrupt):

        def fail(kind: type[BaseException] = kind) -> None:
            raise kind("on purpose")

        error = pool.join(fail).exception(timeout=30)
        assert type(error) is kind
        assert error.args == ("on purpose",)
    assert isinstance(pool.join(squares).exception(timeout=30), TypeError)


@live
def test_a_failed_argument_fails_the_join_as_it_would_a_call(pool: HPCPoolExecutor):
    called: list[Any] = []
    bad = pool.submit(int, "x")
    error = pool.join(called.append, [bad, pool.submit(int, "y")]).exception(timeout=30)
    assert type(error) is DependencyError
    assert type(error.__cause__) is ValueError
    assert "int -> join(list.append)" in str(error)
    assert called == []


@live
def test_the_error_of_a_returned_future_is_the_error_of_the_join(pool: HPCPoolExecutor):
    bad = pool.submit(int, "x")
    error = pool.join(lambda: [pool.submit(abs, 1), bad]).exception(timeout=30)
    assert error is bad.exception()


@live
def test_a_cancelled_argument_cancels_the_join(pool: HPCPoolExecutor):
    waiting: Future[int] = Future()
    future = pool.join(abs, waiting)
    after = pool.submit(abs, future)
    assert not future.done()
    waiting.cancel()
    assert future.cancelled()
    with pytest.raises(CancelledError):
        after.result(timeout=30)


@live
def test_a_cancelled_returned_future_fails_the_join(pool: HPCPoolExecutor):
    waiting: Future[int] = Future()
    future = pool.join(lambda: [waiting])
    assert wait_until(future.running, timeout_s=30)
    waiting.cancel()
    error = future.exception(timeout=30)
    assert type(error) is DependencyError
    assert type(error.__cause__) is CancelledError
    assert "cancelled" in str(error)


@live
def test_a_join_that_waits_can_be_cancelled(pool: HPCPoolExecutor):
    waiting: Future[int] = Future()
    called: list[Any] = []
    future = pool.join(called.append, waiting)
    assert future.cancel()
    waiting.set_result(1)
    assert pool.submit(abs, -1).result(timeout=30) == 1
    assert future.cancelled()
    assert called == []


@live
def test_a_result_that_does_not_fit_where_its_future_is_fails_the_join(pool: HPCPoolExecutor):
    error = pool.join(lambda: {pool.submit(list)}).exception(timeout=30)
    assert type(error) is TypeError
    assert "unhashable" in str(error)


@live
def test_a_result_that_cannot_be_opened_fails_the_join(pool: HPCPoolExecutor):
    error = pool.join(lambda: [pool.submit(make_unopenable)]).exception(timeout=30)
    assert error is not None
    assert "no number" in str(error)


@live
def test_callbacks_of_a_join_are_called_once(pool: HPCPoolExecutor):
    called: list[Any] = []
    future = pool.join(squares, pool, 3)
    future.add_done_callback(called.append)
    future.result(timeout=30)
    assert wait_until(lambda: called == [future], timeout_s=30)


@live
def test_a_failed_join_does_not_keep_its_arguments_alive(pool: HPCPoolExecutor):
    class Big:
        pass

    def fail(big: Any) -> None:
        raise KeyError

    big = Big()
    reference = weakref.ref(big)
    gc.disable()
    try:
        future = pool.join(fail, big)
        with pytest.raises(KeyError):
            future.result(timeout=30)
        del big, future
        assert wait_until(lambda: reference() is None, timeout_s=30)
    finally:
        gc.enable()


# The end of the pool


@live
def test_leaving_the_block_finishes_joins():
    with HPCPoolExecutor(1) as pool:
        future = pool.join(squares, pool, pool.submit(int, "4"))
        nested = pool.join(lambda: pool.join(squares, pool, pool.submit(int, "3")))
    assert future.result(timeout=0) == [0, 1, 4, 9]
    assert nested.result(timeout=0) == [0, 1, 4]
    for join in (pool.join, pool.options(name="x").join):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            join(squares, pool, 1)


@live
def test_an_executor_that_is_dropped_finishes_its_joins():
    pool: HPCPoolExecutor | None = HPCPoolExecutor(1)
    future = pool.join(lambda text: int(text), pool.submit(str, 5))
    del pool
    assert future.result(timeout=30) == 5


@live
def test_shutdown_can_cancel_joins_that_wait(gate: Gate):
    pool = HPCPoolExecutor(1)
    never: Future[int] = Future()
    running = pool.join(lambda: [pool.submit(pass_gate, gate.path)])
    waiting = [pool.join(abs, never), pool.join(abs, pool.submit(abs, never)), pool.submit(abs, never)]
    assert wait_until(running.running, timeout_s=30)
    pool.shutdown(wait=False, cancel_futures=True)
    assert wait_until(lambda: all(future.cancelled() for future in waiting), timeout_s=30)
    gate.open()
    pool.shutdown()
    assert running.done()


@live
def test_a_closed_view_waits_for_its_joins_and_takes_no_more(pool: HPCPoolExecutor):
    with pool.options(priority=1) as view:
        future = view.join(squares, pool, 3)
    assert future.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        view.join(squares, pool, 3)
    assert pool.join(squares, pool, 2).result(timeout=30) == [0, 1]


@live
def test_killed_workers_fail_a_join(gate: Gate):
    pool = HPCPoolExecutor(1)
    running = pool.join(lambda: [pool.submit(pass_gate, gate.path)])
    waiting = pool.join(abs, pool.submit(pass_gate, gate.path))
    assert wait_until(running.running, timeout_s=30)
    pool.kill_workers()
    for future in (running, waiting):
        assert "kill_workers" in str(future.exception(timeout=30))


@live
@pytest.mark.parametrize("has_begun", [False, True], ids=["waiting", "its function has returned"])
def test_a_cancelled_join_is_done_for_those_who_wait(pool: HPCPoolExecutor, gate: Gate, has_begun: bool):
    held = pool.submit(pass_gate, gate.path)
    future = pool.join(lambda value: value, held) if not has_begun else pool.join(lambda: held)
    if has_begun:
        wait_until(lambda: future.running(), timeout_s=30)
    is_cancelled = future.cancel()
    assert is_cancelled is not has_begun
    if is_cancelled:
        assert wait([future], timeout=30).not_done == set()
        assert list(as_completed([future], timeout=30)) == [future]
    gate.open()
    assert wait([future, held], timeout=30).not_done == set()


@live
def test_the_function_of_a_join_runs_in_the_callers_context(pool: HPCPoolExecutor):
    with decimal.localcontext(prec=5):
        future = pool.join(lambda number: str(decimal.Decimal(1) / number), pool.submit(int, "3"))
    assert future.result(timeout=30) == "0.33333"


# Cycles


@live
def test_a_join_that_would_wait_for_itself_fails(pool: HPCPoolExecutor, gate: Gate):
    made: list[Future[Any]] = []

    def gives(index: int) -> Any:
        pass_gate(gate.path)
        return [made[index]]

    made += [pool.join(gives, 0)]  # its own
    made += [pool.join(gives, 2), pool.join(gives, 1)]  # each other's
    made += [pool.join(gives, 4)]
    made += [pool.submit(len, [made[3]])]  # a call that waits for the join
    gate.open()
    assert not wait(made, 60).not_done
    for cycle in ((0,), (1, 2), (3,)):
        errors = [made[index].exception() for index in cycle]
        assert any(isinstance(error, ValueError) and "waits for this join" in str(error) for error in errors)


@live
def test_joins_that_share_what_they_wait_for_are_no_cycle(pool: HPCPoolExecutor, gate: Gate):
    slow = pool.submit(pass_gate, gate.path)
    diamonds = [pool.join(lambda: [slow, pool.submit(str, slow)]) for _ in range(3)]
    top = pool.join(lambda *results: [slow, *diamonds], *diamonds)
    gate.open()
    assert len(top.result(60)) == 4


# Long chains


@live
@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_chain_of_joins_of_any_length_falls(pool: HPCPoolExecutor, is_cancelled: bool):
    first: Future[Any] = Future()
    chain: list[Future[Any]] = [first]
    for _ in range(3000):
        chain.append(pool.join(abs, chain[-1]))
    if is_cancelled:
        first.cancel()
        first.set_running_or_notify_cancel()
    else:
        first.set_exception(ValueError("the first"))
    assert not wait(chain, 60).not_done
    if is_cancelled:
        assert all(future.cancelled() for future in chain)
    else:
        error = chain[-1].exception()
        assert isinstance(error, DependencyError)
        assert error.__cause__ is first.exception()


@live
def test_a_chain_of_joins_in_which_somebody_calls_back_falls(pool: HPCPoolExecutor):
    first: Future[Any] = Future()
    chain: list[Future[Any]] = [first]
    called: list[int] = []

    def note_and_raise(number: int) -> None:
        called.append(number)
        raise RuntimeError

    for number in range(500):
        future = pool.join(abs, chain[-1])
        future.add_done_callback(lambda _, number=number: note_and_raise(number))
        chain.append(future)
    first.cancel()
    first.set_running_or_notify_cancel()
    assert not wait(chain, 60).not_done
    assert sorted(called) == list(range(500))


@live
@pytest.mark.parametrize("last", [lambda: 1 // 0, lambda: 7])
def test_a_loop_made_of_joins_has_the_outcome_of_its_last_call(pool: HPCPoolExecutor, last: Any):
    def step(left: int) -> Future[Any]:
        return pool.join(step, left - 1) if left else pool.submit(last)

    future = pool.join(step, 1000)
    assert not wait([future], 60).not_done
    if isinstance(future.exception(), ZeroDivisionError):
        assert pool.submit(abs, future).exception(60).__cause__ is future.exception()
    else:
        assert future.result() == 7


@live
def test_the_error_of_a_loop_of_joins_and_calls_can_be_opened(pool: HPCPoolExecutor):
    def step(left: int) -> Future[Any]:
        return pool.submit(abs, pool.join(step, left - 1)) if left else pool.submit(lambda: 1 // 0)

    future = pool.join(step, 500)
    assert not wait([future], 60).not_done
    error = future.exception()
    assert isinstance(error, DependencyError)
    assert isinstance(error.__cause__, ZeroDivisionError)
