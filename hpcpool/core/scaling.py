"""How many blocks a node pool should have, from a snapshot. Pure."""

from __future__ import annotations

from dataclasses import dataclass

#: The second start in a row after a failure waits this long (seconds), each further one twice as long.
BACK_OFF_S = 0.2
BACK_OFF_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A node pool at one moment."""

    init_blocks: int
    min_blocks: int
    max_blocks: int
    #: Blocks that are pending, running or in an unknown state: what is not known to be over counts.
    alive: int
    #: Blocks ever started.
    started: int
    #: Slots of one block; None: no block has registered yet.
    slots_per_block: int | None
    #: Tasks that are not finished.
    pending: int
    #: Blocks that ended badly, one after another, up to now.
    failures: int
    #: When the last of them ended (seconds, the clock of `now`).
    failed_at: float
    #: How many of those alive have not proved yet that they can serve: no manager of theirs has registered.
    starting: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, and when to ask again at the latest."""

    start: int
    #: None: nothing will change by itself.
    ask_again_at: float | None = None


def plan(pool: PoolSnapshot, now: float) -> Plan:
    """Return how many blocks to start now."""
    missing = _wanted(pool) - pool.alive
    if missing <= 0:
        return Plan(0)
    start_at = pool.failed_at + _back_off_s(pool.failures)
    if pool.failures and now < start_at:
        return Plan(0, start_at)
    if pool.failures:
        # After a failure one block at a time: a broken set-up must not flood the batch system.
        return Plan(0 if pool.starting else 1)
    return Plan(missing)


def _wanted(pool: PoolSnapshot) -> int:
    wanted = pool.min_blocks
    if pool.started < pool.init_blocks:
        wanted = max(wanted, pool.init_blocks)
    if pool.pending:
        wanted = max(wanted, -(-pool.pending // pool.slots_per_block) if pool.slots_per_block else 1)
    return min(wanted, pool.max_blocks)


def _back_off_s(failures: int) -> float:
    # The exponent is bounded, too: a pool that fails for days must not overflow.
    return 0.0 if failures < 2 else min(BACK_OFF_LIMIT_S, BACK_OFF_S * 2 ** min(failures - 2, 20))
