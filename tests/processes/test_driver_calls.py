from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from hpcpool.processes.driver_calls import Answer, DriverCalls, Refused, Submitted, Told
from hpcpool.processes.journal import Journal, read_journal
from hpcpool.providers import BlockRequest, Driver, JobState, JobStatus, SubmitError, Unreachable

REQUEST = BlockRequest(block_id="a-0", nodes=1, command=("true",), cwd="/", stdout="/o", stderr="/e")
RUNNING = JobStatus(JobState.RUNNING)
PATIENCE_S = 30.0


class ScriptedDriver:
    """Does what a test tells it, and notes in which threads it was called."""

    poll_interval_s = 30.0
    watch_fd = None
    is_local = False

    def __init__(self, submit: Callable[[], str] = lambda: "17", status: Callable[[], JobStatus] = lambda: RUNNING):
        self._submit, self._status = submit, status
        self.cancelled: list[str] = []
        self.threads: set[int] = set()
        self.is_closed = False

    def block_dir(self, block_id: str) -> str:
        return f"/blocks/{block_id}"

    def submit(self, request: BlockRequest) -> str:
        self.threads.add(threading.get_ident())
        return self._submit()

    def status(self, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        self.threads.add(threading.get_ident())
        return dict.fromkeys(job_ids, self._status())

    def cancel(self, job_ids: Sequence[str]) -> None:
        self.threads.add(threading.get_ident())
        self.cancelled += job_ids

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.is_closed = True


class Desk:
    """Who calls a driver, with or without a thread, and what it answered."""

    def __init__(self, make: Callable[[], Driver], journal: Journal | None = None, *, has_thread: bool = False) -> None:
        self._answers: queue.Queue[Answer] = queue.Queue()
        self.calls = DriverCalls("a", make, self._answers.put, journal, has_thread=has_thread)

    def answer(self) -> Answer:
        return self._answers.get(timeout=PATIENCE_S)

    def close(self) -> None:
        self.calls.close()
        self.calls.join(PATIENCE_S)

    def submit(self) -> Answer:
        self.calls.submit("a-0", lambda driver: REQUEST)
        return self.answer()


def raises(error: BaseException) -> Callable[[], str]:
    def submit() -> str:
        raise error

    return submit


@pytest.mark.parametrize("has_thread", [True, False])
def test_a_driver_is_made_and_called_in_one_thread_its_own_if_it_has_one(has_thread):
    driver = ScriptedDriver()
    makers: list[int] = []

    def make() -> Driver:
        makers.append(threading.get_ident())
        return driver

    desk = Desk(make, has_thread=has_thread)
    assert desk.submit() == Submitted("a-0", "17")
    desk.calls.ask(["17"])
    assert desk.answer() == Told({"17": RUNNING})
    desk.calls.cancel(["17"])
    desk.close()
    assert (driver.cancelled, driver.is_closed) == (["17"], True)
    assert driver.threads == set(makers)
    assert (threading.get_ident() in driver.threads) is not has_thread


def test_who_asks_a_slow_driver_does_not_wait_and_asks_no_second_time_meanwhile():
    is_asked, may_answer = threading.Event(), threading.Event()
    questions: list[int] = []

    def status() -> JobStatus:
        questions.append(1)
        is_asked.set()
        assert may_answer.wait(PATIENCE_S)
        return RUNNING

    desk = Desk(lambda: ScriptedDriver(status=status), has_thread=True)
    desk.submit()
    desk.calls.ask(["17"])
    assert is_asked.wait(PATIENCE_S)
    assert desk.calls.ask_at() is None
    desk.calls.ask(["17"])
    may_answer.set()
    assert desk.answer() == Told({"17": RUNNING})
    desk.close()
    assert len(questions) == 1


@pytest.mark.parametrize(
    ("error", "text", "is_outage"),
    [
        (SubmitError("no such partition"), "no such partition", False),
        (Unreachable("no controller"), "no controller", True),
        (OSError("disk full"), "what it needs cannot be written: disk full", False),
        (ZeroDivisionError("oops"), "its driver failed: ZeroDivisionError: oops", False),
    ],
)
def test_what_a_driver_raises_is_a_refusal_with_its_words(error, text, is_outage):
    desk = Desk(lambda: ScriptedDriver(raises(error)))
    assert desk.submit() == Refused("a-0", text, is_outage)


def test_a_provider_that_cannot_be_opened_refuses_each_block_with_the_reason():
    def make() -> Driver:
        raise ConnectionError("no route to login1")

    desk = Desk(make, has_thread=True)
    assert desk.submit() == Refused(
        "a-0", "its provider cannot be opened: ConnectionError: no route to login1", is_outage=False
    )
    desk.close()


def test_a_driver_that_fails_when_it_is_asked_says_nothing_about_its_jobs():
    def status() -> JobStatus:
        raise ValueError("what is this?")

    desk = Desk(lambda: ScriptedDriver(status=status))
    desk.calls.ask(["17"])
    assert desk.answer() == Told({"17": JobStatus(JobState.UNKNOWN, reason="its driver failed: what is this?")})


@pytest.mark.parametrize(
    ("submit", "jobs", "blocks"),
    [
        (lambda: "17", {"17": "a"}, {}),
        (raises(SubmitError("no")), {}, {}),
        (raises(ZeroDivisionError()), {}, {"a-0": "a"}),
    ],
    ids=["taken", "refused", "not known"],
)
def test_a_job_is_in_the_journal_unless_it_is_certain_that_there_is_none(tmp_path, submit, jobs, blocks):
    path: Path = tmp_path / "run.jsonl"
    seen_before: list[dict[str, str]] = []

    def watched() -> str:
        seen_before.append(read_journal(path).blocks)
        return submit()

    journal = Journal(path, "/tmp/hpcpool-x", {})
    desk = Desk(lambda: ScriptedDriver(watched), journal)
    desk.submit()
    assert seen_before == [{"a-0": "a"}], "it is noted before it is asked for"
    entries = read_journal(path)
    assert (entries.jobs, entries.blocks) == (jobs, blocks)
    if jobs:
        desk.calls.ended("17")
        assert read_journal(path).jobs == {}
    journal.close()
