"""The interchange's desk for files: connections of workers on other hosts, each served by one of a few threads.

The event loop hands connections over and never waits: files, and the connections, are read and written in the threads
(`client_files`). A connection ends when its block ends, when the worker goes (it was killed, its node was lost)
or is silent in the middle of something, or after a while without a question.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque

from hpcpool.processes.client_files import ClientFiles
from hpcpool.wire.file_transfer import FileLine, GetFile, PutFile, SeeFile, SeeFolder
from hpcpool.wire.messages import MessageError

log = logging.getLogger(__name__)

#: So many are served at a time, others wait: more do not make a link or a disk faster.
_MOST_THREADS = 16
#: Who does not read or write for so long in the middle of something is given up (seconds).
_STALL_S = 60.0
#: A worker that asks nothing for so long makes room for others (seconds); it comes back if it has another question.
_IDLE_S = 1.0
#: How long threads may take to notice that their connections were ended (seconds).
_CLOSE_S = 5.0


class FileDesk:
    """Takes connections, and serves them in threads that it starts when there are some.

    Its methods belong to one thread, the interchange's.
    """

    def __init__(self) -> None:
        self._files = ClientFiles()
        #: Held while any of the fields below is looked at.
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, socket.socket]] = deque()
        self._served: dict[socket.socket, str] = {}
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
            self._waiting.append((block, end))
            if len(self._threads) >= _MOST_THREADS:
                return
            thread = threading.Thread(target=self._serve_all, name="hpcpool-files", daemon=True)
            self._threads.add(thread)
        thread.start()

    def end(self, block: str) -> None:
        """A block is over: what is on its way to or from its nodes is given up."""
        with self._lock:
            for _, end in [item for item in self._waiting if item[0] == block]:
                self._waiting.remove((block, end))
                end.close()
            ended = [end for end, whose in self._served.items() if whose == block]
        for end in ended:
            _interrupt(end)

    def close(self) -> None:
        """Give everything up; nothing half written stays."""
        with self._lock:
            self._is_closed = True
            blocks = {*self._served.values(), *(block for block, _ in self._waiting)}
            threads = list(self._threads)
        for block in blocks:
            self.end(block)
        for thread in threads:
            thread.join(_CLOSE_S)

    def _serve_all(self) -> None:
        """A thread: serve who waits until nobody does."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads.discard(threading.current_thread())
                    return
                block, end = self._waiting.popleft()
                self._served[end] = block
            try:
                self._serve(FileLine(end), end)
            except (MessageError, ConnectionError) as error:
                log.info("block=%s a connection for files was lost: %s", block, error)
            except TimeoutError:
                log.debug("block=%s a connection for files was idle", block)
            except Exception:  # the others are to be served all the same
                log.exception("block=%s a file could not be served", block)
            finally:
                with self._lock:
                    del self._served[end]
                end.close()

    def _serve(self, line: FileLine, end: socket.socket) -> None:
        """Answer until the worker goes or has no more questions."""
        while (request := line.hear()) is not None:
            end.settimeout(_STALL_S)
            self._answer(line, request)
            end.settimeout(_IDLE_S)

    def _answer(self, line: FileLine, request: object) -> None:
        match request:
            case SeeFile():
                line.say(self._files.see(request))
            case SeeFolder():
                line.say(self._files.see_folder(request))
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
