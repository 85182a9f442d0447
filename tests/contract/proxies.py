"""Locks, queues and events for workers that are not children of this process; a server process and its client.

The suite makes them with `multiprocessing.get_context(...)`, and what that makes reaches children only. The documented
alternative is a `multiprocessing.Manager`. Its own `start()` would hand the resource tracker's pipe to the server
process, and a test of the suite waits for that tracker to end; so the server is started as a plain program.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.managers import SyncManager

#: What a context makes that only children can use.
SHARED = ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "Barrier", "Queue", "JoinableQueue")


class ProxyServer:
    """The server process and this process's connection to it. Workers reach it with this process's authkey."""

    def __init__(self) -> None:
        authkey = bytes(multiprocessing.current_process().authkey)
        # Not by `-m`: the suite may be run where the current directory is not on the import path.
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(authkey.hex().encode() + b"\n")
        self._process.stdin.flush()
        port = int(self._process.stdout.readline())
        self._manager = SyncManager(("127.0.0.1", port), authkey)
        self._manager.connect()

    def make(self, kind: str, *args: object) -> object:
        # The genuine article is a named semaphore and so starts the tracker; the suite relies on that.
        resource_tracker.ensure_running()
        return getattr(self._manager, kind)(*args)

    def close(self) -> None:
        self._process.communicate(timeout=30)  # Closes its stdin, which ends it.


def context(start_method: str, server: ProxyServer) -> BaseContext:
    """The `multiprocessing` context for this start method, except that what it shares comes from the server."""
    genuine = multiprocessing.get_context(start_method)
    shared = {kind: maker(kind, server) for kind in SHARED}
    made: BaseContext = type(genuine.__class__.__name__, (type(genuine),), shared)()
    return made


def maker(kind: str, server: ProxyServer) -> object:
    return lambda _context, *args: server.make(kind, *args)


def serve() -> None:
    """The program of the server process: authkey in by stdin, port out by stdout; it ends when stdin does."""
    authkey = bytes.fromhex(sys.stdin.readline())
    multiprocessing.current_process().authkey = authkey
    server = SyncManager(("127.0.0.1", 0), authkey).get_server()
    print(server.address[1], flush=True)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    server.serve_forever()


def end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve()
