"""What goes to a manager with the tasks that are leased to it, and no more than its node should hold at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcpool.core.scheduler import Scheduler
from hpcpool.processes.carrier import Carrier
from hpcpool.processes.peer import Peer
from hpcpool.wire.messages import Nodes, Task


class Loading:
    """Belongs to the interchange's thread.

    Args:
        scheduler: is told of nodes that have enough.
        carrier: knows what each node has.
        tasks: those that are not finished, with their frames.
        managers: by name.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        carrier: Carrier,
        tasks: Mapping[int, tuple[Task, list[Any]]],
        managers: Mapping[bytes, Peer],
    ) -> None:
        self._scheduler = scheduler
        self._carrier = carrier
        self._tasks = tasks
        self._managers = managers

    def load(self, name: bytes, ids: Sequence[int]) -> tuple[list[Any], list[Any], bool]:
        """Return messages for a manager, their frames, and False if some of its tasks are queued again instead."""
        messages: list[Any] = []
        all_frames: list[Any] = []
        left, is_all = list(reversed(ids)), True
        while left:
            task, frames = self._tasks[left.pop()]
            if task.needs is not None and len(company := self._scheduler.company_of(task.id)) > 1:
                messages.append(Nodes(task.id, [self._managers[other].hello.host for other in company]))
            if task.blobs or task.layout:
                for message, its_frames in self._carrier.leased(name, task):
                    messages.append(message)
                    all_frames.extend(its_frames)
            messages.append(task)
            if frames:
                all_frames.extend(frames)
            if left and self._carrier.is_laden(name) and (back := self._put_back(name, left)):
                left, is_all = [task for task in left if task not in back], False
        return messages, all_frames, is_all

    def _put_back(self, name: bytes, left: list[int]) -> set[int]:
        """A node has enough: have those of these tasks queued again, newest first, that no slot is free for."""
        manager = self._managers[name]
        manager.is_laden = True
        self._scheduler.capacity_changed(name, *manager.capacity)
        surplus = max(0, self._scheduler.held_by(name) - manager.slots)
        back = [task for task in left if self._tasks[task][0].needs is None][:surplus]
        self._scheduler.returned(name, back)  # none is dropped: they were queued a moment ago
        return set(back)

    def relieve(self, name: bytes) -> None:
        """Tasks are not on a node any more: it may have room again."""
        manager = self._managers.get(name)
        if manager is not None and manager.is_laden and not self._carrier.is_laden(name):
            manager.is_laden = False
            self._scheduler.capacity_changed(name, *manager.capacity)
