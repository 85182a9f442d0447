from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hpcpool.errors import ConfigError
from hpcpool.providers import BlockRequest, JobState, JobStatus, LocalProvider, SubmitError
from hpcpool.providers.local import LocalDriver
from tests.conftest import open_descriptors

PATIENCE_S = 20.0

#: Says on descriptor `say` that it is ready, then waits for a signal.
WAITS = "import os, signal; os.write({say}, b'r'); signal.pause()"
#: The same, deaf to a polite request.
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS


@pytest.fixture(params=["watched", "polled"])
def driver(request, tmp_path) -> Iterator[LocalDriver]:
    """The driver as it is here, and as it is where there are no pidfds."""
    made = LocalProvider().open(str(tmp_path)) if request.param == "watched" else LocalDriver(None, str(tmp_path))
    with contextlib.closing(made):
        yield made


@pytest.fixture
def ears() -> Iterator[tuple[int, int]]:
    """A pipe on which a job says that it is ready: the end to listen on, the end to pass."""
    listen, say = os.pipe()
    yield listen, say
    os.close(listen)
    os.close(say)


def block(folder: Path, *command: str, **changes) -> BlockRequest:
    fields = {
        "block_id": "b1",
        "nodes": 1,
        "command": command,
        "cwd": str(folder),
        "stdout": str(folder / "out"),
        "stderr": str(folder / "err"),
    }
    return BlockRequest(**{**fields, **changes})


def python(folder: Path, code: str, **changes) -> BlockRequest:
    return block(folder, sys.executable, "-c", code, **changes)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        select.select([], [], [], 0.01)


def readable(fd: int | None, timeout: float) -> bool:
    assert fd is not None
    return bool(select.select([fd], [], [], timeout)[0])


def ended(driver: LocalDriver, job: str) -> JobStatus:
    """The status of a job once it is over, woken by `watch_fd` where there is one."""
    if driver.watch_fd is None:
        until(lambda: driver.status([job])[job].state.is_over)
    else:
        assert readable(driver.watch_fd, PATIENCE_S)
    return driver.status([job])[job]


def pid_of(job: str) -> int:
    return int(job.rpartition(".")[2])


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def submit_ready(driver: LocalDriver, folder: Path, code: str, ears: tuple[int, int], block_id: str = "b1") -> str:
    """Submit a job and wait until it says that it is ready."""
    listen, say = ears
    job = driver.submit(python(folder, code.format(say=say), pass_fds=(say,), block_id=block_id))
    assert readable(listen, PATIENCE_S)
    os.read(listen, 1)
    return job


# What a job sees


@pytest.mark.live
def test_a_job_has_the_environment_folder_and_session_that_were_asked_for(driver, tmp_path):
    code = (
        "import os, sys; print(os.environ['ADDED'], os.environ['PATH'] == sys.argv[1], os.getcwd(),"
        " os.getsid(0) == os.getpid(), repr(sys.stdin.read()))"
    )
    folder = tmp_path / "here"
    folder.mkdir()
    request = block(tmp_path, sys.executable, "-c", code, os.environ["PATH"], cwd=str(folder), env={"ADDED": "ä b"})
    assert ended(driver, driver.submit(request)).exit_code == 0
    assert (tmp_path / "out").read_text(encoding="utf-8") == f"ä b True {folder} True ''\n"


@pytest.mark.live
def test_a_job_does_not_read_what_the_user_types(driver, tmp_path, ears):
    listen, say = ears
    os.write(say, b"typed")
    kept = os.dup(0)
    os.dup2(listen, 0)
    try:
        job = driver.submit(python(tmp_path, "import sys; print(repr(sys.stdin.read()))"))
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert ended(driver, job).exit_code == 0
    assert (tmp_path / "out").read_text() == "''\n"


@pytest.mark.live
def test_an_addition_replaces_what_the_environment_had(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("ADDED", "before")
    ended(driver, driver.submit(python(tmp_path, "import os; print(os.environ['ADDED'])", env={"ADDED": "after"})))
    assert (tmp_path / "out").read_text() == "after\n"


@pytest.mark.live
def test_output_goes_to_descriptors_or_is_appended_to_private_files(driver, tmp_path):
    (tmp_path / "err").write_text("kept\n")
    listen, say = os.pipe()
    request = python(tmp_path, "import sys; print('out'); print('err', file=sys.stderr)", stdout=say)
    status = ended(driver, driver.submit(request))
    os.close(say)
    with open(listen, "rb") as pipe:
        assert pipe.read() == b"out\n"
    assert (tmp_path / "err").read_text() == "kept\nerr\n"
    assert status.stderr_tail == "err", "it tells what another wrote before"
    ended(driver, driver.submit(python(tmp_path, "", stdout=str(tmp_path / "new"))))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


@pytest.mark.live
def test_a_job_inherits_the_descriptors_it_is_passed_and_no_others(driver, tmp_path, ears):
    listen, say = ears
    os.set_inheritable(listen, True)  # even one that asks for it
    code = f"import os; os.write({say}, b'x'); os.fstat({listen})"
    status = ended(driver, driver.submit(python(tmp_path, code, pass_fds=(say,))))
    assert os.read(listen, 1) == b"x"
    assert "Bad file descriptor" in status.stderr_tail


# How a job ends


@pytest.mark.live
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", JobStatus(JobState.ENDED, 0, "exited with code 0")),
        ("print('no')", JobStatus(JobState.ENDED, 0, "exited with code 0")),
        ("import sys; sys.exit('no node')", JobStatus(JobState.FAILED, 1, "exited with code 1", "no node")),
        ("import os; os._exit(255)", JobStatus(JobState.FAILED, 255, "exited with code 255")),
        ("import os; os.kill(os.getpid(), 9)", JobStatus(JobState.FAILED, -9, "killed by SIGKILL")),
        ("import os; os.kill(os.getpid(), 15)", JobStatus(JobState.FAILED, -15, "killed by SIGTERM")),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 3)",
            JobStatus(JobState.FAILED, -signal.SIGRTMIN - 3, f"killed by signal {signal.SIGRTMIN + 3}"),
        ),
    ],
)
def test_the_end_of_a_job_is_told_once_it_is_there_and_kept(driver, tmp_path, code, expected):
    job = driver.submit(python(tmp_path, code))
    assert ended(driver, job) == expected
    assert driver.status([job, "other"])[job] == expected


@pytest.mark.live
def test_of_a_long_stderr_only_whole_last_lines_are_told(driver, tmp_path):
    code = "import sys; sys.stderr.write(''.join(f'{{i}} {}\\n' for i in range(5000)) + 'no newline'); sys.exit(3)"
    tail = ended(driver, driver.submit(python(tmp_path, code.format("é")))).stderr_tail.splitlines()
    assert tail == [*(f"{number} é" for number in range(4981, 5000)), "no newline"]
    long = "é" * 400  # ten lines of 800 bytes fit, and the end of an eleventh
    tail = ended(driver, driver.submit(python(tmp_path, code.format(long)))).stderr_tail.splitlines()
    assert tail == [*(f"{number} {long}" for number in range(4990, 5000)), "no newline"]


@pytest.mark.live
def test_of_one_huge_line_and_of_what_is_not_text_something_is_told(driver, tmp_path):
    code = "import sys; sys.stderr.buffer.write(b'x' * 100_000 + b'\\xff end'); sys.exit(3)"
    tail = ended(driver, driver.submit(python(tmp_path, code))).stderr_tail
    assert tail.endswith("xxx\N{REPLACEMENT CHARACTER} end")
    assert len(tail) <= 8192


@pytest.mark.live
def test_a_stderr_file_that_is_gone_is_told_in_its_place(driver, tmp_path):
    job = driver.submit(python(tmp_path, "import os; os.unlink('err')"))
    assert ended(driver, job).stderr_tail == f"({tmp_path / 'err'} cannot be read: No such file or directory)"


@pytest.mark.live
def test_a_job_that_runs_says_so_and_the_others_are_not_touched(driver, tmp_path, ears):
    waiting = submit_ready(driver, tmp_path, WAITS, ears, "b1")
    over = driver.submit(python(tmp_path, "", block_id="b2"))
    assert ended(driver, over).state is JobState.ENDED
    assert driver.status([waiting, over, "nobody"]) == {
        waiting: JobStatus(JobState.RUNNING),
        over: JobStatus(JobState.ENDED, 0, "exited with code 0"),
        "nobody": JobStatus(JobState.UNKNOWN, reason="this driver has started no such job"),
    }


@pytest.mark.live
def test_the_watched_descriptor_is_readable_from_the_end_of_any_job_until_status_is_asked(tmp_path, ears):
    with contextlib.closing(LocalProvider().open(str(tmp_path))) as driver:
        waiting = submit_ready(driver, tmp_path, WAITS, ears, "b1")
        assert not readable(driver.watch_fd, 0)
        over = driver.submit(python(tmp_path, "", block_id="b2"))
        assert readable(driver.watch_fd, PATIENCE_S)
        driver.cancel([over])
        assert readable(driver.watch_fd, 0), "another call has taken the news"
        driver.status([waiting])  # not the one that is over
        assert not readable(driver.watch_fd, 0)


@pytest.mark.live
def test_the_pid_of_a_job_stays_taken_until_status_clears_up_behind_it(driver, tmp_path):
    job = driver.submit(python(tmp_path, "import os; os._exit(3)"))
    until(lambda: not lives(pid_of(job)))
    driver.cancel([job])
    driver.cancel([job])
    assert psutil.pid_exists(pid_of(job)), "it may now be another's, whom the next signal would hit"
    assert driver.status([job])[job].exit_code == 3
    assert not psutil.pid_exists(pid_of(job))


def test_without_pidfds_there_is_nothing_to_watch():
    with contextlib.closing(LocalDriver(None, "/nowhere")) as driver:
        assert driver.watch_fd is None
        assert 0 < driver.poll_interval_s < 1, "the death of a manager must be known within 2 s"


# A job that cannot start


@pytest.mark.live
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"command": ("no-such-program-of-ours",)}, "cannot start no-such-program-of-ours in .*No such file"),
        ({"command": ("/etc/passwd", "x")}, "cannot start /etc/passwd x in .*Permission denied"),
        ({"cwd": "/no/such/folder"}, "cannot start .*in /no/such/folder: .*No such file"),
        ({"stderr": "/no/such/folder/err"}, "cannot start .*: .*No such file.*/no/such/folder/err"),
        ({"stdout": "/no/such/folder/out"}, "cannot start .*: .*No such file.*/no/such/folder/out"),
        ({"stdout": 99_999}, "cannot start .*Bad file descriptor"),
        ({"nodes": 2}, "block b1 asks for 2 nodes, this machine is one"),
    ],
)
def test_a_job_that_cannot_start_is_refused_with_the_reason_and_leaves_nothing(driver, tmp_path, changes, problem):
    before = open_descriptors()
    children = psutil.Process().children()
    with pytest.raises(SubmitError, match=problem):
        driver.submit(block(tmp_path, "true", **changes))
    assert open_descriptors() == before
    assert psutil.Process().children() == children


class FullEpoll:
    """An epoll where the user has come to the limit fs.epoll.max_user_watches."""

    closed = False

    def register(self, fd: int, events: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self.closed = True


@pytest.mark.live
def test_a_job_that_cannot_be_watched_is_not_left_running(tmp_path):
    before, children = open_descriptors(), psutil.Process().children()
    with contextlib.closing(LocalDriver(FullEpoll(), "/nowhere")) as driver:
        with pytest.raises(SubmitError, match=r"cannot watch .*: No space left on device"):
            driver.submit(python(tmp_path, "import signal; signal.pause()"))
        assert psutil.Process().children() == children
        assert open_descriptors() == before


# Cancelling and closing


@pytest.mark.live
def test_a_cancelled_job_is_asked_to_end_and_then_has_ended_well(driver, tmp_path, ears):
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); " + WAITS
    job = submit_ready(driver, tmp_path, code, ears)
    driver.cancel([job, "nobody"])
    assert ended(driver, job) == JobStatus(JobState.ENDED, 7, "cancelled, exited with code 7")
    driver.cancel([job])
    driver.cancel([job])
    assert driver.status([job])[job].exit_code == 7


@pytest.mark.live
def test_the_first_cancel_reaches_the_manager_alone(driver, tmp_path, ears):
    # The child, in the same process group, ends with 5 unless a signal ends it.
    code = (
        "import subprocess, sys, signal, os;"
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read(); sys.exit(5)'], stdin=-1);"
        "signal.signal(signal.SIGTERM, lambda *_: (child.stdin.close(), os._exit(child.wait())));" + WAITS
    )
    job = submit_ready(driver, tmp_path, code, ears)
    driver.cancel([job])
    assert ended(driver, job).reason == "cancelled, exited with code 5"


@pytest.mark.live
def test_the_second_cancel_kills_who_did_not_listen_to_the_first(driver, tmp_path, ears):
    job = submit_ready(driver, tmp_path, DEAF, ears)
    driver.cancel([job])
    assert driver.status([job])[job].state is JobState.RUNNING
    driver.cancel([job])
    assert ended(driver, job) == JobStatus(JobState.ENDED, -signal.SIGKILL, "cancelled, killed by SIGKILL")


#: Starts a child in a process group of its own, which starts another, both deaf; says its pid and theirs.
FAMILY = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pids = [os.getpid()]
for generation in range(2):
    if os.fork():
        signal.pause()
    os.setpgid(0, 0)
    pids.append(os.getpid())
os.write({say}, " ".join(map(str, pids)).encode())
signal.pause()
"""


def submit_family(driver: LocalDriver, folder: Path, ears: tuple[int, int]) -> tuple[str, list[int]]:
    listen, say = ears
    job = driver.submit(python(folder, FAMILY.format(say=say), pass_fds=(say,)))
    assert readable(listen, PATIENCE_S)
    pids = [int(pid) for pid in os.read(listen, 100).split()]
    assert len(pids) == 3
    assert pids[0] == pid_of(job)
    return job, pids


def twice_cancelled(driver: LocalDriver, job: str) -> None:
    driver.cancel([job])
    driver.cancel([job])


def closed(driver: LocalDriver, job: str) -> None:
    driver.close()


def murdered(driver: LocalDriver, job: str) -> None:
    os.kill(pid_of(job), signal.SIGKILL)
    assert ended(driver, job).state is JobState.FAILED


@pytest.mark.live
@pytest.mark.parametrize("end", [twice_cancelled, closed, murdered])
def test_a_job_that_ends_badly_leaves_no_process_of_its_session(driver, tmp_path, ears, end):
    job, pids = submit_family(driver, tmp_path, ears)
    end(driver, job)
    until(lambda: not any(map(lives, pids)))


@pytest.mark.live
def test_what_a_job_that_ended_well_left_behind_on_purpose_stays(driver, tmp_path):
    code = "import os, signal; pid = os.fork(); print(pid, flush=True) if pid else signal.pause()"
    assert ended(driver, driver.submit(python(tmp_path, code))).exit_code == 0
    left = int((tmp_path / "out").read_text())
    try:
        driver.close()
        assert lives(left)
    finally:
        os.kill(left, signal.SIGKILL)


@pytest.mark.live
def test_a_closed_driver_has_let_go_of_everything_and_still_tells_of_its_jobs(tmp_path, ears):
    before = open_descriptors()
    driver = LocalProvider().open(str(tmp_path))
    deaf = submit_ready(driver, tmp_path, DEAF, ears, "b1")
    over = driver.submit(python(tmp_path, "", block_id="b2"))
    driver.close()
    driver.close()
    assert not lives(pid_of(deaf))
    assert open_descriptors() == before
    assert driver.watch_fd is None
    states = {job: status.state for job, status in driver.status([deaf, over]).items()}
    assert states == {deaf: JobState.ENDED, over: JobState.ENDED}
    driver.cancel([deaf, over])
    with pytest.raises(RuntimeError, match="closed"):
        driver.submit(python(tmp_path, ""))


@pytest.mark.live
def test_a_driver_that_is_used_for_long_keeps_no_descriptor_and_no_zombie(driver, tmp_path):
    before, children = open_descriptors(), psutil.Process().children()
    jobs = []
    for number in range(5):
        jobs.append(driver.submit(block(tmp_path, "true", block_id=f"b{number}")))
        assert ended(driver, jobs[-1]).state is JobState.ENDED
    assert len(set(jobs)) == 5
    assert open_descriptors() == before
    assert psutil.Process().children() == children


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_an_option_of_the_wrong_type_is_refused(value):
    with pytest.raises(ConfigError, match=rf"own_process is {value!r}; valid: True or False"):
        LocalProvider(own_process=value)


def test_the_files_of_a_block_are_there_before_it_starts_and_only_for_the_user(driver, tmp_path):
    name = os.path.join(driver.block_dir("b1"), "secret")
    code = f"import os; print(open({name!r}).read(), oct(os.stat({name!r}).st_mode & 0o777))"
    job = driver.submit(python(tmp_path, code, files={"secret": b"word"}))
    assert ended(driver, job).exit_code == 0
    assert (tmp_path / "out").read_text() == "word 0o600\n"


def test_a_block_whose_files_cannot_be_kept_is_refused(tmp_path):
    with (
        contextlib.closing(LocalDriver(None, str(tmp_path / "gone"))) as driver,
        pytest.raises(SubmitError, match="cannot keep the files of a block"),
    ):
        driver.submit(python(tmp_path, "", files={"secret": b"word"}))


def test_a_block_with_a_script_runs_that_instead_of_its_command(driver, tmp_path):
    job = driver.submit(python(tmp_path, "print('command')", script="echo script $0"))
    assert ended(driver, job).exit_code == 0
    assert (tmp_path / "out").read_text() == "script /bin/bash\n"
