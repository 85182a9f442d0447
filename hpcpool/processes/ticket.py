"""What the client knows of one pending call: its ticket. Values only; the client's I/O thread changes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from hpcpool.core.needs import Needs
from hpcpool.processes.task_future import TaskFuture
from hpcpool.wire.packing import Payload
from hpcpool.wire.payload import PickledCall
from hpcpool.wire.segments import Segment

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
    #: None: nothing in particular.
    needs: Needs | None = None
    #: A large result stays where it was made.
    keep: bool = False


class Ticket:
    """One pending call."""

    __slots__ = (
        "blobs",
        "call",
        "function",
        "future",
        "id",
        "is_killed",
        "options",
        "parts",
        "segments",
        "sent_bytes",
        "waiting",
    )

    def __init__(self, future: TaskFuture[Any], call: PickledCall, options: CallOptions) -> None:
        self.id = future._task
        self.future = future
        self.call = call.payload
        self.function = call.function
        self.options = options
        self.blobs = call.blobs
        #: The user has killed it: it is not tried again.
        self.is_killed = False
        #: The results that the call depends on, in placeholder order; None: not there yet.
        self.parts: list[Payload | None] = _NOTHING
        #: The futures whose results are not there yet, and the place of each in `parts`.
        self.waiting: dict[Future[Any], int] | None = None
        #: What of the call is in shared memory, while it is on its way.
        self.segments: Sequence[Segment] = ()
        #: Bytes on their way to the interchange or beyond; 0: still here.
        self.sent_bytes = 0


_NOTHING: list[Payload | None] = []
