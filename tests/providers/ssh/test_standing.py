from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from hpcpool.errors import ConfigError, SSHError
from hpcpool.providers.ssh.standing import Standing, pause_after
from tests.conftest import wait_until

PATIENCE_S = 30.0


class Thing:
    """Something that ends when it is told to."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.is_closed = False

    def wait_for_end(self) -> None:
        assert self.ended.wait(PATIENCE_S)

    def close(self) -> None:
        self.is_closed = True
        self.ended.set()


class Maker:
    """Makes things, or fails, as it is told to; without orders it waits for them."""

    def __init__(self) -> None:
        self.orders: queue.SimpleQueue[Thing | Exception] = queue.SimpleQueue()
        #: One item for each time that it was asked.
        self.asked: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __call__(self) -> Thing:
        self.asked.put(None)
        order = self.orders.get(timeout=PATIENCE_S)
        if isinstance(order, Exception):
            raise order
        return order


class Pauses:
    """Takes down after how many attempts a pause was asked for, and makes it none."""

    def __init__(self) -> None:
        self.attempts: list[int] = []

    def __call__(self, attempts: int) -> float:
        self.attempts.append(attempts)
        return 0.0


@contextlib.contextmanager
def standing(
    make: Maker, pauses: Callable[[int], float] | None = None, clock: Callable[[], float] = lambda: 0.0
) -> Iterator[tuple[Standing[Thing], Thing]]:
    """A standing thing, and the first one."""
    first = Thing()
    make.orders.put(first)
    kept: Standing[Thing] = Standing("the thing", make, pause_after=pauses or Pauses(), clock=clock)
    try:
        make.asked.get(timeout=PATIENCE_S)
        yield kept, first
    finally:
        kept.close()


def test_the_first_one_is_there_at_once():
    make = Maker()
    with standing(make) as (kept, first):
        assert kept.current is first
        assert kept.wait(0.0) is first
    assert first.is_closed
    assert kept.current is None


@pytest.mark.parametrize("error", [SSHError("no"), ConfigError("no")])
def test_if_the_first_cannot_be_made_nothing_is_kept(error):
    make = Maker()
    make.orders.put(error)
    with pytest.raises(type(error), match="no"):
        Standing("the thing", make)


def test_what_ends_is_made_anew_without_anybody_asking():
    make, second = Maker(), Thing()
    with standing(make) as (kept, first):
        first.ended.set()
        make.asked.get(timeout=PATIENCE_S)
        assert kept.current is None
        assert first.is_closed
        make.orders.put(second)
        assert kept.wait(PATIENCE_S) is second
    assert second.is_closed


def test_it_tries_until_it_succeeds_and_tells_why_it_has_not_yet():
    make, pauses, second = Maker(), Pauses(), Thing()
    with standing(make, pauses) as (kept, first):
        first.ended.set()
        for problem in ("first", "second", "third"):
            make.orders.put(RuntimeError(problem) if problem == "second" else SSHError(problem))
            assert wait_until(lambda problem=problem: kept.problem == problem, PATIENCE_S)
        make.orders.put(second)
        assert kept.wait(PATIENCE_S) is second
    assert pauses.attempts == [0, 1, 2, 3]


def test_what_ends_soon_after_it_was_made_is_made_anew_with_growing_pauses():
    make, pauses = Maker(), Pauses()
    with standing(make, pauses) as (kept, thing):
        for _ in range(3):
            thing.ended.set()
            make.asked.get(timeout=PATIENCE_S)
            thing = Thing()
            make.orders.put(thing)
            assert kept.wait(PATIENCE_S) is thing
    assert pauses.attempts == [0, 1, 2]


def test_what_was_up_for_long_is_made_anew_at_once():
    make, pauses = Maker(), Pauses()
    now = [0.0]
    with standing(make, pauses, lambda: now[0]) as (kept, thing):
        for _ in range(3):
            now[0] += 100.0
            thing.ended.set()
            make.asked.get(timeout=PATIENCE_S)
            thing = Thing()
            make.orders.put(thing)
            assert kept.wait(PATIENCE_S) is thing
    assert pauses.attempts == [0, 0, 0]


def test_pauses_grow_to_half_a_minute():
    assert [pause_after(attempts) for attempts in (0, 1, 2, 5, 6, 1000)] == [0.0, 1.0, 2.0, 16.0, 30.0, 30.0]


def test_closing_ends_a_pause_at_once():
    make = Maker()
    pausing = threading.Event()

    def pause(attempts: int) -> float:
        pausing.set()
        return 3600.0

    with standing(make, pause) as (kept, first):
        first.ended.set()
        assert pausing.wait(PATIENCE_S)
        kept.close()
        assert make.asked.empty()
        assert kept.wait(PATIENCE_S) is None


def test_closing_does_not_wait_for_an_attempt_and_what_that_makes_is_closed():
    make, late = Maker(), Thing()
    with standing(make) as (kept, first):
        first.ended.set()
        make.asked.get(timeout=PATIENCE_S)
        kept.close()
        kept.close()
        make.orders.put(late)
        assert late.ended.wait(PATIENCE_S)
        assert kept.current is None
    assert wait_until(lambda: not kept._thread.is_alive(), PATIENCE_S)


def test_who_waits_for_it_is_let_go_when_it_is_closed():
    make = Maker()
    with standing(make) as (kept, first):
        first.ended.set()
        make.asked.get(timeout=PATIENCE_S)
        closer = threading.Timer(0.0, kept.close)
        closer.start()
        assert kept.wait(PATIENCE_S) is None
        closer.join()
        make.orders.put(SSHError("too late"))
    assert wait_until(lambda: not kept._thread.is_alive(), PATIENCE_S)


def test_one_line_says_that_it_was_lost_and_one_that_it_is_back(caplog):
    caplog.set_level(logging.INFO, "hpcpool.providers.ssh.standing")
    make, second = Maker(), Thing()
    with standing(make) as (kept, first):
        first.ended.set()
        for _ in range(5):
            make.orders.put(SSHError("the machine is down"))
        make.orders.put(second)
        assert wait_until(lambda: kept.current is second, PATIENCE_S)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "the thing was lost, and is made anew"),
        ("INFO", "the thing is not back: the machine is down"),
        ("INFO", "the thing is back after 0.0 s"),
    ]


def test_a_thing_that_is_closed_is_not_said_to_be_lost(caplog):
    caplog.set_level(logging.INFO, "hpcpool.providers.ssh.standing")
    with standing(Maker()):
        pass
    assert not caplog.records
