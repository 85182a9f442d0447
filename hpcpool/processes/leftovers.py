"""Ending the jobs that a dead run has left: its journal tells which, its providers are asked to cancel them.

Used by the client whose interchange has died, and by `hpcpool cleanup`. Nothing here runs while the run lives.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from hpcpool.config import Config
from hpcpool.errors import HPCPoolError
from hpcpool.processes.journal import Entries, journal_path, read_journal
from hpcpool.providers.base import Driver, JobStatus

log = logging.getLogger(__name__)

#: How long jobs may take to end (seconds) before it is left at having asked for it.
PATIENCE_S = 30.0
#: The same for a user's program that is about to end.
_PATIENCE_AT_END_S = 10.0
#: How often jobs are looked at meanwhile, and when they are ended by force.
_LOOK_S = 0.5
_FORCE_AFTER_S = 10.0
#: So long after a submission (seconds) its job is in the queue, or there is none.
_SURELY_SUBMITTED_S = 600.0

Say = Callable[[str], None]


def after_the_end(run_directory: str, *, has_crashed: bool) -> None:
    """End what an interchange has left that has gone; if it has asked for that itself, tell the user what is not over.

    Args:
        run_directory: of the run.
        has_crashed: the interchange did not come to its end.
    """
    path = journal_path(run_directory)
    entries = read_journal(path) if path.exists() else None
    if entries is None or entries.is_running:
        return
    if has_crashed:
        end_jobs(entries, log.warning, patience_s=_PATIENCE_AT_END_S)
    if entries.is_open:
        jobs = ", ".join([*entries.jobs, *(f"one for block {block}" for block in entries.blocks)])
        log.warning("these jobs may not be over: %s; `hpcpool cleanup` looks at them again", jobs)


def end_jobs(entries: Entries, say: Say, *, patience_s: float = PATIENCE_S, is_dry: bool = False) -> None:
    """Cancel the jobs of a dead run and wait for their ends, as far as the batch system tells of them.

    What is known to be over is struck out of `entries`; the journal goes when nothing is left.

    Args:
        entries: what its journal tells.
        say: takes what was found and done, a line at a time.
        patience_s: how long to wait for the ends of cancelled jobs (seconds).
        is_dry: say only what would be done.
    """
    for pool in sorted({*entries.jobs.values(), *entries.blocks.values()}):
        try:
            with _opened(entries, pool) as driver:
                _end_jobs_of(entries, pool, driver, say, patience_s, is_dry=is_dry)
        except (HPCPoolError, OSError) as error:
            say(f"node pool {pool}: its batch system cannot be asked: {error}")
    if not is_dry and not entries.is_open:
        entries.path.unlink(missing_ok=True)


@contextmanager
def _opened(entries: Entries, pool: str) -> Iterator[Driver]:
    config = Config.from_dict(entries.config)
    provider = next((node_pool.provider for node_pool in config.node_pools if node_pool.name == pool), None)
    if provider is None:
        raise HPCPoolError(f"the journal {entries.path} has no such node pool")
    driver = provider.open(entries.run_directory)
    try:
        yield driver
    finally:
        driver.close()


def _end_jobs_of(entries: Entries, pool: str, driver: Driver, say: Say, patience_s: float, *, is_dry: bool) -> None:
    _find_jobs(entries, pool, driver, say)
    states = driver.status([job for job, its_pool in entries.jobs.items() if its_pool == pool])
    left = [job for job, status in states.items() if not status.state.is_over]
    for job, status in states.items():
        if job not in left:
            say(f"job {job} is over{_why(status)}")
    if is_dry:
        for job in left:
            say(f"job {job} would be cancelled: {states[job].state.value}{_why(states[job])}")
        return
    _strike_out(entries, (job for job in states if job not in left))
    if left:
        driver.cancel(left)
        say(f"cancelled: job {', job '.join(left)}")
        _await_ends(entries, driver, left, say, patience_s)


def _find_jobs(entries: Entries, pool: str, driver: Driver, say: Say) -> None:
    """Look by name for jobs that were being submitted when the run died."""
    find_job: Callable[[str], str | None] | None = getattr(driver, "find_job", None)
    is_settled = time.time() - os.path.getmtime(entries.path) > _SURELY_SUBMITTED_S
    for block in [block for block, its_pool in entries.blocks.items() if its_pool == pool]:
        job = find_job(block) if find_job is not None else None
        if job is not None:
            entries.jobs[job] = entries.blocks.pop(block)
        elif find_job is not None and is_settled:
            say(f"block {block}: no job of its name is in the queue")
            del entries.blocks[block]
        else:
            run = os.path.basename(entries.run_directory)
            say(f"block {block}: it was being submitted; a job named after {run} may turn up in the queue")


def _await_ends(entries: Entries, driver: Driver, jobs: list[str], say: Say, patience_s: float) -> None:
    start = time.monotonic()
    is_forced = False
    while jobs:
        states = driver.status(jobs)
        _strike_out(entries, (job for job in jobs if states[job].state.is_over))
        jobs = [job for job in jobs if not states[job].state.is_over]
        waited_s = time.monotonic() - start
        if jobs and waited_s >= patience_s:
            words = "; ".join(f"job {job} is {states[job].state.value}{_why(states[job])}" for job in jobs)
            say(f"not over within {patience_s:.0f} s: {words}")
            return
        if jobs and not is_forced and waited_s >= _FORCE_AFTER_S:
            is_forced = True
            driver.cancel(jobs)
        if jobs:
            time.sleep(_LOOK_S)


def _strike_out(entries: Entries, jobs: Iterable[str]) -> None:
    for job in list(jobs):
        entries.jobs.pop(job, None)
        entries.note_ended(job)


def _why(status: JobStatus) -> str:
    return f" ({status.reason})" if status.reason else ""
