"""Which tasks wait for which others: a graph that only grows from finished to unfinished, so it has no cycles. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Hashable)


class Dependencies(Generic[K, T]):
    """Tasks (T) and what they wait for (K). Nothing here recurses: a chain may be of any length."""

    def __init__(self) -> None:
        #: What each waiting task still waits for; never empty.
        self._missing: dict[T, set[K]] = {}
        #: The waiting tasks of each dependency, in the order in which they were added.
        self._dependents: dict[K, dict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._missing)

    def __contains__(self, key: K) -> bool:
        """Say whether anything waits for this."""
        return key in self._dependents

    def add(self, task: T, missing: Iterable[K]) -> list[K]:
        """Let a task wait for at least one thing; returns what nobody has waited for until now.

        Raises `ValueError` if there is nothing, as the task would wait for ever.
        """
        keys = set(missing)
        if not keys:
            raise ValueError(f"{task!r} waits for nothing")
        self._missing[task] = keys
        news = [key for key in keys if key not in self._dependents]
        for key in keys:
            self._dependents.setdefault(key, {})[task] = None
        return news

    def dependents(self, key: K) -> list[T]:
        """Return the tasks that wait for this."""
        return list(self._dependents.get(key, ()))

    def done(self, key: K) -> list[T]:
        """This has finished: return the tasks that wait for nothing any more."""
        ready = []
        for task in self._dependents.pop(key, ()):
            missing = self._missing[task]
            missing.discard(key)
            if not missing:
                del self._missing[task]
                ready.append(task)
        return ready

    def remove(self, task: T) -> bool:
        """A task does not wait any more (it failed or was cancelled); False if it was not waiting."""
        missing = self._missing.pop(task, None)
        if missing is None:
            return False
        for key in missing:
            waiting = self._dependents[key]
            del waiting[task]
            if not waiting:
                del self._dependents[key]
        return True
