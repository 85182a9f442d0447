"""The interchange: between one client and the managers. One event loop in the main thread, block control in another.

It owns the streams to client and managers, and opens no payload. Who gets which task is decided by `core.scheduler`.
It ends when the client tells it to or goes: every block is cancelled first, and the run directory is removed last.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

from hpcpool.config import Config
from hpcpool.core.block_orders import BlockOver
from hpcpool.core.leases import Dropped, Reason
from hpcpool.core.silence import Silence
from hpcpool.processes import sessions
from hpcpool.processes.block_desk import BlockDesk, Hands
from hpcpool.processes.carrier import Carrier
from hpcpool.processes.census import is_client_gone
from hpcpool.processes.connection import connection_path, managers_path, node_prefix
from hpcpool.processes.entrance import Entrance
from hpcpool.processes.event_loop import EventLoop
from hpcpool.processes.hosted_nodes import HostedNodes
from hpcpool.processes.hosting import is_local
from hpcpool.processes.kept_desk import KeptDesk
from hpcpool.processes.loading import Loading
from hpcpool.processes.offers import scheduler_of
from hpcpool.processes.outbox import Outbox
from hpcpool.processes.peer import Peer
from hpcpool.processes.registrar import TooSmall, ending, in_words, needs_of, pool_of, welcome_of
from hpcpool.processes.rejoining import Rejoining
from hpcpool.processes.streams import Streams
from hpcpool.wire import run_directory
from hpcpool.wire.messages import (
    AskStatus,
    Broken,
    Cancel,
    Capacity,
    Closing,
    Define,
    Drop,
    Expect,
    Fetch,
    Fetched,
    Forget,
    FromClient,
    FromManager,
    GiveBack,
    Heartbeat,
    Hello,
    Kill,
    MessageError,
    NodeGone,
    Outcome,
    Place,
    Refused,
    Register,
    Returned,
    Scale,
    Setup,
    Started,
    Status,
    Stop,
    Task,
    Warn,
    Withdraw,
    Withdrawn,
    deal_frames,
    from_client,
    from_manager,
)
from hpcpool.wire.packing import discard
from hpcpool.wire.stream import Message, Stream
from hpcpool.wire.versions import disagreement, hello

log = logging.getLogger(__name__)

#: The client's name among the streams; managers' are numbers.
_CLIENT = b"client"
#: How long a stopping pool's blocks may take to end in good order (seconds); exit handlers of workers run in this time.
_STOP_S = 10.0
#: The same when they are to end at once: longer than managers give workers after a TERM.
_KILL_S = 1.5
#: How long killed processes may take to vanish (seconds).
_VANISH_S = 2.0


class Interchange:
    """The event loop and its state."""

    def __init__(self, directory: str, client: int, user_stderr: int, census: int) -> None:
        self._directory = directory
        with open(os.path.join(directory, "config.json"), "rb") as file:
            self._config = Config.from_json(file.read())
        self._lock = run_directory.hold(directory)
        self._hello = hello()
        self._scheduler = scheduler_of(self._config)
        self._tasks: dict[int, tuple[Task, list[Any]]] = {}
        self._managers: dict[bytes, Peer] = {}
        #: The blocks that peers have proved to be of, before they have said a word.
        self._proofs: dict[bytes, str] = {}
        #: Peers that have processes of their own, from the moment that they come in.
        self._silence = Silence(self._config.heartbeat_period_s, self._config.heartbeat_timeout_s)
        self._setup: Setup | None = None
        self._outbox = Outbox()
        self._kept = KeptDesk(self._directory, self._scheduler, self._tasks, self._outbox.put, self._tell)
        self._carrier = Carrier(self._directory, is_kept=self._kept.is_at)
        self._loading = Loading(self._scheduler, self._carrier, self._tasks, self._managers)
        self._stopping = False
        self._has_failed = False
        self._descriptors = (user_stderr, census)
        self._names = itertools.count(1)
        self._loop = EventLoop()
        self._streams = Streams(self._loop)
        known = self._managers, self._scheduler, self._silence
        self._rejoining = Rejoining(self._loop, self._streams, *known, self._hear_peer)
        self._entrance = Entrance(self._loop, managers_path(directory), self._admit, self._rejoining.readmit)
        if any(not is_local(pool) for pool in self._config.node_pools):
            self._entrance.open_to_hosts(self._config.ports)
        self._hosted = HostedNodes(
            connection_path(directory), self._descriptors, self._loop, self._streams, self._on_messages, self._lose
        )
        hands = Hands(self._outbox.put, self._send_off, self._kept.evacuate, self._end_block, self._managers)
        self._blocks = BlockDesk(self._config, self._scheduler, self._loop, self._hosted, hands)
        self._streams.add(_CLIENT, Stream(socket.socket(fileno=client)), self._hear_client)

    def run(self) -> None:
        """Serve until the client says stop or is gone and no block is left."""
        try:
            while not self._blocks.is_finished:
                look_at = min(self._entrance.step_at, self._silence.look_at, self._blocks.watch.look_at)
                wake_at = min(look_at, self._hosted.step_at, math.inf if self._stopping else self._scheduler.wake_at)
                self._loop.wait(wake_at - time.monotonic())
                self._hosted.step()
                if time.monotonic() >= look_at:
                    self._look_around()
                self._answer()  # somebody waits for that
                self._dispatch()  # last: all before it may have set tasks or slots free
                if self._outbox.has_messages:
                    self._answer()  # what has ended there; that a node is laden the client may hear later
        except BaseException:
            self._has_failed = True
            raise
        finally:
            self._close()

    def _answer(self) -> None:
        if batch := self._outbox.take(*self._scheduler.capacity):
            self._streams.send(_CLIENT, *batch)

    def _look_around(self) -> None:
        """See to what time brings about."""
        self._entrance.step()
        self._look_at_silence()
        self._blocks.watch.look(time.monotonic())

    # -- the client --

    def _hear_client(self, name: bytes, messages: list[Message], is_open: bool) -> None:
        for header, frames in messages:
            try:
                batch = deal_frames(from_client.decode(header), frames)
            except MessageError as error:
                log.error("client sent a malformed message: %s", error)
                self._outbox.put(Broken(f"the interchange could not read the client's message: {error}"))
                continue
            for message, its_frames in batch:
                if type(message) is Task:
                    self._tasks[message.id] = (message, its_frames)
                    wants = (None, message.timeout_s) if message.needs is None else needs_of(message)
                    home = self._kept.home_of(message) if message.layout else None
                    self._scheduler.submitted(message.id, message.priority, message.crash_limit, *wants, home)
                else:
                    self._on_client(message)
        if not is_open:
            self._streams.remove(name)
            log.info("client gone")
            self._stop(signal.SIGKILL)

    def _on_client(self, message: FromClient) -> None:
        match message:
            case Hello():
                if reason := disagreement(self._hello, message):
                    self._outbox.put(Refused(reason))
            case Setup():
                self._setup = message
                self._blocks.start(message, self._entrance, self._directory, self._descriptors)
            case Define() | Forget():
                self._on_blob(message)
            case Fetch() | Drop():
                self._kept.on_client(message)
            case Cancel():
                self._cancel(message)
            case Kill():
                self._kill(message)
            case Withdraw(keep=keep):
                self._withdrawn(self._scheduler.withdraw(keep))
                for name in self._managers:
                    self._tell(name, [message])
            case Stop(signal=number):
                self._stop(number)
            case AskStatus() | Scale() | Expect() | Closing():
                self._blocks.on_client(message)

    def _on_blob(self, message: Define | Forget) -> None:
        if isinstance(message, Define):
            self._carrier.define(message)
            return
        for name in self._carrier.forget(message.key):
            self._tell(name, [message])

    def _cancel(self, message: Cancel) -> None:
        manager = self._scheduler.cancelled(message.id)
        self._tasks.pop(message.id, None)
        if manager is not None:
            self._tell(manager, [message])
            self._released(manager, [message.id])

    def _kill(self, message: Kill) -> None:
        if (manager := self._scheduler.kill(message.id)) is not None:
            self._tell(manager, [message])
        elif message.id in self._tasks:
            self._end([Dropped(message.id, Reason.KILLED)])

    def _end(self, dropped: list[Dropped], text: str = "", host: str = "") -> None:
        """Tell the client of tasks that end without an outcome; `text` says how those were lost that are."""
        for task, reason in dropped:
            if reason is Reason.WITHDRAWN:
                self._withdrawn([task])
            else:
                message, _ = self._tasks.pop(task)
                self._outbox.put(ending(message, reason, text, host, self._scheduler))

    def _withdrawn(self, tasks: list[int]) -> None:
        for task in tasks:
            del self._tasks[task]
        if tasks:
            self._outbox.put(Withdrawn(tasks))

    # -- managers --

    def _admit(self, stream: Stream, block: str | None) -> None:
        """Somebody has come in who may speak."""
        name = b"%d" % next(self._names)
        if block is not None:
            self._proofs[name] = block
        self._silence.heard(name, time.monotonic())
        self._streams.add(name, stream, self._hear_peer)

    def _hear_peer(self, name: bytes, messages: list[Message], is_open: bool) -> None:
        # A part of a message is a sign of life, too: a large one may take longer than the timeout.
        self._silence.heard(name, time.monotonic())
        for header, frames in messages:
            if name not in self._streams:
                return  # it was dropped for a message before this one
            try:
                batch = deal_frames(from_manager.decode(header), frames)
            except MessageError as error:
                self._drop(name, str(error))
                return
            self._on_messages(name, batch)
        if not is_open and not self._rejoining.cut_off(name, is_leaving=self._is_leaving(name)):
            self._lose(name, "its connection ended")

    def _on_messages(self, name: bytes, batch: list[tuple[FromManager, list[Any]]]) -> None:
        plain: list[Outcome] = []
        for message, its_frames in batch:
            if type(message) is Outcome and message.status == Status.OK and not (message.layout or its_frames):
                plain.append(message)
                continue
            plain = self._on_plain_outcomes(name, plain)
            if type(message) is Outcome:
                self._on_outcome(name, message, its_frames)
            elif type(message) is Place or type(message) is Fetched:
                self._on_content(name, message, its_frames)
            else:
                self._on_manager(name, message)
        self._on_plain_outcomes(name, plain)

    def _on_plain_outcomes(self, name: bytes, outcomes: list[Outcome]) -> list[Outcome]:
        """Take results that are small and all there, as nearly all are; returns those that are left: none."""
        manager = self._managers.get(name)
        if not outcomes or manager is None or not manager.registered:
            return []
        tasks = [outcome.id for outcome in outcomes]
        self._released(name, tasks)
        for outcome, reruns in zip(outcomes, self._scheduler.all_finished(name, tasks), strict=True):
            if reruns is not None:
                outcome.reruns = reruns
                del self._tasks[outcome.id]
                self._outbox.put(outcome)
        return []

    def _on_content(self, name: bytes, message: Place | Fetched, frames: list[Any]) -> None:
        manager = self._managers.get(name)
        if manager is None:
            return
        try:
            if isinstance(message, Fetched):
                self._kept.on_fetched(name, message, frames)
            else:
                self._carrier.keep(manager.block, message, frames)
        except MessageError as error:
            self._drop(name, str(error))
        except OSError as error:  # who opens it will say so, too
            log.error("manager=%r a result cannot be kept: %s", name, error)

    def _drop(self, name: bytes, reason: str) -> None:
        """A peer does not speak as agreed: go on without it."""
        log.error("manager=%r dropped: %s", name, reason)
        self._tell(name, [Stop(signal.SIGKILL)])
        self._give_up(name, f"it sent a malformed message: {reason}")

    def _released(self, name: bytes, tasks: list[int]) -> None:
        """Tasks are not on a node any more."""
        if name not in self._carrier.caches:  # it looks at the client's own memory
            return
        if order := self._carrier.released(name, tasks):
            self._tell(name, [order])
        self._loading.relieve(name)

    def _on_outcome(self, name: bytes, outcome: Outcome, frames: list[Any]) -> None:
        manager = self._managers.get(name)
        if manager is None or not manager.registered:
            return  # it was dropped for a message before this one, or has never had a task
        if outcome.layout and not self._carrier.is_own(name, manager.block, outcome):
            self._drop(name, f"the outcome of task {outcome.id} refers to segments that are not its own")
            return
        outcome.is_kept = outcome.is_kept and manager.proved is not None  # else its memory is the client's, too
        self._released(name, [outcome.id])
        if outcome.status in (Status.CRASHED, Status.KILLED):
            if (dropped := self._scheduler.recalled(name, outcome.id)) is not None:
                self._end(dropped, "one of its nodes was lost", outcome.host)
                return
            if outcome.status == Status.CRASHED and self._scheduler.crashed(name, outcome.id):
                return  # it is allowed to try again
        reruns = self._scheduler.reruns(outcome.id)
        if self._scheduler.finished(name, outcome.id):
            if reruns:
                outcome.reruns = reruns - (outcome.status == Status.CRASHED)
            del self._tasks[outcome.id]
            if outcome.is_kept:
                self._kept.take(name, outcome)
            self._outbox.put(outcome, frames)
        elif outcome.is_kept:
            self._kept.discard(name, outcome)
        else:
            discard(self._directory, outcome.data, outcome.layout)

    def _on_manager(self, name: bytes, message: FromManager) -> None:
        if name not in self._streams:
            return  # it was dropped for a message before this one
        if isinstance(message, Hello):
            self._greet(name, message)
            return
        manager = self._managers.get(name)
        if manager is None:
            self._drop(name, "it spoke without a greeting")
            return
        match message:
            case Register():
                self._register(name, manager, message)
            case Capacity(slots=slots, limit=limit):
                self._offer(name, manager, slots, limit)
            case Started(runs=runs, host=host):
                mine = [run for run in runs if self._scheduler.manager_of(run.id) == name]
                if mine:
                    self._outbox.put(Started(mine, host))
            case Returned(ids=tasks):
                self._released(name, tasks)
                self._end(self._scheduler.returned(name, tasks))
            case Withdrawn(ids=tasks):
                self._released(name, tasks)
                self._withdrawn([task for task in tasks if self._scheduler.finished(name, task)])
            case Heartbeat():
                self._tell(name, [Heartbeat()])
            case Broken():
                self._on_broken(name, message)

    def _on_broken(self, name: bytes, message: Broken) -> None:
        """A node cannot go on: neither can the pool, unless that is the node's own trouble and others serve."""
        others = (peer for other, peer in self._managers.items() if other != name)
        if message.is_nodes_own and any(peer.registered for peer in others):
            self._give_up(name, message.reason)
        else:
            self._outbox.put(message)

    def _greet(self, name: bytes, theirs: Hello) -> None:
        if reason := disagreement(self._hello, theirs):
            log.error("manager=%s:%d refused: %s", theirs.host, theirs.pid, reason)
            self._outbox.put(Warn(f"a manager was refused: {reason}"))
            self._streams.send(name, [Refused(reason)])
            self._lose(name, reason)
            return
        if name in self._managers:
            self._drop(name, "it greeted twice")
            return
        self._managers[name] = Peer(theirs, proved=self._proofs.get(name))

    def _register(self, name: bytes, manager: Peer, message: Register) -> None:
        if self._setup is None:
            self._drop(name, "it came before the client")
            return
        if manager.block:
            self._drop(name, "it registered twice")
            return
        if manager.proved not in (None, message.block):
            self._drop(name, f"it has the key of block {manager.proved}, and says that it is of {message.block}")
            return
        manager.block = message.block
        try:
            welcome, manager.shape = welcome_of(self._config, self._setup, message)
        except TooSmall as error:
            log.error("block=%s manager=%s:%d refused: %s", message.block, message.host, message.pid, error)
            self._outbox.put(Warn(f"a manager was refused: {error}"))
            self._tell(name, [Refused(str(error))])
            return
        if manager.proved is not None:
            self._rejoining.expect(name, message.token)
        self._tell(name, [welcome] if not self._stopping else [welcome, Stop(signal.SIGKILL)])
        log.info("block=%s manager=%s:%d registered, %s", message.block, message.host, message.pid, in_words(message))

    def _offer(self, name: bytes, manager: Peer, slots: int, limit: int) -> None:
        if not manager.block or slots < 1 or limit < 1:
            self._drop(name, f"it offered {slots} slots, {limit} tasks in all, for block {manager.block!r}")
            return
        manager.slots, manager.limit = slots, limit
        if self._blocks.watch.is_leaving(manager.block):
            # If it has not finished it is sent off when it has; once more does no harm.
            if not self._scheduler.held_by(name) and self._kept.evacuate(name):
                self._send_off(name)
        elif manager.registered:
            self._scheduler.capacity_changed(name, *manager.capacity)
        else:
            manager.registered = True
            self._carrier.joined(name, is_far=manager.proved is not None)
            pool = pool_of(self._config, manager.block).name
            self._scheduler.manager_joined(name, slots, limit, pool, manager.block, manager.shape)
            self._blocks.watch.came(manager.block, name, slots)

    def _send_off(self, name: bytes) -> None:
        self._tell(name, [Stop()])

    def _tell(self, name: bytes, messages: list[Any], frames: Sequence[Any] = ()) -> None:
        if name in self._managers:
            self._streams.send(name, messages, frames)

    def _lose(self, name: bytes, reason: str, *, is_expected: bool = False) -> None:
        """A manager is gone: its tasks run elsewhere, or fail if they have been lost too often."""
        is_expected |= self._is_leaving(name)
        self._streams.remove(name)
        self._proofs.pop(name, None)
        self._rejoining.forget(name)
        self._carrier.lost(name)
        self._silence.forget(name)
        manager = self._managers.pop(name, None)
        if manager is None:
            return
        self._entrance.lost(manager.block, manager.hello)
        dropped = self._scheduler.manager_lost(name, is_expected=is_expected)
        self._blocks.watch.went(manager.block, name)
        for other, task in self._scheduler.orders_to_kill():
            self._tell(other, [Kill(task)])
        level, host, pid = logging.INFO if is_expected else logging.ERROR, manager.hello.host, manager.hello.pid
        log.log(level, "block=%s manager=%s:%d lost: %s", manager.block, host, pid, reason)
        if manager.block and not self._stopping:
            self._outbox.put(NodeGone(node_prefix(manager.block)))
        text = f"manager on {host} (block {manager.block}) was lost: {reason}"
        self._kept.node_lost(name, text)
        self._end(dropped, text, host)

    def _is_leaving(self, name: bytes) -> bool:
        manager = self._managers.get(name)
        return self._stopping or (manager is not None and self._blocks.watch.is_leaving(manager.block))

    def _give_up(self, name: bytes, reason: str) -> None:
        """Lose a manager that may still be there: its block is ended if no other manager of it is left."""
        manager = self._managers.get(name)
        self._lose(name, reason)
        if manager is not None and manager.block and not self._stopping:
            self._blocks.lost(manager.block)

    def _look_at_silence(self) -> None:
        for name, silent_s in self._silence.look(time.monotonic()):
            lose = self._lose if self._rejoining.has_ended(name) else self._give_up
            lose(name, self._rejoining.reason(name) or f"silent for {silent_s:.0f} s")

    def _dispatch(self) -> None:
        if self._stopping:
            return
        if self._scheduler.backlog or self._scheduler.wake_at < math.inf:
            if self._scheduler.has_unavailable:
                self._end(self._scheduler.unavailable())
            while not all([self._send_tasks(*batch) for batch in self._scheduler.dispatch(time.monotonic())]):  # noqa: C419
                pass  # some have been held or have ended instead: there is room again
            for name in self._scheduler.take_drained():
                self._kept.evacuate(name)
        if len(self._managers) > 1 or self._scheduler.has_requests:
            for name, count in self._scheduler.share():
                self._tell(name, [GiveBack(count)])
        self._blocks.watch.call_for_blocks()

    def _send_tasks(self, name: bytes, ids: list[int]) -> bool:
        """Send leased tasks, but for those that cannot go yet, or never could; False if there were such."""
        is_all = True
        if self._kept:
            ids, is_all = self._kept.ready(name, ids)
        self._blocks.watch.used.add(name)
        messages, frames, is_whole = self._loading.load(name, ids)
        if messages:
            self._tell(name, messages, frames)
        return is_all and is_whole

    # -- blocks --

    def _end_block(self, over: BlockOver) -> None:
        self._entrance.revoke(over.block)
        names = {name for name, manager in self._managers.items() if manager.block == over.block}
        names.update(name for name, block in self._proofs.items() if block == over.block)  # who has not said so yet
        for name in names:
            self._lose(name, f"its block ended ({over.reason})", is_expected=over.is_expected)

    # -- the end --

    def _stop(self, number: int) -> None:
        """End the pool: workers in good order when `number` is 0, else by that signal."""
        if self._stopping and number == 0:
            return
        self._stopping = True
        for name in self._managers:
            self._tell(name, [Stop(number)])
        self._blocks.stop(_KILL_S if number else _STOP_S)

    def _close(self) -> None:
        self._hosted.close()
        self._blocks.stop(0.0)
        self._blocks.join(_STOP_S)
        sessions.kill_descendants(_VANISH_S)
        self._streams.close()
        self._rejoining.close()
        self._entrance.close()
        if not self._has_failed or is_client_gone(self._descriptors[1]):  # else it has results there that it wants
            run_directory.remove(self._directory)
