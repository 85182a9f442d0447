"""Which results stay at the nodes that made them, who waits for their content, and which of it is fetched now. Pure.

A kept segment is at its node until the client lets go of it. Its content comes to the client's host, once, when
somebody needs it there: the client, a task on another node, or the node itself because it is about to leave. Only so
much of one node, and of all of them, is on its way at a time that nobody's memory fills up with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

#: Bytes of segments that are on their way from one node at a time; a larger one comes alone.
WINDOW_BYTES = 64 * 1024 * 1024
#: The same of all nodes: however many there are, their content has to fit into the memory of one process.
TOTAL_BYTES = 1024 * 1024 * 1024


class Fetch(NamedTuple):
    """Ask this node for the content of these segments."""

    node: bytes
    paths: list[str]


class _Segment(msgspec.Struct):
    node: bytes
    nbytes: int
    #: Its content is on the client's host, too.
    is_here: bool = False
    #: Somebody has asked for it.
    is_wanted: bool = False
    #: Why it can never come; "": it may.
    loss: str = ""
    #: The tasks that wait for it, in order.
    tasks: dict[int, None] = {}


class _Node(msgspec.Struct):
    #: What is here of the client's, whether its content has been fetched or not.
    paths: set[str] = set()
    #: What is to be asked for, in order; may name some that nobody wants any more.
    queue: deque[str] = msgspec.field(default_factory=deque)
    #: What has been asked for and has not come, and the bytes of all of it.
    asked: dict[str, int] = {}
    asked_bytes: int = 0


class KeptSegments:
    """The kept segments of all nodes."""

    def __init__(self, window_bytes: int = WINDOW_BYTES, total_bytes: int = TOTAL_BYTES) -> None:
        self._window_bytes = window_bytes
        self._total_bytes = total_bytes
        #: Of all nodes.
        self._asked_bytes = 0
        self._segments: dict[str, _Segment] = {}
        self._nodes: dict[bytes, _Node] = {}
        #: The nodes whose queue is not empty; who has waited longest for a turn comes first.
        self._wanted: dict[bytes, None] = {}

    def __bool__(self) -> bool:
        return bool(self._segments)

    # -- events --

    def made(self, node: bytes, path: str, nbytes: int) -> None:
        """A node has made a segment and keeps it."""
        self._segments[path] = _Segment(node, nbytes)
        self._nodes.setdefault(node, _Node()).paths.add(path)

    def let_go(self, paths: Iterable[str]) -> dict[bytes, list[str]]:
        """Nobody needs these any more; return what each node is to let go of."""
        told: dict[bytes, list[str]] = {}
        for path in paths:
            segment = self._segments.pop(path, None)
            if segment is not None and (node := self._nodes.get(segment.node)) is not None:
                node.paths.discard(path)
                told.setdefault(segment.node, []).append(path)
        return told

    def want(self, path: str, task: int | None = None) -> None:
        """Have a segment's content fetched, for a task or for the client."""
        segment = self._segments.get(path)
        if segment is None or segment.is_here or segment.loss:
            return
        if task is not None:
            segment.tasks[task] = None
        if not segment.is_wanted:
            segment.is_wanted = True
            self._nodes[segment.node].queue.append(path)
            self._wanted.setdefault(segment.node)

    def want_all(self, node: bytes) -> None:
        """Have all fetched that is only at this node."""
        for path in sorted(self._nodes[node].paths) if node in self._nodes else ():
            self.want(path)

    def fetches(self) -> list[Fetch]:
        """Return what is to be asked for now; it counts as asked for from then on."""
        asked: list[Fetch] = []
        for name in list(self._wanted):
            if self._asked_bytes >= self._total_bytes:
                break
            node = self._nodes[name]
            if paths := self._next(node):
                asked.append(Fetch(name, paths))
            if paths or not node.queue:
                del self._wanted[name]
                if node.queue:
                    self._wanted[name] = None
        return asked

    def _next(self, node: _Node) -> list[str]:
        paths: list[str] = []
        while node.queue:
            segment = self._segments.get(node.queue[0])
            if segment is None or node.queue[0] in node.asked:
                node.queue.popleft()
                continue
            if node.asked and node.asked_bytes + segment.nbytes > self._window_bytes:
                break
            if self._asked_bytes and self._asked_bytes + segment.nbytes > self._total_bytes:
                break
            paths.append(node.queue.popleft())
            node.asked[paths[-1]] = segment.nbytes
            node.asked_bytes += segment.nbytes
            self._asked_bytes += segment.nbytes
        return paths

    def answered(self, node: bytes, path: str) -> bool:
        """A node has answered; False if it was not asked for this."""
        known = self._nodes.get(node)
        nbytes = known.asked.pop(path, None) if known is not None else None
        if known is None or nbytes is None:
            return False
        known.asked_bytes -= nbytes
        self._asked_bytes -= nbytes
        return True

    def arrived(self, path: str) -> list[int]:
        """A segment's content is on the client's host; return the tasks that have waited for it."""
        segment = self._segments[path]
        segment.is_here = True
        return self._waiters(segment)

    def lost(self, path: str, reason: str) -> list[int]:
        """A segment's content can never come; return the tasks that have waited for it."""
        segment = self._segments[path]
        segment.loss = reason
        return self._waiters(segment)

    def node_lost(self, node: bytes) -> list[str]:
        """A node has gone; return the segments whose content has gone with it: the caller calls `lost` for each."""
        known = self._nodes.pop(node, None)
        if known is None:
            return []
        self._wanted.pop(node, None)
        self._asked_bytes -= known.asked_bytes
        return [path for path in sorted(known.paths) if not self._segments[path].is_here]

    @staticmethod
    def _waiters(segment: _Segment) -> list[int]:
        tasks, segment.tasks = list(segment.tasks), {}
        return tasks

    # -- questions --

    def is_known(self, path: str) -> bool:
        """Say whether a segment is kept, and not let go of."""
        return path in self._segments

    def is_at(self, node: bytes, path: str) -> bool:
        """Say whether a node has made a segment and keeps it."""
        segment = self._segments.get(path)
        return segment is not None and segment.node == node and node in self._nodes

    def lacking(self, node: bytes, paths: Iterable[str]) -> list[str]:
        """Return those that a task on this node cannot have yet, as they are at another one only."""
        return [
            path
            for path in paths
            if (segment := self._segments.get(path)) is not None and not segment.is_here and not self.is_at(node, path)
        ]

    def loss_of(self, path: str) -> str:
        """Say why a segment can never come; "": it may."""
        segment = self._segments.get(path)
        return segment.loss if segment is not None else ""

    def holds(self, node: bytes) -> bool:
        """Say whether a node has content that is nowhere else, and may still come."""
        known = self._nodes.get(node)
        return known is not None and any(
            not self._segments[path].is_here and not self._segments[path].loss for path in known.paths
        )

    def home_of(self, paths: Iterable[str]) -> bytes | None:
        """Return the node that has made most of these, in bytes; None: none of them is kept."""
        sizes: dict[bytes, int] = {}
        for path in set(paths):
            segment = self._segments.get(path)
            if segment is not None and segment.node in self._nodes:
                sizes[segment.node] = sizes.get(segment.node, 0) + segment.nbytes
        return max(sizes, key=lambda node: (sizes[node], node), default=None)
