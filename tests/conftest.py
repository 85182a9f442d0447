"""What every test must leave behind: nothing. No process of ours, no run directory, no thread.

Processes are found by a mark in their environment, so that an orphan counts too (one whose parent died, and bash's
children, which name nothing of ours), and processes of another test run on the same machine do not. Temporary files of
the whole run go to a directory of its own for the same reason.

A test that started nothing pays for a look at its children and threads only.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path

import psutil
import pytest

from hpcpool import oversight

#: In the environment of this run, and so of every process that it starts.
MARK, MARK_VALUE = "HPCPOOL_TEST_RUN", uuid.uuid4().hex
#: How long what is ending may take to end, before and after a collection of garbage.
PATIENCE_S = (1.0, 20.0)
#: Processes that the standard library starts once and keeps: they belong to this interpreter, not to a test.
KEPT_BY_PYTHON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
#: Threads and directories that a test was failed for: no other one is.
reported: set[threading.Thread | Path] = set()


def pytest_configure(config: pytest.Config) -> None:
    os.environ[MARK] = MARK_VALUE
    # A configuration of the person who runs the tests must not change what they test.
    os.environ.pop("HPCPOOL_CONFIG", None)


def pytest_collection_finish() -> None:
    """Thousands of tests are a million objects that stay: a test that collects garbage need not wade through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def temporary_directory() -> Path:
    """The directory where this run's processes put their temporary files. Short: a socket's path has 107 bytes."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # `tmp_path` stays where it is looked for
    path = Path(tempfile.mkdtemp(prefix="hp-test-"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(path)
    # Removed after multiprocessing has removed its own directory in there (it does so with priority -100).
    Finalize(None, shutil.rmtree, args=(path, True), exitpriority=-200)
    return path


@pytest.fixture(scope="session", autouse=True)
def the_run_leaves_nothing_behind(temporary_directory: Path) -> Iterator[None]:
    """Also what fixtures shared by many tests have started is gone at the end."""
    start = Snapshot.take(temporary_directory)
    yield
    fail_if_left_behind(start, temporary_directory)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that runs many tests may take longer to answer than a user should wait."""
    monkeypatch.setattr(oversight, "_ANSWER_S", 60.0)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest, temporary_directory: Path) -> Iterator[None]:
    """Fails a test that leaves a process, a run directory or a thread."""
    is_live = any(request.node.get_closest_marker(name) for name in ("live", "contract", "testbed"))
    children = own_children()
    start = Snapshot.take(temporary_directory) if is_live else None
    threads = set(threading.enumerate())
    directories = run_directories(temporary_directory)
    yield
    started_something = (
        own_children() - children
        or set(threading.enumerate()) - threads
        or run_directories(temporary_directory) - directories
    )
    if is_live or started_something:
        fail_if_left_behind(start or Snapshot(frozenset(children), threads, directories), temporary_directory)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Without it, only what is in no cycle is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@dataclass(frozen=True)
class Snapshot:
    """What there is at one moment."""

    processes: frozenset[int]
    threads: set[threading.Thread]
    directories: set[Path]

    @classmethod
    def take(cls, directory: Path) -> Snapshot:
        processes = frozenset(p.pid for p in our_processes())
        return cls(processes, set(threading.enumerate()), run_directories(directory))


def fail_if_left_behind(start: Snapshot, directory: Path) -> None:
    """Waits until all that is new since `start` is gone, and fails with what stays."""
    if wait_until(lambda: not left_behind(start, directory), timeout_s=PATIENCE_S[0]):
        return
    gc.collect()  # A pool that only a cycle keeps alive ends with the cycle.
    if wait_until(lambda: not left_behind(start, directory), timeout_s=PATIENCE_S[1]):
        return
    what = left_behind(start, directory)
    for process in new_processes(start):
        process.kill()
    reported.update(threading.enumerate(), run_directories(directory))
    pytest.fail("left behind:\n" + "\n".join(what), pytrace=False)


def left_behind(start: Snapshot, directory: Path) -> list[str]:
    threads = {thread for thread in threading.enumerate() if is_ours(thread)} - start.threads - reported
    directories = run_directories(directory) - start.directories - reported
    return [
        *(describe(process) for process in new_processes(start)),
        *(f"thread {thread.name} (daemon: {thread.daemon})" for thread in threads),
        *(describe_directory(path) for path in directories if path.is_dir()),
    ]


def is_ours(thread: threading.Thread) -> bool:
    return not thread.daemon or thread.name.startswith("hpcpool")


def own_children() -> set[int]:
    """The direct children of this process; one small file a thread, where psutil would read all of /proc."""
    children: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            children.update(map(int, (task / "children").read_text().split()))
        except FileNotFoundError:  # the thread has just ended; its children are listed with another one
            pass
    return children


def our_processes() -> list[psutil.Process]:
    """Every living process of this test run but this one: below it, or marked."""
    below = {child.pid for child in psutil.Process().children(recursive=True)}
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and is_of_this_run(p, below)]


def is_of_this_run(process: psutil.Process, below: set[int]) -> bool:
    try:
        if process.pid not in below and process.environ().get(MARK) != MARK_VALUE:
            return False
        return process.status() != psutil.STATUS_ZOMBIE and not is_kept_by_python(process)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended meanwhile, or another user's
        return False


def is_kept_by_python(process: psutil.Process) -> bool:
    if process.ppid() != os.getpid():
        return False
    return any(word in argument for argument in process.cmdline() for word in KEPT_BY_PYTHON)


def new_processes(start: Snapshot) -> list[psutil.Process]:
    """Ours that are newer than the test, except those of a pool that was there before (it may replace its workers)."""
    return [
        process
        for process in our_processes()
        if process.pid not in start.processes and not start.processes & {p.pid for p in parents(process)}
    ]


def parents(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.parents()
    except psutil.NoSuchProcess:
        return []


def describe(process: psutil.Process) -> str:
    try:
        return f"process {process.pid} (parent {process.ppid()}): {' '.join(process.cmdline())}"
    except psutil.NoSuchProcess:
        return f"process {process.pid}, which has ended just now"


def describe_directory(path: Path) -> str:
    try:
        return f"directory {path}: {sorted(os.listdir(path))}"
    except FileNotFoundError:
        return f"directory {path}, which has gone just now"


def run_directories(directory: Path) -> set[Path]:
    """The run directories of pools there, and what these have in shared memory."""
    return {*directory.glob("hpcpool-*"), *(place for place in segment_directories() if is_below(place, directory))}


def segment_directories() -> set[Path]:
    return set(Path("/dev/shm").glob("hpcpool-*"))


def is_below(place: Path, directory: Path) -> bool:
    try:
        return (place / "run").readlink().is_relative_to(directory)
    except FileNotFoundError:  # it has just gone, or just come
        return False


def open_descriptors() -> set[str]:
    """This process's descriptors, without those of earlier tests that only wait to be collected."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether the condition came true before the time was over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
