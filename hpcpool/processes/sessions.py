"""Ends what calls have started, wherever it has gone: by session, by descent, by a mark. It decides nothing.

What a call starts may leave its session (`setsid`), and its parent may end before it. Orphans come to the nearest
process above that adopts them (Linux), so descent leads to all that runs below us; of those that have come to us, the
mark in their environment tells which worker they are from. Each search is repeated until it finds nothing new: who has
been sent SIGKILL starts nothing any more.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator

from hpcpool.processes.process_end import has_ended

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: In the environment of each worker, and so of what its calls start: the folder of its node, a colon, its number.
MARK = "HPCPOOL_WORKER"
#: How long one that is ending may take to vanish (seconds).
_VANISH_S = 1.0
#: Without pidfds (before Linux 5.3, macOS) the end of a killed process is looked for this often (seconds).
_LOOK_AGAIN_S = 0.005


def node_directory() -> str | None:
    """Return the folder of the node whose worker this process is, or runs below; None if there is none."""
    directory = os.environ.get(MARK, "").rpartition(":")[0]
    return directory if os.path.isdir(directory) else None


def adopt_orphans() -> None:
    """From now on the orphans among our descendants become our children (Linux; nothing happens elsewhere)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent: int) -> None:
    """Have this process killed when its parent dies (Linux); ends it now if that has happened already."""
    if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) and os.getppid() != parent:
        os._exit(1)


def signal_process(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended already, or belong to somebody else (sudo)."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def kill_session(session: int) -> None:
    """Kill all members of a session, in whatever process groups they are."""
    killed: set[int] = set()
    while found := set(_members(session)) - killed:
        _kill(found)
        killed |= found


def kill_family(pid: int) -> None:
    """Kill a process and all that descends from it."""
    signal_process(pid, signal.SIGSTOP)  # or it would start more while we look
    killed: set[int] = set()
    while found := set(_descendants(pid)) - killed:
        _kill(found)
        killed |= found
    signal_process(pid, signal.SIGKILL)


def kill_orphans(is_meant: Callable[[str], bool], spare: Iterable[int] = ()) -> None:
    """Kill our children (but for `spare`) of whose marks this is true, and all that descends from them."""
    seen = set(spare)
    while new := [child for child in _children(os.getpid()) if child not in seen]:
        for child in new:
            environment = _environment(child)
            if environment is None:
                _wait_for_end(child, time.monotonic() + _VANISH_S)  # only then its children come to us
            elif is_meant(environment.get(MARK, "")):
                kill_family(child)
            seen.add(child)


def kill_marked(is_meant: Callable[[str], bool]) -> None:
    """Kill all processes of this host of whose marks this is true, whoever has adopted them."""
    killed: set[int] = set()
    while found := {pid for pid in _all() if is_meant((_environment(pid) or {}).get(MARK, ""))} - killed:
        _kill(found)
        killed |= found


def kill_descendants(patience_s: float) -> None:
    """Kill all that descends from us and wait until it has ended, but not longer than `patience_s`."""
    deadline = time.monotonic() + patience_s
    while _has_child() and time.monotonic() < deadline:
        living = list(_descendants(os.getpid()))
        _kill(living)
        for pid in living:
            _wait_for_end(pid, deadline)
        _reap()


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        signal_process(pid, signal.SIGKILL)


def _has_child() -> bool:
    """Whether this process has any child, living or not."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _wait_for_end(pid: int, deadline: float) -> None:
    if has_ended(pid, deadline - time.monotonic()) is None:
        time.sleep(_LOOK_AGAIN_S)


# psutil is imported where it is used: that takes some 20 milliseconds, and most ends of workers and pools need it not.


def _all() -> list[int]:
    if os.path.exists("/proc/self"):
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    import psutil

    return psutil.pids()


def _members(session: int) -> Iterator[int]:
    for pid in _all():
        try:
            if os.getsid(pid) == session:
                yield pid
        except (ProcessLookupError, PermissionError):
            continue


def _children(pid: int) -> list[int]:
    """The children of a process. It may miss some while others are being reaped, so it is asked again after a kill."""
    if not os.path.exists("/proc/thread-self/children"):  # macOS; some kernels
        import psutil

        try:
            return [child.pid for child in psutil.Process(pid).children()]
        except psutil.NoSuchProcess:
            return []
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                children += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
    return children


def _descendants(pid: int) -> Iterator[int]:
    """All that descends from a process and has not ended."""
    found = _children(pid)
    if not found:
        return
    import psutil

    for process in found:
        found += _children(process)
        try:
            if psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.NoSuchProcess:
            continue


def _environment(pid: int) -> dict[str, str] | None:
    """The environment of a process; None if it has ended or is about to: then there is nothing to read any more."""
    import psutil

    try:
        process = psutil.Process(pid)
        return process.environ() or ({} if process.cmdline() else None)
    except psutil.AccessDenied:  # another user's
        return {}
    except psutil.NoSuchProcess:
        return None


def _prctl(option: int, value: int) -> bool:
    """Call Linux's prctl(2); False where there is none."""
    try:
        return bool(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0)
    except AttributeError:
        return False
