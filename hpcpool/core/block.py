"""One block, from the moment that it is asked for until its job is over, and what can be told of it. Pure."""

from __future__ import annotations

from enum import Enum

import msgspec

from hpcpool.core.block_orders import Phase, Sight
from hpcpool.core.placement import GRACE_S
from hpcpool.core.scaling import BlockView, Stage


class Ending(Enum):
    """Why we end a block."""

    #: It ran, and no manager came.
    LATE = "no manager came"
    #: Its managers are lost although it runs.
    LOST = "its managers were lost"
    #: It would have waited in the queue for ever.
    STUCK = "it would not start"
    #: It has nothing to do.
    GIVEN_BACK = "given back"
    #: The pool ends.
    STOPPED = "stopped"


class Block(msgspec.Struct):
    """All that is known of a block that is not known to be over. Times are on the clock of `now`."""

    name: str
    pool: str
    submitted_at: float
    #: The batch system's word for it; empty until it has answered.
    job: str = ""
    #: What was last known for certain: never `UNKNOWN`, so an outage changes nothing.
    phase: Phase = Phase.SUBMITTING
    #: The batch system did not say when it was asked last.
    is_unknown: bool = False
    reason: str = ""
    ends_at: float | None = None
    running_since: float | None = None
    #: Since when the batch system has said that it will not start as it is, and its words.
    stuck_since: float | None = None
    stuck_reason: str = ""
    #: How many of its managers are there, and since when there are none any more; None: there are, or none has come.
    managers: int = 0
    left_at: float | None = None
    #: A manager has come, now or before.
    has_served: bool = False
    idle_since: float | None = None
    #: Its managers are being asked to retire, or have been.
    is_retiring: bool = False
    ending: Ending | None = None
    #: How often it was cancelled, and when that is to be done again.
    cancels: int = 0
    cancel_at: float | None = None

    def view(self, longest_s: float = 0.0, now: float = 0.0) -> BlockView:
        """Return what scaling must know of it; `longest_s`: how long the longest task runs that waits for its pool."""
        return BlockView(self.name, self._stage, self.idle_since, self.submitted_at, self._is_too_short(longest_s, now))

    def left_s(self, now: float) -> float | None:
        """How long it can still run tasks (seconds); None: no end is known."""
        return None if self.ends_at is None else self.ends_at - now - GRACE_S

    def _is_too_short(self, longest_s: float, now: float) -> bool:
        left_s = self.left_s(now)
        if left_s is None or self.running_since is None:
            return False
        # What another one would have, if its manager takes no longer to come than what is kept free at the end.
        anew_s = left_s + (now - self.running_since) - GRACE_S
        return left_s < longest_s <= anew_s

    @property
    def _stage(self) -> Stage:
        if self.ending is not None or self.is_retiring or self.left_at is not None:
            return Stage.ENDING
        if self.managers:
            return Stage.SERVING
        # One that may run is not in the queue, as far as anybody knows.
        return Stage.QUEUED if self.phase is Phase.QUEUED and not self.is_unknown else Stage.STARTING

    def see(self, sight: Sight, now: float) -> None:
        """Take in what the batch system told; it is not over."""
        self.reason = sight.reason
        self.is_unknown = sight.phase is Phase.UNKNOWN
        if self.is_unknown:
            return
        self.phase = sight.phase
        self.ends_at = sight.ends_at
        self._note_stuck(sight, now)
        if sight.phase is Phase.RUNNING:
            self.running_since = self.running_since if self.running_since is not None else now
        elif not self.managers and self.ending is None:
            # It waits, or was put back into the queue: what comes next is a start like the first.
            self.has_served, self.running_since, self.left_at, self.cancel_at = False, None, None, None

    def _note_stuck(self, sight: Sight, now: float) -> None:
        if not sight.is_stuck:
            self.stuck_since, self.stuck_reason = None, ""
        elif self.stuck_since is None:
            self.stuck_since, self.stuck_reason = now, sight.reason

    @property
    def state(self) -> str:
        """How far it is, in one or two words."""
        if self.ending is not None or self.is_retiring:
            return "ending"
        state = "serving" if self.managers else self.phase.value
        return f"{state}?" if self.is_unknown else str(state)

    def told(self) -> str:
        """Return it in words, for messages: "block a-0 (job 17) is queued: Priority"."""
        job = f" (job {self.job})" if self.job else ""
        state = f"{self.phase.value}, as far as is known" if self.is_unknown else self.phase.value
        if self.phase is Phase.RUNNING and not self.has_served:
            state += ", but no manager has come"
        return f"block {self.name}{job} is {state}{f': {self.reason}' if self.reason else ''}"


def end_told(block: Block, sight: Sight) -> str:
    """Return in words how a block ended: state, exit code, reason and the end of its stderr."""
    job = f" (job {block.job})" if block.job else ""
    how = [sight.phase.value]
    if sight.reason:
        how.append(sight.reason)
    if sight.exit_code is not None and "code" not in sight.reason and "killed" not in sight.reason:
        how.append(f"exit code {sight.exit_code}" if sight.exit_code >= 0 else f"signal {-sight.exit_code}")
    text = f"block {block.name}{job} {', '.join(how)}"
    return f"{text}; its stderr ends with:\n{sight.stderr_tail}" if sight.stderr_tail else text
