"""Whether a node may start workers: the system may have no room, or workers may die before their first call. Pure."""

from __future__ import annotations

from hpcpool.core.worker import Worker

#: So many workers in a row that die before their first call break the pool.
START_FAILURE_LIMIT = 3
#: When the system has no room for another worker, it is asked again after so long (seconds).
START_AGAIN_S = 1.0


class Starts:
    """What has become of the workers that were started."""

    def __init__(self) -> None:
        #: Workers in a row that ended before they were ready; that ended without having read the call they were given
        #: (the node sets this to 0 when one has read its call).
        self._failures = 0
        self.barren = 0
        #: No worker is started any more.
        self.is_hopeless = False
        #: No worker is started before this; None: there is room, as far as is known.
        self.again_at: float | None = None

    @property
    def are_possible(self) -> bool:
        """Whether a worker can be started now."""
        return not self.is_hopeless and self.again_at is None

    def are_due(self, now: float) -> bool:
        """Say whether the system is to be asked for room again."""
        if self.again_at is None or now < self.again_at:
            return False
        self.again_at = None
        return True

    def ready(self) -> None:
        """A worker is up."""
        self._failures = 0

    def died(self, worker: Worker, unread: list[int]) -> bool:
        """A worker has ended before its first call; say whether that makes it hopeless."""
        if not worker.ready:
            self._failures += 1
        elif unread:
            self.barren += 1
        self.is_hopeless = max(self._failures, self.barren) >= START_FAILURE_LIMIT
        return self.is_hopeless

    def no_room(self, now: float, *, is_alone: bool) -> bool:
        """The system has no room for a worker, and there is (not) another; say whether that makes it hopeless."""
        self.again_at = now + START_AGAIN_S
        if is_alone:
            self._failures += 1
            self.is_hopeless = self._failures >= START_FAILURE_LIMIT
        return is_alone and self.is_hopeless
