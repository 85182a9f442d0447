"""Block control: the interchange's thread that has blocks started, watched and cancelled by the drivers.

What is to be done is decided by `core.blocks`. It talks to the interchange's event loop through two queues, each with a
pipe that wakes the other side; nothing else is shared. Drivers whose calls take time have threads of their own.
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hpcpool.config import Config, NodePool
from hpcpool.core.block import Block
from hpcpool.core.block_orders import (
    BlockEnds,
    BlockOver,
    Cancel,
    Hopeless,
    Order,
    Retire,
    Sight,
    Submit,
    Warned,
)
from hpcpool.core.blocks import BATCH, LOCAL, Blocks, Limits
from hpcpool.core.demand import Demand
from hpcpool.processes import sessions
from hpcpool.processes.block_requests import Surroundings, block_request
from hpcpool.processes.connection import node_prefix
from hpcpool.processes.driver_calls import Answer, DriverCalls, Refused, Submitted, Told
from hpcpool.processes.event_loop import wake_up_pipe
from hpcpool.processes.hosted_driver import Host, HostedDriver, Unhost
from hpcpool.processes.hosting import is_hosted, is_local
from hpcpool.processes.job_sight import sight_of
from hpcpool.providers.base import BlockRequest, Driver
from hpcpool.wire.messages import BlockState, NodePoolState

if TYPE_CHECKING:
    from hpcpool.processes.journal import Journal

log = logging.getLogger(__name__)

#: How long the killed processes of a dead local block may take to vanish (seconds).
_VANISH_S = 2.0
#: How long the last calls of a driver may take (seconds): the client kills an interchange that takes 20 s in all.
_CLOSE_S = 2.0


class BlocksTold(NamedTuple):
    """The answer to `tell`."""

    id: int
    node_pools: list[NodePoolState]
    blocks: list[BlockState]


class Finished(NamedTuple):
    """Nothing more is done about blocks, and the thread is about to end."""


#: What the interchange is told; the times are on the monotonic clock.
Event = BlocksTold | BlockOver | BlockEnds | Retire | Hopeless | Warned | Finished | Host | Unhost


class BlockControl:
    """Started by `start`; every other method may be called from the interchange's thread at any time.

    Args:
        demands: what is not finished; called in this thread, so it must only read what cannot change in between.
        report: takes an event; called in this thread, too.
        journal: where jobs are noted that outlive this process; None: all are of this machine, and do not.
        workers: on each node; 0: as the node pools say.
    """

    def __init__(
        self,
        config: Config,
        surroundings: Surroundings,
        demands: Callable[[], Sequence[Demand]],
        report: Callable[[Event], None],
        journal: Journal | None,
        workers: int = 0,
    ) -> None:
        self._pools = {pool.name: pool for pool in config.node_pools}
        self._surroundings = surroundings
        self._demands = demands
        self._report = report
        self._journal = journal
        self._requests: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = wake_up_pipe()
        self._drivers: dict[str, DriverCalls] = {}
        self._blocks = Blocks(
            tuple(_limits(pool, workers) for pool in config.node_pools),
            config.start_failure_limit,
            config.start_timeout_s,
            config.start_warning_s,
        )
        #: Added to seconds since the epoch it gives the monotonic clock. Once: a clock that is set must not move ends.
        self._clock_offset_s = time.monotonic() - time.time()
        self._thread = threading.Thread(target=self._run, name="block control", daemon=True)

    def start(self) -> None:
        """Start the thread, and with it the first blocks."""
        self._thread.start()

    def look(self) -> None:
        """Tell that there is much more work than before, or much less."""
        self._ask(_nothing)

    def manager_came(self, block: str, slots: int) -> None:
        """Tell that a manager of this block has come, with this many slots."""
        self._ask(lambda: self._blocks.manager_came(block, slots))

    def manager_left(self, block: str) -> None:
        """Tell that a manager of this block has gone."""
        self._ask(lambda: self._blocks.manager_left(block, time.monotonic()))

    def lost(self, block: str) -> None:
        """Tell that a block's managers are lost although it runs: it is ended, so that another can take its place."""
        self._ask(lambda: self._note_lost(block))

    def idle(self, block: str, since: float | None) -> None:
        """Tell that a block has had nothing to do since then (monotonic clock); None: that it has work."""
        self._ask(lambda: self._blocks.idle(block, since))

    def retired(self, block: str) -> None:
        """Tell that the managers of a block have been told to leave."""
        self._ask(lambda: self._blocks.retired(block, time.monotonic()))

    def kept(self, block: str) -> None:
        """Tell that a block that should have retired has work."""
        self._ask(lambda: self._blocks.kept(block))

    def order(self, pool: str, blocks: int | None) -> None:
        """Tell that the user wants so many blocks; None: as many as the work needs."""
        self._ask(lambda: self._blocks.ordered(pool, blocks))

    def resume(self) -> None:
        """Tell that node pools in which the user wants no blocks have to finish what waits."""
        self._ask(self._blocks.resume)

    def tell(self, number: int) -> None:
        """Ask for the state of all blocks, which is then reported under this number."""
        self._ask(lambda: self._report(self._told(number)))

    def stop(self, patience_s: float) -> None:
        """Start no more blocks; cancel what has not ended by itself after `patience_s`; then report `Finished`."""
        self._ask(lambda: self._obey(self._blocks.stop(patience_s, time.monotonic())))

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout_s)

    def _ask(self, request: Callable[[], None]) -> None:
        self._requests.put(request)
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # it has been woken more than enough

    # -- in the thread --

    def _run(self) -> None:
        try:
            for pool in self._pools.values():
                self._drivers[pool.name] = self._open(pool)
            while not self._blocks.is_over(time.monotonic()):
                self._step()
        except Exception as error:
            log.exception("block control failed")
            self._report(Hopeless(f"block control failed: {type(error).__name__}: {error}"))
            for name, driver in self._drivers.items():
                if jobs := list(self._jobs_of(name)):
                    driver.cancel(jobs)
        finally:
            try:
                self._close()
            finally:
                self._report(Finished())  # whatever happens: the interchange waits for it

    def _open(self, pool: NodePool) -> DriverCalls:
        outlives_us = not is_local(pool)
        return DriverCalls(
            pool.name,
            functools.partial(self._make_driver, pool),
            functools.partial(self._hear, pool.name),
            self._journal if outlives_us else None,
            has_thread=outlives_us,
        )

    def _make_driver(self, pool: NodePool) -> Driver:
        return HostedDriver(self._report) if is_hosted(pool) else pool.provider.open(self._surroundings.run_directory)

    def _hear(self, pool: str, answer: Answer) -> None:
        """Take an answer of a driver; called in the driver's thread."""
        self._ask(lambda: self._on_answer(pool, answer))

    def _step(self) -> None:
        self._obey(self._blocks.look(self._demands(), time.monotonic()))
        self._wait()
        while not self._requests.empty():
            self._requests.get()()
        now = time.monotonic()
        for pool, driver in self._drivers.items():
            ask_at = driver.ask_at(at_end=self._blocks.is_stopping)
            if ask_at is not None and now >= ask_at:
                self._ask_about(pool)

    def _wait(self) -> None:
        """Sleep until there is a request, news of a job, or something to do by the clock."""
        moments = [self._blocks.next_look_at()]
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            for pool, driver in self._drivers.items():
                if not self._jobs_of(pool):
                    continue
                moments.append(driver.ask_at(at_end=self._blocks.is_stopping))
                if driver.watch_fd is not None:
                    selector.register(driver.watch_fd, selectors.EVENT_READ, pool)
            until = min((at for at in moments if at is not None), default=None)
            timeout = max(0.0, until - time.monotonic()) if until is not None else None
            for key, _ in selector.select(timeout):
                if key.data is None:
                    os.read(self._wake_read, 4096)
                else:
                    self._ask_about(key.data)

    def _jobs_of(self, pool: str) -> dict[str, Block]:
        return {block.job: block for block in self._blocks.blocks.values() if block.pool == pool and block.job}

    def _ask_about(self, pool: str) -> None:
        if jobs := list(self._jobs_of(pool)):
            self._drivers[pool].ask(jobs)

    def _on_answer(self, pool: str, answer: Answer) -> None:
        now = time.monotonic()
        match answer:
            case Submitted(block=name, job=job):
                log.info("block=%s job=%s submitted", name, job)
                self._obey(self._blocks.submitted(name, job, now))
                if self._drivers[pool].watch_fd is not None:
                    self._ask_about(pool)
            case Refused(block=name, text=text, is_outage=is_outage):
                log.error("block=%s %s: %s", name, "cannot be submitted now" if is_outage else "refused", text)
                self._obey(self._blocks.refused(name, text, now, is_outage=is_outage))
            case Told(states=states):
                for job, block in self._jobs_of(pool).items():
                    if job in states:
                        self._see(block, sight_of(states[job], self._clock_offset_s), now)

    def _see(self, block: Block, sight: Sight, now: float) -> None:
        before = (block.phase, block.is_unknown, block.reason)
        orders = self._blocks.seen(block.name, sight, now)
        if block.name not in self._blocks.blocks:
            self._note_end(block, sight)
        elif before != (block.phase, block.is_unknown, block.reason):
            log.info("block=%s job=%s %s %s", block.name, block.job, sight.phase.value, sight.reason)
        self._obey(orders)

    def _note_end(self, block: Block, sight: Sight) -> None:
        tail = f"; its stderr ends with:\n{sight.stderr_tail}" if sight.stderr_tail and not block.has_served else ""
        log.info("block=%s job=%s %s: %s%s", block.name, block.job, sight.phase.value, sight.reason, tail)
        self._drivers[block.pool].ended(block.job)
        if is_local(self._pools[block.pool]):
            self._end_what_it_started(block)

    def _end_what_it_started(self, block: Block) -> None:
        """If manager and fork server of a block were killed together, what they had started has come to us."""
        local = [name for name, pool in self._pools.items() if is_local(pool)]
        if len(local) < len(self._pools):
            # Commands of other drivers are our children, too.
            folder = os.path.join(self._surroundings.run_directory, node_prefix(block.name))
            sessions.kill_orphans(lambda mark: mark.startswith(folder))
        elif not any(map(self._jobs_of, local)):
            sessions.kill_descendants(_VANISH_S)

    def _told(self, number: int) -> BlocksTold:
        node_pools = [
            NodePoolState(
                limits.pool,
                self._pools[limits.pool].provider.kind,
                limits.min_blocks,
                limits.max_blocks,
                ordered,
                started,
                last_failure,
            )
            for limits, ordered, started, last_failure in self._blocks.numbers()
        ]
        return BlocksTold(number, node_pools, [self._block_told(block) for block in self._blocks.blocks.values()])

    def _block_told(self, block: Block) -> BlockState:
        return BlockState(
            block.name,
            block.pool,
            block.job,
            block.state,
            block.reason,
            self._since_epoch(block.submitted_at),
            self._since_epoch(block.running_since),
            self._since_epoch(block.ends_at),
        )

    def _since_epoch(self, at: float | None) -> float:
        return at - self._clock_offset_s if at is not None else 0.0

    def _note_lost(self, name: str) -> None:
        orders = self._blocks.lost(name, time.monotonic())
        if orders:
            log.error("block=%s its managers are lost: cancelled", name)
        self._obey(orders)

    # -- orders --

    def _obey(self, orders: Sequence[Order]) -> None:
        cancelled: dict[str, list[str]] = {}
        for order in orders:
            match order:
                case Submit(pool=pool, block=name):
                    request = functools.partial(self._request, self._pools[pool], name)
                    self._drivers[pool].submit(name, request)
                case Cancel(block=name):
                    block = self._blocks.blocks[name]
                    log.info("block=%s job=%s cancelled: %s", name, block.job, block.ending and block.ending.value)
                    cancelled.setdefault(block.pool, []).append(block.job)
                case Warned(text=text):
                    log.warning("%s", text)
                    self._report(order)
                case _:
                    self._report(order)
        for pool, jobs in cancelled.items():
            self._drivers[pool].cancel(jobs)

    def _request(self, pool: NodePool, name: str, driver: Driver) -> BlockRequest:
        return block_request(pool, name, driver, self._surroundings)

    def _close(self) -> None:
        left = list(self._blocks.blocks.values())
        if left:
            log.warning("left to themselves: %s", "; ".join(block.told() for block in left))
        for driver in self._drivers.values():
            driver.close()
        close_by = time.monotonic() + _CLOSE_S
        for driver in self._drivers.values():
            driver.join(max(0.0, close_by - time.monotonic()))
        if self._journal is not None:
            self._journal.close()


def _limits(pool: NodePool, workers: int) -> Limits:
    known = workers or pool.workers_per_node
    return Limits(
        pool.name,
        init_blocks=pool.init_blocks,
        min_blocks=pool.min_blocks,
        max_blocks=pool.max_blocks,
        parallelism=pool.parallelism,
        # A block in this process costs nothing while it is idle, and its workers have what initializers made.
        max_idle_time_s=None if is_hosted(pool) else pool.max_idle_time,
        slots_per_block=known * pool.nodes_per_block if known else None,
        nodes_per_block=pool.nodes_per_block,
        pace=LOCAL if is_local(pool) else BATCH,
    )


def _nothing() -> None:
    """Wakes the thread, which looks at everything."""
