"""The end of a process is an event, with pidfds and without."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from hpcpool.processes.process_end import has_child_ended, has_ended

pytestmark = pytest.mark.live

with_pidfds = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system has no pidfds")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when its stdin is closed, with code 1."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        yield child
        child.kill()


def end(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.close()


@with_pidfds
def test_one_that_runs_has_not_ended(child: subprocess.Popen[bytes]):
    assert has_ended(child.pid, 0.0) is False
    assert not has_child_ended(child, 0.01)


@with_pidfds
def test_its_end_wakes_who_waits(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch):
    """Nobody sleeps and looks again."""
    monkeypatch.setattr(subprocess, "time", SimpleNamespace(sleep=None))
    threading.Timer(0.2, end, [child]).start()
    assert has_child_ended(child, 60.0)
    assert child.returncode == 1


@with_pidfds
def test_one_that_has_been_reaped_has_ended(child: subprocess.Popen[bytes]):
    end(child)
    child.wait()
    assert has_child_ended(child, 60.0)
    assert has_ended(child.pid, 60.0)


@pytest.mark.parametrize("error", [OSError(errno.ENOSYS, "no such call"), AttributeError("pidfd_open")])
def test_without_pidfds_a_child_is_waited_for_all_the_same(
    child: subprocess.Popen[bytes], error: Exception, monkeypatch: pytest.MonkeyPatch
):
    def none(_: int) -> int:
        raise error

    monkeypatch.setattr(os, "pidfd_open", none)
    assert has_ended(child.pid, 0.0) is None
    assert not has_child_ended(child, 0.01)
    end(child)
    assert has_child_ended(child, 60.0)
    assert child.returncode == 1


def test_what_a_signal_s_handler_raises_is_not_swallowed(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(_: int) -> int:
        raise TimeoutError("of a handler")

    monkeypatch.setattr(os, "pidfd_open", interrupted, raising=False)
    with pytest.raises(TimeoutError, match="of a handler"):
        has_child_ended(child, 60.0)


@pytest.mark.skipif(not os.path.exists("/proc/thread-self/children"), reason="the kernel does not tell of children")
def test_an_ordinary_end_needs_no_psutil():
    """It takes longer to import than all the rest of an end."""
    code = """
        import sys
        from hpcpool.processes import sessions
        sessions.kill_session(2**30)
        sessions.kill_descendants(1.0)
        sessions.kill_orphans(lambda mark: True)
        assert "psutil" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
