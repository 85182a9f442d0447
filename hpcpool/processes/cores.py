"""How many cores this process may use, and which; what is made of that is not decided here."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return the cores that `ProcessPoolExecutor` would count, or fewer: those that this process is bound to."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on; it also asks PYTHON_CPU_COUNT and -X cpu_count
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_core_numbers() -> list[int]:
    """Return the numbers of the cores that this process may be bound to."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
