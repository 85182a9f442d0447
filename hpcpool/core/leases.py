"""What the scheduler tells the interchange, in words: plain values."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Batch(NamedTuple):
    """Lease these tasks to this manager."""

    manager: bytes
    tasks: list[int]


class Request(NamedTuple):
    """Ask this manager to give back up to `wanted` unstarted tasks."""

    manager: bytes
    wanted: int


class Reason(Enum):
    """Why a task that its manager has not finished is not queued again."""

    LOST = "lost too often"
    KILLED = "killed"
    WITHDRAWN = "withdrawn"
    UNAVAILABLE = "no node has what it needs"


class Dropped(NamedTuple):
    """A task that ends without an outcome from a manager."""

    task: int
    reason: Reason
