"""A manager as a process of its own, as on every node that is not the client's: stream, signals, heartbeats.

When the interchange goes, or is silent for too long, it ends everything on the node and leaves. A tunnel may break
while the interchange lives: then it is dialled again, until it has been silent for too long.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

from hpcpool.processes import sessions
from hpcpool.processes.carrier import with_segments
from hpcpool.processes.census import is_client_gone
from hpcpool.processes.connection import TUNNEL, Connection, read_connection
from hpcpool.processes.dialling import Unreachable, dial
from hpcpool.processes.event_loop import READ, WRITE, EventLoop, wake_up_pipe
from hpcpool.processes.file_port import leave_word, ways_to
from hpcpool.processes.limits import raise_file_limit, spare_the_collector
from hpcpool.processes.manager import Manager
from hpcpool.processes.node_name import node_name
from hpcpool.processes.redialling import Redialling
from hpcpool.wire import run_directory
from hpcpool.wire.file_transfer import manager_name
from hpcpool.wire.lasting_stream import LastingStream
from hpcpool.wire.messages import Heartbeat, MessageError, Welcome, deal_frames, encode, to_manager
from hpcpool.wire.stream import Stream

log = logging.getLogger(__name__)

#: How long it may take to find the interchange, and then until that answers the first message (seconds).
_DIAL_S = 60.0
_WELCOME_S = 60.0
#: After so long without an answer a tunnel is given up and dialled anew (seconds), or after half of the timeout.
_SILENT_S = 15.0
#: How long killed processes may take to vanish (seconds).
_VANISH_S = 2.0


def main(argv: list[str]) -> None:
    """Serve a node: connection file, block, and two inherited descriptors (or -1).

    They are the user's stderr and the census, which is open while any local process of the pool lives.
    """
    connection_file, block, user_stderr, census = argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    raise_file_limit()
    spare_the_collector()
    sessions.adopt_orphans()
    connection = read_connection(connection_file)
    try:
        stream, address = dial(connection.addresses, connection.authority.encode(), connection.key.encode(), _DIAL_S)
    except Unreachable as error:
        sys.exit(f"hpcpool: {error}")
    with _home(connection) as directory:
        process = ManagerProcess(connection, stream, address, directory, block, int(user_stderr), int(census))
        signal.signal(signal.SIGTERM, lambda number, frame: process.leave_soon())
        process.run()
    sys.exit(1 if process.has_failed else 0)


@contextlib.contextmanager
def _home(connection: Connection) -> Iterator[str]:
    """The folder for what the node needs: the pool's own on the client's host, else one that is made and removed."""
    if connection.directory:
        yield connection.directory
        return
    run_directory.remove_dead()
    directory = tempfile.mkdtemp(prefix="hpcpool-")
    lock = run_directory.prepare(directory)
    try:
        yield directory
    finally:
        run_directory.remove(directory)
        os.close(lock)


class ManagerProcess:
    """Runs a manager on an event loop of its own, and connects it with the interchange."""

    def __init__(
        self,
        connection: Connection,
        stream: Stream,
        address: str,
        directory: str,
        block: str,
        user_stderr: int,
        census: int,
    ) -> None:
        self._block = block
        #: It shares no memory with the client.
        self._is_far = not connection.directory
        self._run_directory = directory
        self._census = census
        self._loop = EventLoop()
        self._wake_read, wake_write = wake_up_pipe()
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._loop.add(self._wake_read, self._woken)
        self._stream = stream
        self._is_connected = True
        self._loop.add(self._stream, self._on_ready)
        self._is_full = False
        self._leave_requested = False
        self._heartbeat_period_s, self._heartbeat_timeout_s = 10.0, _WELCOME_S
        self._last_sent = self._last_heard = self._last_asked = self._last_look = time.monotonic()
        self._redialling: Redialling | None = None
        token = b""
        if address.startswith(TUNNEL):
            token = os.urandom(16)
            self._redialling = Redialling(connection, token, self._loop, self._go_on)
        if self._is_far:
            name = manager_name(node_name(os.environ, socket.gethostname()), os.getpid())
            leave_word(directory, connection, ways_to(connection, address, stream.peer_address), name)
        self._manager = Manager(
            directory, connection.start_method, block, user_stderr, census, self._loop, self._say, token=token
        )

    @property
    def has_failed(self) -> bool:
        """True when it leaves because its node cannot go on."""
        return self._manager.has_failed

    def leave_soon(self) -> None:
        """Ask the loop to leave; called from a signal handler."""
        self._leave_requested = True

    def run(self) -> None:
        """Serve until told to stop; leaves nothing behind."""
        try:
            self._manager.step()
            while not self._manager.is_over:
                self._loop.wait(self._patience_s())
                self._look_at_clock()
                self._manager.step()
        finally:
            self._close()

    def _woken(self, events: int) -> None:
        """A signal has come."""
        os.read(self._wake_read, 4096)

    # -- the stream --

    def _say(self, messages: Sequence[Any], frames: Sequence[Any]) -> None:
        if self._is_connected or self._redialling is not None:
            if self._is_far:
                messages, frames = with_segments(self._run_directory, messages, frames)
            self._stream.send(encode(messages), frames)
            self._last_sent = time.monotonic()
            self._watch_stream()

    def _watch_stream(self) -> None:
        """Listen for room on the stream exactly while something waits for it."""
        if self._stream.wants_to_write != self._is_full:
            self._is_full = not self._is_full
            self._loop.change(self._stream, READ | WRITE if self._is_full else READ)

    def _on_ready(self, events: int) -> None:
        now = time.monotonic()
        if events & WRITE:
            self._stream.flush()
            self._watch_stream()
        if events & READ:
            self._hear()
            if not self._stream.is_open:
                self._on_break()
                return
        # A part of a message that comes, or is taken, is a sign of life: a large one may take longer than the timeout.
        # An end is none: who is let in and turned away, again and again, would never leave.
        self._last_heard = now

    def _on_break(self) -> None:
        """The connection has ended, or (then it is open still) has fallen silent."""
        self._loop.remove(self._stream)
        self._is_connected = self._is_full = False
        if self._stream.trouble:
            log.error("block=%s connection lost: %s", self._block, self._stream.trouble)
        if self._redialling is None or self._manager.is_leaving:
            self._manager.interchange_ended()
            return
        log.warning("block=%s the tunnel to the interchange is broken: it is dialled again", self._block)
        stream = cast(LastingStream, self._stream)
        if stream.is_open:
            stream.give_up()
        else:
            stream.break_off()
        self._redialling.begin(stream.received)

    def _go_on(self, fresh: Stream) -> None:
        """The interchange was found again."""
        cast(LastingStream, self._stream).go_on(fresh)
        self._is_connected, self._is_full = True, False
        self._loop.add(self._stream, self._on_ready)
        self._watch_stream()

    def _hear(self) -> None:
        try:
            batches = [deal_frames(to_manager.decode(header), frames) for header, frames in self._stream.receive()]
        except MessageError as error:
            log.error("block=%s interchange sent a malformed message and is left: %s", self._block, error)
            self._manager.leave(signal.SIGKILL)
            return
        for batch in batches:
            for message, _ in batch:
                if type(message) is Welcome:
                    self._take_rhythm(message)
            self._manager.hear(batch)

    def _take_rhythm(self, welcome: Welcome) -> None:
        self._heartbeat_period_s = welcome.heartbeat_period_s
        self._heartbeat_timeout_s = welcome.heartbeat_timeout_s

    # -- time --

    def _patience_s(self) -> float:
        at = min(self._manager.step_at, self._heartbeat_at, self._last_heard + self._heartbeat_timeout_s)
        return at - time.monotonic()

    @property
    def _heartbeat_at(self) -> float:
        """When to send a heartbeat: so that the interchange hears of us, and that we hear of it, busy as we may be."""
        return min(self._last_sent, max(self._last_heard, self._last_asked)) + self._heartbeat_period_s

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now - self._last_look > 2 * self._heartbeat_period_s:
            self._last_heard = now  # we have not been running ourselves (SIGSTOP, a frozen container)
        self._last_look = now
        if self._leave_requested:
            self._leave_requested = False
            self._manager.leave(signal.SIGKILL)
        if now - self._last_heard > self._heartbeat_timeout_s:
            log.error("block=%s interchange lost silent_s=%.1f", self._block, now - self._last_heard)
            self._manager.leave(signal.SIGKILL)
            self._last_heard = now
        elif now >= self._heartbeat_at:
            if self._is_connected and self._seems_broken(now):
                self._on_break()
            elif self._is_connected:
                self._say([Heartbeat()], [])
            self._last_asked = self._last_sent = now

    def _seems_broken(self, now: float) -> bool:
        """Whether a tunnel carries nothing any more: the system may take a quarter of an hour to notice."""
        was_asked = self._last_asked > self._last_heard  # a period ago, and has not answered
        patience_s = min(_SILENT_S, self._heartbeat_timeout_s / 2)
        return self._redialling is not None and was_asked and now - self._last_heard > patience_s

    def _close(self) -> None:
        if self._redialling is not None:
            self._redialling.close()
        self._manager.close()
        sessions.kill_descendants(_VANISH_S)  # if the fork server was killed, what it had started has come to us
        if not self._is_connected and is_client_gone(self._census):
            run_directory.remove(self._run_directory)  # killed both of them: nobody else is left
        self._stream.close()
