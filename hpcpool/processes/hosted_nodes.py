"""The managers that run on the interchange's own event loop: their messages are handed over, not sent."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

from hpcpool.processes.connection import read_connection
from hpcpool.processes.event_loop import EventLoop
from hpcpool.processes.hosted_driver import Host, Unhost
from hpcpool.processes.manager import Manager
from hpcpool.processes.streams import Streams
from hpcpool.processes.worker_handle import how_it_ended
from hpcpool.providers.base import JobState, JobStatus
from hpcpool.providers.local import tail_of
from hpcpool.wire.messages import deal_frames


class _Hosted(NamedTuple):
    manager: Manager
    order: Host


class HostedNodes:
    """Makes managers, lets them take their steps, and ends them. Belongs to the interchange's thread.

    Args:
        connection_file: what managers must know; read when one is made.
        descriptors: the user's stderr and the census.
        loop: the interchange's.
        streams: where the managers are known by the names of their blocks.
        hear: takes a manager's name and what it says.
        lose: takes the name of a manager that is over, and why.
    """

    def __init__(
        self,
        connection_file: str,
        descriptors: tuple[int, int],
        loop: EventLoop,
        streams: Streams,
        hear: Callable[[bytes, list[tuple[Any, list[Any]]]], None],
        lose: Callable[[bytes, str], None],
    ) -> None:
        self._connection_file = connection_file
        self._descriptors = descriptors
        self._loop = loop
        self._streams = streams
        self._hear = hear
        self._lose = lose
        self._hosted: dict[bytes, _Hosted] = {}

    def __contains__(self, name: bytes) -> bool:
        return name in self._hosted

    def __len__(self) -> int:
        return len(self._hosted)

    @property
    def step_at(self) -> float:
        """When `step` must be called next (monotonic clock), if nothing happens before; inf: there is no need."""
        return min([hosted.manager.step_at for hosted in self._hosted.values()], default=math.inf)

    def start(self, order: Host) -> None:
        """Make the manager of a block."""
        name = order.request.block_id.encode()

        def say(messages: list[Any], frames: list[Any]) -> None:
            if name in self._streams:  # else the interchange has given it up
                self._hear(name, deal_frames(messages, frames))

        try:
            connection = read_connection(self._connection_file)
            manager = Manager(
                connection.directory,
                connection.start_method,
                order.request.block_id,
                *self._descriptors,
                self._loop,
                say,
                log_path=str(order.request.stderr),
            )
        except OSError as error:
            order.settle(JobStatus(JobState.FAILED, reason=f"cannot be started: {error}"))
            return
        self._hosted[name] = _Hosted(manager, order)
        self._streams.add_neighbour(name, manager.hear)

    def end(self, order: Unhost) -> None:
        """End a block."""
        hosted = self._hosted.get(order.block.encode())
        if hosted is None:
            return
        if order.force:
            hosted.manager.abandon()
        else:
            hosted.manager.leave(signal.SIGKILL)

    def step(self) -> None:
        """Let each manager do what is due."""
        for name, (manager, order) in list(self._hosted.items()):
            manager.step()
            if manager.is_over:
                self._finish(name, manager, order)

    def close(self) -> None:
        """End those that are left, at once."""
        for name, (manager, order) in list(self._hosted.items()):
            manager.abandon()
            self._finish(name, manager, order)

    def _finish(self, name: bytes, manager: Manager, order: Host) -> None:
        del self._hosted[name]
        code = manager.close()
        reason = f"its fork server ended: {how_it_ended(code)}" if manager.has_failed else "ended"
        if manager.refusal:
            reason = f"it was refused: {manager.refusal}"
        self._lose(name, reason)
        state = JobState.FAILED if manager.has_failed else JobState.ENDED
        order.settle(JobStatus(state, reason=reason, stderr_tail=tail_of(order.request.stderr)))
