"""The clients of this process at its end and in its forked children. Handlers only; what they do is the client's."""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Protocol


class _Client(Protocol):
    @property
    def is_usable(self) -> bool: ...
    def close(self, *, cancel_futures: bool = False) -> None: ...
    def abort(self, signal_number: int, reason: str) -> None: ...
    def join(self) -> None: ...
    def after_fork(self) -> None: ...


class _State:
    """The one state that this process has of it."""

    def __init__(self) -> None:
        self.clients: weakref.WeakSet[_Client] = weakref.WeakSet()
        self.interpreter_exits = False


_state = _State()
#: Held while a pool is started or noted here, and by a fork: a child must never inherit half of a start (a lock that
#: nobody holds there, a stream that nobody closes).
fork_lock = threading.RLock()


def add(client: _Client) -> None:
    """Have a client finish its work before the interpreter ends."""
    with fork_lock:
        check_interpreter()
        _state.clients.add(client)


def remove(client: _Client) -> None:
    """A client has ended by itself."""
    with fork_lock:
        _state.clients.discard(client)


def is_exiting() -> bool:
    """Say whether the interpreter is ending."""
    return _state.interpreter_exits


def check_interpreter() -> None:
    """Raise if the interpreter is ending and nothing can be started any more."""
    if _state.interpreter_exits:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")


def _at_exit() -> None:
    """Finish what is pending before the interpreter goes (threads are still allowed at this point)."""
    with fork_lock:
        _state.interpreter_exits = True
        clients = [client for client in _state.clients if client.is_usable]
    if _ended_by_ctrl_c():
        _finish(clients, cancel_futures=True)
        return
    try:
        _finish(clients, cancel_futures=False)
    except KeyboardInterrupt:  # the first
        _finish(clients, cancel_futures=True)
        raise


def _finish(clients: Sequence[_Client], *, cancel_futures: bool) -> None:
    """Let clients finish what is pending; on Ctrl-C kill what runs."""
    try:
        for client in clients:
            client.close(cancel_futures=cancel_futures)
        for client in clients:
            client.join()
    except KeyboardInterrupt:
        if not cancel_futures:
            raise
        for client in clients:
            client.abort(signal.SIGKILL, "the pool cannot go on: ended by Ctrl-C")
        for client in clients:
            client.join()


def _ended_by_ctrl_c() -> bool:
    """True when the interpreter ends because a KeyboardInterrupt was not caught."""
    last = getattr(sys, "last_exc", None)
    kind = type(last) if last is not None else getattr(sys, "last_type", None)
    return isinstance(kind, type) and issubclass(kind, KeyboardInterrupt)


def _after_fork_in_child() -> None:
    fork_lock.release()
    for client in list(_state.clients):
        client.after_fork()
    _state.clients.clear()


# As concurrent.futures does: this runs before the interpreter joins its threads, an atexit handler would run after.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(before=fork_lock.acquire, after_in_parent=fork_lock.release, after_in_child=_after_fork_in_child)
