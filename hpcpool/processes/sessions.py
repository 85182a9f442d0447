"""Signals to all that runs in a session: a worker and what its calls have started. Nothing is decided here."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil


def signal_process(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def signal_session(session: int, number: int) -> None:
    """Send a signal to all members of a session, in whatever process groups they are."""
    for pid in _members(session):
        signal_process(pid, number)


def _members(session: int) -> Iterator[int]:
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session:
                yield pid
        except (ProcessLookupError, PermissionError):
            continue
