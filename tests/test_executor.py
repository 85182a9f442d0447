"""What a program sees of `HPCPoolExecutor`; what `ProcessPoolExecutor` shows it too is in test_drop_in."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hpcpool import (
    BrokenPool,
    Config,
    ConfigError,
    ExecutorView,
    HPCPoolExecutor,
    NodePool,
    PayloadError,
    RemoteError,
    TaskFuture,
    TaskInfo,
    TaskKilled,
    TaskTimeout,
    UnsharableError,
    WorkerCrashed,
)
from hpcpool.providers import LocalProvider
from tests.conftest import own_children, wait_until
from tests.gate import Gate, pass_gate
from tests.live.processes import until_heard

pytestmark = pytest.mark.live

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def pool() -> Iterator[HPCPoolExecutor]:
    with HPCPoolExecutor(2) as pool:
        assert list(pool.map(abs, [-1])) == [1]
        yield pool


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with Gate(tmp_path) as gate:
        yield gate


def echo(value: Any) -> Any:
    return value


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def surroundings() -> dict[str, Any]:
    return {
        "cwd": os.getcwd(),
        "path": sys.path,
        "argv": sys.argv,
        "environ": dict(os.environ),
        "stdin": sys.stdin.read(),
    }


def raise_it(error: BaseException) -> None:
    raise error


def count_up(path: str) -> int:
    """Return how often this was called with the same path."""
    with open(path, "a+") as file:
        file.write("x")
        file.flush()
        return os.stat(path).st_size


def fail_until(path: str, times: int, kind: type[Exception] = KeyError) -> int:
    count = count_up(path)
    if count < times:
        raise kind(f"try {count}")
    return count


class Thing:
    """Can be referenced weakly."""


# What is captured at submit


def test_arguments_are_captured_when_they_are_submitted(pool: HPCPoolExecutor, gate: Gate):
    busy = [pool.submit(pass_gate, gate.path) for _ in range(2)]
    numbers, by_name = [1, 2], {"a": [1]}
    futures = [pool.submit(echo, numbers), pool.submit(echo, by_name)]
    numbers.append(3)
    by_name["a"].clear()
    gate.open()
    wait(busy)
    assert [future.result() for future in futures] == [[1, 2], {"a": [1]}]


def test_large_arrays_are_captured_when_they_are_submitted(pool: HPCPoolExecutor):
    numpy = pytest.importorskip("numpy")
    array = numpy.ones(3_000_000)
    part, frozen, buffer = array[::2], array[:], bytearray(b"\1" * 3_000_000)
    frozen.flags.writeable = False
    futures = [pool.submit(numpy.sum, given) for given in [array, part, frozen] * 3]
    other = pool.submit(sum, pickle.PickleBuffer(buffer))
    array[:] = 0
    buffer[:] = bytes(3_000_000)
    assert [future.result() for future in futures] == [3_000_000, 1_500_000, 3_000_000] * 3
    assert other.result() == 3_000_000


def test_a_closure_is_sent_anew_when_it_has_changed(pool: HPCPoolExecutor):
    factor, seen = 1, []

    def multiply(number: int, plus: int = 0) -> tuple[int, int, list[int]]:
        return (number * factor + plus, getattr(multiply, "mark", 0), list(seen))

    assert pool.submit(multiply, 5).result() == (5, 0, [])
    factor = 2
    assert pool.submit(multiply, 5).result() == (10, 0, [])
    seen.append(1)
    assert pool.submit(multiply, 5).result() == (10, 0, [1])
    multiply.__defaults__ = (100,)
    assert pool.submit(multiply, 5).result() == (110, 0, [1])
    factor = 1
    assert pool.submit(multiply, 5).result() == (105, 0, [1])
    multiply.mark = 7  # type: ignore[attr-defined]
    seen.clear()
    assert pool.submit(multiply, 5).result()[0] == 105


def test_functions_that_look_the_same_are_told_apart(pool: HPCPoolExecutor):
    futures = [pool.submit(lambda number=number: number) for number in range(20)]
    assert [future.result() for future in futures] == list(range(20))
    futures = []
    for number in range(20):
        futures.append(pool.submit(lambda: number))  # noqa: B023 - it is captured here, unlike at home
    assert [future.result() for future in futures] == list(range(20))


def test_a_function_that_was_made_again_is_the_new_one(pool: HPCPoolExecutor):
    results = []
    for number in range(3):
        namespace: dict[str, Any] = {"__name__": "nowhere"}
        exec(f"def again(): return {number}", namespace)
        results.append(pool.submit(namespace["again"]).result())
        del namespace
        gc.collect()
    assert results == [0, 1, 2]


def test_local_classes_go_out_and_come_back_as_themselves(pool: HPCPoolExecutor):
    @dataclasses.dataclass
    class Point:
        x: int

        def moved(self) -> Any:
            return type(self)(self.x + 1)

    moved = pool.submit(Point(1).moved).result()
    assert type(moved) is Point
    assert moved == Point(2)
    assert pool.submit(echo, Point).result() is Point


# Results


@pytest.mark.parametrize("size", [16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 64 * 1024, 5 * MIB])
def test_arrays_of_any_size_come_back_and_can_be_written_to(pool: HPCPoolExecutor, size: int):
    numpy = pytest.importorskip("numpy")
    array = pool.submit(numpy.negative, numpy.full(size, 3, dtype=numpy.int8)).result()
    assert array.shape == (size,)
    assert (array == -3).all()
    array += 1
    assert (array == -2).all()


def test_an_argument_can_be_written_to_in_the_call(pool: HPCPoolExecutor):
    numpy = pytest.importorskip("numpy")

    def fill(array: Any) -> Any:
        array[:] = 7
        return array.sum()

    for size in (10, 20_000, 2_000_000):
        assert pool.submit(fill, numpy.zeros(size)).result() == 7 * size


def test_several_arrays_large_and_small_go_together(pool: HPCPoolExecutor):
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(size) for size in (0, 1, 2047, 2048, 2049, 100_000, 5)]
    returned = pool.submit(echo, {"arrays": arrays, "again": arrays[5]}).result()
    assert all((a == b).all() for a, b in zip(arrays, returned["arrays"], strict=True))
    assert returned["again"] is returned["arrays"][5]


def test_sixty_four_mebibytes_go_there_and_back(pool: HPCPoolExecutor):
    data = random.Random(1).randbytes(64 * MIB)
    wait([pool.submit(abs, 1)])
    time.sleep(0.05)  # the pool must be idle: then the caller's thread itself sends, and cannot send it all
    future = pool.submit(echo, data)
    assert future.result(timeout=60) == data


def test_many_large_arguments_wait_for_room(pool: HPCPoolExecutor):
    data = bytes(8 * MIB)
    futures = [pool.submit(len, data) for _ in range(20)]
    assert {future.result(timeout=60) for future in futures} == {8 * MIB}


def test_the_result_is_always_the_same_object(pool: HPCPoolExecutor):
    future = pool.submit(list, "abc")
    assert future.result() is future.result()


# Errors


def test_the_traceback_shows_the_frames_of_the_call(pool: HPCPoolExecutor):
    future = pool.submit(raise_it, KeyError("far away"))
    try:
        future.result()
    except KeyError as error:
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[-1] == "raise_it"
    assert "test_the_traceback_shows_the_frames_of_the_call" in names
    assert not any("hpcpool/processes/worker.py" in line for line in traceback.format_exception(future.exception()))


class BadArguments(Exception):
    """Cannot be rebuilt from its `args`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__("with a lock", threading.Lock())
        self.number = 5
        self.lock = threading.Lock()


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class False_(Exception):
    def __bool__(self) -> bool:
        return False


class ExitsWhenOpened(Exception):
    def __reduce__(self) -> Any:
        return (sys.exit, (3,))


def raise_about(thing: Any) -> None:
    raise BadArguments(1, type(thing).__name__)


def raise_own(name: str) -> None:
    errors: dict[str, Any] = {"arguments": lambda: BadArguments(7, "seven"), "lock": HoldsLock, "text": NoText}
    raise errors[name]()


def raise_group() -> None:
    error = ExceptionGroup("several", [ValueError(1), ExceptionGroup("inner", [KeyError("k")])])
    error.add_note("a note")
    raise error


def raise_from_nowhere() -> None:
    class Local(ValueError):
        pass

    raise Local("local")


def raise_with_module_that_is_not_here() -> None:
    error = type("Elsewhere", (Exception,), {"__module__": "no_such_module"})
    sys.modules["no_such_module"] = module = type(sys)("no_such_module")
    module.Elsewhere = error  # type: ignore[attr-defined]
    raise error("from elsewhere")


def test_an_exception_that_does_not_fit_its_arguments_comes_back_whole(pool: HPCPoolExecutor):
    error = pool.submit(raise_own, "arguments").exception()
    assert type(error) is BadArguments
    assert (error.code, error.text, str(error)) == (7, "seven", "7: seven")


def test_of_an_exception_that_cannot_be_pickled_the_rest_comes_back(pool: HPCPoolExecutor):
    error = pool.submit(raise_own, "lock").exception()
    assert type(error) is HoldsLock
    assert error.args[0] == "with a lock"
    assert error.number == 5
    assert "lock" in str(error.lock)
    assert "raise_own" in str(error.__cause__)


def test_an_exception_without_a_text_comes_back(pool: HPCPoolExecutor):
    error = pool.submit(raise_own, "text").exception()
    assert type(error) is NoText
    assert type(error.__cause__) is _RemoteTraceback


def test_an_exception_that_is_false_is_an_exception(pool: HPCPoolExecutor):
    future = pool.submit(raise_it, False_("false"))
    with pytest.raises(False_):
        future.result()
    assert type(future.exception()) is False_
    assert wait([future], return_when="FIRST_EXCEPTION").done == {future}


def test_groups_of_exceptions_come_back(pool: HPCPoolExecutor):
    error = pool.submit(raise_group).exception()
    assert isinstance(error, ExceptionGroup)
    assert [type(inner) for inner in error.exceptions] == [ValueError, ExceptionGroup]
    assert error.__notes__ == ["a note"]


def test_an_exception_of_a_local_class_comes_back_as_what_it_inherits(pool: HPCPoolExecutor):
    error = pool.submit(raise_from_nowhere).exception()
    assert isinstance(error, ValueError)
    assert type(error).__name__ == "Local"
    assert str(error) == "local"


def test_an_exception_that_cannot_be_rebuilt_here_becomes_a_faithful_surrogate(pool: HPCPoolExecutor):
    error = pool.submit(raise_with_module_that_is_not_here).exception()
    assert type(error) is RemoteError
    assert error.type_name == "no_such_module.Elsewhere"
    assert "no_such_module.Elsewhere: from elsewhere" in str(error)
    assert "raise_with_module_that_is_not_here" in error.traceback_text
    assert type(error.__cause__) is _RemoteTraceback


def test_an_exception_that_exits_when_it_is_opened_does_not_end_the_program(pool: HPCPoolExecutor):
    future = pool.submit(raise_it, ExitsWhenOpened("x"))
    error = future.exception()
    assert isinstance(error, Exception)
    assert future.exception() is error
    assert pool.submit(abs, -1).result() == 1


def test_an_error_with_a_very_long_traceback_comes_back(pool: HPCPoolExecutor):
    def dive(depth: int) -> int:
        return 1 // depth + dive(depth - 1)

    error = pool.submit(dive, 400).exception()
    assert type(error) is ZeroDivisionError
    assert type(pool.submit(dive, 100_000).exception()) is RecursionError
    assert pool.submit(abs, -1).result() == 1


class OpensBadly:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return (raise_it, (self.error,))


@pytest.mark.parametrize("kind", [ValueError, SystemExit, pickle.UnpicklingError])
def test_an_argument_that_cannot_be_opened_fails_only_its_call(pool: HPCPoolExecutor, kind: type[BaseException]):
    error = pool.submit(echo, OpensBadly(kind("badly"))).exception()
    assert type(error) is PayloadError
    assert isinstance(error, BrokenProcessPool)
    assert f"{kind.__qualname__}: badly" in str(error)
    assert type(error.__cause__) is _RemoteTraceback
    assert pool.submit(abs, -1).result() == 1


@pytest.mark.parametrize("kind", [ValueError, SystemExit, pickle.UnpicklingError])
def test_a_result_that_cannot_be_opened_fails_only_its_call(pool: HPCPoolExecutor, kind: type[BaseException]):
    future = pool.submit(OpensBadly, kind("badly"))
    error = future.exception()
    assert type(error) is PayloadError
    assert f"{kind.__qualname__}: badly" in str(error)
    assert future.exception() is error
    assert pool.submit(abs, -1).result() == 1


def test_an_argument_that_is_too_deep_fails_only_its_call(pool: HPCPoolExecutor):
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    error = pool.submit(echo, deep).exception()
    while deep:
        deep = deep[0]  # or freeing it would recurse
    assert isinstance(error, (RecursionError, pickle.PicklingError))
    assert pool.submit(abs, -1).result() == 1


@pytest.mark.parametrize("what", ["Lock", "RLock", "Event", "Semaphore", "Condition", "Queue", "Barrier"])
def test_what_only_children_can_share_is_an_error_that_names_the_way_out(pool: HPCPoolExecutor, what: str):
    context = multiprocessing.get_context("spawn")
    shared = getattr(context, what)(*((2,) if what == "Barrier" else ()))
    error = pool.submit(echo, [shared]).exception()
    assert type(error) is UnsharableError
    assert isinstance(error, RuntimeError)
    assert "multiprocessing.Manager()" in str(error)
    if what == "Queue":
        shared.close()
        shared.join_thread()
    assert pool.submit(abs, -1).result() == 1


def test_a_pipe_end_is_an_error_that_names_the_way_out(pool: HPCPoolExecutor):
    ends = multiprocessing.Pipe()
    try:
        for value in ends[0], {"ends": ends}:
            error = pool.submit(echo, value).exception()
            assert type(error) is UnsharableError
            assert "a Connection of multiprocessing.connection cannot reach a worker" in str(error)
        ends[0].send(1)  # still in order here
        assert ends[1].recv() == 1
        assert pool.submit(abs, -1).result() == 1
    finally:
        for end in ends:
            end.close()


def test_the_error_of_pickling_names_the_part_that_cannot_be_pickled(pool: HPCPoolExecutor):
    error = pool.submit(echo, 1, {"cfg": [threading.Lock()]}).exception()
    assert type(error) is TypeError
    assert error.__notes__ == [
        "hpcpool: what cannot be pickled is argument 2, its item 'cfg', its item 0 (of type lock)"
    ]


def test_proxies_of_a_manager_are_shared(pool: HPCPoolExecutor):
    with multiprocessing.get_context("spawn").Manager() as manager:
        queue, shared = manager.Queue(), manager.dict()
        pool.submit(queue.put, 5).result()
        pool.submit(shared.update, {"a": 1}).result()
        assert queue.get(timeout=30) == 5
        assert dict(shared) == {"a": 1}


# Futures


def test_a_future_cannot_be_pickled_and_says_why(pool: HPCPoolExecutor):
    with pytest.raises(TypeError, match="argument of submit"):
        pickle.dumps(pool.submit(abs, 1))


def test_futures_are_of_our_class_and_of_the_standard_one(pool: HPCPoolExecutor):
    future = pool.submit(abs, -1)
    assert isinstance(future, TaskFuture)
    assert isinstance(future, Future)
    assert future == future
    assert len({future, pool.submit(abs, -1)}) == 2
    assert future.result() == 1
    assert repr(future).startswith("<TaskFuture at 0x")
    assert "finished" in repr(future)


def test_cancelling_is_quick_and_wakes_those_who_wait(pool: HPCPoolExecutor, gate: Gate):
    busy = [pool.submit(pass_gate, gate.path) for _ in range(2)]
    assert wait_until(lambda: all(future.running() for future in busy), timeout_s=30)
    futures = [pool.submit(abs, n) for n in range(1000)]
    start = time.monotonic()
    assert all(future.cancel() for future in futures)
    assert time.monotonic() - start < 20
    assert wait(futures, timeout=30).not_done == set()
    gate.open()
    wait(busy)


def test_a_quick_call_is_cancelled_or_it_runs_but_never_both(pool: HPCPoolExecutor):
    for _ in range(200):
        future = pool.submit(abs, -1)
        if future.cancel():
            assert future.cancelled()
            with pytest.raises(CancelledError):
                future.result(timeout=30)
        else:
            assert future.result(timeout=30) == 1


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_cannot_end_the_pools_thread(
    pool: HPCPoolExecutor, gate: Gate, caplog: Any, kind: type[BaseException]
):
    called = threading.Event()

    def stop(future: Future[Any]) -> None:
        raise kind("in a callback")

    future = pool.submit(pass_gate, gate.path)
    future.add_done_callback(stop)
    future.add_done_callback(lambda future: called.set())
    gate.open()
    assert called.wait(30)
    assert pool.submit(abs, -1).result(timeout=30) == 1
    assert [record.getMessage() for record in caplog.records] == [f"exception calling callback for {future!r}"]


def test_a_callback_may_look_at_wait_for_and_cancel_other_futures(pool: HPCPoolExecutor, gate: Gate):
    looked: list[Any] = []
    finished = threading.Event()
    done = pool.submit(abs, -1)
    wait([done])

    def look(future: Future[Any]) -> None:
        looked.append((future.result(), done.result(), pool.submit(abs, -2).cancel()))
        finished.set()

    future = pool.submit(pass_gate, gate.path)
    future.add_done_callback(look)
    gate.open()
    assert finished.wait(30)
    assert looked == [("", 1, True)]


def test_a_future_knows_what_became_of_its_call(pool: HPCPoolExecutor, gate: Gate):
    before = time.time()
    path: Future[str] = Future()
    future = pool.options(name="named").submit(pass_gate, path)
    early = future.info  # it cannot run yet
    assert (early.name, early.attempt, early.host, early.pid) == ("named", 1, None, None)
    assert (early.started_at, early.ended_at, early.cpu_s, early.peak_memory_bytes) == (None, None, None, None)
    assert early.queued_at is not None
    assert before - 1 <= early.queued_at <= time.time() + 1
    path.set_result(gate.path)
    assert wait_until(future.running, timeout_s=30)
    gate.open()
    future.result()
    info = future.info
    assert isinstance(info, TaskInfo)
    assert info.host
    assert info.pid not in (None, os.getpid())
    assert info.started_at is not None
    assert info.ended_at is not None
    assert before - 1 <= info.queued_at <= info.started_at <= info.ended_at <= time.time() + 1  # type: ignore[operator]
    assert info.cpu_s is not None
    assert 0 <= info.cpu_s < 5
    assert info.peak_memory_bytes is not None
    assert 5 * MIB < info.peak_memory_bytes < 4096 * MIB
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.name = "other"  # type: ignore[misc]


def test_the_name_is_that_of_the_function(pool: HPCPoolExecutor):
    assert pool.submit(echo, 1).info.name == "echo"
    assert pool.submit(functools.partial(functools.partial(echo), 1)).info.name == "echo"
    assert pool.submit("abc".upper).info.name == "str.upper"
    assert pool.submit(Thing).info.name == "Thing"
    assert pool.submit(lambda: 1).info.name.endswith("<lambda>")


def test_the_name_of_a_bash_call_is_short_and_names_its_futures(pool: HPCPoolExecutor):
    number = pool.submit(int, "3")
    assert pool.bash(["echo", number, 4]).info.name == "bash(echo <int> 4)"
    long = pool.bash(["true", *map(str, range(1000))])
    assert re.fullmatch(r"bash\(true 0 1 2 .*…\)", long.info.name)
    assert len(long.info.name) < 70
    assert long.result().returncode == 0


def test_the_cpu_time_of_a_call_is_its_own(pool: HPCPoolExecutor):
    def burn(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    busy = pool.submit(burn, 0.2)
    busy.result()
    idle = pool.submit(time.sleep, 0.05)  # for which a worker imports nothing
    idle.result()
    assert 0.19 <= busy.info.cpu_s < 1.0  # type: ignore[operator]
    assert idle.info.cpu_s < 0.1  # type: ignore[operator]


def test_also_a_failed_call_tells_where_it_ran(pool: HPCPoolExecutor):
    future = pool.submit(int, "x")
    wait([future])
    assert future.info.pid is not None
    assert future.info.started_at is not None


def test_a_running_call_can_be_killed(pool: HPCPoolExecutor, gate: Gate):
    future = pool.submit(pass_gate, gate.path)
    assert wait_until(future.running, timeout_s=30)
    assert future.kill()
    error = future.exception(timeout=30)
    assert type(error) is TaskKilled
    assert "pass_gate" in str(error)
    assert not future.kill()
    assert pool.submit(abs, -1).result(timeout=30) == 1


def test_killing_a_call_that_waits_cancels_it(pool: HPCPoolExecutor, gate: Gate):
    busy = [pool.submit(pass_gate, gate.path) for _ in range(4)]
    future = pool.submit(abs, 1)
    assert future.kill()
    assert future.cancelled()
    gate.open()
    wait(busy)


# Options


def test_a_view_is_an_executor_on_the_same_pool(pool: HPCPoolExecutor):
    view = pool.options(retries=1, name="viewed")
    assert isinstance(view, Executor)
    assert isinstance(view, ExecutorView)
    assert view._max_workers == 2
    assert list(view.map(abs, [-1, -2])) == [1, 2]
    pids = {view.submit(os.getpid).result() for _ in range(4)} | {pool.submit(os.getpid).result() for _ in range(4)}
    assert len(pids) <= 2


def test_views_nest(pool: HPCPoolExecutor):
    view = pool.options(name="outer", retries=2).options(priority=1).options(name="inner")
    assert view.submit(abs, 1).info.name == "inner"
    assert repr(view) == f"<view of {pool!r} with {{'retries': 2, 'priority': 1, 'name': 'inner'}}>"


def test_closing_a_view_waits_for_its_calls_and_closes_only_the_view(pool: HPCPoolExecutor, gate: Gate):
    other = pool.submit(pass_gate, gate.path)
    with pool.options(name="x") as view:
        futures = [view.submit(nap, 0.05) for _ in range(3)]
    assert all(future.done() for future in futures)
    assert not other.done()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        view.submit(abs, 1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        view.map(abs, [1])
    assert pool.submit(abs, -1).result() == 1
    gate.open()
    other.result()


def test_closing_a_view_can_cancel_its_calls_and_no_others(pool: HPCPoolExecutor, gate: Gate):
    busy = [pool.submit(pass_gate, gate.path) for _ in range(4)]
    view = pool.options(priority=-1)
    mine = [view.submit(abs, n) for n in range(10)]
    view.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in mine)
    gate.open()
    assert not any(future.cancelled() for future in wait(busy).done)


def test_a_view_can_be_closed_in_a_callback_and_while_results_come(pool: HPCPoolExecutor):
    closed = threading.Event()
    view = pool.options(name="x")
    futures = [view.submit(abs, n) for n in range(2000)]
    futures[1000].add_done_callback(lambda future: (view.shutdown(), closed.set()))
    view.shutdown()
    assert closed.wait(30)
    assert all(future.done() for future in futures)


def test_asyncio_takes_a_view_as_its_executor(pool: HPCPoolExecutor):
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool.options(retries=1), abs, -n) for n in range(5)))

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


def test_a_call_that_fails_is_run_again_as_often_as_it_may(pool: HPCPoolExecutor, tmp_path: Path):
    future = pool.options(retries=3).submit(fail_until, str(tmp_path / "a"), 3)
    assert future.result() == 3
    assert future.info.attempt == 3
    future = pool.options(retries=1).submit(fail_until, str(tmp_path / "b"), 3)
    error = future.exception()
    assert type(error) is KeyError
    assert error.args == ("try 2",)
    assert future.info.attempt == 2
    assert type(pool.submit(fail_until, str(tmp_path / "c"), 3).exception()) is KeyError
    assert (tmp_path / "c").read_text() == "x"


@pytest.mark.parametrize(
    ("retry_on", "runs"),
    [
        (KeyError, 3),
        (LookupError, 3),
        ((OSError, KeyError), 3),
        (OSError, 1),
        ((), 1),
        (lambda error: "try 1" in str(error), 2),
        (lambda error: error.args == ("try 1",), 2),
    ],
    ids=["class", "base", "several", "other", "none", "function", "function-of-arguments"],
)
def test_only_some_failures_are_retried(pool: HPCPoolExecutor, tmp_path: Path, retry_on: Any, runs: int):
    future = pool.options(retries=5, retry_on=retry_on).submit(fail_until, str(tmp_path / "a"), 3)
    assert bool(future.exception()) == (runs < 3)
    assert (tmp_path / "a").read_text() == "x" * runs


def test_a_retry_function_that_raises_fails_the_call_and_shows_both_errors(pool: HPCPoolExecutor):
    for kind in (ZeroDivisionError, SystemExit):
        error = pool.options(retries=1, retry_on=lambda error, kind=kind: raise_it(kind())).submit(int, "x").exception()
        assert type(error) is kind
        assert type(error.__cause__) is ValueError
    assert pool.submit(abs, -1).result() == 1


def test_a_retry_function_may_wait_and_does_not_hold_up_other_calls(pool: HPCPoolExecutor, tmp_path: Path):
    is_asked, may_go_on = threading.Event(), threading.Event()

    def ask(error: BaseException) -> bool:
        is_asked.set()
        return may_go_on.wait(60)

    future = pool.options(retries=2, retry_on=ask).submit(fail_until, str(tmp_path / "a"), 2)
    try:
        assert is_asked.wait(60)
        assert pool.submit(abs, -1).result(timeout=60) == 1
        assert not future.done()
    finally:
        may_go_on.set()
    assert future.result(timeout=60) == 2


def test_a_retry_function_may_use_the_pool(pool: HPCPoolExecutor, tmp_path: Path):
    def ask(error: BaseException) -> bool:
        return pool.submit(int, "1").result(timeout=60) == 1

    future = pool.options(retries=2, retry_on=ask).submit(fail_until, str(tmp_path / "a"), 2)
    assert future.result(timeout=60) == 2


def test_the_end_of_a_pool_waits_for_a_retry_function(tmp_path: Path):
    is_asked, may_go_on = threading.Event(), threading.Event()

    def ask(error: BaseException) -> bool:
        is_asked.set()
        return may_go_on.wait(60)

    pool = HPCPoolExecutor(1)
    future = pool.options(retries=1, retry_on=ask).submit(fail_until, str(tmp_path / "a"), 2)
    assert is_asked.wait(60)
    pool.shutdown(wait=False)
    assert not future.done()
    may_go_on.set()
    pool.shutdown()
    assert future.result(timeout=0) == 2


def test_a_retried_call_has_its_arguments_again(pool: HPCPoolExecutor, tmp_path: Path):
    def check(path: str, data: bytes, number: int) -> int:
        fail_until(path, 3)
        return len(data) + number

    future = pool.options(retries=2).submit(check, str(tmp_path / "a"), bytes(2 * MIB), pool.submit(abs, -1))
    assert future.result() == 2 * MIB + 1


def test_an_exit_is_not_retried_unless_asked_for(pool: HPCPoolExecutor, tmp_path: Path):
    path = str(tmp_path / "a")

    def leave() -> None:
        count_up(path)
        raise SystemExit(3)

    assert type(pool.options(retries=2).submit(leave).exception()) is SystemExit
    assert type(pool.options(retries=2, retry_on=SystemExit).submit(leave).exception()) is SystemExit
    assert Path(path).read_text() == "x" * 4


def test_a_call_that_takes_too_long_is_ended_with_all_that_it_started(pool: HPCPoolExecutor, tmp_path: Path):
    def start_and_wait(path: str) -> None:
        child = subprocess.Popen(["sleep", "600"])
        Path(path).write_text(str(child.pid))
        child.wait()

    path = tmp_path / "pid"
    start = time.monotonic()
    future = pool.options(timeout=0.7, name="slow").submit(start_and_wait, str(path))
    with pytest.raises(TimeoutError) as raised:
        future.result(timeout=30)
    assert type(raised.value) is TaskTimeout
    assert time.monotonic() - start > 0.6
    assert "slow" in str(raised.value)
    if path.exists() and (pid := path.read_text()):  # on a loaded machine the time may be over before
        assert wait_until(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid), timeout_s=30)
    assert pool.submit(abs, -1).result(timeout=30) == 1


def is_zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # it has just gone
        return True


def test_waiting_for_a_worker_is_not_part_of_the_time(pool: HPCPoolExecutor, gate: Gate):
    busy = [pool.submit(pass_gate, gate.path) for _ in range(2)]
    assert wait_until(lambda: all(future.running() for future in busy), timeout_s=30)
    future = pool.options(timeout=3).submit(abs, -1)
    with pytest.raises(TimeoutError):
        future.result(timeout=3.5)
    assert not future.done()
    gate.open()
    assert future.result(timeout=30) == 1


def test_a_timeout_can_be_retried(pool: HPCPoolExecutor, tmp_path: Path):
    path = str(tmp_path / "a")

    def slow_at_first() -> int:
        count = count_up(path)
        if count == 1:
            time.sleep(60)
        return count

    assert pool.options(timeout=4, retries=3).submit(slow_at_first).result(timeout=60) >= 2


def test_crashes_have_a_limit_of_their_own(pool: HPCPoolExecutor, tmp_path: Path):
    path = str(tmp_path / "a")

    def crash_twice() -> int:
        count = count_up(path)
        if count < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    future = pool.options(crash_limit=3).submit(crash_twice)
    assert future.result(timeout=60) == 3
    assert future.info.attempt == 3
    Path(path).unlink()
    with pytest.raises(WorkerCrashed, match="SIGKILL"):
        pool.options(retries=5).submit(crash_twice).result(timeout=60)
    assert Path(path).read_text() == "x"


def test_the_higher_priority_goes_first_and_equals_in_order(tmp_path: Path):
    path = str(tmp_path / "order")

    def note(text: str) -> None:
        with open(path, "a") as file:
            file.write(text + " ")

    with Gate(tmp_path) as gate, HPCPoolExecutor(1) as pool:
        busy = pool.submit(pass_gate, gate.path)
        assert wait_until(busy.running, timeout_s=30)
        for number, priority in enumerate([0, -5, 7, 0, 7, 3]):
            pool.options(priority=priority).submit(note, f"{priority}:{number}")
        until_heard(pool)  # now all of them are where the order is decided
        gate.open()
    assert Path(path).read_text().split() == ["7:2", "7:4", "3:5", "0:0", "0:3", "-5:1"]


# Making one


def test_it_can_be_made_of_a_number_a_path_a_config_a_node_pool_and_a_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "cluster.toml"
    path.write_text("[[node_pools]]\nworkers_per_node = 3\n")
    node_pool = NodePool(LocalProvider(), workers_per_node=5)
    made = [
        HPCPoolExecutor(4),
        HPCPoolExecutor(str(path)),
        HPCPoolExecutor(path),
        HPCPoolExecutor(Config(node_pool)),
        HPCPoolExecutor(node_pool),
        HPCPoolExecutor(LocalProvider(), max_workers=6),
        HPCPoolExecutor(path, max_workers=7),
    ]
    monkeypatch.setenv("HPCPOOL_CONFIG", str(path))
    made += [HPCPoolExecutor(), HPCPoolExecutor(max_workers=2), HPCPoolExecutor(8)]
    monkeypatch.delenv("HPCPOOL_CONFIG")
    made += [HPCPoolExecutor()]
    cores = len(os.sched_getaffinity(0))
    assert [pool._max_workers for pool in made] == [4, 3, 3, 5, 5, 6, 7, 3, 2, 8, cores]


def test_a_number_by_position_and_by_name_is_one_too_many():
    with pytest.raises(TypeError, match="max_workers is given twice"):
        HPCPoolExecutor(4, max_workers=4)


@pytest.mark.parametrize("config", [2.5, [], object(), b"4"], ids=["float", "list", "object", "bytes"])
def test_what_is_no_configuration_is_an_error_at_once(config: Any):
    with pytest.raises((ConfigError, TypeError)):
        HPCPoolExecutor(config)


def test_a_configuration_that_is_not_there_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        HPCPoolExecutor(tmp_path / "missing.toml")
    monkeypatch.setenv("HPCPOOL_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(ConfigError, match="HPCPOOL_CONFIG"):
        HPCPoolExecutor()


def test_a_run_dir_that_is_not_there_is_named(tmp_path: Path):
    folder = tmp_path / "none"
    problem = rf"^run_dir '{re.escape(str(folder))}' cannot be used: No such file"
    with HPCPoolExecutor(Config(run_dir=folder)) as pool, pytest.raises(ConfigError, match=problem):
        pool.submit(abs, -1)
    assert not folder.exists()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="PYTHON_CPU_COUNT is of Python 3.13")
def test_the_environment_can_say_how_many_cores_there_are():
    code = "from hpcpool import HPCPoolExecutor\nprint(HPCPoolExecutor()._max_workers)"
    for options, environment, expected in (([], {"PYTHON_CPU_COUNT": "3"}, "3"), (["-X", "cpu_count=5"], {}, "5")):
        done = subprocess.run(
            [sys.executable, *options, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.strip() == expected


def test_one_that_is_not_used_starts_nothing():
    threads, children = set(threading.enumerate()), own_children()
    pools = [HPCPoolExecutor(2) for _ in range(50)]
    assert set(threading.enumerate()) <= threads
    assert own_children() <= children
    for pool in pools:
        pool.shutdown()
        pool.shutdown(cancel_futures=True)
        pool.kill_workers()
    assert set(threading.enumerate()) <= threads
    assert own_children() <= children


def test_its_text_says_how_it_is():
    pool = HPCPoolExecutor(1)
    assert repr(pool) == "<HPCPoolExecutor max_workers=1 open>"
    pool.shutdown()
    assert repr(pool) == "<HPCPoolExecutor max_workers=1 shut down>"


def test_the_standard_start_method_is_not_changed_in_workers(pool: HPCPoolExecutor):
    def start_method() -> str | None:
        return multiprocessing.get_start_method()

    assert pool.submit(start_method).result() == multiprocessing.get_start_method()
    assert pool._mp_context.get_start_method() == multiprocessing.get_start_method()


def test_the_initializer_of_each_worker_shares_the_globals_of_calls(tmp_path: Path):
    pool = HPCPoolExecutor(1, initializer=remember, initargs=([1, 2],))
    with pool:
        assert pool.submit(remembered).result() == [1, 2]
        assert pool.submit(lambda: remembered()).result() == [1, 2]


_memory: list[Any] = []


def remember(value: list[Any]) -> None:
    _memory.extend(value)


def remembered() -> list[Any]:
    return _memory


def test_an_initializer_that_fails_tells_every_call_why(gate: Gate):
    def fail(path: str, text: str) -> None:
        pass_gate(path)
        raise OSError(text)

    with HPCPoolExecutor(1, initializer=fail, initargs=(gate.path, "no disk")) as pool:
        futures = [pool.submit(abs, n) for n in range(5)]
        gate.open()
        errors = [future.exception(timeout=30) for future in futures]
        assert {type(error) for error in errors} == {BrokenPool}
        assert len({id(error) for error in errors}) == 5
        assert "OSError: no disk" in str(errors[0])
        assert "in fail" in str(errors[0].__cause__)  # type: ignore[union-attr]
        with pytest.raises(BrokenPool, match="no disk"):
            pool.submit(abs, 1)
        assert "broken" in repr(pool)


@pytest.mark.parametrize(
    ("made", "kind"),
    [(threading.Lock, TypeError), (multiprocessing.get_context("spawn").Lock, UnsharableError)],
    ids=["thread", "process"],
)
def test_an_initializers_argument_that_cannot_be_pickled_is_named(made: Any, kind: type[Exception]):
    with HPCPoolExecutor(1, initializer=echo, initargs=(made(),)) as pool:
        for _ in range(2):
            with pytest.raises(kind) as caught:
                pool.submit(abs, -1)
            assert "while initializer and initargs were pickled for the workers" in caught.value.__notes__[-1]


def test_workers_have_the_programs_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OF_THE_PROGRAM", "yes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "module_of_the_program.py").write_text("def answer():\n    return 42\n")
    from module_of_the_program import answer  # type: ignore[import-not-found]

    with HPCPoolExecutor(1) as pool:
        seen = pool.submit(surroundings).result()
        assert pool.submit(answer).result() == 42
    assert seen["cwd"] == str(tmp_path)
    assert seen["environ"]["OF_THE_PROGRAM"] == "yes"
    assert seen["argv"] == sys.argv
    assert [entry for entry in seen["path"] if entry] == [entry for entry in sys.path if entry]
    assert seen["stdin"] == ""


# Several


def test_executors_do_not_disturb_each_other(pool: HPCPoolExecutor):
    with HPCPoolExecutor(1) as one, HPCPoolExecutor(1, initializer=remember, initargs=([7],)) as other:
        assert one.submit(remembered).result() == []
        assert other.submit(remembered).result() == [7]
        assert len({executor.submit(os.getpid).result() for executor in (pool, one, other)}) == 3
        with pytest.raises(WorkerCrashed):
            one.submit(os._exit, 3).result(timeout=30)
        assert other.submit(abs, -1).result() == 1
    assert pool.submit(abs, -1).result() == 1


def test_an_executor_can_be_made_in_a_call(pool: HPCPoolExecutor):
    def nested() -> list[int]:
        with HPCPoolExecutor(1) as inner:
            return [*inner.map(abs, [-1, -2]), inner.submit(lambda: 3).result()]

    assert pool.submit(nested).result(timeout=60) == [1, 2, 3]


def test_many_threads_may_submit_at_once(pool: HPCPoolExecutor):
    results: dict[int, list[int]] = {}

    def use(number: int) -> None:
        factor = number
        futures = [pool.submit(lambda n: n * factor, n) for n in range(100)]
        results[number] = [future.result(timeout=60) for future in futures]

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [n * number for n in range(100)] for number in range(8)}


def test_the_first_calls_may_come_from_many_threads_at_once():
    pool = HPCPoolExecutor(1)
    barrier = threading.Barrier(8)
    results: list[int] = []

    def use(number: int) -> None:
        barrier.wait()
        results.append(pool.submit(abs, -number).result(timeout=60))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.shutdown()
    assert sorted(results) == list(range(8))


# The end


def test_shutdown_in_a_callback_ends_the_pool():
    pool = HPCPoolExecutor(1)
    returned = threading.Event()
    future = pool.submit(nap, 0.1)
    rest = [pool.submit(abs, n) for n in range(5)]
    future.add_done_callback(lambda future: (pool.shutdown(wait=True), returned.set()))
    assert returned.wait(30)
    with pytest.raises(RuntimeError, match="cannot schedule"):
        pool.submit(abs, 1)
    pool.shutdown()
    assert [one.result(timeout=0) for one in rest] == list(range(5))


def test_shutdown_may_be_called_by_several_threads_at_once():
    pool = HPCPoolExecutor(1)
    future = pool.submit(nap, 0.1)
    threads = [threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": n % 2 == 1}) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert future.done()


def test_cancelling_at_the_end_keeps_as_many_calls_as_could_be_running(gate: Gate):
    pool = HPCPoolExecutor(2)
    futures = [pool.submit(pass_gate, gate.path) for _ in range(50)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert wait_until(lambda: sum(future.cancelled() for future in futures) >= 40, timeout_s=30)
    gate.open()
    pool.shutdown()
    assert all(future.done() for future in futures)
    assert sum(not future.cancelled() for future in futures) >= 1
    assert {future.result() for future in futures if not future.cancelled()} == {""}


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_workers_can_be_ended(gate: Gate, method: str):
    pool = HPCPoolExecutor(1)
    running = pool.submit(pass_gate, gate.path)
    waiting = [pool.submit(abs, n) for n in range(5)]
    after = pool.submit(abs, running)
    assert wait_until(running.running, timeout_s=30)
    getattr(pool, method)()
    for future in (running, *waiting, after):
        error = future.exception(timeout=0)
        assert isinstance(error, BrokenProcessPool)
        assert method in str(error)
    with pytest.raises(RuntimeError):
        pool.submit(abs, 1)
    getattr(pool, method)()
    pool.kill_workers()
    pool.shutdown()


def test_workers_can_be_ended_after_the_end():
    pool = HPCPoolExecutor(1)
    assert pool.submit(abs, -1).result() == 1
    pool.shutdown()
    pool.terminate_workers()
    pool.kill_workers()


def test_an_executor_that_is_dropped_finishes_and_leaves():
    threads = set(threading.enumerate())
    pool = HPCPoolExecutor(1)
    futures = [pool.submit(nap, 0.02) for _ in range(5)]
    reference = weakref.ref(pool)
    del pool
    assert reference() is None
    assert [future.result(timeout=30) for future in futures] == [0.02] * 5
    assert wait_until(lambda: set(threading.enumerate()) <= threads, timeout_s=20)


def test_an_idle_executor_that_is_dropped_leaves():
    threads = set(threading.enumerate())
    assert HPCPoolExecutor(1).submit(abs, -1).result() == 1
    assert wait_until(lambda: set(threading.enumerate()) <= threads, timeout_s=20)


def test_map_results_do_not_keep_the_executor_alive():
    pool = HPCPoolExecutor(1)
    reference = weakref.ref(pool)
    results = pool.map(abs, range(0, -100, -1))
    del pool
    assert reference() is None
    assert list(results) == list(range(100))


def test_a_function_that_takes_too_much_along_says_so(pool: HPCPoolExecutor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hpcpool.executor._LARGEST_FUNCTION", 100_000)
    data = bytes(200_000)
    error = pool.submit(lambda: len(data)).exception()
    assert isinstance(error, pickle.PicklingError)
    assert "pass large data as arguments" in str(error)
    assert pool.submit(lambda: 1).result() == 1


# What is kept alive


def test_arguments_are_freed_when_they_have_been_sent(pool: HPCPoolExecutor, gate: Gate, no_collector: None):
    thing = Thing()
    thing.number = 5  # type: ignore[attr-defined]
    reference = weakref.ref(thing)
    busy = [pool.submit(pass_gate, gate.path) for _ in range(2)]
    futures = [pool.submit(echo, thing), pool.submit(getattr, thing, "number"), pool.submit(lambda a: a, thing)]
    del thing
    assert wait_until(lambda: reference() is None, timeout_s=30)
    gate.open()
    wait([*busy, *futures])


def test_a_pool_that_has_ended_is_freed(no_collector: None):
    pool = HPCPoolExecutor(1)
    waiting: Future[int] = Future()
    future = pool.submit(echo, waiting)
    waiting.set_result(1)
    assert future.result() == 1
    pool.shutdown()
    client = weakref.ref(pool._client)
    del pool, future, waiting
    assert wait_until(lambda: client() is None, timeout_s=30)


def test_a_result_is_freed_with_its_future(pool: HPCPoolExecutor, no_collector: None):
    future = pool.submit(Thing)
    reference = weakref.ref(future.result())
    of_future = weakref.ref(future)
    pool.submit(abs, 1).result()
    del future
    assert wait_until(lambda: reference() is None and of_future() is None, timeout_s=30)


def test_an_error_does_not_keep_the_arguments(pool: HPCPoolExecutor, no_collector: None):
    thing = Thing()
    future = pool.submit(raise_about, thing)
    reference = weakref.ref(thing)
    error = future.exception()
    assert type(error) is BadArguments
    with suppress(BadArguments):
        future.result()
    del thing
    assert wait_until(lambda: reference() is None, timeout_s=30)


def raise_for_a_reason(number: int) -> None:
    gc.disable()
    thing = Thing()
    _things.append(weakref.ref(thing))
    try:
        raise_about(thing)
    except BadArguments as error:
        reason = error  # a cycle: its traceback has this frame
        raise ValueError(number) from reason


def things() -> list[bool]:
    gc.enable()
    return [reference() is not None for reference in _things]


_things: list[Any] = []


def test_a_worker_does_not_keep_what_a_failed_call_used():
    with HPCPoolExecutor(1) as pool:
        assert type(pool.submit(raise_for_a_reason, 1).exception()) is ValueError
        assert pool.submit(things).result() == [False]


def test_an_error_is_freed_with_its_future(pool: HPCPoolExecutor, no_collector: None):
    future = pool.submit(raise_about, 1)
    reference = weakref.ref(future.exception())  # type: ignore[arg-type]
    of_future = weakref.ref(future)
    del future
    assert wait_until(lambda: reference() is None and of_future() is None, timeout_s=30)


def test_an_error_does_not_keep_its_future(pool: HPCPoolExecutor, no_collector: None):
    future = pool.submit(raise_about, 1)
    of_future = weakref.ref(future)
    error = future.exception()
    with suppress(BadArguments):
        future.result()
    del future
    assert wait_until(lambda: of_future() is None, timeout_s=30)
    assert type(error) is BadArguments


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("not this one")


class UnpicklableForAReason:
    def __reduce__(self) -> Any:
        try:
            return {}["nothing"]
        except KeyError:
            raise ZeroDivisionError("not this one") from ExceptionGroup("two", [ValueError(), TypeError()])


@pytest.mark.parametrize("kind", [Unpicklable, UnpicklableForAReason, multiprocessing.Lock])
def test_arguments_that_cannot_be_pickled_are_freed_too(pool: HPCPoolExecutor, no_collector: None, kind: Any):
    thing = kind()
    reference = weakref.ref(thing)
    future = pool.submit(echo, thing)
    del thing
    assert isinstance(future.exception(), UnsharableError if kind is multiprocessing.Lock else ZeroDivisionError)
    assert wait_until(lambda: reference() is None, timeout_s=30)
    of_future = weakref.ref(future)
    del future
    assert wait_until(lambda: of_future() is None, timeout_s=30)


def test_arguments_of_a_cancelled_call_are_freed(pool: HPCPoolExecutor, no_collector: None):
    waiting: Future[int] = Future()
    future = pool.submit(echo, [waiting])
    references = [weakref.ref(future), weakref.ref(waiting)]
    assert future.cancel()
    del future, waiting
    assert wait_until(lambda: [reference() for reference in references] == [None, None], timeout_s=30)


def test_functions_that_went_by_value_are_freed(pool: HPCPoolExecutor, no_collector: None):
    def make() -> Any:
        thing = Thing()
        references.append(weakref.ref(thing))
        return lambda: thing is not None

    references: list[Any] = []
    use = make()
    references.append(weakref.ref(use))
    assert pool.submit(use).result()
    del use
    assert wait_until(lambda: [reference() for reference in references] == [None, None], timeout_s=30)


def test_the_program_that_forks_goes_on_and_its_child_makes_its_own(pool: HPCPoolExecutor, tmp_path: Path):
    out = tmp_path / "out"
    before = pool.submit(abs, -1)
    pid = os.fork()
    if pid == 0:
        try:
            try:
                pool.submit(abs, 1)
                text = "it took a call\n"
            except RuntimeError as error:
                text = f"{error}\n"
            pool.shutdown()
            with HPCPoolExecutor(1) as own:
                text += str(list(own.map(abs, [-1, -2])))
            out.write_text(text)
        finally:
            os._exit(0)
    assert pool.submit(abs, -2).result(timeout=60) == 2
    os.waitpid(pid, 0)
    first, second = out.read_text().splitlines()
    assert re.search(r"os\.fork", first)
    assert second == "[1, 2]"
    assert before.result() == 1
    assert pool.submit(abs, -3).result(timeout=60) == 3


def about_its_parent() -> tuple[int, bool, str]:
    parent = multiprocessing.parent_process()
    assert parent is not None
    return parent.pid or 0, parent.is_alive(), str(parent.name)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_knows_that_it_is_not_the_main_process(method: str):
    with HPCPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        pid, is_alive, name = pool.submit(about_its_parent).result()
        assert pid == pool.submit(os.getppid).result()
        assert is_alive
        assert name == "MainProcess"


# Awkward exceptions, and code that asks for its own end


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Nothing can be assigned to it, not even a cause."""

    code: int

    def __reduce__(self):
        return Frozen, (self.code,)


def raise_frozen(code):
    raise Frozen(code)


class FrozenWhenPickled:
    def __reduce__(self):
        raise Frozen(5)


class CancelledWhenRebuilt(Exception):
    def __reduce__(self):
        return _raise_cancelled, ()


def _raise_cancelled():
    raise asyncio.CancelledError("while it is rebuilt")


def raise_cancelled_when_rebuilt():
    raise CancelledWhenRebuilt


class CancelledWhenPickled:
    def __reduce__(self):
        raise asyncio.CancelledError("while it is pickled")


@pytest.mark.live
@pytest.mark.parametrize("retries", [0, 1])
def test_an_exception_that_nothing_can_be_assigned_to_arrives(retries):
    with HPCPoolExecutor(1) as pool:
        error = pool.options(retries=retries).submit(raise_frozen, 3).exception(60)
        assert type(error) is Frozen
        assert error.code == 3
        assert "raise_frozen" in str(error.__cause__)
        assert isinstance(pool.submit(id, FrozenWhenPickled()).exception(60), Frozen)
        view = pool.options(retries=1, retry_on=lambda error: raise_frozen(7))
        assert view.submit(raise_frozen, 3).exception(60).code == 7


@pytest.mark.live
@pytest.mark.parametrize("retries", [0, 1])
def test_whatever_an_exception_does_while_it_is_rebuilt_its_future_finishes(retries):
    with HPCPoolExecutor(1) as pool:
        future = pool.options(retries=retries).submit(raise_cancelled_when_rebuilt)
        assert not wait([future], 60).not_done
        assert isinstance(future.exception(), CancelledWhenRebuilt)


@pytest.mark.live
def test_whatever_a_foreign_result_does_while_it_is_pickled_its_dependent_finishes():
    foreign = Future()
    with HPCPoolExecutor(1) as pool:
        future = pool.submit(id, foreign)
        foreign.set_result(CancelledWhenPickled())
        assert not wait([future], 60).not_done
        with pytest.raises(asyncio.CancelledError):
            future.result()
        assert pool.submit(abs, -1).result(60) == 1


@pytest.mark.live
def test_shutdown_may_be_asked_for_by_work_of_the_pool():
    pool = HPCPoolExecutor(1)
    asked = []

    def shut_down(*_):
        pool.shutdown()
        asked.append(True)
        return False

    join = pool.join(shut_down)
    assert join.result(60) is False
    pool.shutdown()
    pool = HPCPoolExecutor(1)
    failing = pool.options(retries=1, retry_on=shut_down).submit(int, "x")
    assert isinstance(failing.exception(60), ValueError)
    pool.shutdown()
    assert asked == [True, True]


@pytest.mark.live
def test_a_map_that_a_join_starts_during_the_shutdown_ends_with_the_pool(tmp_path):
    pool = HPCPoolExecutor(1)
    has_begun, is_closing = threading.Event(), threading.Event()
    kept = []

    def start_map():
        has_begun.set()
        assert is_closing.wait(60)
        kept.append(pool.map(abs, iter(range(5000))))

    join = pool.join(start_map)
    assert has_begun.wait(60)
    pool.shutdown(wait=False)
    is_closing.set()
    pool.shutdown()
    assert join.done()
    assert kept


class NoteOpening:
    opened: ClassVar[list[str]] = []

    def __setstate__(self, state):
        self.opened.append(threading.current_thread().name)

    def __getstate__(self):
        return {"a": 1}


@pytest.mark.live
def test_a_future_is_not_opened_to_be_shown(caplog):
    NoteOpening.opened.clear()
    with HPCPoolExecutor(1) as pool:
        future = pool.options(name="note").submit(NoteOpening)
        future.add_done_callback(lambda future: 1 / 0)
        assert not wait([future], 60).not_done
        assert " of note state=" in repr(future)
    assert "exception calling callback" in caplog.text
    assert NoteOpening.opened == []
    assert repr(future).endswith("state=finished>")
    assert future.result() is not None
    assert repr(future).endswith("returned NoteOpening>")
    assert NoteOpening.opened == ["MainThread"]
