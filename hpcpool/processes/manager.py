"""The manager (the pilot): one per node, between the interchange and the node's workers. One event loop, one thread.

It owns the stream to the interchange, the channels of its workers and the channel of its fork server; what it does
with them is decided by `core.node`. When the interchange goes, it ends everything on the node and leaves.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

from hpcpool.core import orders
from hpcpool.core.node import Node
from hpcpool.processes import sessions
from hpcpool.processes.blob_files import BlobFiles, write_file
from hpcpool.processes.census import is_client_gone
from hpcpool.processes.connection import Connection, node_prefix, read_connection
from hpcpool.processes.cores import usable_cores
from hpcpool.processes.event_loop import READ, WRITE, EventLoop
from hpcpool.processes.fork_server_handle import ForkServerHandle
from hpcpool.processes.limits import raise_file_limit, spare_the_collector
from hpcpool.processes.long_runs import LongRuns
from hpcpool.processes.stderr_relay import StderrRelay
from hpcpool.processes.worker import READY, segment_maker
from hpcpool.processes.worker_handle import WorkerHandle, how_it_ended
from hpcpool.wire import run_directory
from hpcpool.wire.failures import pickle_failure
from hpcpool.wire.fork_channel import WorkerEnded, WorkerNotStarted, WorkerStarted
from hpcpool.wire.link import is_announced
from hpcpool.wire.messages import (
    Broken,
    Cancel,
    Capacity,
    Define,
    Forget,
    GiveBack,
    Heartbeat,
    Kill,
    MessageError,
    Outcome,
    Refused,
    Register,
    Returned,
    Status,
    Stop,
    Task,
    ToManager,
    Welcome,
    Withdraw,
    Withdrawn,
    deal_frames,
    encode,
    to_manager,
)
from hpcpool.wire.packing import discard, pack, tell
from hpcpool.wire.segments import sweep
from hpcpool.wire.stream import Stream
from hpcpool.wire.versions import hello

log = logging.getLogger(__name__)

#: How long workers may take to end in good order (seconds) before they are killed. Exit handlers run in this time.
_LEAVE_S = 5.0
#: How long workers may take to end by a signal (seconds).
_END_S = 1.0
#: How long the interchange may take to answer the first message (seconds).
_WELCOME_S = 60.0
_STATUS_OF_END = {orders.End.TIMED_OUT: Status.TIMED_OUT, orders.End.KILLED: Status.KILLED}


def main(argv: list[str]) -> None:
    """Serve a node: connection file, block, and two inherited descriptors (or -1).

    They are the user's stderr and the census, which is open while any local process of the pool lives.
    """
    connection_file, block, user_stderr, census = argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    raise_file_limit()
    spare_the_collector()
    sessions.adopt_orphans()
    manager = Manager(read_connection(connection_file), block, int(user_stderr), int(census))
    signal.signal(signal.SIGTERM, lambda number, frame: manager.leave_soon())
    manager.run()
    sys.exit(1 if manager.has_failed else 0)


class Manager:
    """One node's share of the pool."""

    def __init__(self, connection: Connection, block: str, user_stderr: int, census: int) -> None:
        self._block = block
        #: True when it leaves because its node cannot go on.
        self.has_failed = False
        self._run_directory = connection.directory
        self._census = census
        self._interchange_open = False
        #: The fork server has answered. Before, no capacity is announced: this node may not be able to run anything.
        self._can_start_workers = False
        home = connection.directory if os.path.isdir(connection.directory) else None
        self._directory = tempfile.mkdtemp(prefix=node_prefix(block), dir=home)
        self._fork_server = ForkServerHandle(self._directory, connection.start_method, census)
        self._node: Node | None = None
        self._tasks: dict[int, tuple[Task, list[Any]]] = {}
        self._blobs = BlobFiles(self._directory)
        self._long_runs = LongRuns()
        self._workers: dict[int, WorkerHandle] = {}
        self._out: list[Any] = []
        self._out_frames: list[Any] = []
        self._announced_capacity = (0, 0)
        self._refill = False
        self._leaving = False
        self._leave_by: float | None = None
        self._leave_requested = False
        self._has_killed = False
        self._heartbeat_period_s, self._heartbeat_timeout_s = 10.0, _WELCOME_S
        self._last_sent = self._last_heard = self._last_asked = self._last_look = time.monotonic()
        self._loop = EventLoop()
        self._loop.add(self._fork_server, self._hear_fork_server)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self._relay = StderrRelay(user_stderr if user_stderr >= 0 else 2, self._wake_write)
        #: Workers whose stderr is not read until the relay has room.
        self._unheard: list[WorkerHandle] = []
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._loop.add(self._wake_read, self._woken)
        self._address = connection.addresses[0]
        self._end = socket.socket(socket.AF_UNIX)
        self._stream = Stream(self._end)
        self._is_full = False

    def leave_soon(self) -> None:
        """Ask the loop to leave; called from a signal handler."""
        self._leave_requested = True

    def run(self) -> None:
        """Serve until told to stop; leaves nothing behind."""
        try:
            self._connect()
            while not (self._leaving and not self._workers):
                self._flush()
                self._loop.wait(self._patience())
                if self._refill and self._node is not None:
                    self._refill = False
                    self._obey(self._node.refill(time.monotonic()))
                self._look_at_clock()
            if self._interchange_open:
                self._flush()
        finally:
            self._close()

    def _connect(self) -> None:
        self._end.setblocking(True)
        self._end.connect(self._address)
        self._end.setblocking(False)
        self._interchange_open = True
        self._loop.add(self._stream, self._on_interchange_ready)
        self._send(hello())
        self._send(Register(self._block, socket.gethostname(), os.getpid(), usable_cores()))

    # -- time --

    def _patience(self) -> float:
        now = time.monotonic()
        moments = [self._heartbeat_at, self._last_heard + self._heartbeat_timeout_s]
        if self._node is not None and self._node.tick_at is not None:
            moments.append(self._node.tick_at)
        if self._leave_by is not None:
            moments.append(self._leave_by)
        return max(0.0, min(moments) - now)

    @property
    def _heartbeat_at(self) -> float:
        """When to send a heartbeat: so that the interchange hears of us, and that we hear of it, busy as we may be."""
        return min(self._last_sent, max(self._last_heard, self._last_asked)) + self._heartbeat_period_s

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now - self._last_look > 2 * self._heartbeat_period_s:
            self._last_heard = now  # we have not been running ourselves (SIGSTOP, a frozen container)
        self._last_look = now
        if self._node is not None and self._node.tick_at is not None and self._node.tick_at <= now:
            self._obey(self._node.tick(now))
            if returned := self._node.pay_back():
                for task in returned:
                    del self._tasks[task]
                self._send(Returned(returned))
        if self._leave_requested:
            self._leave(signal.SIGKILL)
        if self._leave_by is not None and now >= self._leave_by:
            log.warning("block=%s workers=%d did not end in time", self._block, len(self._workers))
            self._leave_harder()
        if now - self._last_heard > self._heartbeat_timeout_s:
            log.error("block=%s interchange lost silent_s=%.1f", self._block, now - self._last_heard)
            self._leave(signal.SIGKILL)
            self._last_heard = now
        elif now >= self._heartbeat_at:
            self._last_asked = now
            self._send(Heartbeat())

    # -- the interchange --

    def _send(self, message: Any, frames: Iterable[Any] = ()) -> None:
        self._out.append(message)
        self._out_frames.extend(frames)

    def _flush(self) -> None:
        """Send what has gathered as one message."""
        if self._node is not None and self._can_start_workers and not self._leaving:
            self._announce_capacity(self._node)
        if self._out:
            self._stream.send(encode(self._out), self._out_frames)
            self._out, self._out_frames = [], []
            self._last_sent = time.monotonic()
            self._watch_stream()

    def _watch_stream(self) -> None:
        """Listen for room on the stream exactly while something waits for it."""
        if self._stream.wants_to_write != self._is_full:
            self._is_full = not self._is_full
            self._loop.change(self._stream, READ | WRITE if self._is_full else READ)

    def _announce_capacity(self, known: Node) -> None:
        slots, limit = self._announced_capacity
        wanted = known.limit
        # Every change would be noise on the wire: a fifth more or less makes no difference to anybody.
        if known.slots != slots or not 0.8 * wanted <= limit <= 1.25 * wanted:
            self._announced_capacity = (known.slots, wanted)
            self._out.append(Capacity(known.slots, wanted))

    def _on_interchange_ready(self, events: int) -> None:
        if events & WRITE:
            self._stream.flush()
            self._watch_stream()
        if events & READ:
            self._hear_interchange()
            if not self._stream.is_open:
                self._interchange_ended()

    def _hear_interchange(self) -> None:
        try:
            batches = [deal_frames(to_manager.decode(header), frames) for header, frames in self._stream.receive()]
        except MessageError as error:
            log.error("block=%s interchange sent a malformed message and is left: %s", self._block, error)
            self._leave(signal.SIGKILL)
            return
        for batch in batches:
            self._last_heard = time.monotonic()
            arrived = []
            for message, its_frames in batch:
                if type(message) is Task:
                    if message.blobs and (lacks := self._blobs.write(message.blobs)) is not None:
                        self._refuse(message, lacks)
                        continue
                    self._tasks[message.id] = (message, its_frames)
                    arrived.append((message.id, message.timeout_s))
                else:
                    arrived = self._arrive(arrived)
                    self._on_message(message)
            self._arrive(arrived)

    def _arrive(self, arrived: list[tuple[int, float]]) -> list[tuple[int, float]]:
        if arrived and self._node is not None:
            # What is announced only (see `wire.link`) cannot be taken back, so it must not wait behind another task.
            alone = [task for task, _ in arrived if is_announced(*self._tasks[task])]
            self._obey(self._node.arrived(arrived, time.monotonic(), alone))
        return []

    def _on_message(self, message: ToManager) -> None:
        match message:
            case Welcome():
                self._welcome(message)
            case Refused(reason=reason):
                log.error("block=%s refused: %s", self._block, reason)
                self._leave(signal.SIGKILL)
            case Define(key=key, data=data):
                self._blobs.define(key, data)
            case Forget(key=key):
                self._blobs.forget(key)
            case Stop(signal=number):
                self._leave(number)
            case Cancel(id=task) if self._node is not None:
                self._tasks.pop(task, None)
                self._long_runs.forget(task)
                self._obey(self._node.cancelled(task, time.monotonic()))
            case Kill(id=task) if self._node is not None:
                self._obey(self._node.killed(task))
            case Withdraw(keep=keep) if self._node is not None:
                self._obey(self._node.withdraw())
                withdrawn, next_orders = self._node.withdrawn(keep, time.monotonic())
                for task in withdrawn:
                    del self._tasks[task]
                self._send(Withdrawn(withdrawn))
                self._obey(next_orders)
            case GiveBack(count=count) if self._node is not None:
                returned = self._node.give_back(count)
                for task in returned:
                    del self._tasks[task]
                self._send(Returned(returned))

    def _refuse(self, task: Task, error: OSError) -> None:
        """A task's function cannot be kept here (the disk is full): the task fails, and no other."""
        data, layout, frames, _ = pack([pickle_failure(error)])
        self._send(Outcome(task.id, Status.PAYLOAD_ERROR, data, layout, len(frames), host=socket.gethostname()), frames)

    def _welcome(self, message: Welcome) -> None:
        error = write_file(os.path.join(self._directory, "setup"), message.setup)
        if error is not None:
            self._send(Broken(f"{socket.gethostname()} cannot keep what its workers need: {error}"))
            self._leave(signal.SIGKILL)
            return
        self._heartbeat_period_s = message.heartbeat_period_s
        self._heartbeat_timeout_s = message.heartbeat_timeout_s
        slots = message.workers or usable_cores()
        self._node = Node(slots, message.max_tasks_per_child or None)
        log.info("block=%s welcome slots=%d", self._block, slots)
        self._obey(self._node.warm_up())

    # -- orders of the node --

    def _obey(self, given: list[orders.Order]) -> None:
        for order in given:
            if self._leaving and not isinstance(order, orders.Ended):
                continue  # the fork server may be gone, and its workers with it
            match order:
                case orders.Give(worker, task):
                    self._give(worker, task)
                case orders.StartWorker(worker):
                    self._start_worker(worker)
                case orders.TakeBack(worker):
                    self._take_back(worker)
                case orders.EndWorker(worker):
                    self._fork_server.end_worker(worker, signal.SIGKILL, session=True)
                case orders.RetireWorker(worker):
                    self._workers[worker].retire()
                case orders.ReportStarted(runs):
                    started = ((task, self._workers[worker].pid, since) for task, worker, since in runs)
                    self._send(self._long_runs.report(started))
                case orders.Ended(task, reason):
                    self._report_end(task, reason)
                case orders.Crashed() | orders.Hopeless():
                    pass  # reported by the caller, which knows how the worker ended

    def _give(self, number: int, task: int) -> None:
        handle = self._workers[number]
        handle.give(*self._tasks[task])
        handle.watch_writes(self._loop)

    def _take_back(self, number: int) -> None:
        assert self._node is not None
        handle = self._workers.get(number)
        if handle is None:
            return
        self._obey(self._node.taken_back(number, handle.take_back(), time.monotonic()))

    def _report_end(self, task: int, reason: orders.End) -> None:
        if self._tasks.pop(task, None) is not None:
            self._send(self._long_runs.complete(Outcome(task, _STATUS_OF_END[reason], host=socket.gethostname())))

    # -- workers --

    def _start_worker(self, number: int) -> None:
        try:
            handle = WorkerHandle(number)
        except OSError as error:  # too many open files
            self._not_started(number, str(error))
            return
        self._workers[number] = handle
        self._fork_server.start_worker(number, handle.worker_ends)
        handle.handed_over()
        self._loop.add(handle.link, functools.partial(self._on_link, handle))
        self._loop.add(handle.stderr, functools.partial(self._on_stderr, handle))

    def _on_link(self, handle: WorkerHandle, events: int) -> None:
        if events & WRITE:
            handle.write_link()
            handle.watch_writes(self._loop)
        if events & READ and not self._read_outcomes(handle):
            handle.link_open = False
            self._loop.remove(handle.link)

    def _on_stderr(self, handle: WorkerHandle, events: int) -> None:
        if self._relay.is_full:
            self._loop.remove(handle.stderr)
            self._unheard.append(handle)
            return
        data = handle.read_stderr()
        if data:
            self._relay.pass_on(data)
        elif not handle.stderr_open:
            self._loop.remove(handle.stderr)

    def _read_outcomes(self, handle: WorkerHandle) -> bool:
        outcomes, is_open = handle.read_outcomes()
        self._take_outcomes(handle, outcomes)
        return is_open

    def _take_outcomes(self, handle: WorkerHandle, outcomes: list[tuple[Outcome, list[bytes]]]) -> None:
        now = time.monotonic()
        assert self._node is not None
        for outcome, frames in outcomes:
            if outcome.id == READY:
                self._on_ready(handle, outcome, now)
                continue
            tell(self._run_directory, outcome.data, outcome.layout)
            wanted = self._node.finished(handle.number, outcome.id, outcome.elapsed_s, now)
            self._tasks.pop(outcome.id, None)
            self._long_runs.forget(outcome.id)
            self._refill = True
            if wanted:
                self._out.append(outcome)
                if frames:
                    self._out_frames.extend(frames)
            else:
                discard(self._run_directory, outcome.data, outcome.layout)

    def _on_ready(self, handle: WorkerHandle, outcome: Outcome, now: float) -> None:
        assert self._node is not None
        if outcome.status == Status.OK:
            self._obey(self._node.worker_ready(handle.number, now))
        else:
            text = outcome.data.decode(errors="replace")
            last = text.strip().rpartition("\n")[2]
            self._send(Broken(f"the initializer failed on {outcome.host}, pid {outcome.pid}: {last}", text))

    def _hear_fork_server(self, events: int) -> None:
        message = self._fork_server.hear()
        self._can_start_workers |= isinstance(message, WorkerStarted)
        match message:
            case WorkerStarted(worker=number, pid=pid) if number in self._workers:
                self._workers[number].pid = pid
            case WorkerEnded(worker=number) if number in self._workers:
                self._worker_ended(message)
            case WorkerNotStarted(worker=number, reason=reason) if number in self._workers:
                self._forget_worker(self._workers[number])
                self._not_started(number, reason)
            case None:
                self._fork_server_lost()

    def _not_started(self, number: int, reason: str) -> None:
        assert self._node is not None
        log.warning("block=%s no room for another worker: %s", self._block, reason)
        if self._node.not_started(number, time.monotonic()) and not self._leaving:
            self._send(Broken(f"no worker can be started on {socket.gethostname()}: {reason}"))

    def _forget_worker(self, handle: WorkerHandle) -> None:
        del self._workers[handle.number]
        for channel in (handle.link, handle.calls, handle.stderr):
            self._loop.remove(channel)
        handle.close()

    def _worker_ended(self, message: WorkerEnded) -> None:
        assert self._node is not None
        handle = self._workers[message.worker]
        self._take_outcomes(handle, handle.drain_outcomes())
        self._relay.pass_on(handle.drain_stderr())
        unread = handle.take_back(dead=True)
        next_orders = self._node.worker_ended(message.worker, unread, time.monotonic())
        self._forget_worker(handle)
        if message.exit_code:
            sweep(self._run_directory, f"{segment_maker(self._directory, handle.number)}.", untold=True)
        self._refill = True
        if self._leaving:
            return  # we have ended it: its call has not crashed, it is lost with this node
        for order in next_orders:
            if isinstance(order, orders.Crashed):
                self._report_crash(order.task, handle, message)
            elif isinstance(order, orders.Hopeless):
                how = how_it_ended(message.exit_code)
                self._send(
                    Broken(f"workers die on {socket.gethostname()} before their first call ({how})", handle.stderr_tail)
                )
        self._obey(next_orders)

    def _report_crash(self, task: int, handle: WorkerHandle, end: WorkerEnded) -> None:
        self._tasks.pop(task, None)
        crash = handle.crash(end.exit_code, end.out_of_memory)
        outcome = Outcome(task, Status.CRASHED, host=socket.gethostname(), pid=handle.pid, crash=crash)
        self._send(self._long_runs.complete(outcome))

    # -- the end --

    def _woken(self, events: int) -> None:
        """A signal has come, or the relay has room again."""
        os.read(self._wake_read, 4096)
        unheard, self._unheard = self._unheard, []
        for handle in unheard:
            if handle.number in self._workers and handle.stderr_open:
                self._loop.add(handle.stderr, functools.partial(self._on_stderr, handle))

    def _interchange_ended(self) -> None:
        """The interchange is gone, however it died."""
        log.info("block=%s interchange gone", self._block)
        self._loop.remove(self._stream)
        self._interchange_open = False
        self._leaving = True
        self._workers.clear()  # closing the channel makes the fork server end them all

    def _fork_server_lost(self) -> None:
        """Without its fork server a node cannot go on: its tasks run elsewhere."""
        self._loop.remove(self._fork_server)
        if not (self._leaving and not self._workers):
            log.error("block=%s fork server gone, its workers with it", self._block)
            self.has_failed = True
        for handle in list(self._workers.values()):
            self._take_outcomes(handle, handle.drain_outcomes())  # else what has finished would run again
        self._workers.clear()
        self._leaving = True

    def _leave(self, signal_number: int) -> None:
        """Stop: 0 lets workers end in good order, a signal ends them now."""
        self._leave_requested = False
        if signal_number == 0 and not self._leaving:
            for handle in self._workers.values():
                handle.retire()
            self._leave_by = time.monotonic() + _LEAVE_S
        elif signal_number:
            self._end_all_workers(signal_number)
            self._leave_by = time.monotonic() + _END_S
        self._leaving = True

    def _leave_harder(self) -> None:
        """What was asked to end has not: kill it; what was killed has not gone: leave it to the fork server's end."""
        if self._has_killed:
            self._workers.clear()
        else:
            self._end_all_workers(signal.SIGKILL)
            self._leave_by = time.monotonic() + _END_S

    def _end_all_workers(self, signal_number: int) -> None:
        self._has_killed = signal_number == signal.SIGKILL
        for number in self._workers:
            self._fork_server.end_worker(number, signal_number, session=self._has_killed)

    def _close(self) -> None:
        self._fork_server.close()
        self._relay.close(timeout_s=1.0)
        shutil.rmtree(self._directory, ignore_errors=True)
        if not self._interchange_open and is_client_gone(self._census):
            run_directory.remove(self._run_directory)  # killed both of them: nobody else is left
        self._stream.close()
