"""The manager's side of one worker: its channels, what waits to be written to them, and the tail of its stderr."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from hpcpool.errors import signal_name
from hpcpool.processes.event_loop import READ, WRITE, EventLoop
from hpcpool.processes.stderr_relay import TAIL_BYTES
from hpcpool.wire import staged
from hpcpool.wire.link import READ_BYTES, OutcomeReader, encode_tasks, permits_for, take_permits
from hpcpool.wire.messages import Crash, Outcome, Task
from hpcpool.wire.segment_files import segment_maker, sweep_untold

#: As much as a pipe can hold (pipe(7): 1 MiB where it was made larger).
_PIPE_BYTES = 1024 * 1024


class WorkerHandle:
    """Channels of one worker. All sockets are non-blocking and belong to the manager's one thread."""

    #: Shared by all handles: a new buffer for each read would cost more than the read.
    _scratch = memoryview(bytearray(READ_BYTES))

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        self.link, self._worker_link = socket.socketpair()
        pipes: list[int] = []
        try:
            for _ in range(2):
                pipes += os.pipe()
        except OSError:  # too many open files
            for end in pipes:
                os.close(end)
            self.link.close()
            self._worker_link.close()
            raise
        self.stderr, self._worker_stderr, self._permits, self._permit = pipes
        self.link.setblocking(False)
        for pipe_end in (self._permits, self._permit, self.stderr):
            os.set_blocking(pipe_end, False)
        self.stderr_open = True
        self.link_open = True
        #: The number of the latest segment that it has told of: what it has made since is nobody's if it dies.
        self.last_told = 0
        #: Whether the manager's loop looks for room on the link.
        self._waits_for_room = False
        self._tail = b""
        self._reader = OutcomeReader()
        #: Tasks that were given and not sent, and their frames; how many were sent.
        self._given: list[Task] = []
        self._given_frames: list[Any] = []
        self._sent = 0
        #: Bytes that the link had no room for.
        self._unwritten: deque[memoryview] = deque()

    @property
    def worker_ends(self) -> tuple[int, int, int]:
        """The descriptors to hand to the worker: permits, link, stderr."""
        return self._permits, self._worker_link.fileno(), self._worker_stderr

    def handed_over(self) -> None:
        """Close our copies of the worker's ends, but the one from which permits are taken back."""
        self._worker_link.close()
        os.close(self._worker_stderr)

    def give(self, task: Task, frames: Sequence[Any]) -> None:
        """Have a task sent with the next `send`."""
        self._given.append(task)
        if frames:
            self._given_frames.extend(frames)

    def send(self, loop: EventLoop) -> None:
        """Send what was given, as far as there is room, and permit it. The loop sends the rest."""
        given, frames = self._given, self._given_frames
        if given:
            self._given, self._given_frames = [], []
            self._unwritten.extend(map(memoryview, encode_tasks(given, frames)))
            self._write()
            # Also what is written in part: the worker reads on, and so makes room. Of a few dozen permits there is
            # always room for all (`core.pace`).
            os.write(self._permit, permits_for(self._sent, len(given)))
            self._sent += len(given)
        if bool(self._unwritten) is not self._waits_for_room and self.link_open:
            self._waits_for_room = not self._waits_for_room
            loop.change(self.link, READ | WRITE if self._waits_for_room else READ)

    def has_room(self, loop: EventLoop) -> None:
        """The link has room again."""
        self._write()
        self.send(loop)

    def _write(self) -> None:
        """Write what waits for the link, as far as there is room."""
        while self._unwritten:
            try:
                sent = self.link.send(self._unwritten[0])
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._unwritten.clear()  # it has died; its end will be reported
                return
            if sent == len(self._unwritten[0]):
                self._unwritten.popleft()
            else:
                self._unwritten[0] = self._unwritten[0][sent:]

    def take_back(self) -> int:
        """Take back what the worker has not begun; returns how many tasks: the newest of those that it was given."""
        unsent = len(self._given)
        self._given, self._given_frames = [], []
        return unsent + take_permits(self._permits)

    def read_outcomes(self) -> tuple[list[tuple[Outcome, list[bytes]]], bool]:
        """Return the outcomes that have come, and whether the link is still open."""
        data = self._read_link()
        return (self._reader.feed(data), True) if data else ([], data is None)

    def drain_outcomes(self) -> list[tuple[Outcome, list[bytes]]]:
        """Return all outcomes that a dead worker has left on its link."""
        outcomes = []
        while data := self._read_link():
            outcomes += self._reader.feed(data)
        return outcomes

    def _read_link(self) -> bytes | None:
        """Return what is there: None if nothing is yet, b"" at the end."""
        try:
            return bytes(self._scratch[: self.link.recv_into(self._scratch)])
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

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
        """Let the worker end after what it holds: it reads the end of its permits."""
        if self._permit >= 0:
            os.close(self._permit)
            self._permit = -1

    def remove_leftovers(self, node_directory: str) -> None:
        """Remove what a worker that has died leaves: segments that nobody knows of, and files that it has made."""
        maker = segment_maker(node_directory, self.number)
        sweep_untold(os.path.dirname(node_directory), maker, self.last_told)
        if (made := staged.made_folder(self.pid)) is not None:
            shutil.rmtree(made, ignore_errors=True)

    def close(self) -> None:
        """Close everything; the worker is gone."""
        self.retire()
        self.link.close()
        os.close(self._permits)
        os.close(self.stderr)


def how_it_ended(exit_code: int) -> str:
    """Say how a worker has ended, in words."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    return f"killed by {signal_name(-exit_code)}"
