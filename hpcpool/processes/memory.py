"""How much memory the processes of this node may use; what is made of that is not decided here."""

from __future__ import annotations

import os
from collections.abc import Iterator

_CGROUPS = "/sys/fs/cgroup"


def usable_memory_bytes() -> int:
    """Return the node's memory, or less: what the batch system allows this job; 0: not known."""
    limits = [*_physical(), *cgroup_limits("/proc/self/cgroup", _CGROUPS)]
    return min(limits, default=0)


def _physical() -> Iterator[int]:
    try:
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return


def cgroup_limits(own: str, root: str) -> Iterator[int]:
    """Yield the memory limits of the control groups that this process is in, and of those around them (cgroups(7)).

    Args:
        own: what the kernel tells of a process's groups, such as `/proc/self/cgroup`.
        root: where the groups are.
    """
    try:
        with open(own, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _limits_above(root, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_above(os.path.join(root, "memory"), path, "memory.limit_in_bytes")


def _limits_above(root: str, path: str, name: str) -> Iterator[int]:
    groups = [part for part in path.split("/") if part]
    for count in range(len(groups), -1, -1):
        try:
            with open(os.path.join(root, *groups[:count], name), encoding="ascii") as file:
                text = file.read().strip()
        except OSError:  # the root has none; in a container, the groups outside are not there
            continue
        if text.isdigit():  # else "max"
            yield int(text)
