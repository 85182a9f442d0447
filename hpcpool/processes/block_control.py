"""Block control: the interchange's thread that starts, watches and cancels blocks through the drivers.

How many blocks there should be is decided by `core.scaling`. It talks to the interchange's event loop through two
queues, each with a pipe that wakes the other side; nothing else is shared.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import selectors
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from hpcpool.config import Config, NodePool
from hpcpool.core.scaling import PoolSnapshot, plan
from hpcpool.processes import sessions
from hpcpool.processes.connection import Connection
from hpcpool.processes.hosted_driver import Host, HostedDriver, Unhost, is_hosted
from hpcpool.processes.start_command import start_command
from hpcpool.providers.base import BlockRequest, Driver, JobState, JobStatus, SubmitError

log = logging.getLogger(__name__)

#: A block that ends badly within this time (seconds) of its start counts as a failure when starting the next one.
_EARLY_S = 10.0
#: How long cancelled blocks get (seconds) before they are cancelled once more, which kills them.
_CANCEL_AGAIN_S = 1.0
#: The name of the file that tells a manager on another host where to go.
_CONNECTION = "connection.json"
#: How long the killed processes of a dead local block may take to vanish (seconds).
_VANISH_S = 2.0


class BlockEnded(NamedTuple):
    """A block is over; its managers are gone."""

    block: str
    reason: str


class Hopeless(NamedTuple):
    """Blocks fail to start, again and again."""

    reason: str


class Warned(NamedTuple):
    """The user should know this."""

    text: str


class Finished(NamedTuple):
    """No block is left and the thread is about to end."""


Event = BlockEnded | Hopeless | Warned | Finished | Host | Unhost


class Surroundings(NamedTuple):
    """What every block is started with."""

    run_directory: str
    connection_file: str
    #: Descriptors for managers on this host: the user's stderr and the census.
    descriptors: tuple[int, int]
    #: Makes the connection file of a block on other hosts, with a key of its own.
    connection_for: Callable[[str], Connection]


@dataclass
class _Block:
    name: str
    pool: NodePool
    driver: Driver
    job: str
    started_at: float
    stderr: str
    registered: bool = False
    late: bool = False
    #: It was cancelled alone; when to do so once more.
    cancel_again_at: float | None = None


class BlockControl:
    """Started by `start`; every other method may be called from the interchange's thread at any time.

    Args:
        pending: how many tasks are not finished; called in this thread, so it must only read one number.
        report: takes an event; called in this thread, too.
    """

    def __init__(
        self, config: Config, surroundings: Surroundings, pending: Callable[[], int], report: Callable[[Event], None]
    ) -> None:
        self._config = config
        self._surroundings = surroundings
        self._report = report
        self._count_pending = pending
        self._requests: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        self._drivers: dict[str, Driver] = {}
        self._blocks: dict[str, _Block] = {}
        self._started: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._failed_at: dict[str, float] = {}
        self._slots_per_block: dict[str, int] = {}
        self._start_failures = 0
        self._waiting_since: float | None = None
        self._warned = False
        self._stop_by: float | None = None
        self._thread = threading.Thread(target=self._run, name="block control", daemon=True)

    def start(self) -> None:
        """Start the thread, and with it the first blocks."""
        self._thread.start()

    def look(self) -> None:
        """Tell that there may be too few blocks for the work."""
        self._ask(_nothing)

    def registered(self, block: str, slots: int) -> None:
        """Tell that a manager of this block has come, with this many slots."""
        self._ask(lambda: self._note_registered(block, slots))

    def lost(self, block: str) -> None:
        """Tell that a block's managers are lost although it runs: it is ended, so that another can take its place."""
        self._ask(lambda: self._note_lost(block))

    def stop(self, patience_s: float) -> None:
        """Start no more blocks; cancel what has not ended by itself after `patience_s`; then report `Finished`."""
        self._ask(lambda: self._note_stop(patience_s))

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(timeout_s)

    def _ask(self, request: Callable[[], None]) -> None:
        self._requests.put(request)
        os.write(self._wake_write, b"\0")

    # -- in the thread --

    def _run(self) -> None:
        try:
            for pool in self._config.node_pools:
                self._drivers[pool.name] = self._open(pool)
            while self._stop_by is None or self._blocks:
                self._step()
        except Exception as error:
            log.exception("block control failed")
            self._report(Hopeless(f"block control failed: {type(error).__name__}: {error}"))
        finally:
            for driver in self._drivers.values():
                driver.close()
            self._report(Finished())

    def _open(self, pool: NodePool) -> Driver:
        return HostedDriver(self._report) if is_hosted(pool) else pool.provider.open(self._surroundings.run_directory)

    def _step(self) -> None:
        now = time.monotonic()
        self._cancel_again(now)
        ask_again = self._start_missing(now) if self._stop_by is None else self._cancel_late(now)
        self._wait(ask_again)
        while not self._requests.empty():
            self._requests.get()()
        self._look_at_jobs(time.monotonic())

    def _wait(self, until: float | None) -> None:
        """Sleep until there is a request, news of a job, or something to do by the clock."""
        moments = [moment for moment in (until, self._warn_at(), self._late_at()) if moment is not None]
        moments += self._cancel_again_at()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            for pool, driver in self._drivers.items():
                if not any(block.pool.name == pool for block in self._blocks.values()):
                    continue
                if driver.watch_fd is not None:
                    selector.register(driver.watch_fd, selectors.EVENT_READ)
                else:
                    moments.append(time.monotonic() + driver.poll_interval_s)
            timeout = max(0.0, min(moments) - time.monotonic()) if moments else None
            for key, _ in selector.select(timeout):
                if key.fd == self._wake_read:
                    os.read(self._wake_read, 4096)

    def _start_missing(self, now: float) -> float | None:
        ask_again: float | None = None
        for pool in self._config.node_pools:
            self._forgive(pool, now)
            decision = plan(self._snapshot(pool), now)
            for _ in range(decision.start):
                self._start_block(pool, now)
            if decision.ask_again_at is not None:
                ask_again = min(ask_again or decision.ask_again_at, decision.ask_again_at)
        if self._count_pending() and not any(block.registered for block in self._blocks.values()):
            self._waiting_since = self._waiting_since or now
            self._warn_if_long(now)
        else:
            self._waiting_since, self._warned = None, False
        return ask_again

    def _forgive(self, pool: NodePool, now: float) -> None:
        """Forget a pool's failures once a block that was started after the last of them has proved itself."""
        if self._failures.get(pool.name) and any(
            block.pool is pool and block.registered and self._failed_at[pool.name] < block.started_at < now - _EARLY_S
            for block in self._blocks.values()
        ):
            self._failures[pool.name] = 0

    def _snapshot(self, pool: NodePool) -> PoolSnapshot:
        return PoolSnapshot(
            init_blocks=pool.init_blocks,
            min_blocks=pool.min_blocks,
            max_blocks=pool.max_blocks,
            alive=sum(1 for block in self._blocks.values() if block.pool is pool),
            starting=sum(1 for block in self._blocks.values() if block.pool is pool and not block.registered),
            started=self._started.get(pool.name, 0),
            slots_per_block=self._slots_per_block.get(pool.name),
            pending=self._count_pending(),
            failures=self._failures.get(pool.name, 0),
            failed_at=self._failed_at.get(pool.name, 0.0),
        )

    def _start_block(self, pool: NodePool, now: float) -> None:
        number = self._started.get(pool.name, 0)
        self._started[pool.name] = number + 1
        name = f"{pool.name}-{number}"
        driver = self._drivers[pool.name]
        stderr = os.path.join(self._surroundings.run_directory, f"block-{name}.err")
        try:
            job = driver.submit(self._request(pool, driver, name, stderr))
        except SubmitError as error:
            log.error("block=%s refused: %s", name, error)
            self._note_failure(pool, now, f"block {name} was refused: {error}", never_registered=True)
            return
        log.info("block=%s job=%s submitted", name, job)
        self._blocks[name] = _Block(name, pool, driver, job, now, stderr)

    def _request(self, pool: NodePool, driver: Driver, name: str, stderr: str) -> BlockRequest:
        descriptors = self._surroundings.descriptors if driver.is_local else (-1, -1)
        connection, files = self._surroundings.connection_file, {}
        if not driver.is_local:
            connection = os.path.join(driver.block_dir(name), _CONNECTION)
            files = {_CONNECTION: self._surroundings.connection_for(name).to_json()}
        return BlockRequest(
            block_id=name,
            nodes=pool.nodes_per_block,
            command=tuple(start_command("manager", connection, name, *descriptors)),
            files=files,
            cwd=self._surroundings.run_directory,  # workers go where the client is
            stdout=1 if driver.is_local else f"{stderr.removesuffix('.err')}.out",
            stderr=stderr,
            pass_fds=tuple(descriptor for descriptor in descriptors if descriptor >= 0),
        )

    def _look_at_jobs(self, now: float) -> None:
        for driver in self._drivers.values():
            blocks = [block for block in self._blocks.values() if block.driver is driver]
            if not blocks:
                continue
            states = driver.status([block.job for block in blocks])
            for block in blocks:
                state = states[block.job]
                if state.state.is_over:
                    self._note_end(block, state, now)
                elif not block.registered and self._is_late(block, now) and not block.late:
                    block.late = True
                    log.error("block=%s no manager after %.0f s: cancelled", block.name, now - block.started_at)
                    self._cancel(block, now)

    def _note_end(self, block: _Block, status: JobStatus, now: float) -> None:
        del self._blocks[block.name]
        log.info("block=%s job=%s ended: %s", block.name, block.job, status.reason)
        if block.driver.is_local and not any(other.driver.is_local for other in self._blocks.values()):
            # If manager and fork server were killed together, what they had started has come to us.
            sessions.kill_descendants(_VANISH_S)
        self._report(BlockEnded(block.name, status.reason))
        if self._stop_by is not None:
            return
        if status.state is JobState.ENDED and block.registered:
            self._failures[block.pool.name] = 0
            return
        text = f"block {block.name} ended: {status.reason or status.state.value}"
        if block.late:
            text = f"block {block.name} ran, but no manager came within {self._config.start_timeout_s:g} s"
        if status.stderr_tail and not block.registered:
            text += f"; its stderr ends with:\n{status.stderr_tail}"
        if not block.registered or now - block.started_at < _EARLY_S:
            self._note_failure(block.pool, now, text, never_registered=not block.registered)

    def _note_failure(self, pool: NodePool, now: float, text: str, *, never_registered: bool) -> None:
        self._failures[pool.name] = self._failures.get(pool.name, 0) + 1
        self._failed_at[pool.name] = now
        if not never_registered:
            return
        self._start_failures += 1
        alive = any(block.registered for block in self._blocks.values())
        if self._start_failures >= self._config.start_failure_limit and not alive:
            self._report(Hopeless(f"{self._start_failures} blocks in a row failed to start. The last: {text}"))
            self._note_stop(0.0)

    # -- requests, each run in the thread --

    def _note_registered(self, name: str, slots: int) -> None:
        block = self._blocks.get(name)
        if block is not None:
            block.registered = True
            self._slots_per_block[block.pool.name] = slots * block.pool.nodes_per_block
            self._start_failures = 0

    def _note_lost(self, name: str) -> None:
        block = self._blocks.get(name)
        if block is not None and block.cancel_again_at is None:
            log.error("block=%s its managers are lost: cancelled", name)
            self._cancel(block, time.monotonic())

    def _note_stop(self, patience_s: float) -> None:
        self._stop_by = time.monotonic() + patience_s
        never_heard = [block for block in self._blocks.values() if not block.registered]
        for block in never_heard:
            block.driver.cancel([block.job])

    # -- the clock --

    def _cancel(self, block: _Block, now: float) -> None:
        block.driver.cancel([block.job])
        block.cancel_again_at = now + _CANCEL_AGAIN_S

    def _cancel_again(self, now: float) -> None:
        """Cancel once more, which kills, what was cancelled and has not ended."""
        for block in self._blocks.values():
            if block.cancel_again_at is not None and now >= block.cancel_again_at:
                block.cancel_again_at = math.inf
                block.driver.cancel([block.job])

    def _cancel_again_at(self) -> list[float]:
        return [at for block in self._blocks.values() if (at := block.cancel_again_at) is not None and at < math.inf]

    def _cancel_late(self, now: float) -> float | None:
        """Cancel what is left after a stop; a second time, harder, when that was not enough."""
        assert self._stop_by is not None
        if now >= self._stop_by and self._blocks:
            for driver in self._drivers.values():
                jobs = [block.job for block in self._blocks.values() if block.driver is driver]
                if jobs:
                    driver.cancel(jobs)
            self._stop_by = now + _CANCEL_AGAIN_S
        return self._stop_by

    def _is_late(self, block: _Block, now: float) -> bool:
        return now - block.started_at > self._config.start_timeout_s

    def _late_at(self) -> float | None:
        starts = [block.started_at for block in self._blocks.values() if not block.registered and not block.late]
        return min(starts) + self._config.start_timeout_s + 0.001 if starts else None

    def _warn_at(self) -> float | None:
        if self._waiting_since is None or self._warned or self._stop_by is not None:
            return None
        return self._waiting_since + self._config.start_warning_s

    def _warn_if_long(self, now: float) -> None:
        if self._warned or self._waiting_since is None or now < self._waiting_since + self._config.start_warning_s:
            return
        self._warned = True
        states = []
        for block in self._blocks.values():
            status = block.driver.status([block.job])[block.job]
            states.append(f"block {block.name} (job {block.job}) is {status.state.value} {status.reason}".strip())
        seen = "; ".join(states) or "no block has been started"
        waited_s = now - self._waiting_since
        self._report(Warned(f"{self._count_pending()} calls wait and no worker has come in {waited_s:.0f} s: {seen}"))


def _nothing() -> None:
    """Wakes the thread, which looks at everything."""
