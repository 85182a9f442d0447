"""Simulated nodes: a provider whose blocks are managers without workers. All of a block run in one process.

They speak the real protocol over real sockets, so to the interchange they are managers like any others; a task's
outcome is sent as soon as the task has come.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from hpcpool.core.pace import node_depth
from hpcpool.processes.connection import read_connection
from hpcpool.processes.event_loop import READ, WRITE, EventLoop
from hpcpool.processes.limits import raise_file_limit, spare_the_collector
from hpcpool.providers import BlockRequest, JobState, JobStatus
from hpcpool.wire.messages import (
    Capacity,
    Heartbeat,
    Outcome,
    Register,
    Status,
    Stop,
    Task,
    Welcome,
    encode,
    to_manager,
)
from hpcpool.wire.stream import Stream
from hpcpool.wire.versions import hello

#: Written to the working directory when all managers of the block have been welcomed: the seconds that it took.
READY_FILE = "simulated-managers-ready"
#: What a simulated call returns.
_RESULT = pickle.dumps(None)
#: How long a simulated call takes, as it says (seconds).
_ELAPSED_S = 1e-5
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class SimulatedProvider:
    """Nodes that run nothing."""

    kind: ClassVar[str] = "simulated"
    max_nodes_per_block: ClassVar[int | None] = None

    def open(self, run_dir: str) -> SimulatedDriver:
        """Make the driver."""
        return SimulatedDriver()


class SimulatedDriver:
    """Starts one process for all managers of a block."""

    poll_interval_s = 0.5
    watch_fd = None
    is_local = True  # they come over the local socket

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def block_dir(self, block_id: str) -> str:
        raise NotImplementedError("no file is written for a simulated block")

    def submit(self, request: BlockRequest) -> str:
        *_, connection_file, block, _, _ = request.command  # see `hpcpool.processes.manager_process.main`
        command = [sys.executable, "-m", "benchmarks.simulated", connection_file, block, str(request.nodes)]
        with open(request.stderr, "ab") as stderr:
            process = subprocess.Popen(command, cwd=request.cwd, stderr=stderr, stdin=subprocess.DEVNULL)
        self._processes[request.block_id] = process
        return request.block_id

    def status(self, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        return {job: self._status(self._processes[job]) for job in job_ids}

    def _status(self, process: subprocess.Popen[bytes]) -> JobStatus:
        code = process.poll()
        if code is None:
            return JobStatus(JobState.RUNNING)
        return JobStatus(JobState.FAILED if code else JobState.ENDED, code, f"exited with code {code}")

    def cancel(self, job_ids: Sequence[str]) -> None:
        for job in job_ids:
            if self._processes[job].poll() is None:
                self._processes[job].kill()

    def close(self) -> None:
        self.cancel(list(self._processes))
        for process in self._processes.values():
            process.wait()


@contextmanager
def installed() -> Iterator[None]:
    """Make the provider known, here and in processes that are started here, as if its package were installed."""
    with TemporaryDirectory() as folder:
        metadata = Path(folder) / "hpcpool_simulated-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: hpcpool-simulated\nVersion: 1\n")
        point = f"{SimulatedProvider.kind} = {__name__}:{SimulatedProvider.__name__}"
        (metadata / "entry_points.txt").write_text(f"[hpcpool.providers]\n{point}\n")
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, str(_ROOT), before]))
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before


class _SimulatedManager:
    """One manager: a stream, and what it answers."""

    def __init__(self, address: str, block: str, loop: EventLoop) -> None:
        end = socket.socket(socket.AF_UNIX)
        end.connect(address)
        self._stream = Stream(end)
        self._loop = loop
        self._is_full = False
        self.is_welcome = False
        self.is_open = True
        self.heartbeat_period_s = 5.0
        self.last_sent = time.monotonic()
        loop.add(self._stream, self._on_ready)
        self._send([hello(), Register(block, socket.gethostname(), os.getpid(), 1)])

    def beat(self, now: float) -> None:
        """Say that it is there, if it has said nothing for a while."""
        if now - self.last_sent >= self.heartbeat_period_s:
            self._send([Heartbeat()])

    def _send(self, messages: list[Any]) -> None:
        self._stream.send(encode(messages))
        self.last_sent = time.monotonic()
        self._watch()

    def _watch(self) -> None:
        if self._stream.wants_to_write != self._is_full:
            self._is_full = not self._is_full
            self._loop.change(self._stream, READ | WRITE if self._is_full else READ)

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self._stream.flush()
            self._watch()
        if events & READ:
            answers: list[Any] = []
            for header, _ in self._stream.receive():
                for message in to_manager.decode(header):
                    self._answer(message, answers)
            if answers:
                self._send(answers)
            if not self._stream.is_open:
                self._leave()

    def _answer(self, message: Any, answers: list[Any]) -> None:
        match message:
            case Task():
                answers.append(
                    Outcome(message.id, Status.OK, _RESULT, started_at=time.time(), elapsed_s=_ELAPSED_S, pid=1)
                )
            case Welcome():
                self.is_welcome = True
                self.heartbeat_period_s = message.heartbeat_period_s
                answers.append(Capacity(message.workers, message.workers * node_depth(_ELAPSED_S)))
            case Stop():
                self._leave()

    def _leave(self) -> None:
        if self.is_open:
            self.is_open = False
            self._loop.remove(self._stream)
            self._stream.close()


def main(arguments: Sequence[str]) -> None:
    """Be the managers of a block: connection file, block, and how many."""
    connection_file, block, count = arguments
    raise_file_limit()
    spare_the_collector()
    address = read_connection(connection_file).addresses[0]
    began = time.monotonic()
    loop = EventLoop()
    managers: list[_SimulatedManager] = []
    for _ in range(int(count)):
        managers.append(_SimulatedManager(address, block, loop))
        loop.wait(0.0)  # the first are welcomed while the last still connect
    while not all(manager.is_welcome for manager in managers):
        loop.wait(1.0)
    Path(READY_FILE).write_text(str(time.monotonic() - began))
    look_s = managers[0].heartbeat_period_s / 10
    next_look = time.monotonic()
    while any(manager.is_open for manager in managers[:1]) or any(manager.is_open for manager in managers):
        loop.wait(max(0.0, next_look - time.monotonic()))
        now = time.monotonic()
        if now >= next_look:
            next_look = now + look_s
            for manager in managers:
                if manager.is_open:
                    manager.beat(now)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(sys.argv[1:])
