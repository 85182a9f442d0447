"""What tasks need on their nodes besides themselves: functions by value and, on other hosts, segments.

It goes in front of the first task that needs it, once to each node.

References to segments stay as they are: a segment has the same path below the run directory of the pool and the node's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from hpcpool.core.segment_cache import SegmentCache
from hpcpool.wire import segments
from hpcpool.wire.messages import Define, Drop, MessageError, Outcome, Place, Task, deal_frames
from hpcpool.wire.packing import references

log = logging.getLogger(__name__)

#: What goes in front of a message, and the frames that belong to it.
Carried = list[tuple[Any, list[Any]]]


class Carrier:
    """The interchange's side: knows what each node has, and keeps what comes with outcomes."""

    def __init__(self, run_directory: str) -> None:
        self._run_directory = run_directory
        self._blobs: dict[bytes, bytes] = {}
        #: The keys of the blobs that each node has been sent.
        self._known: dict[bytes, set[bytes]] = {}
        #: The segments of nodes on other hosts.
        self._caches: dict[bytes, SegmentCache] = {}
        #: The tasks that have segments on such a node, and the node's name.
        self._nodes: dict[int, bytes] = {}

    def joined(self, node: bytes, *, is_far: bool) -> None:
        """A node has come; one that `is_far` shares no memory with the client."""
        self._known[node] = set()
        if is_far:
            self._caches[node] = SegmentCache()

    def lost(self, node: bytes) -> None:
        """A node has gone."""
        self._known.pop(node, None)
        if self._caches.pop(node, None) is not None:
            self._nodes = {task: name for task, name in self._nodes.items() if name != node}

    def define(self, message: Define) -> None:
        """The client has a function by value that tasks will need."""
        self._blobs[message.key] = message.data

    def forget(self, key: bytes) -> list[bytes]:
        """The client needs a function no more; return the nodes that are to be told."""
        self._blobs.pop(key, None)
        told = [node for node, known in self._known.items() if key in known]
        for node in told:
            self._known[node].discard(key)
        return told

    def leased(self, node: bytes, task: Task) -> Carried:
        """Return what must go to a node in front of a task."""
        carried: Carried = []
        known = self._known[node]
        for key in task.blobs:
            if key not in known:
                known.add(key)
                carried.append((Define(key, self._blobs[key]), []))
        if task.layout and (cache := self._caches.get(node)) is not None:
            carried += self._segments(node, cache, task)
        return carried

    def _segments(self, node: bytes, cache: SegmentCache, task: Task) -> Carried:
        found = {segments.path_of(reference): reference for reference in references(task.data, task.layout)}
        if not found:
            return []
        self._nodes[task.id] = node
        missing = set(cache.leased(task.id, list(found)))
        carried: Carried = []
        for (path, _), reference in found.items():
            if path in missing:
                try:
                    carried.append((Place(reference), [segments.content_of(self._run_directory, reference)]))
                except OSError as error:  # its task has been cancelled in this moment, or fails and says so
                    log.warning("segment=%s cannot be sent: %s", path, error)
        return carried

    def released(self, tasks: Iterable[int]) -> list[tuple[bytes, Drop]]:
        """Tasks are not on their nodes any more; return what to tell which node."""
        orders: list[tuple[bytes, Drop]] = []
        if not self._nodes:
            return orders
        for task in tasks:
            node = self._nodes.pop(task, None)
            if node is not None and (dropped := self._caches[node].released(task)):
                orders.append((node, Drop(dropped)))
        return orders

    def keep(self, prefix: str, message: Place, frames: Sequence[Any]) -> None:
        """Keep a segment that a node has sent.

        Args:
            prefix: what the names of the node's segments begin with.
            message: names it.
            frames: its content.

        Raises:
            MessageError: it is none, or not the node's own.
            OSError: there is no room for it.
        """
        try:
            path, _ = segments.path_of(message.reference)
            if not path.partition("/")[2].startswith(prefix):
                raise ValueError(f"{path} is not a name that it may use")
            segments.place(self._run_directory, message.reference, frames[0])
        except (ValueError, IndexError) as error:
            raise MessageError(f"a segment that is none: {error}") from error


def with_segments(
    run_directory: str, messages: Sequence[Any], frames: Sequence[Any]
) -> tuple[Sequence[Any], Sequence[Any]]:
    """The manager's side: put in front of each outcome the segments that it refers to; they are here no longer."""
    if not any(type(message) is Outcome and any(length < -1 for length in message.layout) for message in messages):
        return messages, frames
    all_messages: list[Any] = []
    all_frames: list[Any] = []
    for message, its_frames in deal_frames(messages, frames):
        if type(message) is Outcome and message.layout:
            for reference in references(message.data, message.layout):
                all_messages.append(Place(reference))
                all_frames.append(segments.content_of(run_directory, reference))
                segments.discard(run_directory, [reference])
        all_messages.append(message)
        all_frames.extend(its_frames)
    return all_messages, all_frames
