"""Finding the interchange again when a manager's connection has broken, in a thread: the manager's loop goes on."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from hpcpool.processes.connection import Connection
from hpcpool.processes.dialling import Unreachable, connect
from hpcpool.processes.event_loop import EventLoop, wake_up_pipe
from hpcpool.wire.messages import Rejoin, encode
from hpcpool.wire.stream import Stream
from hpcpool.wire.tls import REJOIN_PROTOCOL, TlsEnd, client_context

log = logging.getLogger(__name__)

#: How long all addresses are tried at once (seconds), each time: at first one of them may lead to a login node that has
#: not noticed the cut, and says nothing, while another is about to open. The last is for all later times.
_TRIES_S = (3.0, 5.0, 10.0)
#: The pause before they are tried again (seconds), also if the interchange was found just now: it may let us in only to
#: turn us away, as it does when our block is over.
_PAUSE_S = 1.0


class Redialling:
    """Dials whenever it is told to, until the interchange is found.

    Args:
        connection: how it was found the first time.
        token: by which it knows the manager.
        loop: the manager's.
        found: called on that loop with a stream on which nothing but `Rejoin` was said.
    """

    def __init__(self, connection: Connection, token: bytes, loop: EventLoop, found: Callable[[Stream], None]) -> None:
        self._addresses = connection.addresses
        self._context = client_context(connection.authority.encode(), connection.key.encode())
        self._context.set_alpn_protocols([REJOIN_PROTOCOL])
        self._token = token
        self._loop = loop
        self._found = found
        self._streams: deque[Stream] = deque()
        #: When dialling may begin again (monotonic clock).
        self._dial_at = 0.0
        self._is_over = threading.Event()
        #: Held to end it, and to hand over what was found: neither happens in the midst of the other.
        self._lock = threading.Lock()
        self._woken, self._wake = wake_up_pipe()
        loop.add(self._woken, self._hand_over)
        #: How many messages the manager has had, each time that it wants to be connected again; None: never more.
        self._wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        # Now, not when it is needed: by then the system may have no thread left.
        threading.Thread(target=self._run, name="hpcpool-redial", daemon=True).start()

    def begin(self, received: int) -> None:
        """Dial; the manager has had so many messages."""
        self._wanted.put(received)

    def close(self) -> None:
        """Dial no more. A thread that still does ends when its attempt is over."""
        with self._lock:
            self._is_over.set()
        self._wanted.put(None)
        self._loop.remove(self._woken)
        for stream in self._streams:
            stream.close()
        for end in (self._woken, self._wake):
            os.close(end)

    def _run(self) -> None:
        while (received := self._wanted.get()) is not None:
            self._dial(received)

    def _dial(self, received: int) -> None:
        tries_s = itertools.chain(_TRIES_S, itertools.repeat(_TRIES_S[-1]))
        while not self._is_over.wait(max(0.0, self._dial_at - time.monotonic())):
            try:
                end, address = connect(self._addresses, self._context, next(tries_s))
            except (Unreachable, OSError) as error:  # the second: this process has no descriptor left
                log.info("%s", error)
                continue
            finally:
                self._dial_at = time.monotonic() + _PAUSE_S
            log.info("found the interchange again at %s", address)
            self._offer(Stream(TlsEnd(end)), received)
            return

    def _offer(self, stream: Stream, received: int) -> None:
        stream.send(encode([Rejoin(self._token, received)]))
        with self._lock:
            if self._is_over.is_set():
                stream.close()
                return
            self._streams.append(stream)
            os.write(self._wake, b"\0")

    def _hand_over(self, events: int) -> None:
        os.read(self._woken, 64)
        while self._streams:
            self._found(self._streams.popleft())
