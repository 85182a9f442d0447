"""A pool's processes as the system shows them, and waiting for something to become true."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from hpcpool import HPCPoolExecutor, NodePool
from hpcpool.providers import LocalProvider

T = TypeVar("T")

#: How long anything here may take on a machine that others use, too.
PATIENCE_S = 20.0


def until(condition: Callable[[], T], what: str = "", timeout_s: float = PATIENCE_S) -> T:
    """Wait until the condition is true and return what it returned."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what or condition}"
        time.sleep(0.005)
    return value


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and not only its zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def role(process: psutil.Process) -> str:
    """What a process of ours is: its command line tells, and a forked worker's name."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        command = process.cmdline()
        if process.name() == "hpcpool-worker":
            return "worker"
    except psutil.NoSuchProcess:
        return ""
    starts = [index for index, word in enumerate(command) if word.endswith("/processes/start.py")]
    return command[starts[0] + 1] if starts else ""


def own_manager(workers: int) -> NodePool:
    """This machine as if it were another one: its manager is a process of its own."""
    return NodePool(LocalProvider(own_process=True), workers_per_node=workers)


class Pool:
    """The processes below one interchange."""

    def __init__(self, interchange: psutil.Process) -> None:
        self.interchange = interchange
        command = interchange.cmdline()
        self.directory = Path(command[command.index("interchange") + 1])

    @classmethod
    def below(cls, pid: int) -> Pool:
        """The only pool that a process has."""
        pools = pools_below(pid)
        assert len(pools) == 1, pools
        return pools[0]

    @classmethod
    def of(cls, executor: HPCPoolExecutor) -> Pool:
        """The pool of an executor that has a free slot."""
        worker = psutil.Process(executor.submit(os.getpid).result(PATIENCE_S))
        return cls(next(process for process in worker.parents() if role(process) == "interchange"))

    def all(self) -> list[psutil.Process]:
        return [self.interchange, *self.interchange.children(recursive=True)]

    def of_role(self, wanted: str) -> list[psutil.Process]:
        return [process for process in self.interchange.children(recursive=True) if role(process) == wanted]

    @property
    def manager(self) -> psutil.Process:
        (manager,) = self.of_role("manager")
        return manager

    @property
    def fork_server(self) -> psutil.Process:
        fork_server, *_ = self.of_role("fork-server")  # a worker that it has just forked looks like it, and comes later
        return fork_server

    @property
    def workers(self) -> list[psutil.Process]:
        return self.of_role("worker")


def pools_below(pid: int) -> list[Pool]:
    return [Pool(child) for child in psutil.Process(pid).children() if role(child) == "interchange"]


@contextmanager
def executor(*args: Any, **kwargs: Any) -> Iterator[HPCPoolExecutor]:
    """A pool that has started; a test that fails ends at once, whatever runs."""
    pool = HPCPoolExecutor(*args, **kwargs)
    try:
        pool.submit(abs, 1).result(PATIENCE_S)
        yield pool
    except BaseException:
        pool.kill_workers()
        raise
    pool.shutdown()


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """A process that does nothing for a while, as on a machine that hangs."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def kill(process: psutil.Process) -> None:
    """Kill a process that may be about to end, as others of its pool have just been killed."""
    with suppress(psutil.NoSuchProcess):
        process.kill()


def until_heard(pool: Any) -> None:
    """Wait until the interchange has heard of all that was done with a pool, or a view of it: also of cancellations."""
    client = pool._pool._client
    was_told = threading.Event()
    client.call_soon(was_told.set)  # behind what its thread has yet to tell
    assert was_told.wait(PATIENCE_S)
    assert client.inquiries.status(PATIENCE_S) is not None  # there and back
