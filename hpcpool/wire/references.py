"""Whether an object that is finalized has no reference left, or is in a cycle that the collector takes apart."""

from __future__ import annotations

import sys


class _Probe:
    """Counts the references to an object of which nobody but its finalizer has one: versions and debuggers add some."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts

    def __del__(self) -> None:
        _count(self, self._counts)


def _count(finalized: object, counts: list[int]) -> None:
    counts.append(sys.getrefcount(finalized))


def is_last_reference(finalized: object) -> bool:
    """Say whether nothing else refers to an object that is being finalized.

    The collector finalizes all objects of a cycle before it takes any of them apart, so others may still use this one.

    Args:
        finalized: `self`, in `__del__` itself.
    """
    counts: list[int] = []
    _Probe(counts)
    return sys.getrefcount(finalized) <= counts[0]
