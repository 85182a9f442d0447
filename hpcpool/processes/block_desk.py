"""The interchange's end of block control: it passes on what the one must know of the other. Belongs to its thread."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from hpcpool.config import Config
from hpcpool.core.block_orders import BlockEnds, BlockOver, Hopeless, Retire, Warned
from hpcpool.core.demand import Demand
from hpcpool.core.scheduler import Scheduler
from hpcpool.processes.block_control import BlockControl, BlocksTold, Event, Finished
from hpcpool.processes.block_requests import Surroundings
from hpcpool.processes.block_watch import BlockWatch
from hpcpool.processes.connection import Connection, connection_path, managers_path, write_connection
from hpcpool.processes.entrance import Entrance
from hpcpool.processes.event_loop import EventLoop, wake_up_pipe
from hpcpool.processes.hosted_driver import Host, Unhost
from hpcpool.processes.hosted_nodes import HostedNodes
from hpcpool.processes.hosting import is_local
from hpcpool.processes.peer import Peer
from hpcpool.processes.registrar import nodes, pool_of
from hpcpool.wire.messages import (
    AskStatus,
    Broken,
    Closing,
    Expect,
    Scale,
    Setup,
    StatusReport,
    Struct,
    Warn,
)

if TYPE_CHECKING:
    from hpcpool.processes.journal import Journal

log = logging.getLogger(__name__)


class Hands(NamedTuple):
    """What the interchange does for blocks, and knows."""

    #: Sends the client a message.
    say: Callable[[Struct], None]
    #: Tells a manager to end in good order.
    send_off: Callable[[bytes], None]
    #: Has all results fetched that a manager's node keeps; True when none is left there.
    evacuate: Callable[[bytes], bool]
    #: Takes a block that is over and its reason.
    end_block: Callable[[BlockOver], None]
    #: All managers, by name.
    managers: Mapping[bytes, Peer]


class BlockDesk:
    """Starts block control when the client has come, and hears it on the interchange's loop."""

    def __init__(
        self, config: Config, scheduler: Scheduler, loop: EventLoop, hosted: HostedNodes, hands: Hands
    ) -> None:
        self._config = config
        self._scheduler = scheduler
        self._hosted = hosted
        self._hands = hands
        self._control: BlockControl | None = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._wake_read, self._wake_write = wake_up_pipe()
        #: Slots that somebody waits for at the client.
        self._expected = 0
        #: True when nothing more is done about blocks.
        self.is_finished = False
        self.watch = BlockWatch(config, scheduler, hands.managers, hands.send_off, hands.evacuate)
        loop.add(self._wake_read, self._hear)

    def start(self, setup: Setup, entrance: Entrance, directory: str, descriptors: tuple[int, int]) -> None:
        """Start block control.

        Args:
            setup: what the client wants.
            entrance: where managers come in.
            directory: of the run.
            descriptors: the user's stderr and the census.
        """
        connection = Connection([managers_path(directory)], setup.start_method, directory)
        write_connection(connection_path(directory), connection)
        connection_for = functools.partial(
            entrance.connection_for, start_method=setup.start_method, hosts=self._config.addresses
        )
        surroundings = Surroundings(directory, connection_path(directory), descriptors, connection_for)
        journal = _journal(self._config, directory)
        self._control = BlockControl(self._config, surroundings, self._demands, self._report, journal, setup.workers)
        self.watch.start(self._control)

    def on_client(self, message: AskStatus | Scale | Expect | Closing) -> None:
        """The client asks, or orders."""
        if self._control is None:
            return
        match message:
            case AskStatus(id=number):
                self._control.tell(number)
            case Scale(pool=pool, blocks=blocks):
                self._control.order(pool, blocks)
            case Expect(slots=slots):
                self._expected = slots
                self._control.look()
            case Closing():
                self._control.resume()

    def lost(self, block: str) -> None:
        """The last manager of a block was given up, and may still be there."""
        if self._control is not None and not self.watch.has_managers(block):
            self._control.lost(block)

    def stop(self, patience_s: float) -> None:
        """Start no more blocks, and end those that have not ended by themselves in this time."""
        if self._control is None:
            self.is_finished = True
        else:
            self._control.stop(patience_s)

    def join(self, timeout_s: float) -> None:
        """Wait for block control's end."""
        if self._control is not None:
            self._control.join(timeout_s)

    # -- in block control's thread --

    def _demands(self) -> list[Demand]:
        special = self.watch.demands
        rest = max(self._scheduler.pending, self._expected) - sum(demand.tasks for demand in special)
        return [*special, Demand(rest)] if rest > 0 else list(special)

    def _report(self, event: Event) -> None:
        self._events.put(event)
        with contextlib.suppress(BlockingIOError):  # it has been woken more than enough
            os.write(self._wake_write, b"\0")

    # -- in the interchange's --

    def _hear(self, events: int) -> None:
        os.read(self._wake_read, 4096)
        while not self._events.empty():
            self._on_event(self._events.get())

    def _on_event(self, event: Event) -> None:
        match event:
            case BlockOver():
                self._hands.end_block(event)
                self._scheduler.block_over(event.block, was_taken=event.was_taken)
            case BlockEnds(block=block, at=at):
                now = time.monotonic()
                log.info("block=%s ends in_s=%.0f", block, at - now)
                self._scheduler.block_ends(block, at, pool_of(self._config, block).name, now)
            case Retire():
                self.watch.retire(event)
            case Hopeless(reason=reason):
                self._hands.say(Broken(reason))
            case Warned(text=text):
                self._hands.say(Warn(text))
            case BlocksTold():
                self._hands.say(self._status(event))
            case Host():
                self._hosted.start(event)
            case Unhost():
                self._hosted.end(event)
            case Finished():
                self.is_finished = True

    def _status(self, told: BlocksTold) -> StatusReport:
        states = nodes(self._hands.managers, self._scheduler)
        running = sum(state.running for state in states)
        return StatusReport(told.id, self._scheduler.pending - running, running, told.node_pools, told.blocks, states)


def _journal(config: Config, directory: str) -> Journal | None:
    """Return where the jobs of a run are noted; None if all blocks are processes of this machine, which end with it."""
    if all(is_local(pool) for pool in config.node_pools):
        return None
    from hpcpool.processes.journal import Journal, journal_path

    return Journal(journal_path(directory), directory, config.to_dict())
