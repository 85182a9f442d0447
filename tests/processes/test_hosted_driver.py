"""Blocks that need no process: what block control asks for, and how it learns what became of it."""

from __future__ import annotations

import select
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest

from hpcpool import NodePool
from hpcpool.processes.hosted_driver import Host, HostedDriver, Unhost
from hpcpool.processes.hosting import is_hosted
from hpcpool.providers import BlockRequest, JobState, JobStatus, LocalProvider
from tests.conftest import open_descriptors

ENDED = JobStatus(JobState.ENDED, reason="ended")


def block(name: str) -> BlockRequest:
    return BlockRequest(block_id=name, nodes=1, command=("unused",), cwd="/", stdout=1, stderr="/nowhere")


class Asked(list[Host | Unhost]):
    """What the driver has asked the interchange for."""


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def driver(asked: Asked) -> Iterator[HostedDriver]:
    made = HostedDriver(asked.append)
    yield made
    made.close()


def has_news(driver: HostedDriver) -> bool:
    assert driver.watch_fd is not None
    return bool(select.select([driver.watch_fd], [], [], 0)[0])


def test_a_block_is_asked_for_and_runs(driver: HostedDriver, asked: Asked):
    job = driver.submit(block("default-0"))
    (order,) = asked
    assert isinstance(order, Host)
    assert order.request == block("default-0")
    assert driver.status([job]) == {job: JobStatus(JobState.RUNNING)}
    assert not has_news(driver)


def test_what_became_of_it_is_news_once_and_kept(driver: HostedDriver, asked: Asked):
    jobs = [driver.submit(block(f"default-{n}")) for n in range(2)]
    first = asked[0]
    assert isinstance(first, Host)
    first.settle(ENDED)
    assert has_news(driver)
    for _ in range(2):
        assert driver.status(jobs) == {jobs[0]: ENDED, jobs[1]: JobStatus(JobState.RUNNING)}
        assert not has_news(driver)


def test_the_second_cancellation_is_by_force(driver: HostedDriver, asked: Asked):
    job = driver.submit(block("default-0"))
    driver.cancel([job])
    driver.cancel([job, "default-7"])
    assert asked[1:] == [Unhost("default-0", force=False), Unhost("default-0", force=True)]


def test_a_block_that_is_over_is_not_cancelled(driver: HostedDriver, asked: Asked):
    job = driver.submit(block("default-0"))
    order = asked[0]
    assert isinstance(order, Host)
    order.settle(ENDED)
    driver.status([job])
    driver.cancel([job])
    assert len(asked) == 1


def test_a_job_that_nobody_knows(driver: HostedDriver):
    assert driver.status(["default-7"]) == {"default-7": JobStatus(JobState.UNKNOWN)}


def test_a_closed_driver_holds_no_descriptor(asked: Asked):
    before = open_descriptors()
    made = HostedDriver(asked.append)
    made.close()
    made.close()
    assert open_descriptors() == before
    assert made.watch_fd is None


def test_news_for_a_closed_driver_are_dropped(driver: HostedDriver, asked: Asked):
    driver.submit(block("default-0"))
    order = asked[0]
    assert isinstance(order, Host)
    driver.close()
    order.settle(ENDED)


@dataclass(frozen=True)
class OtherProvider:
    kind: ClassVar[str] = "other"
    max_nodes_per_block: ClassVar[int | None] = None

    def open(self, run_dir: str) -> HostedDriver:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (NodePool(), True),
        (NodePool(LocalProvider(), workers_per_node=4), True),
        (NodePool(LocalProvider(own_process=True)), False),
        (NodePool(LocalProvider(), max_blocks=2), False),
        (NodePool(OtherProvider()), False),
    ],
)
def test_only_a_single_block_of_this_machine_is_hosted(pool: NodePool, expected: bool):
    assert is_hosted(pool) is expected
