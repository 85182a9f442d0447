"""What the scheduler knows of one task. Values only; the scheduler changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from hpcpool.core.needs import Needs

if TYPE_CHECKING:
    from hpcpool.core.line import Line


class Special(msgspec.Struct):
    """What only tasks have that need something, or are known to end within some time."""

    needs: Needs
    #: It runs no longer than this (seconds); 0: nobody knows.
    time_s: float
    #: Where it waits; None: it does not, or in the queue of those that need nothing.
    line: Line | None = None
    #: The managers whose nodes it has, besides the one that runs it.
    company: tuple[bytes, ...] = ()
    #: It has been ended by us and will be queued again, as it has lost one of its nodes.
    is_recalled: bool = False


class Task(msgspec.Struct):
    """A task that has not finished."""

    priority: int
    crash_limit: int
    #: The user has killed it, so it must not start again.
    is_killed: bool = False
    #: Who holds it; None: it is in a queue.
    manager: bytes | None = None
    crashes: int = 0
    losses: int = 0
    #: How many of these were expected, or the batch system has caused: they do not count for `loss_limit`.
    forgiven: int = 0
    special: Special | None = None
    #: The manager whose node has what it needs; None: none in particular.
    home: bytes | None = None
