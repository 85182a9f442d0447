"""What the client knows of one pending call: its ticket. Values only; the client's I/O thread changes them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hpcpool.processes.task_future import TaskFuture, TaskInfo
from hpcpool.wire.functions import Blob
from hpcpool.wire.messages import Outcome
from hpcpool.wire.payload import Payload

#: Takes the place of a payload that has been sent and will not be needed again.
SENT = Payload(b"")


class CallOptions(NamedTuple):
    """How one call is to be run; see `HPCPoolExecutor.options`."""

    retries: int = 0
    retry_on: tuple[type[BaseException], ...] | Callable[[BaseException], bool] = (Exception,)
    timeout_s: float = 0.0
    priority: int = 0
    #: 0: as the configuration says.
    crash_limit: int = 0
    name: str = ""


@dataclass(slots=True, eq=False)
class Ticket:
    """One pending call."""

    id: int
    future: TaskFuture[Any]
    call: Payload
    options: CallOptions
    blobs: tuple[Blob, ...] = ()
    #: The results that the call depends on, in placeholder order; None: not there yet.
    parts: list[Payload | None] = field(default_factory=list)
    #: The futures whose results are not there yet, and the place of each in `parts`.
    waiting: dict[Future[Any], int] = field(default_factory=dict)
    attempt: int = 1
    queued_at: float = 0.0
    #: Bytes on their way to the interchange or beyond; 0: still here.
    sent_bytes: int = 0


def ticket_info(ticket: Ticket, outcome: Outcome | None) -> TaskInfo:
    """Return what is known of a call, with its outcome if there is one."""
    info = replace(ticket.future._info, attempt=ticket.attempt, queued_at=ticket.queued_at)
    if outcome is None:
        return info
    return replace(
        info,
        host=outcome.host or None,
        pid=outcome.pid or None,
        started_at=outcome.started_at or None,
        ended_at=outcome.started_at + outcome.elapsed_s if outcome.started_at else None,
        cpu_s=outcome.cpu_s if outcome.started_at else None,
        peak_memory_bytes=outcome.peak_memory_bytes or None,
    )
