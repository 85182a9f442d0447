"""How many blocks a node pool should have, and which of them it should give back, from a snapshot. Pure.

Blocks are started when there is work for them, and given back when they have had nothing to do for a while. What is
not known counts as alive, so that a batch system that does not answer is never asked for more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum

import msgspec


class Stage(Enum):
    """How far a block is, as far as scaling is concerned."""

    #: Asked for, and not seen to run: nothing is lost if it is given back.
    QUEUED = "queued"
    #: It runs, or may run, and none of its managers has come: it has not had its chance yet.
    STARTING = "starting"
    #: Its managers are there.
    SERVING = "serving"
    #: It was told to end or has lost its managers. It still takes a place, and does nothing for the work.
    ENDING = "ending"


class BlockView(msgspec.Struct, frozen=True):
    """A block that is not known to be over."""

    name: str
    stage: Stage
    #: Since when it has had nothing to do; None: it has, or is not serving.
    idle_since: float | None = None
    #: When it was asked for.
    submitted_at: float = 0.0
    #: It ends too soon for some task that waits, and a new one would not.
    is_too_short: bool = False


class PoolSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A node pool at one moment. All times are seconds on the clock of `now`."""

    init_blocks: int
    min_blocks: int
    max_blocks: int
    #: Slots asked for, for each slot that the work could use: 0 to 1.
    parallelism: float = 1.0
    #: None: no block is ever given back.
    max_idle_time_s: float | None = None
    #: What the user has ordered in place of all of these numbers but `max_blocks`; None: nothing.
    ordered: int | None = None
    blocks: tuple[BlockView, ...] = ()
    #: Blocks ever started.
    started: int = 0
    #: Slots of one block; None: no block has registered yet.
    slots_per_block: int | None = None
    #: Slots that the unfinished tasks could use at once.
    wanted_slots: int = 0
    #: Since when there have been more blocks than the work has use for; None: there are not.
    surplus_since: float | None = None
    #: Blocks that ended badly, one after another, up to now.
    failures: int = 0
    #: When the last of them ended.
    failed_at: float = 0.0
    #: The pause after the second failure in a row; each further one is twice as long, up to `back_off_limit_s`.
    back_off_s: float = 0.2
    back_off_limit_s: float = 60.0
    #: How many blocks may be asked for now, and when one more may be; None: as many as there is use for.
    allowance: int | None = None
    allowance_at: float = 0.0

    @property
    def useful(self) -> int:
        """How many blocks do something for the work, or will."""
        return sum(1 for block in self.blocks if block.stage is not Stage.ENDING)


class Plan(msgspec.Struct, frozen=True):
    """What to do now, and when to ask again at the latest."""

    #: How many blocks to start.
    start: int = 0
    #: Blocks in the queue that are not wanted any more.
    cancel: tuple[str, ...] = ()
    #: Blocks that should take no new tasks, and end. One that has got a task meanwhile stays, unless `is_ordered`.
    retire: tuple[str, ...] = ()
    #: The user wants them gone.
    is_ordered: bool = False
    #: None: nothing will change by itself.
    ask_again_at: float | None = None


def plan(pool: PoolSnapshot, now: float) -> Plan:
    """Return what to do now."""
    target = target_blocks(pool)
    if pool.useful < target:
        return _start(pool, min(target - pool.useful, pool.max_blocks - len(pool.blocks)), now)
    if pool.useful > target:
        return _give_back(pool, pool.useful - target, now)
    return _make_room(pool, now) if pool.useful == pool.max_blocks and pool.ordered is None else Plan()


def target_blocks(pool: PoolSnapshot) -> int:
    """Return how many blocks there should be."""
    if pool.ordered is not None:
        return min(pool.ordered, pool.max_blocks)
    wanted = pool.min_blocks
    if pool.started < pool.init_blocks:
        wanted = max(wanted, pool.init_blocks)
    return min(max(wanted, _needed(pool)), pool.max_blocks)


def _needed(pool: PoolSnapshot) -> int:
    """Return how many blocks the work has use for; one while nobody knows how much a block can do."""
    if not pool.wanted_slots:
        return 0
    if not pool.slots_per_block:
        return 1
    return max(1, math.ceil(pool.wanted_slots * pool.parallelism / pool.slots_per_block))


def _start(pool: PoolSnapshot, missing: int, now: float) -> Plan:
    if missing <= 0:
        return Plan()  # those that are ending hold the places
    start_at = pool.failed_at + _back_off_s(pool)
    if pool.failures and now < start_at:
        return Plan(ask_again_at=start_at)
    if pool.failures:
        # After a failure one block at a time: a broken set-up must not flood the batch system.
        missing = 0 if any(block.stage in (Stage.QUEUED, Stage.STARTING) for block in pool.blocks) else 1
    if pool.allowance is None or missing <= pool.allowance:
        return Plan(missing)
    return Plan(pool.allowance, ask_again_at=pool.allowance_at)


def _give_back(pool: PoolSnapshot, surplus: int, now: float) -> Plan:
    if pool.ordered is not None:
        return _give_back_as_ordered(pool, surplus)
    if pool.max_idle_time_s is None:
        return Plan()
    # A block that waits in the queue has nothing to do from the moment that there are too many, or that it was asked
    # for. Both ways the same patience: a short lull must not cost a place in the queue.
    queued_since = {
        block.name: max(pool.surplus_since if pool.surplus_since is not None else now, block.submitted_at)
        for block in pool.blocks
        if block.stage is Stage.QUEUED
    }
    idle_since = {block.name: block.idle_since for block in pool.blocks if block.idle_since is not None}
    order = [*_newest_first(pool.blocks, Stage.QUEUED), *sorted(idle_since, key=idle_since.__getitem__)][:surplus]
    due = {name: (queued_since | idle_since)[name] + pool.max_idle_time_s for name in order}
    over = [name for name in order if due[name] <= now]
    return Plan(
        cancel=tuple(name for name in over if name in queued_since),
        retire=tuple(name for name in over if name in idle_since),
        ask_again_at=min((at for at in due.values() if at > now), default=None),
    )


def _make_room(pool: PoolSnapshot, now: float) -> Plan:
    """Give back the block that has waited longest for a task which it has the time for: another takes its place."""
    if pool.max_idle_time_s is None:
        return Plan()
    idle_since = {b.name: b.idle_since for b in pool.blocks if b.is_too_short and b.idle_since is not None}
    if not idle_since:
        return Plan()
    longest = min(idle_since, key=idle_since.__getitem__)
    due = idle_since[longest] + pool.max_idle_time_s
    return Plan(retire=(longest,)) if due <= now else Plan(ask_again_at=due)


def _give_back_as_ordered(pool: PoolSnapshot, surplus: int) -> Plan:
    queued = _newest_first(pool.blocks, Stage.QUEUED)
    idle = [block.name for block in pool.blocks if block.idle_since is not None]
    rest = [name for name in _newest_first(pool.blocks, Stage.STARTING, Stage.SERVING) if name not in idle]
    chosen = [*queued, *idle, *rest][:surplus]
    return Plan(
        cancel=tuple(name for name in chosen if name in queued),
        retire=tuple(name for name in chosen if name not in queued),
        is_ordered=True,
    )


def _newest_first(blocks: Iterable[BlockView], *stages: Stage) -> list[str]:
    """The blocks at one of these stages; the oldest has waited longest in the queue, so it goes last."""
    found = [block for block in blocks if block.stage in stages]
    return [block.name for block in sorted(found, key=lambda block: block.submitted_at, reverse=True)]


def _back_off_s(pool: PoolSnapshot) -> float:
    # The exponent is bounded, too: a pool that fails for days must not overflow.
    if pool.failures < 2:
        return 0.0
    return min(pool.back_off_limit_s, pool.back_off_s * 2.0 ** min(pool.failures - 2, 20))
