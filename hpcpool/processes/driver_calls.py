"""The calls of one driver, each answered by a message, so that who asks never waits for a batch system.

A batch system's commands take seconds, and minutes when it is overloaded: they run in a thread of the driver's own, one
after the other. Drivers of this machine answer at once, and are called in block control's thread.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hpcpool.providers.base import BlockRequest, Driver, JobState, JobStatus, SubmitError, Unreachable

if TYPE_CHECKING:
    from hpcpool.processes.journal import Journal

log = logging.getLogger(__name__)

#: At the end of the pool jobs are looked at this often (seconds): somebody waits.
_POLL_AT_END_S = 1.0


class Submitted(NamedTuple):
    """The driver has taken a block."""

    block: str
    job: str


class Refused(NamedTuple):
    """The driver has not."""

    block: str
    text: str
    #: It could not be asked, which says nothing about the block.
    is_outage: bool = False


class Told(NamedTuple):
    """What the driver told about jobs, by their ids."""

    states: Mapping[str, JobStatus]


Answer = Submitted | Refused | Told
MakeRequest = Callable[[Driver], BlockRequest]


class DriverCalls:
    """Makes a driver and calls it. Belongs to block control's thread.

    Args:
        pool: the name of the node pool, for messages.
        make: makes the driver, in the thread that will call it.
        answer: takes the answers, in that thread.
        journal: is told of each job before it is asked for; None: its jobs do not outlive this process.
        has_thread: calls take their time and get a thread of their own.
    """

    def __init__(
        self,
        pool: str,
        make: Callable[[], Driver],
        answer: Callable[[Answer], None],
        journal: Journal | None,
        *,
        has_thread: bool,
    ) -> None:
        self._pool = pool
        self._make = make
        self._answer = answer
        self._journal = journal
        self._driver: Driver | None = None
        self._why_not = ""
        self._is_asking = False
        self._asked_at = time.monotonic()
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if has_thread:
            self._thread = threading.Thread(target=self._run, name=f"driver of {pool}", daemon=True)
            self._thread.start()
        else:
            self._open()

    @property
    def watch_fd(self) -> int | None:
        """A descriptor that is readable when `ask` will have news; None: there is none, or it is being asked."""
        return self._driver.watch_fd if self._driver is not None and not self._is_asking else None

    def ask_at(self, *, at_end: bool = False) -> float | None:
        """Return when to ask next (monotonic clock); None: it is being asked, or tells by itself."""
        if self._is_asking or self._driver is None or self._driver.watch_fd is not None:
            return None
        period_s = self._driver.poll_interval_s
        return self._asked_at + (min(period_s, _POLL_AT_END_S) if at_end else period_s)

    def submit(self, block: str, make_request: MakeRequest) -> None:
        """Ask for a block; answered by `Submitted` or `Refused`."""
        self._call(lambda: self._submit(block, make_request))

    def ask(self, jobs: Sequence[str]) -> None:
        """Ask for the states of jobs, unless that is being done; answered by `Told`."""
        if not self._is_asking:
            self._is_asking = True
            self._call(lambda: self._ask(jobs))

    def cancel(self, jobs: Sequence[str]) -> None:
        """End jobs; there is no answer but what is told of them later."""
        self._call(lambda: self._cancel(jobs))

    def ended(self, job: str) -> None:
        """A job is known to be over."""
        if self._journal is not None:
            self._journal.ended(job)

    def close(self) -> None:
        """Have the driver closed when the calls before have been made."""
        if self._thread is None:
            self._close()
        else:
            self._calls.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait until the driver is closed; leave it alone if that takes too long."""
        if self._thread is None:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("pool=%s its batch system does not answer and is left alone", self._pool)

    def _call(self, call: Callable[[], None]) -> None:
        if self._thread is None:
            call()
        else:
            self._calls.put(call)

    # -- in the driver's thread --

    def _run(self) -> None:
        self._open()
        while (call := self._calls.get()) is not None:
            call()
        self._close()

    def _open(self) -> None:
        try:
            self._driver = self._make()
        except Exception as error:  # noqa: BLE001 - another package's code: it may raise anything
            self._why_not = f"its provider cannot be opened: {type(error).__name__}: {error}"
            log.error("pool=%s %s", self._pool, self._why_not)

    def _submit(self, block: str, make_request: MakeRequest) -> None:
        if self._driver is None:
            self._answer(Refused(block, self._why_not))
            return
        try:
            if self._journal is not None:
                self._journal.submitting(self._pool, block)
            job = self._driver.submit(make_request(self._driver))
        except SubmitError as error:
            self._note_refused(block)
            self._answer(Refused(block, str(error), is_outage=isinstance(error, Unreachable)))
        except OSError as error:
            self._note_refused(block)
            self._answer(Refused(block, f"what it needs cannot be written: {error}"))
        except Exception as error:
            log.exception("pool=%s block=%s its driver failed", self._pool, block)
            # What came of it is not known: the journal goes on to hold it for a job.
            self._answer(Refused(block, f"its driver failed: {type(error).__name__}: {error}"))
        else:
            if self._journal is not None:
                self._journal.submitted(block, job)
            self._answer(Submitted(block, job))

    def _note_refused(self, block: str) -> None:
        if self._journal is not None:
            self._journal.refused(block)

    def _ask(self, jobs: Sequence[str]) -> None:
        try:
            states = dict(self._driver.status(jobs)) if self._driver is not None else {}
        except Exception as error:  # a driver must not raise here; if it does, nothing is known
            log.exception("pool=%s its driver failed when it was asked about its jobs", self._pool)
            unknown = JobStatus(JobState.UNKNOWN, reason=f"its driver failed: {error}")
            states = dict.fromkeys(jobs, unknown)
        self._asked_at = time.monotonic()
        self._is_asking = False
        self._answer(Told(states))

    def _cancel(self, jobs: Sequence[str]) -> None:
        try:
            if self._driver is not None:
                self._driver.cancel(jobs)
        except Exception:
            log.exception("pool=%s jobs=%s its driver failed when it was to cancel them", self._pool, ",".join(jobs))

    def _close(self) -> None:
        if self._driver is None:
            return
        try:
            self._driver.close()
        except Exception:
            log.exception("pool=%s its driver failed when it was closed", self._pool)
