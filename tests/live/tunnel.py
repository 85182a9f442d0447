"""A tunnel that tests can cut, and a provider whose nodes reach the interchange by nothing else."""

from __future__ import annotations

import contextlib
import queue
import select
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hpcpool import Config, NodePool
from hpcpool.providers.local import LocalProvider
from tests.live.far import FarDriver

#: An address at which nobody is (RFC 5737).
NOWHERE = "192.0.2.1"


class TunnelledDriver(FarDriver):
    """Its way to this machine is the test's tunnel, which it tells the interchange's port."""

    folder: Path

    def reach(self, port: int) -> Sequence[str]:
        (self.folder / "target.new").write_text(str(port))
        (self.folder / "target.new").rename(self.folder / "target")
        return [f"127.0.0.1:{(self.folder / 'port').read_text()}"]

    def python(self, block_id: str) -> str:
        return ""


@dataclass(frozen=True)
class TunnelledProvider:
    """The options: the folder of the tunnel."""

    folder: str
    kind: ClassVar[str] = "tunnelled"
    max_nodes_per_block: ClassVar[int | None] = 1

    def open(self, run_dir: str) -> TunnelledDriver:
        driver = TunnelledDriver(LocalProvider().open(run_dir)._epoll, run_dir)
        driver.folder = Path(self.folder)
        return driver


class Tunnel:
    """Passes connections on to the interchange, in one thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: Keeps the port from others while nobody listens there.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port = self._held.getsockname()[1]
        self._listening: socket.socket | None = socket.create_server(("127.0.0.1", self.port))
        (folder / "port").write_text(str(self.port))
        #: The two ends of each connection, by both: the interchange's and the manager's.
        self._others: dict[socket.socket, socket.socket] = {}
        #: The same of those that are frozen, oldest first.
        self._frozen: dict[socket.socket, socket.socket] = {}
        self._is_frozen = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._woken, self._wake = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        #: Bytes that have gone through.
        self.carried = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def config(self, **options: object) -> Config:
        """A pool of one node, which comes by this tunnel."""
        mine = {"addresses": NOWHERE, "heartbeat_period_s": 0.5, "heartbeat_timeout_s": 60.0} | options
        pool = NodePool(TunnelledProvider(str(self.folder)), workers_per_node=2, init_blocks=1, max_blocks=1)
        return Config(pool, **mine)  # type: ignore[arg-type]

    def break_all(self) -> None:
        """Break what is connected: managers see an end, as of an sshd that has ended, the interchange a reset."""
        self._do(self._break_all)

    def end_all(self) -> None:
        """End what is connected on both sides in order, as when a relay dies."""
        self._do(self._end_all)

    def freeze_all(self) -> None:
        """Carry nothing any more of what is connected, and tell nobody, as when a network is gone."""
        self._do(self._freeze_all)

    def stall(self) -> None:
        """Carry nothing, also of what is yet to be connected, until `resume`: a network that has a pause."""
        self._do(self._stall)

    @property
    def stalled(self) -> int:
        """How many connections carry nothing."""
        return len(self._frozen) // 2

    def resume(self) -> None:
        """Carry on, with the oldest connections first, as one SSH connection does that carries them all."""
        self._do(self._resume)

    def shut(self) -> None:
        """Break everything and let nobody in, until it is opened again."""
        self._do(self._shut)

    def open(self) -> None:
        """Let them in again, at the same port."""
        self._do(self._open)

    def close(self) -> None:
        """Shut it for good."""
        self.shut()
        self._is_closed = True
        self._do(lambda: None)
        self._thread.join()
        for end in (self._held, self._woken, self._wake, *self._frozen):
            end.close()
        self._selector.close()

    def _do(self, order: Callable[[], None]) -> None:
        done = threading.Event()
        self._orders.put(order)
        self._orders.put(done.set)
        self._wake.send(b"x")
        done.wait()

    def _run(self) -> None:
        while not self._is_closed:
            for key, _ in self._selector.select():
                end = key.fileobj
                assert isinstance(end, socket.socket)
                if end is self._woken:
                    end.recv(1)
                    while not self._orders.empty():
                        self._orders.get()()
                elif end is self._listening:
                    self._accept(end)
                elif end in self._others:
                    self._carry(end)

    def _accept(self, listening: socket.socket) -> None:
        theirs, _ = listening.accept()
        port = int((self.folder / "target").read_text())
        try:
            ours = socket.create_connection(("127.0.0.1", port))
        except OSError:  # the interchange is gone
            theirs.close()
            return
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end, other in ((ours, theirs), (theirs, ours)):
            self._others[end] = other
            self._selector.register(end, selectors.EVENT_READ)
        if self._is_frozen:
            self._freeze_all()

    def _carry(self, end: socket.socket) -> None:
        try:
            data = end.recv(65536)
            self._others[end].sendall(data)
        except OSError:
            data = b""
        self.carried += len(data)
        if not data:
            other = self._others[end]
            with contextlib.suppress(OSError):  # in order, where it was in order
                other.shutdown(socket.SHUT_WR)
            self._selector.unregister(end)
            self._others.pop(end)
            if other not in self._others:
                end.close()
                other.close()

    def _break_all(self) -> None:
        for end, other in self._others.items():
            self._selector.unregister(end)
            end.close()
            if other not in self._others:  # it has ended before
                other.close()
        self._others.clear()

    def _end_all(self) -> None:
        for end in self._others:
            with contextlib.suppress(OSError):  # it has ended by itself
                end.shutdown(socket.SHUT_WR)

    def _freeze_all(self) -> None:
        for end in self._others:
            self._selector.unregister(end)
        self._frozen |= self._others
        self._others.clear()

    def _stall(self) -> None:
        self._is_frozen = True
        self._freeze_all()

    def _resume(self) -> None:
        self._is_frozen = False
        frozen, self._frozen = self._frozen, {}
        self._others |= frozen
        for end in frozen:
            self._selector.register(end, selectors.EVENT_READ)
        for end in frozen:
            if end in self._others and select.select([end], [], [], 0)[0]:
                self._carry(end)

    def _shut(self) -> None:
        if self._listening is not None:
            self._selector.unregister(self._listening)
            self._listening.close()
            self._listening = None
        self._break_all()

    def _open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._selector.register(self._listening, selectors.EVENT_READ)


@contextlib.contextmanager
def tunnel(folder: Path) -> Iterator[Tunnel]:
    folder.mkdir()
    opened = Tunnel(folder)
    try:
        yield opened
    finally:
        opened.close()
