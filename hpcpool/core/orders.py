"""What a node orders its manager to do, in words: plain values. Decided in `core.node`, done in `processes.manager`."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import msgspec


class End(Enum):
    """Why a worker is being ended by us."""

    TIMED_OUT = "timed out"
    KILLED = "killed"
    DROPPED = "dropped"


class StartWorker(msgspec.Struct, frozen=True):
    """Start a worker with this number."""

    worker: int


class StartWideWorker(msgspec.Struct, frozen=True):
    """Start a worker with this number for this task alone."""

    worker: int
    task: int


class Give(msgspec.Struct, frozen=True):
    """Send a task to a worker."""

    worker: int
    task: int


class TakeBack(msgspec.Struct, frozen=True):
    """Read back what a worker has not read yet, then call `taken_back`."""

    worker: int


class EndWorker(msgspec.Struct, frozen=True):
    """Kill a worker and all that its call has started."""

    worker: int


class RetireWorker(msgspec.Struct, frozen=True):
    """Close a worker's channel: it ends in good order."""

    worker: int


class Run(NamedTuple):
    """A task that runs: on this worker, since then (seconds, the node's clock)."""

    task: int
    worker: int
    since: float


class ReportStarted(msgspec.Struct, frozen=True):
    """Tell the client that these tasks run."""

    runs: list[Run]


class Crashed(msgspec.Struct, frozen=True):
    """The worker died while it ran this task."""

    worker: int
    task: int


class Ended(msgspec.Struct, frozen=True):
    """We ended the worker of this task, for this reason."""

    task: int
    reason: End


class Hopeless(msgspec.Struct, frozen=True):
    """Workers die before their first call, again and again."""

    worker: int


Order = (
    StartWorker
    | StartWideWorker
    | Give
    | TakeBack
    | EndWorker
    | RetireWorker
    | ReportStarted
    | Crashed
    | Ended
    | Hopeless
)
