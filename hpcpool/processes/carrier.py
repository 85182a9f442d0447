"""What tasks need on their nodes besides themselves: functions by value and, on other hosts, segments.

It goes in front of the first task that needs it, once to each node.

References to segments stay as they are: a segment has the same path below the run directory of the pool and the node's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hpcpool.core.segment_cache import IDLE_BYTES, LADEN_BYTES, SegmentCache
from hpcpool.processes.connection import node_prefix
from hpcpool.wire import segment_files
from hpcpool.wire.messages import Define, Drop, Fetched, MessageError, Outcome, Place, Task, deal_frames
from hpcpool.wire.packing import references, segments_in

log = logging.getLogger(__name__)

#: What goes in front of a message, and the frames that belong to it.
Carried = list[tuple[Any, list[Any]]]


class Carrier:
    """The interchange's side: knows what each node has, and keeps what comes with outcomes.

    Args:
        run_directory: of the pool.
        idle_bytes: of segments that a node on another host keeps although none of its tasks refers to them.
        laden_bytes: of segments for tasks that are there, from which on such a node is laden.
        is_kept: says of a node and a segment whether that was made there, and is there still.
    """

    def __init__(
        self,
        run_directory: str,
        idle_bytes: int = IDLE_BYTES,
        laden_bytes: int = LADEN_BYTES,
        is_kept: Callable[[bytes, str], bool] = lambda node, path: False,
    ) -> None:
        self._run_directory = run_directory
        self._idle_bytes = idle_bytes
        self._laden_bytes = laden_bytes
        self._is_kept = is_kept
        self._blobs: dict[bytes, bytes] = {}
        #: The keys of the blobs that each node has been sent.
        self._known: dict[bytes, set[bytes]] = {}
        #: The segments that nodes on other hosts have; the others share the client's memory.
        self.caches: dict[bytes, SegmentCache] = {}

    def joined(self, node: bytes, *, is_far: bool) -> None:
        """A node has come; one that `is_far` shares no memory with the client."""
        self._known[node] = set()
        if is_far:
            self.caches[node] = SegmentCache(self._idle_bytes, self._laden_bytes)

    def lost(self, node: bytes) -> None:
        """A node has gone."""
        self._known.pop(node, None)
        self.caches.pop(node, None)

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
        if task.layout and (cache := self.caches.get(node)) is not None:
            carried += self._segments(node, cache, task)
        return carried

    def _segments(self, node: bytes, cache: SegmentCache, task: Task) -> Carried:
        found = segments_in(task.data, task.layout)
        found = {place: reference for place, reference in found.items() if not self._is_kept(node, place[0])}
        if not found:
            return []
        missing = set(cache.leased(task.id, list(found)))
        carried: Carried = []
        for (path, _), reference in found.items():
            if path in missing:
                try:
                    carried.append((Place(reference), [segment_files.content_of(self._run_directory, reference)]))
                except (OSError, ValueError) as error:  # its task has just been cancelled, or fails and says so
                    cache.lacking(path)
                    log.warning("segment=%s cannot be sent: %s", path, error)
        return carried

    def is_laden(self, node: bytes) -> bool:
        """Say whether a node on another host has as much as it should have at once."""
        cache = self.caches.get(node)
        return cache is not None and cache.is_laden

    def released(self, node: bytes, tasks: Iterable[int]) -> Drop | None:
        """Tasks are not on a node any more; return what to tell it, if anything. Others it may name at will."""
        cache = self.caches.get(node)
        if cache is None:
            return None
        dropped = [path for task in tasks for path in cache.released(task)]
        return Drop(dropped) if dropped else None

    def is_own(self, node: bytes, block: str, outcome: Outcome) -> bool:
        """Say whether the segments of an outcome are of its node's block, and not of the client or of other nodes."""
        if node not in self.caches:
            return True  # it is on this host, where this user's processes trust each other
        try:
            return all(_is_of(block, path) for path, _ in segments_in(outcome.data, outcome.layout))
        except ValueError:  # who opens it will say so
            return True

    def keep(self, block: str, message: Place, frames: Sequence[Any]) -> None:
        """Keep a segment that a node has sent.

        Args:
            block: of the node.
            message: names it.
            frames: its content.

        Raises:
            MessageError: it is none, or not the node's own.
            OSError: there is no room for it.
        """
        try:
            path, _ = segment_files.path_of(message.reference)
            if not _is_of(block, path):
                raise ValueError(f"{path} is not a name that it may use")
            segment_files.place(self._run_directory, message.reference, frames[0])
        except (ValueError, IndexError) as error:
            raise MessageError(f"a segment that is none: {error}") from error


def _is_of(block: str, path: str) -> bool:
    return path.partition("/")[2].startswith(node_prefix(block))


def with_segments(
    run_directory: str, messages: Sequence[Any], frames: Sequence[Any]
) -> tuple[Sequence[Any], Sequence[Any]]:
    """The manager's side: put in front of each outcome the segments that it refers to; they are here no longer.

    Those of a result that is kept stay.
    """
    if not any(type(message) is Outcome and any(length < -1 for length in message.layout) for message in messages):
        return messages, frames
    all_messages: list[Any] = []
    all_frames: list[Any] = []
    for message, its_frames in deal_frames(messages, frames):
        if type(message) is Outcome and message.layout and not message.is_kept:
            for reference in references(message.data, message.layout):
                all_messages.append(Place(reference))
                all_frames.append(segment_files.content_of(run_directory, reference))
                segment_files.discard(run_directory, [reference])
        all_messages.append(message)
        all_frames.extend(its_frames)
    return all_messages, all_frames


def fetched(run_directory: str, reference: bytes) -> tuple[Fetched, list[Any]]:
    """The manager's side: return the content of a segment that is kept here, or why it cannot be had."""
    path, _ = segment_files.path_of(reference)
    try:
        return Fetched(path, frames=1), [segment_files.content_of(run_directory, reference)]
    except OSError as error:
        return Fetched(path, str(error)), []
