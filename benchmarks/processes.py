"""The processes of a trial: found by a mark in their environment, since some pools' workers leave the process tree."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

#: The environment variable whose value differs for each trial and is inherited by everything that it starts.
MARK_VARIABLE = "HPCPOOL_BENCHMARK_TRIAL"

#: How long the kernel may take to end a process that was killed.
_KILLED_WITHIN_S = 5.0


def of_trial(mark: str) -> list[psutil.Process]:
    """Return the processes that carry the mark, and those below the current one, this one last."""
    own = psutil.Process()
    found = {process.pid: process for process in own.children(recursive=True)}
    found |= {process.pid: process for process in marked(mark)}
    found.pop(own.pid, None)
    return [*found.values(), own]


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes that carry the mark, wherever in the process tree they are now."""
    return [process for process in psutil.process_iter() if _has_mark(process, mark)]


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK_VARIABLE) == mark
    except (psutil.Error, OSError):  # gone, a zombie, or somebody else's
        return False


def cpu_seconds(processes: Iterable[psutil.Process]) -> dict[int, float]:
    """Return the CPU time that each process and its reaped children have used so far; one that is gone is left out."""
    used_s = {}
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used_s[process.pid] = times.user + times.system + times.children_user + times.children_system
    return used_s


def used_between(before_s: dict[int, float], after_s: dict[int, float]) -> float:
    """Return the CPU time used between two readings by the processes that are in both."""
    return sum(after_s[pid] - before_s[pid] for pid in before_s.keys() & after_s.keys())


def end_marked(mark: str, grace_s: float) -> int:
    """Kill what still runs `grace_s` after a trial, and return how many processes that were."""
    psutil.wait_procs(marked(mark), timeout=grace_s)
    # Looked up anew: a zombie that nobody has reaped yet would count as alive above.
    left = marked(mark)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(left, timeout=_KILLED_WITHIN_S)
    return len(left)
