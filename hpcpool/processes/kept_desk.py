"""The interchange's part in results that stay at the nodes that made them: has their content fetched when need be.

A task that needs what is only at another node is held until that has come. What is decided is in `core.kept_segments`
and, of tasks, in `core.held`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hpcpool.core.kept_segments import KeptSegments
from hpcpool.core.scheduler import Scheduler
from hpcpool.wire import segment_files
from hpcpool.wire.messages import Drop, Fetch, Fetched, MessageError, Outcome, Status, Struct, Task
from hpcpool.wire.packing import segments_in

log = logging.getLogger(__name__)


class KeptDesk:
    """Belongs to the interchange's thread.

    Args:
        run_directory: of the pool.
        scheduler: knows who holds a task.
        tasks: those that are not finished, with their frames; one that needs what was lost is removed from them.
        say: sends the client a message.
        tell: sends a manager messages.
    """

    def __init__(
        self,
        run_directory: str,
        scheduler: Scheduler,
        tasks: dict[int, tuple[Task, list[Any]]],
        say: Callable[[Struct], None],
        tell: Callable[[bytes, list[Any]], None],
    ) -> None:
        self._run_directory = run_directory
        self._scheduler = scheduler
        self._tasks = tasks
        self._say = say
        self._tell = tell
        self._segments = KeptSegments()
        self._references: dict[str, bytes] = {}
        #: Nodes that are about to leave: what calls still make there is fetched at once.
        self._leaving: set[bytes] = set()

    def __bool__(self) -> bool:
        return bool(self._segments)

    # -- outcomes --

    def take(self, node: bytes, outcome: Outcome) -> None:
        """A node on another host keeps the segments of an outcome, which is about to go to the client."""
        try:
            found = segments_in(outcome.data, outcome.layout)
        except ValueError:  # who opens it will say so
            outcome.is_kept = False
            return
        for (path, nbytes), reference in found.items():
            if not self._segments.is_known(path):
                self._segments.made(node, path, nbytes)
                self._references[path] = reference
                if node in self._leaving:
                    self._segments.want(path)
        if node in self._leaving:
            self._fetch()

    def discard(self, node: bytes, outcome: Outcome) -> None:
        """Nobody wants an outcome whose segments a node keeps."""
        self._tell(node, [Drop(_paths(outcome))])

    # -- the client --

    def on_client(self, message: Fetch | Drop) -> None:
        """The client needs the content of segments, or does not need segments any more."""
        if isinstance(message, Fetch):
            for path in (segment_files.path_of(reference)[0] for reference in message.references):
                if self._segments.is_known(path):
                    self._segments.want(path)
                else:
                    self._say(Fetched(path, "kept at its node, and is not known any more"))
            self._fetch()
            return
        segment_files.drop(self._run_directory, filter(self._segments.is_known, message.paths))
        for path in message.paths:
            self._references.pop(path, None)
        for node, paths in self._segments.let_go(message.paths).items():
            self._tell(node, [Drop(paths)])

    # -- tasks --

    def home_of(self, task: Task) -> bytes | None:
        """Return the manager whose node keeps most of what a task needs; None: none does."""
        return self._segments.home_of(_paths(task)) if self._segments else None

    def is_at(self, node: bytes, path: str) -> bool:
        """Say whether a node has a segment because it was made there."""
        return self._segments.is_at(node, path)

    def ready(self, node: bytes, tasks: Iterable[int]) -> tuple[list[int], bool]:
        """Return those of the tasks leased to a node that can go there now, and whether those are all.

        The others wait until what they lack has come, or end here, as it never will.
        """
        ready: list[int] = []
        is_all = True
        for task in tasks:
            paths = _paths(self._tasks[task][0])
            lacking = self._segments.lacking(node, paths)
            if not lacking:
                ready.append(task)
                continue
            is_all = False
            if losses := list(filter(None, map(self._segments.loss_of, lacking))):
                self._scheduler.finished(node, task)
                del self._tasks[task]
                self._say(Outcome(task, Status.BEREFT, losses[0].encode()))
                continue
            home = self._segments.home_of(paths)
            self._scheduler.hold(task, is_at_home=home is not None and not self._segments.lacking(home, paths))
            for path in lacking:
                self._segments.want(path, task)
        self._fetch()
        return ready, is_all

    # -- nodes --

    def on_fetched(self, node: bytes, message: Fetched, frames: Sequence[Any]) -> None:
        """A node has sent a segment's content, or cannot.

        Raises:
            MessageError: nobody has asked for it, or it is not what it should be.
        """
        path = message.path
        if not self._segments.answered(node, path):
            raise MessageError(f"a segment that nobody has asked for: {path}")
        if self._segments.is_known(path):
            if message.error:
                self._lose(path, f"kept at its node, which cannot send it: {message.error}")
            else:
                self._place(path, frames)
        self._fetch()

    def _place(self, path: str, frames: Sequence[Any]) -> None:
        try:
            segment_files.place(self._run_directory, self._references[path], frames[0])
        except (ValueError, IndexError) as error:
            raise MessageError(f"a segment that is none: {error}") from error
        except OSError as error:
            self._lose(path, f"kept at its node, and there is no room for it on the client's host: {error}")
        else:
            self._say(Fetched(path))
            self._scheduler.resume(self._segments.arrived(path))

    def node_lost(self, node: bytes, reason: str) -> None:
        """A node has gone, and what it has kept; its tasks are leased to nobody any more."""
        self._leaving.discard(node)
        lost = self._segments.node_lost(node)
        if lost:
            log.warning("manager=%r kept_segments=%d lost", node, len(lost))
        for path in lost:
            self._lose(path, f"kept at its node, and lost with it: {reason}")
        self._fetch()  # it may be the turn of others now

    def evacuate(self, node: bytes) -> bool:
        """A node is about to leave: have all fetched that it keeps. True when nothing is left there; ask again."""
        self._leaving.add(node)
        if not self._segments.holds(node):
            return True
        self._segments.want_all(node)
        self._fetch()
        return False

    def _lose(self, path: str, reason: str) -> None:
        if not self._segments.loss_of(path):
            self._say(Fetched(path, reason))
            self._scheduler.resume(self._segments.lost(path, reason))

    def _fetch(self) -> None:
        for node, paths in self._segments.fetches():
            self._tell(node, [Fetch([self._references[path] for path in paths])])


def _paths(message: Task | Outcome) -> list[str]:
    if not message.layout:
        return []
    try:
        return [path for path, _ in segments_in(message.data, message.layout)]
    except ValueError:  # who opens it will say so
        return []
