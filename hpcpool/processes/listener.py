"""A listening socket on an event loop that does not stumble over those who go again, or over a want of descriptors."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable

from hpcpool.processes.event_loop import EventLoop

log = logging.getLogger(__name__)

#: So many may wait in the kernel: all nodes of a large cluster may come at once.
BACKLOG = 4096


class Listener:
    """Accepts connections while it is not closed.

    Args:
        loop: where it listens.
        listening: a bound socket.
        accept: takes each connection.
    """

    def __init__(self, loop: EventLoop, listening: socket.socket, accept: Callable[[socket.socket], None]) -> None:
        self._loop = loop
        self._socket = listening
        self._accept = accept
        #: Given up for a moment when there are no descriptors left, to turn somebody away; None: it is lost.
        self._spare: int | None = None
        self._is_open = True
        self._take_spare()
        listening.setblocking(False)
        listening.listen(BACKLOG)
        loop.add(listening, self._on_ready)

    def close(self) -> None:
        """Accept nobody any more; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._give_up_spare()
            self._loop.remove(self._socket)
            self._socket.close()

    def _on_ready(self, events: int) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):  # else it has gone again
                log.error("a manager cannot connect: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return
        self._accept(connection)

    def _turn_away(self) -> None:
        """Close a waiting connection that there is no descriptor for: else it would wake this loop for ever."""
        self._give_up_spare()
        with contextlib.suppress(OSError):  # it may have gone
            self._socket.accept()[0].close()
        self._take_spare()

    def _give_up_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _take_spare(self) -> None:
        with contextlib.suppress(OSError):  # another thread was faster: the next one is turned away when it can be
            self._spare = os.open(os.devnull, os.O_RDONLY)
