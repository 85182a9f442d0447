"""Waiting for descriptors: callbacks on an epoll, without what `selectors` does around it at each wake-up.

Where there is no epoll (macOS) it is a `select.poll`.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any, Protocol

READ = 1  # EPOLLIN = POLLIN
WRITE = 4  # EPOLLOUT = POLLOUT
#: Nobody waits longer at once (seconds): the kernel counts milliseconds in 32 bits.
_LONGEST_S = 86_400.0
Callback = Callable[[int], None]


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class EventLoop:
    """Descriptors and what to call when they are ready. Level-triggered; belongs to one thread."""

    def __init__(self) -> None:
        self._poll: Any = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._unit = 1.0 if hasattr(select, "epoll") else 1000.0
        self._callbacks: dict[int, Callback] = {}

    def add(self, watched: _HasFileno | int, callback: Callback, events: int = READ) -> None:
        """Call `callback` with the events (READ, WRITE) whenever the descriptor is ready."""
        descriptor = _descriptor(watched)
        self._poll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def change(self, watched: _HasFileno | int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._poll.modify(_descriptor(watched), events)

    def remove(self, watched: _HasFileno | int) -> None:
        """Forget a descriptor; nothing happens if it is not known."""
        descriptor = _descriptor(watched)
        if self._callbacks.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def wait(self, timeout_s: float) -> None:
        """Wait until something is ready, and call what was registered for it.

        Args:
            timeout_s: the longest wait in seconds; more than a day: a day; below 0: none.
        """
        for descriptor, events in self._poll.poll(max(0.0, min(timeout_s, _LONGEST_S)) * self._unit):
            callback = self._callbacks.get(descriptor)
            if callback is not None:  # it may have been removed by a callback before it
                # An error or a hang-up is told by reading.
                callback(events if events & (READ | WRITE) else READ)


def wake_up_pipe() -> tuple[int, int]:
    """Return two non-blocking descriptors: who writes to the second wakes the loop that listens to the first."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


def _descriptor(watched: _HasFileno | int) -> int:
    return watched if isinstance(watched, int) else watched.fileno()
