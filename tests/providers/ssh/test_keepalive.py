from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from hpcpool.providers.ssh.connection import connect
from hpcpool.providers.ssh.keepalive import watch
from hpcpool.providers.ssh.tunnel import ReverseTunnel
from tests.conftest import wait_until
from tests.providers.ssh.streams import PATIENCE_S, connect_to, echo, serving

#: So that silence is noticed soon. Nothing here depends on how soon.
PERIOD_S = 0.05


class Connection:
    """A connection whose other side answers questions, or does not."""

    def __init__(self, *, answers: bool, keepalive_s: float = PERIOD_S) -> None:
        self.keepalive_s = keepalive_s
        self.over = threading.Event()
        self.asked = threading.Semaphore(0)
        self._answers = answers

    def ask(self, question: str) -> None:
        self.asked.release()
        if not self._answers:
            assert self.over.wait(PATIENCE_S)

    def close(self) -> None:
        self.over.set()


@contextlib.contextmanager
def watched(
    connection: Connection, heard_at: Callable[[], float], wait: Callable[[float | None], bool] | None = None
) -> Iterator[threading.Thread]:
    watcher = threading.Thread(target=watch, args=(connection, wait or connection.over.wait, heard_at))
    watcher.start()
    try:
        yield watcher
    finally:
        connection.over.set()
        watcher.join()


def long_ago() -> float:
    return -math.inf


def test_a_side_that_does_not_answer_is_gone():
    connection = Connection(answers=False)
    with watched(connection, long_ago):
        assert connection.over.wait(PATIENCE_S)


def test_a_side_that_answers_is_asked_again_and_again():
    connection = Connection(answers=True, keepalive_s=PATIENCE_S)  # an answer may take long
    with watched(connection, long_ago, lambda _: connection.over.wait(PERIOD_S)):
        for _ in range(5):
            assert connection.asked.acquire(timeout=PATIENCE_S)
        assert not connection.over.is_set()


def test_a_side_that_is_heard_is_not_asked():
    connection = Connection(answers=False)
    looks = threading.Semaphore(0)

    def just_now() -> float:
        looks.release()
        return time.monotonic() + 3600.0

    with watched(connection, just_now):
        for _ in range(3):
            assert looks.acquire(timeout=PATIENCE_S)
        assert not connection.asked.acquire(blocking=False)


def test_an_answer_may_take_long_while_something_else_is_heard():
    connection = Connection(answers=False)
    waits = threading.Semaphore(0)
    heard = iter((long_ago(), time.monotonic() + 3600.0))

    def heard_at() -> float:
        waits.release()
        return next(heard)

    with watched(connection, heard_at):
        assert connection.asked.acquire(timeout=PATIENCE_S)
        assert waits.acquire(timeout=PATIENCE_S)  # before it asked
        assert waits.acquire(timeout=PATIENCE_S)  # when the time for an answer was over
        assert not connection.over.is_set()


def test_without_a_period_nobody_is_asked_and_the_end_is_waited_for():
    connection = Connection(answers=False, keepalive_s=0.0)
    with watched(connection, long_ago) as watcher:
        connection.close()
        watcher.join(PATIENCE_S)
        assert not watcher.is_alive()
        assert not connection.asked.acquire(blocking=False)


@pytest.mark.testbed
def test_a_real_server_answers(server):
    with contextlib.closing(connect(server.login())) as connection:
        connection.ask("keepalive@openssh.com")
        assert connection.is_alive


@pytest.mark.testbed
def test_a_tunnel_whose_other_side_is_silent_ends(server):
    """The server stops, and its kernel still takes what comes, like a jump host whose way further on is cut."""
    with (
        serving(echo) as port,
        contextlib.closing(ReverseTunnel(server.login(keepalive_s=0.3), ("127.0.0.1", port))) as tunnel,
        connect_to("127.0.0.1", tunnel.port) as stream,
    ):
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        watcher = threading.Thread(target=tunnel.wait_for_end)
        watcher.start()
        frozen = server.freeze_connections()
        try:
            watcher.join(PATIENCE_S)
            assert not watcher.is_alive()
            assert wait_until(lambda: not tunnel.is_alive, PATIENCE_S)
        finally:
            for process in frozen:
                process.resume()
