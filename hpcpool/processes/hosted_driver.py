"""The driver of blocks that the interchange hosts itself: on the client's own machine a manager needs no process.

It is called in block control's thread, as all drivers are, and has the interchange's thread do it (`hosted_nodes`).
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from hpcpool.processes.event_loop import wake_up_pipe
from hpcpool.providers.base import BlockRequest, JobState, JobStatus


class Host(NamedTuple):
    """Block control wants a block on this machine."""

    request: BlockRequest
    #: To be called once, when the block is over.
    settle: Callable[[JobStatus], None]


class Unhost(NamedTuple):
    """Block control wants a block ended."""

    block: str
    #: Do not wait for its workers.
    force: bool


class HostedDriver:
    """Asks for blocks and keeps what became of them.

    Args:
        ask: takes a `Host` or `Unhost` to the interchange's thread.
    """

    poll_interval_s = 0.2
    is_local = True

    def __init__(self, ask: Callable[[Host | Unhost], None]) -> None:
        self._ask = ask
        self._running: set[str] = set()
        self._cancelled: set[str] = set()
        self._over: dict[str, JobStatus] = {}
        self._news: queue.SimpleQueue[tuple[str, JobStatus]] = queue.SimpleQueue()
        self._wake = wake_up_pipe()
        #: Held while news come and while the pipe is closed.
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def watch_fd(self) -> int | None:
        return None if self._is_closed else self._wake[0]

    def block_dir(self, block_id: str) -> str:
        raise NotImplementedError("a block in the interchange's own process needs no files")

    def submit(self, request: BlockRequest) -> str:
        job = request.block_id
        self._running.add(job)
        self._ask(Host(request, lambda status: self._settle(job, status)))
        return job

    def _settle(self, job: str, status: JobStatus) -> None:
        """Take news; called in the interchange's thread."""
        self._news.put((job, status))
        with self._lock:
            if not self._is_closed:
                os.write(self._wake[1], b"\0")

    def status(self, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        with contextlib.suppress(BlockingIOError):  # no news
            os.read(self._wake[0], 4096)
        while not self._news.empty():
            job, status = self._news.get()
            self._running.discard(job)
            self._over[job] = status
        return {job: self._answer(job) for job in job_ids}

    def _answer(self, job: str) -> JobStatus:
        if job in self._over:
            return self._over[job]
        return JobStatus(JobState.RUNNING if job in self._running else JobState.UNKNOWN)

    def cancel(self, job_ids: Sequence[str]) -> None:
        for job in job_ids:
            if job in self._running:
                self._ask(Unhost(job, force=job in self._cancelled))
                self._cancelled.add(job)

    def close(self) -> None:
        """Let go of the pipe; the interchange ends what it hosts before it ends itself."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                for end in self._wake:
                    os.close(end)
