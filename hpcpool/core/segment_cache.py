"""Which of the client's segments a node on another host has, and which it is to let go of. Pure.

A segment crosses to a node once, with the first task that refers to it, and stays for the next ones: those that no task
there refers to any more go when they have become too many, the longest unused first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

#: Bytes of segments that a node keeps although none of its tasks refers to them now.
IDLE_BYTES = 512 * 1024 * 1024
#: A node to which more bytes of segments have gone than this, for tasks that have not ended, gets no tasks ahead of its
#: free slots: neither its memory nor what waits in the interchange may grow with how far ahead tasks are sent.
LADEN_BYTES = 256 * 1024 * 1024


class _Held(msgspec.Struct):
    nbytes: int
    #: How many tasks of the node refer to it.
    uses: int = 0
    #: It could not be sent: the next task that refers to it brings it.
    is_lacking: bool = False


class SegmentCache(msgspec.Struct):
    """The segments of one node."""

    idle_limit: int = IDLE_BYTES
    laden_limit: int = LADEN_BYTES
    _held: dict[str, _Held] = {}
    #: Those that no task refers to, the longest unused first.
    _idle: OrderedDict[str, None] = msgspec.field(default_factory=OrderedDict)
    _idle_bytes: int = 0
    _used_bytes: int = 0
    #: What each task refers to, if anything.
    _uses: dict[int, tuple[str, ...]] = {}

    @property
    def is_laden(self) -> bool:
        """Whether the tasks that are there refer to more than should be there at once."""
        return self._used_bytes > self.laden_limit

    def leased(self, task: int, segments: Iterable[tuple[str, int]]) -> list[str]:
        """A task is about to go to the node, and refers to these (path, bytes); return those that must go with it."""
        missing: list[str] = []
        paths = dict(segments)
        for path, nbytes in paths.items():
            held = self._held.get(path)
            if held is None:
                held = self._held[path] = _Held(nbytes)
                missing.append(path)
            elif not held.uses:
                del self._idle[path]
                self._idle_bytes -= held.nbytes
            held.uses += 1
            if held.uses == 1:
                self._used_bytes += nbytes
            if held.is_lacking:
                held.is_lacking = False
                missing.append(path)
        self._uses[task] = tuple(paths)
        return missing

    def lacking(self, path: str) -> None:
        """A segment that was missing could not be sent."""
        self._held[path].is_lacking = True

    def released(self, task: int) -> list[str]:
        """A task is not on the node any more; return the segments that the node is to let go of."""
        for path in self._uses.pop(task, ()):
            held = self._held[path]
            held.uses -= 1
            if not held.uses:
                self._idle[path] = None
                self._idle_bytes += held.nbytes
                self._used_bytes -= held.nbytes
        dropped: list[str] = []
        while self._idle_bytes > self.idle_limit:
            path, _ = self._idle.popitem(last=False)
            self._idle_bytes -= self._held.pop(path).nbytes
            dropped.append(path)
        return dropped
