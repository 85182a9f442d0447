"""HPCPoolExecutor with the private attributes of ProcessPoolExecutor that the suite looks at, answered from outside.

Nothing here changes what a call, a future or a shutdown does.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
import weakref
from collections.abc import Iterator, Mapping

import psutil

from hpcpool import HPCPoolExecutor

#: How long the numbers of processes may take to settle, and how long a process may take to end.
PATIENCE_S = 30.0
#: A number of processes is believed when it has not changed for this long.
SETTLED_S = 0.2


class Worker:
    """One worker process, as `multiprocessing.Process` would show it."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process

    def terminate(self) -> None:
        self._process.terminate()

    def join(self) -> None:
        self._process.wait(PATIENCE_S)


class Workers(Mapping[int, Worker]):
    """The worker processes that live now, by pid; looked up in the process table each time. Holds no executor."""

    def __init__(self, max_workers: int, futures: weakref.WeakSet[concurrent.futures.Future[object]]) -> None:
        self._max_workers = max_workers
        self._futures = futures

    def __getitem__(self, pid: int) -> Worker:
        return self._now()[pid]

    def __iter__(self) -> Iterator[int]:
        return iter(self._now())

    def __len__(self) -> int:
        """The number once it has settled: the stdlib starts a process before `submit` returns, others a bit later."""
        deadline = time.monotonic() + PATIENCE_S
        number, since = -1, time.monotonic()
        while True:
            count, now = len(self._now()), time.monotonic()
            if count != number:
                number, since = count, now
            is_settled = count >= self._wanted() and now - since >= SETTLED_S
            if is_settled or now > deadline:
                return count
            time.sleep(0.01)

    def _wanted(self) -> int:
        """How many workers the unfinished calls need."""
        return min(self._max_workers, sum(not future.done() for future in self._futures))

    def _now(self) -> dict[int, Worker]:
        return {process.pid: Worker(process) for process in worker_processes()}


def worker_processes() -> list[psutil.Process]:
    """Every worker below this process."""
    return [process for process in psutil.Process().children(recursive=True) if is_worker(process)]


def is_worker(process: psutil.Process) -> bool:
    """Workers that were forked have a name of their own; the others tell their role on the command line."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.name() == "hpcpool-worker" or "start.py worker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


class Threads:
    """The threads of the executor, as one that can be joined: its I/O thread, and the stdlib's feeder of a queue."""

    def __init__(self, threads: list[threading.Thread]) -> None:
        self._threads = threads

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    join_thread = join


class ProcessPoolExecutor(HPCPoolExecutor):
    """What the suite uses. It has the stdlib's name since the suite writes that into the scripts that it starts."""

    def __init__(self, *args: object, **options: object) -> None:
        self._shim_threads_before = set(threading.enumerate())
        self._shim_futures: weakref.WeakSet[concurrent.futures.Future[object]] = weakref.WeakSet()
        super().__init__(*args, **options)

    def submit(self, fn, /, *args, **kwargs):
        future = super().submit(fn, *args, **kwargs)
        self._shim_futures.add(future)
        return future

    @property
    def _processes(self) -> Workers:
        return Workers(self._max_workers, self._shim_futures)

    @property
    def _executor_manager_thread(self) -> Threads:
        return Threads([thread for thread in threading.enumerate() if thread not in self._shim_threads_before])

    @property
    def _call_queue(self) -> Threads:
        return self._executor_manager_thread


class InPlaceOfStdlib(ProcessPoolExecutor):
    """What `concurrent.futures.ProcessPoolExecutor` is while the suite runs.

    Not the same class as the suite's own `executor_type`: a test skips itself where the two are equal, since the stdlib
    hangs in it. HPCPoolExecutor must not.
    """
