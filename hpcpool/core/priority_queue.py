"""A queue with priorities, first come first served among equals. Pure; push and pop cost the same at any length."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class PriorityQueue(Generic[T]):
    """Items with a whole-number priority; the highest comes out first."""

    __slots__ = ("_priorities", "_queues")

    def __init__(self) -> None:
        self._queues: dict[int, deque[T]] = {}
        #: The priorities that have a queue, lowest first.
        self._priorities: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._priorities)

    def push(self, item: T, priority: int, *, first: bool = False) -> None:
        """Add an item behind its equals, or in front of them."""
        queue = self._queues.get(priority)
        if queue is None:
            queue = self._queues[priority] = deque()
            insort(self._priorities, priority)
        if first:
            queue.appendleft(item)
        else:
            queue.append(item)

    def __iter__(self) -> Iterator[T]:
        for priority in reversed(self._priorities):
            yield from self._queues[priority]

    def peek(self) -> tuple[int, T]:
        """Return the next item, with its priority before it; `IndexError` if there is none."""
        priority = self._priorities[-1]
        return priority, self._queues[priority][0]

    def pop(self) -> T:
        """Remove and return the next item; `IndexError` if there is none."""
        priority = self._priorities[-1]
        queue = self._queues[priority]
        item = queue.popleft()
        if not queue:
            del self._queues[priority]
            self._priorities.pop()
        return item

    def keep(self, is_kept: Callable[[T], bool]) -> None:
        """Remove all items but those that are to be kept."""
        for priority, queue in list(self._queues.items()):
            kept = deque(item for item in queue if is_kept(item))
            if kept:
                self._queues[priority] = kept
            else:
                del self._queues[priority]
                self._priorities.remove(priority)
