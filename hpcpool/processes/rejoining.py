"""Managers whose connection is gone and who come back over another one. Belongs to the interchange's thread.

Only the connection is new to them: their calls have run on, and what was said meanwhile is said again.
"""

from __future__ import annotations

import functools
import logging
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hpcpool.core.scheduler import Scheduler
from hpcpool.core.silence import Silence
from hpcpool.processes.event_loop import EventLoop
from hpcpool.processes.peer import Peer
from hpcpool.processes.streams import OnMessages, Streams
from hpcpool.wire.messages import MessageError, Refused, Rejoin, encode, from_returning
from hpcpool.wire.stream import Stream

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

#: How long a manager that has probably died may take to come back (seconds): a tunnel is made anew in less.
_DOUBT_S = 5.0


class Rejoining:
    """Knows who may come back, and hears who does.

    Args:
        loop: the interchange's.
        streams: of all managers.
        managers: by name.
        scheduler: is told that a manager takes nothing while it is cut off.
        silence: will tell if a manager does not come back.
        on_messages: of `streams`, for the managers.
    """

    def __init__(
        self,
        loop: EventLoop,
        streams: Streams,
        managers: Mapping[bytes, Peer],
        scheduler: Scheduler,
        silence: Silence,
        on_messages: OnMessages,
    ) -> None:
        self._loop = loop
        self._streams = streams
        self._managers = managers
        self._scheduler = scheduler
        self._silence = silence
        self._on_messages = on_messages
        #: The managers that may come back, by their tokens.
        self._names: dict[bytes, bytes] = {}
        #: Who has come and not said yet who it is.
        self._waiting: set[Stream] = set()

    def expect(self, name: bytes, token: bytes) -> None:
        """Let a manager come back with this token; b"": it will not."""
        self._managers[name].token = token
        if token:
            self._names[token] = name

    def forget(self, name: bytes) -> None:
        """Let a manager come back no more; nothing happens if it may not anyway."""
        manager = self._managers.get(name)
        if manager is not None and manager.token:
            self._names.pop(manager.token, None)  # gone if another manager has claimed the same
            manager.token = b""

    def cut_off(self, name: bytes, *, is_leaving: bool) -> bool:
        """A stream is not open any more: wait for the manager to come back; False: it will not.

        Should it be silent for too long, it is lost. Most who end a connection in order have died. But so it looks,
        too, when something on the way has died, such as a relay on a login node. An end in order is the manager's own
        if it `is_leaving`.
        """
        manager = self._managers.get(name)
        if manager is None or not manager.token or not self._streams.can_last(name):
            return False
        manager.has_ended = not self._streams.has_broken(name)
        if manager.has_ended:
            if is_leaving:
                return False
            self._silence.doubt(name, time.monotonic(), _DOUBT_S)
        self._streams.cut_off(name)
        self._take_note(name, is_cut_off=True)
        return True

    def has_ended(self, name: bytes) -> bool:
        """Whether a manager that is cut off has most likely died: its job then ends by itself."""
        manager = self._managers.get(name)
        return manager is not None and manager.is_cut_off and manager.has_ended

    def reason(self, name: bytes) -> str:
        """Return why a manager that is cut off is given up, in words; "" for all others."""
        manager = self._managers.get(name)
        return "cut off, and has not come back" if manager is not None and manager.is_cut_off else ""

    def readmit(self, end: ssl.SSLSocket, block: str) -> None:
        """Somebody who has proved to be of a block wants to come back."""
        from hpcpool.wire.tls import TlsEnd  # loads OpenSSL: a pool on one machine starts without it

        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # it may vanish before it says a word
        stream = Stream(TlsEnd(end))
        self._waiting.add(stream)
        self._loop.add(stream, functools.partial(self._hear, stream, block))

    def close(self) -> None:
        """Hear nobody any more."""
        for stream in list(self._waiting):
            self._let_go(stream)
            stream.close()

    def _hear(self, stream: Stream, block: str, events: int) -> None:
        try:
            messages = stream.receive()
            if not messages and stream.is_open:
                return
            self._let_go(stream)
            self._take_back(stream, block, from_returning.decode(messages[0][0]) if messages else [])
        except MessageError as error:
            log.error("block=%s somebody who came back is turned away: %s", block, error)
            self._let_go(stream)
            stream.close()

    def _let_go(self, stream: Stream) -> None:
        if stream in self._waiting:
            self._waiting.discard(stream)
            self._loop.remove(stream)

    def _take_back(self, stream: Stream, block: str, said: list[Rejoin]) -> None:
        if len(said) != 1:
            raise MessageError("it did not say who it is")
        name = self._names.get(said[0].token)
        if name is None or self._managers[name].proved != block:
            stream.send(encode([Refused("it was taken for lost, and its calls run elsewhere")]))
            raise MessageError("it is not known any more")
        self._streams.go_on(name, stream, said[0].received, self._on_messages)
        self._silence.heard(name, time.monotonic())
        self._take_note(name, is_cut_off=False)

    def _take_note(self, name: bytes, *, is_cut_off: bool) -> None:
        manager = self._managers[name]
        manager.is_cut_off = is_cut_off
        if manager.registered:
            self._scheduler.capacity_changed(name, *manager.capacity)
        what = "cut off: its connection is gone" if is_cut_off else "back over another connection"
        log.warning("block=%s manager=%s:%d %s", manager.block, manager.hello.host, manager.hello.pid, what)
