"""What a node orders its manager to do, in words: plain values. Decided in `core.node`, done in `processes.manager`."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class End(Enum):
    """Why a worker is being ended by us."""

    TIMED_OUT = "timed out"
    KILLED = "killed"
    DROPPED = "dropped"


class StartWorker(NamedTuple):
    """Start a worker with this number."""

    worker: int


class StartWideWorker(NamedTuple):
    """Start a worker with this number for this task alone."""

    worker: int
    task: int


class Give(NamedTuple):
    """Send a task to a worker."""

    worker: int
    task: int


class TakeBack(NamedTuple):
    """Read back what a worker has not read yet, then call `taken_back`."""

    worker: int


class EndWorker(NamedTuple):
    """Kill a worker and all that its call has started."""

    worker: int


class RetireWorker(NamedTuple):
    """Close a worker's channel: it ends in good order."""

    worker: int


class Run(NamedTuple):
    """A task that runs: on this worker, since then (seconds, the node's clock)."""

    task: int
    worker: int
    since: float


class ReportStarted(NamedTuple):
    """Tell the client that these tasks run."""

    runs: list[Run]


class Crashed(NamedTuple):
    """The worker died while it ran this task."""

    worker: int
    task: int


class Ended(NamedTuple):
    """We ended the worker of this task, for this reason."""

    task: int
    reason: End


class Hopeless(NamedTuple):
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
