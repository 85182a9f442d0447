from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from hpcpool.errors import HPCPoolError
from hpcpool.providers import BlockRequest, Driver, JobState, JobStatus, LocalProvider, Provider, SubmitError


@dataclass(frozen=True)
class PaperProvider:
    """The smallest provider: jobs are names on a list, and end when they are struck off."""

    kind: ClassVar[str] = "paper"
    max_nodes_per_block: ClassVar[int | None] = None
    pages: int = 1

    def open(self, run_dir: str) -> PaperDriver:
        return PaperDriver(room=self.pages)


@dataclass
class PaperDriver:
    poll_interval_s: ClassVar[float] = 30.0
    watch_fd: ClassVar[int | None] = None
    is_local: ClassVar[bool] = False
    room: int
    states: dict[str, JobState] = field(default_factory=dict)

    def block_dir(self, block_id: str) -> str:
        return f"/paper/{block_id}"

    def submit(self, request: BlockRequest) -> str:
        if len(self.states) >= self.room:
            raise SubmitError("the page is full")
        self.states[request.block_id] = JobState.PENDING
        return request.block_id

    def status(self, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        return {job_id: JobStatus(self.states.get(job_id, JobState.UNKNOWN)) for job_id in job_ids}

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.states.update((job_id, JobState.ENDED) for job_id in job_ids if job_id in self.states)

    def close(self) -> None:
        self.states.clear()


#: For mypy as much as for pytest: both are what the protocols ask for.
PROVIDERS: tuple[Provider, ...] = (PaperProvider(), LocalProvider())


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.kind)
def test_a_provider_opens_a_driver(provider, tmp_path):
    driver: Driver = provider.open(str(tmp_path))
    try:
        assert isinstance(provider, Provider)
        assert isinstance(driver, Driver)
        assert driver.poll_interval_s > 0
    finally:
        driver.close()


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.kind)
def test_a_job_that_nobody_started_is_unknown_and_cannot_be_cancelled(provider, tmp_path):
    driver = provider.open(str(tmp_path))
    try:
        driver.cancel(["1", "2"])
        assert {job: status.state for job, status in driver.status(["1", "2"]).items()} == {
            "1": JobState.UNKNOWN,
            "2": JobState.UNKNOWN,
        }
    finally:
        driver.close()


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.kind)
def test_the_options_are_a_value(provider):
    assert pickle.loads(pickle.dumps(provider)) == provider
    assert len({provider, type(provider)()}) == 1


@pytest.mark.parametrize(
    ("state", "is_over"),
    [
        (JobState.PENDING, False),
        (JobState.RUNNING, False),
        (JobState.UNKNOWN, False),
        (JobState.ENDED, True),
        (JobState.FAILED, True),
    ],
)
def test_only_a_job_that_is_known_to_have_ended_is_over(state, is_over):
    assert state.is_over is is_over


def test_a_refusal_keeps_its_words_across_processes():
    refusal = pickle.loads(pickle.dumps(SubmitError("sbatch: error: invalid partition specified: debgu")))
    assert isinstance(refusal, SubmitError)
    assert isinstance(refusal, HPCPoolError)
    assert str(refusal) == "sbatch: error: invalid partition specified: debgu"
