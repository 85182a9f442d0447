"""The interchange's desk for files: connections of workers on other hosts, each served by one of a few threads.

The event loop hands connections over and never waits: files, and the connections, are read and written in the threads
(`client_files`). A connection ends when its block ends, when the worker goes (it was killed, its node was lost)
or is silent in the middle of something, or after a while without a question.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from typing import NamedTuple

from hpcpool.processes.client_files import ClientFiles
from hpcpool.wire.file_transfer import FileLine, GetFile, Greeting, PutFile, SeeFile, SeeFolder, SeePlace
from hpcpool.wire.messages import MessageError

log = logging.getLogger(__name__)

#: So many are served at a time, others wait: more do not make a link or a disk faster.
_MOST_THREADS = 16
#: Who does not read or write for so long in the middle of something is given up (seconds).
_STALL_S = 60.0
#: A worker that asks nothing for so long makes room for others (seconds); it comes back if it has another question.
_IDLE_S = 1.0
#: The same while others wait: it has time for the question that follows from an answer. With a whole second a thousand
#: workers with a file each would wait for a minute.
_BRIEFLY_S = 0.1
#: How long all threads may take to notice that their connections were ended (seconds).
_CLOSE_S = 5.0


class _Guest(NamedTuple):
    """A connection."""

    end: socket.socket
    #: The block that it has proved to be of.
    block: str


class FileDesk:
    """Takes connections, and serves them in threads that it starts when there are some.

    Its methods belong to one thread, the interchange's.
    """

    def __init__(self) -> None:
        self._files = ClientFiles()
        #: Held while any of the fields below is looked at.
        self._lock = threading.Lock()
        self._waiting: deque[_Guest] = deque()
        #: Those that are served, each with the manager whose worker it is; None: it has not said so yet.
        self._served: dict[_Guest, str | None] = {}
        #: Managers that have gone, by their blocks: what is left of them may not do anything any more.
        self._lost: dict[str, set[str]] = {}
        self._threads: set[threading.Thread] = set()
        self._is_closed = False

    def admit(self, end: socket.socket, block: str) -> None:
        """Serve a connection of a worker, now or when it is its turn.

        Args:
            end: blocking or not; it is the desk's from now on.
            block: that it has proved to be of.
        """
        end.settimeout(_STALL_S)
        with self._lock:
            if self._is_closed:
                end.close()
                return
            self._waiting.append(_Guest(end, block))
            if len(self._threads) >= _MOST_THREADS:
                return
            thread = threading.Thread(target=self._serve_all, name="hpcpool-files", daemon=True)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            log.error("block=%s files cannot be served: %s", block, error)
            self._not_started(thread)

    def _not_started(self, thread: threading.Thread) -> None:
        """The other threads serve who waits; if there are none, the calls are told."""
        with self._lock:
            self._threads.discard(thread)
            while self._waiting and not self._threads:
                self._waiting.popleft().end.close()

    def lost(self, block: str, manager: str) -> None:
        """A manager has gone: what its workers are in the middle of is given up, and nothing new is begun."""
        with self._lock:
            self._lost.setdefault(block, set()).add(manager)
            ended = [guest for guest, whose in self._served.items() if (guest.block, whose) == (block, manager)]
        for guest in ended:
            _interrupt(guest.end)

    def end(self, block: str) -> None:
        """A block is over: what is on its way to or from its nodes is given up. Its key opens nothing any more."""
        with self._lock:
            for guest in [guest for guest in self._waiting if guest.block == block]:
                self._waiting.remove(guest)
                guest.end.close()
            self._lost.pop(block, None)
            ended = [guest for guest in self._served if guest.block == block]
        for guest in ended:
            _interrupt(guest.end)

    def close(self) -> None:
        """Give everything up; nothing half written stays."""
        with self._lock:
            self._is_closed = True
            blocks = {guest.block for guest in (*self._served, *self._waiting)}
            threads = list(self._threads)
        for block in blocks:
            self.end(block)
        by = time.monotonic() + _CLOSE_S
        for thread in threads:
            thread.join(max(0.0, by - time.monotonic()))

    def _serve_all(self) -> None:
        """A thread: serve who waits until nobody does."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads.discard(threading.current_thread())
                    return
                guest = self._waiting.popleft()
                self._served[guest] = None
            try:
                self._serve(guest)
            except (MessageError, ConnectionError) as error:
                log.info("block=%s a connection for files was lost: %s", guest.block, error)
            except TimeoutError:
                log.debug("block=%s a connection for files was idle", guest.block)
            except Exception:  # the others are to be served all the same
                log.exception("block=%s a file could not be served", guest.block)
            finally:
                with self._lock:
                    del self._served[guest]
                guest.end.close()

    def _serve(self, guest: _Guest) -> None:
        """Answer until the worker goes or has no more questions."""
        line = FileLine(guest.end)
        greeting = line.hear()
        if greeting is None:
            return
        if not isinstance(greeting, Greeting):
            raise MessageError("it asked without a greeting")
        with self._lock:
            if greeting.manager in self._lost.get(guest.block, ()):
                raise MessageError(f"it is of {greeting.manager}, which was lost")
            self._served[guest] = greeting.manager
        while (request := line.hear()) is not None:
            guest.end.settimeout(_STALL_S)
            self._answer(line, request)
            with self._lock:
                guest.end.settimeout(_BRIEFLY_S if self._waiting else _IDLE_S)

    def _answer(self, line: FileLine, request: object) -> None:
        match request:
            case SeeFile():
                line.say(self._files.see(request))
            case SeeFolder():
                line.say(self._files.see_folder(request))
            case SeePlace():
                line.say(self._files.see_place(request))
            case GetFile():
                self._files.send(line, request)
            case PutFile():
                self._files.receive(line, request)
            case _:
                raise MessageError(f"a {type(request).__name__} is no question")


def _interrupt(end: socket.socket) -> None:
    """Have whoever reads or writes there notice, in its own thread. TLS's own `shutdown` is for that thread alone."""
    try:
        socket.socket.shutdown(end, socket.SHUT_RDWR)
    except OSError:  # it has gone by itself
        return
