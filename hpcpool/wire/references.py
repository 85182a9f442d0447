"""Whether an object that is finalized has no reference left, or is in a cycle that the collector takes apart."""

from __future__ import annotations

import sys

#: What is counted below when nobody but its finalizer refers to an object: a matter of the interpreter's version.
_alone: list[int] = []


class _Probe:
    def __del__(self) -> None:
        _note(self)


def _note(finalized: object) -> None:
    _alone.append(sys.getrefcount(finalized))


_Probe()


def is_last_reference(finalized: object) -> bool:
    """Say whether nothing else refers to an object that is being finalized.

    The collector finalizes all objects of a cycle before it takes any of them apart, so others may still use this one.

    Args:
        finalized: `self`, in `__del__` itself.
    """
    return sys.getrefcount(finalized) <= _alone[0]
