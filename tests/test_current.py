"""The blocks around a call: pure but for threads, with stand-ins for executors."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from hpcpool import current

T = TypeVar("T")


class Executor:
    """All that `current` needs of an executor: to be some object."""


@pytest.fixture
def ex() -> Executor:
    return Executor()


@pytest.fixture
def other() -> Executor:
    return Executor()


def in_thread(call: Callable[[], T]) -> T:
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def test_without_a_block_there_is_no_executor():
    assert current.innermost() is None


def test_the_innermost_block_counts_until_it_is_left(ex, other):
    with current.inside(ex):
        with current.inside(other):
            assert current.innermost() is other
        assert current.innermost() is ex
    assert current.innermost() is None


def test_one_executor_can_have_two_blocks(ex, other):
    with current.inside(ex):
        with current.inside(other), current.inside(ex):
            assert current.innermost() is ex
        assert current.innermost() is ex
    assert current.innermost() is None


def test_a_block_is_left_when_its_body_raises(ex):
    with pytest.raises(KeyError), current.inside(ex):
        raise KeyError
    assert current.innermost() is None


def test_a_thread_without_blocks_is_inside_those_of_the_main_thread(ex, other):
    with current.inside(ex), current.inside(other):
        assert in_thread(current.innermost) is other
    assert in_thread(current.innermost) is None


def test_a_thread_with_a_block_of_its_own_is_inside_that_one(ex, other):
    def own() -> Any:
        with current.inside(other):
            return current.innermost()

    with current.inside(ex):
        assert in_thread(own) is other
        assert current.innermost() is ex


def test_a_block_of_another_thread_than_the_main_one_counts_there_only(ex):
    is_inside, may_leave = threading.Event(), threading.Event()

    def stay_inside() -> None:
        with current.inside(ex):
            is_inside.set()
            may_leave.wait(60)

    thread = threading.Thread(target=stay_inside)
    thread.start()
    try:
        assert is_inside.wait(60)
        assert current.innermost() is None
        assert in_thread(current.innermost) is None
    finally:
        may_leave.set()
        thread.join()


def test_tasks_of_asyncio_have_blocks_of_their_own(ex, other):
    async def look(executor: Executor, mine: asyncio.Event, yours: asyncio.Event) -> Any:
        with current.inside(executor):
            mine.set()
            await yours.wait()
            return current.innermost(), await asyncio.to_thread(current.innermost)

    async def both() -> Any:
        one, two = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(look(ex, one, two), look(other, two, one))

    assert asyncio.run(both()) == [(ex, ex), (other, other)]
    assert current.innermost() is None


def test_a_block_may_be_left_in_another_context_than_it_was_entered_in(ex):
    current.enter(ex)
    contextvars.Context().run(current.leave, ex)
    assert current.innermost() is None


def test_a_block_may_be_left_before_one_inside_of_it(ex, other):
    def generator() -> Iterator[None]:
        with current.inside(ex):
            yield

    outer = generator()
    next(outer)
    with current.inside(other):
        outer.close()
        assert current.innermost() is other
    assert current.innermost() is None


def test_a_block_that_nobody_leaves_does_not_keep_its_executor(ex, other):
    forgotten = Executor()
    with current.inside(ex):
        current.enter(forgotten)
        del forgotten
        assert current.innermost() is ex
    assert current.innermost() is None


def test_leaving_what_was_not_entered_changes_nothing(ex, other):
    with current.inside(ex):
        current.leave(other)
        assert current.innermost() is ex


def test_a_forked_child_is_inside_no_block():
    # In a process of its own: Python warns of a fork where there may be threads.
    program = (
        "import os\n"
        "from hpcpool import current\n"
        "class Executor: pass\n"
        "ex = Executor()\n"
        "with current.inside(ex):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0 if current.innermost() is None else 1)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    assert current.innermost() is ex\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
