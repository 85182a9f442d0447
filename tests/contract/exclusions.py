"""The tests of CPython's suite that HPCPoolExecutor is not held to, each with its reason. It decides nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from multiprocessing.resource_tracker import ResourceTracker

from tests.contract.locate import OLDEST, Version


@dataclass(frozen=True)
class Exclusion:
    """`pattern` matches the whole of `Class.test_name`; `since` is the first suite that has such a test.

    `is_needed` is false where the running Python can do what the test asks for.
    """

    pattern: str
    reason: str
    since: Version = OLDEST
    is_needed: bool = True

    def matches(self, test_id: str) -> bool:
        return self.is_needed and re.fullmatch(self.pattern, test_id) is not None


EXCLUSIONS = [
    Exclusion(
        r"ProcessPool\w+ExecutorTest\.test_killed_child",
        "The documented deviation: a dead worker fails the call that it ran, and the pool goes on. This test wants "
        "the next submit to fail.",
    ),
    Exclusion(
        r"ProcessPoolForkProcessPoolShutdownTest\.test_processes_terminate",
        "It counts private _processes: with fork the stdlib starts all workers at once, since it must not fork later. "
        "Here workers start when there are calls for them, whatever the start method. The other variants check that.",
    ),
    Exclusion(
        r"ProcessPool\w+ExecutorTest\.test_python_finalization_error",
        "It makes the start of a second thread fail, which is the stdlib's queue feeder. There is no such thread here.",
        since=(3, 13),
    ),
    Exclusion(
        r"FailingInitializerResourcesTest\.\w+",
        "It reads an attribute that the resource tracker of this older Python does not have.",
        since=(3, 12),
        is_needed=not hasattr(ResourceTracker(), "_exitcode"),
    ),
]


def exclusion_of(test_id: str) -> Exclusion | None:
    return next((exclusion for exclusion in EXCLUSIONS if exclusion.matches(test_id)), None)
