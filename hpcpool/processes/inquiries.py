"""What threads of the user ask the interchange, and wait for: answers come through the client's I/O thread."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

from hpcpool.wire.messages import AskStatus, Expect, StatusReport, Struct


class Inquiries:
    """Asked in any thread but the client's own, answered in that.

    Args:
        tell: sends the interchange a message; may be called anywhere.
    """

    def __init__(self, tell: Callable[[Struct], None]) -> None:
        self._tell = tell
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        #: What somebody waits for; None: not answered yet.
        self._reports: dict[int, StatusReport | None] = {}
        self._slots = 0
        #: The slots that somebody waits for, each waiter by itself.
        self._expected: list[int] = []
        #: The pool cannot answer any more.
        self.is_over = False
        #: The interchange has said something: it has started.
        self.is_answered = False

    def status(self, timeout_s: float) -> StatusReport | None:
        """Ask how the pool is; None: it has ended, or did not answer in this time."""
        number = next(self._ids)
        with self._changed:
            self._reports[number] = None
        self._tell(AskStatus(number))
        with self._changed:
            self._changed.wait_for(lambda: self._reports[number] is not None or self.is_over, timeout_s)
            return self._reports.pop(number)

    def wait_for_slots(self, slots: int, timeout_s: float | None) -> bool:
        """Wait until the pool has so many slots; False: it has not, in this time, or has ended."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            if self._slots >= slots:
                return True
            self._expected.append(slots)
            self._tell(Expect(max(self._expected)))
            try:
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                self._changed.wait_for(lambda: self._slots >= slots or self.is_over, left_s)
                return self._slots >= slots
            finally:
                self._expected.remove(slots)
                self._tell(Expect(max(self._expected, default=0)))

    # -- in the client's thread --

    def on_status(self, report: StatusReport) -> None:
        """The interchange has answered."""
        with self._changed:
            self.is_answered = True
            if report.id in self._reports:
                self._reports[report.id] = report
                self._changed.notify_all()

    def on_slots(self, slots: int) -> None:
        """The pool has so many slots now."""
        with self._changed:
            self._slots, self.is_answered = slots, True
            self._changed.notify_all()

    def close(self) -> None:
        """The pool cannot answer any more."""
        with self._changed:
            self._slots, self.is_over = 0, True
            self._tell = _to_nobody  # the client's own method: a cycle would keep it, and its thread, from being freed
            self._changed.notify_all()


def _to_nobody(message: Struct) -> None:
    """There is nobody any more."""
