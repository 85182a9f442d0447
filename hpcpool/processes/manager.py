"""The manager (the pilot): one per node, between the interchange and the node's workers.

It owns the channels of its workers and the channel of its fork server; what it does with them is decided by
`core.node`. It runs on somebody's event loop: that of a process of its own (`manager_process`) or, on the client's own
machine, that of the interchange (`hosted_nodes`), which saves each call two hops.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from hpcpool.core import orders
from hpcpool.core.node import Node
from hpcpool.processes.blob_files import BlobFiles, write_file
from hpcpool.processes.carrier import fetched
from hpcpool.processes.connection import node_prefix
from hpcpool.processes.cores import usable_core_numbers, usable_cores
from hpcpool.processes.devices import usable_accelerators
from hpcpool.processes.event_loop import READ, WRITE, EventLoop, wake_up_pipe
from hpcpool.processes.fork_server_handle import ForkServerHandle
from hpcpool.processes.long_runs import LongRuns
from hpcpool.processes.memory import usable_memory_bytes
from hpcpool.processes.node_name import node_name
from hpcpool.processes.slot_table import SlotTable
from hpcpool.processes.stderr_relay import StderrRelay
from hpcpool.processes.worker_handle import WorkerHandle, how_it_ended
from hpcpool.wire.failure_record import failure_in_words
from hpcpool.wire.fork_channel import WorkerEnded, WorkerNotStarted, WorkerStarted
from hpcpool.wire.link import READY
from hpcpool.wire.messages import (
    Broken,
    Cancel,
    Capacity,
    Define,
    Drop,
    Fetch,
    Forget,
    GiveBack,
    Kill,
    Nodes,
    Outcome,
    Place,
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
)
from hpcpool.wire.packing import discard, last_told
from hpcpool.wire.segment_files import drop, place
from hpcpool.wire.versions import hello

log = logging.getLogger(__name__)

#: How long workers may take to end in good order (seconds) before they are killed. Exit handlers run in this time.
_LEAVE_S = 5.0
#: How long workers may take to end by a signal (seconds).
_END_S = 1.0
_STATUS_OF_END = {orders.End.TIMED_OUT: Status.TIMED_OUT, orders.End.KILLED: Status.KILLED}


#: Takes messages for the interchange, and the frames that belong to them.
Say = Callable[[list[Any], list[Any]], None]


class Manager:
    """One node's share of the pool.

    Whoever makes it owns the loop, passes on what the interchange says (`hear`) and calls `step` after each wait, until
    `is_over`; then `close`.

    Args:
        run_directory: of the pool or, on another host, one for this node alone (see `wire.run_directory`).
        start_method: how workers are started.
        block: the block that this is (one node of).
        user_stderr: where to write what workers write to stderr; -1: to this process's own.
        census: to be held open by the node's processes; -1: there is none.
        loop: where it listens.
        say: sends messages to the interchange; called in `step` only.
        log_path: where the fork server's stderr goes; None: where this process's own goes.
        token: of `Register`.

    Raises `OSError` if the node has no room for it (files, processes).
    """

    def __init__(
        self,
        run_directory: str,
        start_method: str,
        block: str,
        user_stderr: int,
        census: int,
        loop: EventLoop,
        say: Say,
        log_path: str | None = None,
        token: bytes = b"",
    ) -> None:
        self._block = block
        self._loop = loop
        self._say = say
        self._host = socket.gethostname()
        self._node_name = node_name(os.environ, self._host)
        #: True when it leaves because its node cannot go on.
        self.has_failed = False
        #: Why the interchange does not want it; "": it does.
        self.refusal = ""
        self._run_directory = run_directory
        #: The fork server has answered. Before, no capacity is announced: this node may not be able to run anything.
        self._can_start_workers = False
        self._node: Node | None = None
        self._slots: SlotTable | None = None
        self._tasks: dict[int, tuple[Task, list[Any]]] = {}
        self._long_runs = LongRuns()
        self._workers: dict[int, WorkerHandle] = {}
        resources = usable_cores(), usable_memory_bytes(), usable_accelerators(os.environ)
        self._out: list[Any] = [hello(self._node_name), Register(block, self._host, os.getpid(), *resources, token)]
        self._out_frames: list[Any] = []
        self._announced_capacity = (0, 0)
        self._refill = False
        #: It has been told to end, and takes no new calls.
        self.is_leaving = False
        self._leave_by = math.inf
        self._has_killed = False
        #: Workers whose stderr is not read until the relay has room.
        self._unheard: list[WorkerHandle] = []
        self._directory = tempfile.mkdtemp(prefix=node_prefix(block), dir=run_directory)
        self._blobs = BlobFiles(self._directory)
        self._wake_read, self._wake_write = wake_up_pipe()
        self._relay = StderrRelay(user_stderr if user_stderr >= 0 else 2, self._wake_write)
        try:
            self._fork_server = ForkServerHandle(self._directory, start_method, census, log_path)
        except BaseException:
            self._let_go()
            raise
        self._loop.add(self._wake_read, self._relay_has_room)
        self._loop.add(self._fork_server, self._hear_fork_server)

    @property
    def is_over(self) -> bool:
        """True when it leaves and no worker is left."""
        return self.is_leaving and not self._workers

    @property
    def step_at(self) -> float:
        """When `step` must be called next (monotonic clock), if nothing happens before; inf: there is no need."""
        if self._out or self._refill:
            return 0.0
        return self._leave_by if self._node is None else min(self._node.tick_at, self._leave_by)

    def step(self) -> None:
        """Do what is due, and send what has gathered."""
        now = time.monotonic()
        if self._node is not None:
            if self._refill:
                self._refill = False
                self._obey(self._node.refill(now))
            if self._node.tick_at <= now:
                self._obey(self._node.tick(now))
                if returned := self._node.pay_back():
                    self._hand_back(returned)
        if now >= self._leave_by:
            log.warning("block=%s workers=%d did not end in time", self._block, len(self._workers))
            self._leave_harder()
        self._flush()

    # -- the interchange --

    def _send(self, message: Any, frames: Iterable[Any] = ()) -> None:
        self._out.append(message)
        self._out_frames.extend(frames)

    def _flush(self) -> None:
        """Send what has gathered as one message."""
        # What it takes changes with outcomes, which are to be sent; if nobody wants those, the next message tells.
        if self._out or not self._announced_capacity[0]:
            self._announce_capacity()
        if self._out:
            out, frames = self._out, self._out_frames
            self._out, self._out_frames = [], []
            self._say(out, frames)

    def _announce_capacity(self) -> None:
        if self._node is None or not self._can_start_workers or self.is_leaving:
            return
        (slots, limit), offer = self._announced_capacity, Capacity(self._node.slots, self._node.limit)
        # Every change would be noise on the wire: a fifth more or less makes no difference to anybody.
        if offer.slots != slots or not 0.8 * offer.limit <= limit <= 1.25 * offer.limit:
            self._announced_capacity = (offer.slots, offer.limit)
            self._out.append(offer)

    def hear(self, batch: Iterable[tuple[ToManager, list[Any]]]) -> None:
        """Take messages of the interchange, each with its frames."""
        arrived: list[tuple[int, float]] = []
        widths: dict[int, int] = {}
        for message, its_frames in batch:
            if type(message) is Task:
                if message.blobs and (lacks := self._blobs.write(message.blobs)) is not None:
                    self._refuse(message, lacks)
                    continue
                self._tasks[message.id] = (message, its_frames)
                arrived.append((message.id, message.timeout_s))
                if message.needs is not None and self._slots is not None and (width := self._slots.width_of(message)):
                    widths[message.id] = width
            elif type(message) is Place:
                self._keep(message, its_frames)
            else:
                arrived = self._arrive(arrived, widths)
                self._on_message(message)
        self._arrive(arrived, widths)

    def _keep(self, message: Place, frames: list[Any]) -> None:
        """Keep a segment of the client's."""
        try:
            place(self._run_directory, message.reference, frames[0])
        except (OSError, ValueError) as error:  # the tasks that open it fail, and say so, too
            log.error("block=%s an argument cannot be kept: %s", self._block, error)

    def _arrive(self, arrived: list[tuple[int, float]], widths: dict[int, int]) -> list[tuple[int, float]]:
        if arrived and self._node is not None:
            self._obey(self._node.arrived(arrived, time.monotonic(), widths))
        return []

    def _on_message(self, message: ToManager) -> None:
        match message:
            case Welcome():
                self._welcome(message)
            case Refused(reason=reason):
                log.error("block=%s refused: %s", self._block, reason)
                self.has_failed, self.refusal = True, reason
                self.leave(signal.SIGKILL)
            case Define() | Forget() | Drop() | Fetch() | Nodes():
                self._note(message)
            case Stop(signal=number):
                self.leave(number)
            case Cancel(id=task) if self._node is not None:
                self._tasks.pop(task, None)
                self._long_runs.forget(task)
                self._obey(self._node.cancelled(task, time.monotonic()))
            case Kill(id=task) if self._node is not None:
                self._obey(self._node.killed(task, time.monotonic()))
            case Withdraw(keep=keep) if self._node is not None:
                self._obey(self._node.withdraw())
                withdrawn, next_orders = self._node.withdrawn(keep, time.monotonic())
                for task in withdrawn:
                    del self._tasks[task]
                self._send(Withdrawn(withdrawn))
                self._obey(next_orders)
            case GiveBack(count=count) if self._node is not None:
                self._hand_back(self._node.give_back(count))

    def _note(self, message: Define | Forget | Drop | Fetch | Nodes) -> None:
        """Take what tasks need besides themselves, or let go of it."""
        match message:
            case Define(key=key, data=data):
                self._blobs.define(key, data)
            case Forget(key=key):
                self._blobs.forget(key)
            case Drop(paths=paths):
                drop(self._run_directory, paths)
            case Fetch(references=references):
                for reference in references:
                    self._send(*fetched(self._run_directory, reference))
            case Nodes() if self._slots is not None:
                self._slots.note_nodes(message, self._tasks)

    def _hand_back(self, returned: list[int]) -> None:
        for task in returned:
            del self._tasks[task]
        self._send(Returned(returned))

    def _refuse(self, task: Task, error: OSError) -> None:
        """A task's function cannot be kept here (the disk is full): the task fails, and no other."""
        self._send(Outcome(task.id, Status.PAYLOAD_ERROR, failure_in_words(error), host=self._host))

    def _welcome(self, message: Welcome) -> None:
        error = write_file(os.path.join(self._directory, "setup"), message.setup)
        if error is not None:
            self._send(Broken(f"{self._host} cannot keep what its workers need: {error}", is_nodes_own=True))
            self.leave(signal.SIGKILL)
            return
        self._slots = SlotTable(message, self._node_name, usable_core_numbers(), os.environ)
        self._node = Node(self._slots.shape.slots, message.max_tasks_per_child or None)
        log.info("block=%s welcome: %s", self._block, self._slots.shape)
        self._obey(self._node.warm_up())

    # -- orders of the node --

    def _obey(self, given: list[orders.Order]) -> None:
        to_send: set[WorkerHandle] = set()
        for order in given:
            if self.is_leaving and not isinstance(order, orders.Ended):
                continue  # the fork server may be gone, and its workers with it
            if type(order) is orders.Give:  # nearly all of them
                handle = self._workers[order.worker]
                handle.give(*self._tasks[order.task])
                to_send.add(handle)
            else:
                self._obey_one(order)
        for handle in to_send:
            handle.send(self._loop)

    def _obey_one(self, order: orders.Order) -> None:
        match order:
            case orders.StartWorker(worker):
                self._start_worker(worker)
            case orders.StartWideWorker(worker, task):
                self._start_worker(worker, task)
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

    def _take_back(self, number: int) -> None:
        assert self._node is not None
        handle = self._workers.get(number)
        if handle is None:
            return
        tasks = self._node.newest_of(number, handle.take_back())
        self._obey(self._node.taken_back(number, tasks, time.monotonic()))

    def _report_end(self, task: int, reason: orders.End) -> None:
        if self._tasks.pop(task, None) is not None:
            self._send(self._long_runs.complete(Outcome(task, _STATUS_OF_END[reason], host=self._host)))

    # -- workers --

    def _start_worker(self, number: int, task: int | None = None) -> None:
        """Start a worker, of `task` alone if one is named."""
        assert self._node is not None
        assert self._slots is not None
        slots = self._node.slots_of(number)
        gear = self._slots.gear(slots) if task is None else self._slots.own_gear(slots, self._tasks[task][0])
        try:
            handle = WorkerHandle(number)
        except OSError as error:  # too many open files
            self._not_started(number, str(error))
            return
        self._workers[number] = handle
        self._fork_server.start_worker(number, handle.worker_ends, *gear)
        handle.handed_over()
        self._loop.add(handle.link, functools.partial(self._on_link, handle))
        self._loop.add(handle.stderr, functools.partial(self._on_stderr, handle))

    def _on_link(self, handle: WorkerHandle, events: int) -> None:
        if events & WRITE:
            handle.has_room(self._loop)
        if events & READ:
            outcomes, handle.link_open = handle.read_outcomes()
            self._take_outcomes(handle, outcomes)
            if not handle.link_open:
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

    def _take_outcomes(self, handle: WorkerHandle, outcomes: list[tuple[Outcome, list[bytes]]]) -> None:
        now = time.monotonic()
        assert self._node is not None
        for outcome, frames in outcomes:
            if outcome.id == READY:
                self._on_ready(handle, outcome, now)
                continue
            if outcome.layout:
                handle.last_told = max(handle.last_told, last_told(outcome.data, outcome.layout))
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
        handle.pid = outcome.pid  # the fork server's word may still be on its way, and a call may begin before it comes
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
        if self._node.not_started(number, time.monotonic()) and not self.is_leaving:
            self._send(Broken(f"no worker can be started on {self._host}: {reason}", is_nodes_own=True))

    def _forget_worker(self, handle: WorkerHandle) -> None:
        del self._workers[handle.number]
        for channel in (handle.link, handle.stderr):
            self._loop.remove(channel)
        handle.close()

    def _worker_ended(self, message: WorkerEnded) -> None:
        assert self._node is not None
        handle = self._workers[message.worker]
        self._take_outcomes(handle, handle.drain_outcomes())
        self._relay.pass_on(handle.drain_stderr())
        unread = self._node.newest_of(message.worker, handle.take_back())
        next_orders = self._node.worker_ended(message.worker, unread, time.monotonic())
        self._forget_worker(handle)
        if message.exit_code:
            handle.remove_leftovers(self._directory)
        self._refill = True
        if self.is_leaving:
            return  # we have ended it: its call has not crashed, it is lost with this node
        for order in next_orders:
            if isinstance(order, orders.Crashed):
                self._report_crash(order.task, handle, message)
            elif isinstance(order, orders.Hopeless):
                how = how_it_ended(message.exit_code)
                text = f"workers die on {self._host} before their first call ({how})"
                self._send(Broken(text, handle.stderr_tail, is_nodes_own=True))
        self._obey(next_orders)

    def _report_crash(self, task: int, handle: WorkerHandle, end: WorkerEnded) -> None:
        self._tasks.pop(task, None)
        crash = handle.crash(end.exit_code, end.out_of_memory)
        outcome = Outcome(task, Status.CRASHED, host=self._host, pid=handle.pid, crash=crash)
        self._send(self._long_runs.complete(outcome))

    # -- the end --

    def _relay_has_room(self, events: int) -> None:
        os.read(self._wake_read, 4096)
        unheard, self._unheard = self._unheard, []
        for handle in unheard:
            if handle.number in self._workers and handle.stderr_open:
                self._loop.add(handle.stderr, functools.partial(self._on_stderr, handle))

    def interchange_ended(self) -> None:
        """The interchange is gone, however it died."""
        log.info("block=%s interchange gone", self._block)
        self.abandon()

    def abandon(self) -> None:
        """Be over at once: `close` ends the workers."""
        self.is_leaving = True
        self._forget_all_workers()

    def _fork_server_lost(self) -> None:
        """Without its fork server a node cannot go on: its tasks run elsewhere."""
        self._loop.remove(self._fork_server)
        if not self.is_over:
            log.error("block=%s fork server gone, its workers with it", self._block)
            self.has_failed = True
        for handle in list(self._workers.values()):
            self._take_outcomes(handle, handle.drain_outcomes())  # else what has finished would run again
        self.abandon()

    def leave(self, signal_number: int) -> None:
        """Stop: 0 lets workers end in good order, a signal ends them now."""
        if signal_number == 0 and not self.is_leaving:
            for handle in self._workers.values():
                handle.retire()
            self._leave_by = time.monotonic() + _LEAVE_S
        elif signal_number:
            self._end_all_workers(signal_number)
            self._leave_by = time.monotonic() + _END_S
        self.is_leaving = True

    def _leave_harder(self) -> None:
        """What was asked to end has not: kill it; what was killed has not gone: leave it to the fork server's end."""
        if self._has_killed:
            self._forget_all_workers()
        else:
            self._end_all_workers(signal.SIGKILL)
            self._leave_by = time.monotonic() + _END_S

    def _end_all_workers(self, signal_number: int) -> None:
        self._has_killed = signal_number == signal.SIGKILL
        for number in self._workers:
            self._fork_server.end_worker(number, signal_number, session=self._has_killed)

    def _forget_all_workers(self) -> None:
        for handle in list(self._workers.values()):
            self._forget_worker(handle)

    def close(self) -> int:
        """End the fork server and all that is left of the node, and remove its files; return the server's exit code."""
        self._forget_all_workers()
        for watched in self._fork_server, self._wake_read:
            self._loop.remove(watched)
        exit_code = self._fork_server.close()
        self._let_go()
        return exit_code

    def _let_go(self) -> None:
        if self._relay.close(timeout_s=1.0):
            os.close(self._wake_read)
            os.close(self._wake_write)
        shutil.rmtree(self._directory, ignore_errors=True)
