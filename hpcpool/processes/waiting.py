"""Calls of one client that wait for the results of others. What they do when those are there is the client's affair."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from hpcpool.core.dependencies import Dependencies
from hpcpool.processes import outcomes
from hpcpool.processes.task_future import TaskFuture
from hpcpool.processes.ticket import Ticket
from hpcpool.wire.packing import Payload
from hpcpool.wire.segments import SegmentStore


class _Client(Protocol):
    store: SegmentStore

    def is_pending(self, future: Future[Any]) -> bool:
        """Say whether the client's own thread will be the one to complete this future."""

    def is_ready(self, ticket: Ticket) -> None:
        """All that the ticket waited for is there."""

    def forget(self, ticket: Ticket) -> None:
        """The ticket is over."""

    def call_soon(self, action: Callable[[], None]) -> None:
        """Have the client's own thread do something; called from any thread."""


def take_results(ticket: Ticket, dependencies: Sequence[Future[Any]], store: SegmentStore) -> bool:
    """Take the results that are there, in the user's thread: pickling them may run the user's code.

    Args:
        ticket: lacks them.
        dependencies: in placeholder order.
        store: where the segments of results that come from elsewhere are made.

    Returns False if one cannot be pickled; that has failed the ticket.
    """
    ticket.parts = [None] * len(dependencies)
    for index, dependency in enumerate(dependencies):
        if dependency.done() and not outcomes.has_failed(dependency):
            if not outcomes.fill(ticket, index, dependency, store):
                return False
        else:
            if ticket.waiting is None:
                ticket.waiting = {}
            ticket.waiting[dependency] = index
    return True


class Waiting:
    """Tickets and the futures whose results they lack. Belongs to the client's thread.

    It does not keep the client, which has it: a pool that has ended must go without the help of the collector.
    """

    def __init__(self) -> None:
        self._graph: Dependencies[Future[Any], Ticket] = Dependencies()

    def __contains__(self, future: Future[Any]) -> bool:
        """Say whether anybody waits for this future."""
        return future in self._graph

    def __bool__(self) -> bool:
        """Say whether anybody waits."""
        return bool(self._graph)

    def add(self, ticket: Ticket, client: _Client) -> None:
        """Let a ticket wait for what it lacks."""
        for dependency in self._graph.add(ticket, ticket.waiting or ()):
            if not client.is_pending(dependency):
                dependency.add_done_callback(functools.partial(self._foreign_done, client))  # if it is done: now

    def remove(self, ticket: Ticket) -> None:
        """The ticket is over; nothing happens if it was not waiting."""
        self._graph.remove(ticket)

    def clear(self) -> None:
        """Nobody waits any more."""
        self._graph = Dependencies()

    def settle(self, future: Future[Any], payload: Payload | BaseException | None, client: _Client) -> None:
        """Go on with the calls that waited for a future: with its result, or without it all the way down.

        Args:
            future: it has finished.
            payload: its result; None: it has none; an error: what its result raised while it was pickled.
            client: hears of the tickets that are ready, and of those that are over.
        """
        if not self._graph:
            return
        if isinstance(payload, Payload):
            for ticket in self._graph.dependents(future):
                if ticket.waiting is not None:
                    ticket.parts[ticket.waiting.pop(future)] = payload
            for ticket in self._graph.done(future):
                client.is_ready(ticket)
            return
        fallen: list[Future[Any]] = [future]
        while fallen:
            cause = fallen.pop()
            for ticket in self._graph.dependents(cause):
                self._graph.remove(ticket)
                client.forget(ticket)
                _fail(ticket.future, cause, payload)
                fallen.append(ticket.future)
            payload = None

    def _foreign_done(self, client: _Client, future: Future[Any]) -> None:
        """A future that is not the client's is done; called in whatever thread completed it."""
        payload: Payload | BaseException | None = None
        interrupt: BaseException | None = None
        if not outcomes.has_failed(future):
            try:
                payload = outcomes.payload_of(future, client.store)
            except BaseException as error:  # noqa: BLE001 - whatever the result raises while it is pickled
                payload = outcomes.without_frames(error)
                if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                    interrupt = error  # Ctrl-C means the program, which completes this future
        client.call_soon(lambda: self.settle(future, payload, client))
        if interrupt is not None:
            raise interrupt


def _fail(future: TaskFuture[Any], cause: Future[Any], error: BaseException | None) -> None:
    """End a call that will not get what it waited for."""
    if error is not None:
        future._finish(outcomes.raising(error))
    elif cause.cancelled():
        future._withdraw()
    else:
        future._finish(outcomes.by_dependency(future, cause))
