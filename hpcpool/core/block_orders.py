"""What is known of blocks and what is to be done about them, in words: plain values. Decided in `core.blocks`."""

from __future__ import annotations

from enum import Enum

import msgspec


class Phase(Enum):
    """Where the job of a block is."""

    #: Handed to the batch system, which has not answered yet.
    SUBMITTING = "submitting"
    QUEUED = "queued"
    RUNNING = "running"
    #: Over as it should be.
    ENDED = "ended"
    #: Over in any other way.
    FAILED = "failed"
    #: Could not be found out; it counts as alive.
    UNKNOWN = "unknown"


class Taken(Enum):
    """By what a block was taken away that did nothing wrong."""

    WALLTIME = "walltime"
    PREEMPTION = "preemption"


class Sight(msgspec.Struct, frozen=True):
    """What the batch system told about a job."""

    phase: Phase
    exit_code: int | None = None
    #: In the batch system's own words; may be empty.
    reason: str = ""
    stderr_tail: str = ""
    #: When its walltime is over (seconds, the clock of `now`); None: not known.
    ends_at: float | None = None
    taken: Taken | None = None
    #: It is queued and will not start as it is, however long it waits.
    is_stuck: bool = False


class Submit(msgspec.Struct, frozen=True):
    """Ask the pool's batch system for a block of this name."""

    pool: str
    block: str


class Cancel(msgspec.Struct, frozen=True):
    """End the block's job; a second order for the same block means: by force."""

    block: str


class Retire(msgspec.Struct, frozen=True):
    """Have a block's managers take no new tasks, and end."""

    block: str
    #: Also if it has tasks: these go on first.
    is_ordered: bool


class BlockOver(msgspec.Struct, frozen=True):
    """A block is over; its managers are gone."""

    block: str
    reason: str
    #: It was taken away, or given back by us: what it ran is run elsewhere and that is nobody's fault.
    is_expected: bool
    #: The batch system has taken it away: its walltime was over, or another job preempted it.
    was_taken: bool = False


class BlockEnds(msgspec.Struct, frozen=True):
    """The batch system will end this block at this moment (seconds, the clock of `now`)."""

    block: str
    at: float


class Hopeless(msgspec.Struct, frozen=True):
    """Blocks fail to start, again and again: the pool cannot go on."""

    reason: str


class Warned(msgspec.Struct, frozen=True):
    """The user should know this."""

    text: str


Order = Submit | Cancel | Retire | BlockOver | BlockEnds | Hopeless | Warned
