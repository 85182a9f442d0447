"""Trivial blocks, and how their jobs are followed to their ends. No test is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hpcpool.providers import BlockRequest, JobState, JobStatus, Provider
from hpcpool.providers.batch_driver import BatchDriver
from tests.testbed.machine import until

#: Makes a driver from options of its provider.
Open = Callable[..., BatchDriver]


def opening(provider: Callable[..., Provider], jobs_left: Callable[[], list[str]], **usual: object) -> Iterator[Open]:
    """Give a function that opens drivers; in the end no job of theirs is left.

    Args:
        jobs_left: what waits or runs in the batch system.
        usual: options of the provider, where a test has no others.
    """
    drivers: list[tuple[BatchDriver, list[str]]] = []

    def open_driver(**options: object) -> BatchDriver:
        driver = provider(**{**usual, **options}).open("/tmp/hpcpool-test")
        assert isinstance(driver, BatchDriver)
        drivers.append((driver, remember_jobs(driver)))
        return driver

    yield open_driver
    for driver, jobs in drivers:
        end(driver, jobs)
    until(lambda: jobs_left() == [], "the queue is empty")


def remember_jobs(driver: BatchDriver) -> list[str]:
    """A list that gets the id of each job that the driver submits."""
    jobs: list[str] = []
    submit = driver.submit

    def submit_and_remember(request: BlockRequest) -> str:
        jobs.append(submit(request))
        return jobs[-1]

    driver.submit = submit_and_remember  # type: ignore[method-assign]
    return jobs


def end(driver: BatchDriver, jobs: Sequence[str]) -> None:
    for _ in range(2):
        driver.cancel(jobs)
    until(lambda: all_over(driver, jobs), f"jobs {jobs} end")
    driver.close()


def all_over(driver: BatchDriver, jobs: Sequence[str]) -> bool:
    return all(status.state.is_over for status in driver.status(jobs).values())


def block(script: str, block_id: str = "b0", **changes) -> BlockRequest:
    fields = {"nodes": 1, "command": (), "cwd": "/", "stdout": "", "stderr": "", "script": script}
    return BlockRequest(block_id=block_id, **{**fields, **changes})


def told(driver: BatchDriver, job: str) -> JobStatus:
    return driver.status([job])[job]


def reached(driver: BatchDriver, job: str, state: JobState) -> JobStatus:
    """The status of a job once it is in this state."""

    def status_there() -> JobStatus | None:
        status = told(driver, job)
        assert status.state is state or not status.state.is_over, status
        return status if status.state is state else None

    status = until(status_there, f"job {job} is {state.value}")
    assert status is not None
    return status
