"""What a manager has told the client of calls that run for a while; it completes outcomes that no worker could make."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable

from hpcpool.wire.messages import Outcome, Run, Started


class LongRuns:
    """The calls of one node that have been reported as running."""

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}

    def report(self, runs: Iterable[tuple[int, int, float]]) -> Started:
        """Return the message that these run: task, process id of the worker, and start on the monotonic clock."""
        epoch = time.time() - time.monotonic()
        reports = [Run(task, pid, epoch + since) for task, pid, since in runs]
        self._runs.update((report.id, report) for report in reports)
        return Started(reports, socket.gethostname())

    def forget(self, task: int) -> None:
        """The call has an outcome of its worker's."""
        if self._runs:
            self._runs.pop(task, None)

    def complete(self, outcome: Outcome) -> Outcome:
        """Add where and when the call ran to the outcome of one that was ended, or whose worker died."""
        run = self._runs.pop(outcome.id, None)
        if run is not None:
            outcome.pid, outcome.started_at = run.pid, run.started_at
            outcome.elapsed_s = max(0.0, time.time() - run.started_at)
        return outcome
