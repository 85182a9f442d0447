"""The manager's side of one worker: its channels, what waits to be written to them, and the tail of its stderr."""

from __future__ import annotations

import functools
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from hpcpool.errors import signal_name
from hpcpool.processes.event_loop import READ, WRITE, EventLoop
from hpcpool.processes.stderr_relay import TAIL_BYTES
from hpcpool.wire.link import ANNOUNCEMENT, CALLS_BYTES, CALLS_TYPE, READ_BYTES, OutcomeReader, encode_call
from hpcpool.wire.messages import Crash, Outcome, Task, decode_task

#: Room for a few hundred small calls; the kernel gives less where its limit is lower, which only costs speed.
_CALLS_BUFFER_BYTES = 1024 * 1024
#: As much as a pipe can hold (pipe(7): 1 MiB where it was made larger).
_PIPE_BYTES = 1024 * 1024


class WorkerHandle:
    """Channels of one worker. All sockets are non-blocking and belong to the manager's one thread."""

    #: Shared by all handles: a new buffer for each read would cost more than the read.
    _scratch = memoryview(bytearray(READ_BYTES))

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        self.calls, self._worker_calls = socket.socketpair(socket.AF_UNIX, CALLS_TYPE)
        self.link, self._worker_link = socket.socketpair()
        self.stderr, self._worker_stderr = os.pipe()
        self.calls.setblocking(False)
        self.calls.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CALLS_BUFFER_BYTES)
        self.link.setblocking(False)
        os.set_blocking(self.stderr, False)
        self.stderr_open = True
        self.link_open = True
        #: Whether the manager's loop looks for room on *calls* and on the link.
        self._waits_for_calls = False
        self._waits_for_link = False
        self._tail = b""
        self._reader = OutcomeReader()
        #: Calls that the channel had no room for, oldest first.
        self._unsent: deque[bytes] = deque()
        #: Bytes that the link had no room for.
        self._unwritten: deque[memoryview] = deque()
        #: Tasks that were only announced and come over the link; oldest first.
        self._announced: deque[int] = deque()

    @property
    def worker_ends(self) -> tuple[int, int, int]:
        """The descriptors to hand to the worker: calls, link, stderr."""
        return self._worker_calls.fileno(), self._worker_link.fileno(), self._worker_stderr

    def handed_over(self) -> None:
        """Close our copies of the worker's ends, but the one from which tasks are taken back."""
        self._worker_link.close()
        os.close(self._worker_stderr)

    def watch_writes(self, loop: EventLoop) -> None:
        """Have the loop look for room on the channels exactly while something waits for it."""
        if bool(self._unsent) is not self._waits_for_calls:
            self._waits_for_calls = not self._waits_for_calls
            if self._waits_for_calls:
                loop.add(self.calls, functools.partial(self._on_room, loop), WRITE)
            else:
                loop.remove(self.calls)
        if bool(self._unwritten) is not self._waits_for_link and self.link_open:
            self._waits_for_link = not self._waits_for_link
            loop.change(self.link, READ | WRITE if self._waits_for_link else READ)

    def _on_room(self, loop: EventLoop, events: int) -> None:
        self.write_calls()
        self.watch_writes(loop)

    def give(self, task: Task, frames: Sequence[Any]) -> bool:
        """Send a task, or keep it until there is room; True if something waits for room now (see `watch_writes`)."""
        message, following = encode_call(task, frames)
        if following:
            self._announced.append(task.id)
            self._unwritten.extend(memoryview(piece).cast("B") for piece in following)
            self.write_link()
        if not self._unsent and self._wrote_call(message):
            return bool(self._unwritten)
        self._unsent.append(message)
        return True

    def _wrote_call(self, message: bytes) -> bool:
        try:
            self.calls.send(message)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False  # there is no room; or it has died, and its end will be reported
        return True

    def write_calls(self) -> None:
        """Send what waits for the calls channel, as far as there is room."""
        while self._unsent and self._wrote_call(self._unsent[0]):
            self._unsent.popleft()

    def write_link(self) -> None:
        """Write what waits for the link, as far as there is room."""
        while self._unwritten:
            try:
                sent = self.link.send(self._unwritten[0])
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._unwritten.clear()
                return
            if sent == len(self._unwritten[0]):
                self._unwritten.popleft()
            else:
                self._unwritten[0] = self._unwritten[0][sent:]

    def take_back(self, *, dead: bool = False) -> list[int]:
        """Return the tasks that the worker has not read, oldest first.

        An announced task stays with a living worker: part of it may already be on the link.
        """
        unread = []
        kept: list[bytes] = []
        announcements = 0
        for message in [*self._read_back(), *self._unsent]:
            if message != ANNOUNCEMENT:
                unread.append(decode_task(message).id)
            elif dead:
                announcements += 1
            else:
                kept.append(message)
        self._unsent.clear()
        if announcements:
            unread += list(self._announced)[-announcements:]
        if kept:
            self._unsent.extend(kept)
            self.write_calls()
        return unread

    def read_outcomes(self) -> tuple[list[tuple[Outcome, list[bytes]]], bool]:
        """Return the outcomes that have come, and whether the link is still open."""
        data = self._read_link()
        return (self._cut(data), True) if data else ([], data is None)

    def drain_outcomes(self) -> list[tuple[Outcome, list[bytes]]]:
        """Return all outcomes that a dead worker has left on its link."""
        outcomes = []
        while data := self._read_link():
            outcomes += self._cut(data)
        return outcomes

    def _read_link(self) -> bytes | None:
        """Return what is there: None if nothing is yet, b"" at the end."""
        try:
            return bytes(self._scratch[: self.link.recv_into(self._scratch)])
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def _cut(self, data: bytes) -> list[tuple[Outcome, list[bytes]]]:
        outcomes = self._reader.feed(data)
        if self._announced:
            done = {outcome.id for outcome, _ in outcomes}
            self._announced = deque(task for task in self._announced if task not in done)
        return outcomes

    def read_stderr(self) -> bytes:
        """Return what the worker has written to stderr since; b"" at its end (see `stderr_open`) or if nothing came."""
        try:
            data = os.read(self.stderr, READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            self.stderr_open = False
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        return data

    def drain_stderr(self) -> bytes:
        """Return what a dead worker has left in its stderr pipe, and no more: its orphans might write for ever."""
        pieces: list[bytes] = []
        while sum(map(len, pieces)) < _PIPE_BYTES and (data := self.read_stderr()):
            pieces.append(data)
        return b"".join(pieces)

    def crash(self, exit_code: int, out_of_memory: bool) -> Crash:
        """Return what is known of the worker's death."""
        killed_for_memory = out_of_memory and exit_code == -signal.SIGKILL
        return Crash(max(exit_code, 0), max(-exit_code, 0), killed_for_memory, self.stderr_tail)

    @property
    def stderr_tail(self) -> str:
        """The last that the worker wrote to stderr."""
        return self._tail.decode(errors="replace")

    def retire(self) -> None:
        """Let the worker end after what it holds: it reads the end of its channel."""
        try:
            self.calls.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it has ended by itself

    def close(self) -> None:
        """Close everything; the worker is gone."""
        for end in (self.calls, self._worker_calls, self.link):
            end.close()
        os.close(self.stderr)

    def _read_back(self) -> list[bytes]:
        messages: list[bytes] = []
        while True:
            try:
                message = self._worker_calls.recv(CALLS_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages
            if not message:
                return messages
            messages.append(message)


def how_it_ended(exit_code: int) -> str:
    """Say how a worker has ended, in words."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    return f"killed by {signal_name(-exit_code)}"
