"""The one executor of this process for apps that belong to no other; made at its first use, never by an import."""

from __future__ import annotations

import os
import threading

from hpcpool.executor import HPCPoolExecutor
from hpcpool.wire import functions


class _Default:
    """Holds the executor. It is never shut down here: like any other, it finishes its calls when the program ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: HPCPoolExecutor | None = None

    def get(self) -> HPCPoolExecutor:
        with self._lock:
            # A pool that broke stays broken; a session that goes on for days gets a new one.
            if self._executor is None or self._executor._broken:
                self._executor = HPCPoolExecutor()
            return self._executor


_default = _Default()


def default_executor() -> HPCPoolExecutor:
    """Return the executor of apps that belong to no other; every process has its own.

    Raises:
        RuntimeError: in a worker. Were there one too, an app that calls itself would fill the machine with pools.
    """
    if functions.blob_source is not functions._no_blobs:
        raise RuntimeError(
            "an app was called inside a worker, where it has no executor. To build on results of other apps, make "
            "the caller a join_app, which runs in the main program; or make an executor for it there: "
            "with HPCPoolExecutor(...) as ex: ..."
        )
    return _default.get()


def _forget_in_child() -> None:
    global _default  # noqa: PLW0603 - the lock, too, may be held by a thread that the child does not have
    _default = _Default()


os.register_at_fork(after_in_child=_forget_in_child)
