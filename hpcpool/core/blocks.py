"""What block control decides: which blocks to ask for, which to give back, and what to make of those that fail.

Pure: it is told what happened, with the time, and returns orders. How many blocks there should be is `scaling.plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from hpcpool.core.allowance import Allowance
from hpcpool.core.block import Block, Ending, end_told
from hpcpool.core.block_orders import (
    BlockEnds,
    BlockOver,
    Cancel,
    Hopeless,
    Order,
    Phase,
    Retire,
    Sight,
    Submit,
    Taken,
    Warned,
)
from hpcpool.core.demand import Demand, Room, share_out
from hpcpool.core.scaling import Plan, PoolSnapshot, plan, target_blocks

#: A block whose managers have gone has so long (seconds) to end by itself.
_LINGER_S = 30.0
#: The same for one whose managers were told to leave: their workers' exit handlers run in this time.
_RETIRE_S = 15.0
#: Blocks that were cancelled twice and are still there are cancelled again after this time (seconds): the command may
#: have failed.
_CANCEL_LATER_S = 30.0
#: How long after the first cancellation at the end of the pool (seconds) blocks are left that are still there. The
#: client kills an interchange that takes 20 s in all.
_LEAVE_S = 5.0
_CANCEL_AT_END_S = 1.0


class Pace(msgspec.Struct, frozen=True):
    """How patient to be with a kind of provider. Times are in seconds."""

    #: A block that ends badly within this time of its start counts as a failure when the next one is started.
    early_s: float
    back_off_s: float
    back_off_limit_s: float
    #: Cancelled blocks get this long before they are cancelled once more, which kills them.
    cancel_again_s: float
    #: So many blocks can be asked for at once, and one each so many seconds from then on; None: no limit.
    burst: int | None = None
    period_s: float = 0.0


#: Processes of this machine: they start in no time, and nobody minds.
LOCAL = Pace(early_s=10.0, back_off_s=0.2, back_off_limit_s=60.0, cancel_again_s=1.0)
#: Batch systems serve many users: ten submissions at once are what a person does in a loop; sites ask not to go on at
#: more than about one a second. A block that has just failed will most likely fail again: 5 s, 10 s, ... 10 minutes.
BATCH = Pace(early_s=60.0, back_off_s=5.0, back_off_limit_s=600.0, cancel_again_s=30.0, burst=10, period_s=2.0)


class Limits(msgspec.Struct, frozen=True):
    """What the user has set for a node pool, and the pace of its provider."""

    pool: str
    init_blocks: int = 1
    min_blocks: int = 0
    max_blocks: int = 1
    parallelism: float = 1.0
    max_idle_time_s: float | None = None
    #: Slots of one block, if that is known before the first has come.
    slots_per_block: int | None = None
    nodes_per_block: int = 1
    pace: Pace = LOCAL


class _Pool(msgspec.Struct):
    limits: Limits
    allowance: Allowance | None
    slots_per_block: int | None
    started: int = 0
    ordered: int | None = None
    #: No block is started but for tasks that wait.
    is_finishing: bool = False
    surplus_since: float | None = None
    #: Blocks that ended badly in a row, for the pace, and when the last of them did.
    failures: int = 0
    failed_at: float = 0.0
    #: Those of them that no manager came from, for giving up.
    start_failures: int = 0
    #: The last failure in words.
    last_failure: str = ""


class Blocks(msgspec.Struct):
    """The blocks of all node pools.

    Args:
        pools: their limits, in the user's order.
        start_failure_limit: the pool is hopeless after so many failures in a row.
        start_timeout_s: a block that runs without a manager for so long has failed.
        start_warning_s: after so long with tasks but without managers, one warning.
    """

    pools: Sequence[Limits]
    start_failure_limit: int
    start_timeout_s: float
    start_warning_s: float
    #: Every block that is not known to be over, by name; of one pool never more than its `max_blocks`.
    blocks: dict[str, Block] = {}
    _pools: dict[str, _Pool] = {}
    _demands: tuple[Demand, ...] = ()
    _waiting_since: float | None = None
    _warned: bool = False
    #: When what has not ended by itself is cancelled, as the pool stops; and when what is left is left alone.
    _stop_by: float | None = None
    _leave_at: float | None = None
    _look_at: float | None = None

    def __post_init__(self) -> None:
        for limits in self.pools:
            pace = limits.pace
            allowance = Allowance(pace.burst, pace.period_s) if pace.burst is not None else None
            self._pools[limits.pool] = _Pool(limits, allowance, limits.slots_per_block)

    @property
    def is_stopping(self) -> bool:
        """True when no more blocks are started."""
        return self._stop_by is not None

    def is_over(self, now: float) -> bool:
        """Say whether the pool has stopped and nothing more can be done about its blocks."""
        return self.is_stopping and (not self.blocks or (self._leave_at is not None and now >= self._leave_at))

    def next_look_at(self) -> float | None:
        """Return when `look` must be called at the latest; None: not before something happens."""
        moments = [self._look_at, self._warn_at(), self._stop_by if self.blocks else None, self._leave_at]
        for block in self.blocks.values():
            moments += [block.cancel_at, self._late_at(block)]
        return min((at for at in moments if at is not None), default=None)

    # -- what happens --

    def submitted(self, name: str, job: str, now: float) -> list[Order]:
        """The batch system has taken a block."""
        block = self.blocks[name]
        block.job = job
        block.phase = Phase.QUEUED
        # It may have become unwanted while it was being submitted.
        return self._cancel(block, block.ending, now) if block.ending is not None else []

    def refused(self, name: str, text: str, now: float, *, is_outage: bool = False) -> list[Order]:
        """The batch system has refused a block or, in an outage, could not be asked."""
        block = self.blocks.pop(name)
        over: list[Order] = [BlockOver(name, text, is_expected=False)]  # its key must not be good any more
        if self.is_stopping:
            return over
        verb = "could not be submitted" if is_outage else "was refused"
        return over + self._fail(block, f"block {name} {verb}: {text}", now, is_start=not is_outage)

    def seen(self, name: str, sight: Sight, now: float) -> list[Order]:
        """The batch system has told about a block."""
        block = self.blocks.get(name)
        if block is None:
            return []
        if sight.phase in (Phase.ENDED, Phase.FAILED):
            return self._ended(block, sight, now)
        ended_at, was_stuck = block.ends_at, block.stuck_since is not None
        block.see(sight, now)
        if block.stuck_since is not None and not was_stuck:
            after_s = self.start_timeout_s
            return [Warned(f"{block.told()}. It will not start as it is, and is cancelled in {after_s:g} s")]
        if block.ends_at is not None and block.ends_at != ended_at and block.phase is Phase.RUNNING:
            return [BlockEnds(name, block.ends_at)]
        return []

    def manager_came(self, name: str, slots: int) -> None:
        """A manager of this block is there and has so many slots."""
        block = self.blocks.get(name)
        if block is None:
            return
        pool = self._pools[block.pool]
        pool.slots_per_block = slots * pool.limits.nodes_per_block
        pool.start_failures = 0
        block.managers += 1
        block.has_served = True
        block.left_at = None
        if block.ending is None:
            block.cancel_at = None  # it was to be cancelled because there was no manager any more
        self._waiting_since, self._warned = None, False

    def manager_left(self, name: str, now: float) -> None:
        """A manager of this block has gone."""
        block = self.blocks.get(name)
        if block is None:
            return
        block.managers = max(0, block.managers - 1)
        if not block.managers:
            block.idle_since, block.left_at = None, now
            self._cancel_later(block, now + _LINGER_S)

    def lost(self, name: str, now: float) -> list[Order]:
        """A block's managers are lost although it runs: it is ended, so that another can take its place."""
        block = self.blocks.get(name)
        if block is None or block.ending is not None:
            return []
        return self._cancel(block, Ending.LOST, now)

    def idle(self, name: str, since: float | None) -> None:
        """A block has had nothing to do since then; None: it has work."""
        block = self.blocks.get(name)
        if block is not None:
            block.idle_since = since if block.managers else None

    def retired(self, name: str, now: float) -> None:
        """The managers of a block have been told to leave."""
        block = self.blocks.get(name)
        if block is not None and block.ending is None:
            block.ending = Ending.GIVEN_BACK
            self._cancel_later(block, now + _RETIRE_S)

    def kept(self, name: str) -> None:
        """A block that should have retired has got work meanwhile."""
        block = self.blocks.get(name)
        if block is not None:
            block.is_retiring, block.idle_since = False, None

    def ordered(self, pool: str, blocks: int | None) -> None:
        """The user wants so many blocks; None: as many as the work needs, as usual."""
        self._pools[pool].ordered = blocks

    def resume(self) -> None:
        """Where the user has ordered no blocks at all, have as many as what waits needs, and none without work."""
        for pool in self._pools.values():
            if pool.ordered == 0:
                pool.ordered, pool.is_finishing = None, True

    def stop(self, patience_s: float, now: float) -> list[Order]:
        """Start no more blocks, and end those that have not ended by themselves in this time."""
        by = now + patience_s
        self._stop_by = by if self._stop_by is None else min(by, self._stop_by)
        never_heard = [block for block in self.blocks.values() if not block.has_served]
        return [order for block in never_heard for order in self._cancel(block, Ending.STOPPED, now)]

    # -- decisions --

    def look(self, demands: Iterable[Demand], now: float) -> list[Order]:
        """Decide what is due now, for these unfinished tasks."""
        self._demands = tuple(demands)
        self._look_at = None
        if self._stop_by is not None and now >= self._stop_by:
            return self._end_what_is_left(now)
        orders = self._cancel_due(now)
        if self.is_stopping:
            return orders
        wanted = share_out(self._demands, [self._room(pool, now) for pool in self._pools.values()])
        for name, pool in self._pools.items():
            self._forgive(pool, now)
            orders += self._scale(pool, wanted[name], now)
        return orders + self._warn(now)

    def _room(self, pool: _Pool, now: float) -> Room:
        # While nobody knows, a block is taken to have one slot: so others get their share of large work, too.
        slots = pool.slots_per_block or 1
        useful = [block for block in self._of(pool) if block.ending is None and not block.is_retiring]
        left = tuple((slots, left_s) for block in useful if (left_s := block.left_s(now)) is not None)
        is_failing = pool.start_failures >= self.start_failure_limit
        most = pool.limits.max_blocks if pool.ordered is None else pool.ordered
        return Room(pool.limits.pool, slots * len(useful), slots * most, is_failing, left)

    def _of(self, pool: _Pool) -> list[Block]:
        return [block for block in self.blocks.values() if block.pool == pool.limits.pool]

    def _snapshot(self, pool: _Pool, wanted_slots: int, now: float) -> PoolSnapshot:
        limits, allowance = pool.limits, pool.allowance
        longest_s = max((demand.time_s for demand in self._demands if demand.suits(limits.pool)), default=0.0)
        return PoolSnapshot(
            init_blocks=0 if pool.is_finishing else limits.init_blocks,
            min_blocks=0 if pool.is_finishing else limits.min_blocks,
            max_blocks=limits.max_blocks,
            parallelism=limits.parallelism,
            max_idle_time_s=limits.max_idle_time_s,
            ordered=pool.ordered,
            blocks=tuple(block.view(longest_s, now) for block in self._of(pool)),
            started=pool.started,
            slots_per_block=pool.slots_per_block,
            wanted_slots=wanted_slots,
            surplus_since=pool.surplus_since,
            failures=pool.failures,
            failed_at=pool.failed_at,
            back_off_s=limits.pace.back_off_s,
            back_off_limit_s=limits.pace.back_off_limit_s,
            allowance=allowance.left(now) if allowance is not None else None,
            allowance_at=allowance.next_at(now) if allowance is not None else now,
        )

    def _scale(self, pool: _Pool, wanted_slots: int, now: float) -> list[Order]:
        snapshot = self._snapshot(pool, wanted_slots, now)
        if snapshot.useful <= target_blocks(snapshot):
            pool.surplus_since = None
        elif pool.surplus_since is None:
            pool.surplus_since = now
        decision = plan(msgspec.structs.replace(snapshot, surplus_since=pool.surplus_since), now)
        self._ask_again(decision)
        orders: list[Order] = [self._submit(pool, now) for _ in range(decision.start)]
        for name in decision.cancel:
            orders += self._cancel(self.blocks[name], Ending.GIVEN_BACK, now)
        for name in decision.retire:
            orders += self._retire(self.blocks[name], decision, now)
        return orders

    def _ask_again(self, decision: Plan) -> None:
        if decision.ask_again_at is not None:
            at = decision.ask_again_at
            self._look_at = at if self._look_at is None else min(at, self._look_at)

    def _submit(self, pool: _Pool, now: float) -> Submit:
        name = f"{pool.limits.pool}-{pool.started}"
        pool.started += 1
        if pool.allowance is not None:
            pool.allowance.take(now)
        self.blocks[name] = Block(name, pool.limits.pool, now)
        # The one place through which every block goes: whatever was decided above, it cannot pass the user's limit.
        if len(self._of(pool)) > pool.limits.max_blocks:
            raise RuntimeError(f"node pool {pool.limits.pool} was about to have more than max_blocks: a bug in hpcpool")
        return Submit(pool.limits.pool, name)

    def _retire(self, block: Block, decision: Plan, now: float) -> list[Order]:
        if not block.managers:
            return self._cancel(block, Ending.GIVEN_BACK, now)
        block.is_retiring = True
        return [Retire(block.name, decision.is_ordered)]

    # -- failures --

    def _ended(self, block: Block, sight: Sight, now: float) -> list[Order]:
        del self.blocks[block.name]
        told = end_told(block, sight)
        taken = self._taken(block, sight, now)
        is_expected = taken is not None or (block.ending is not None and block.ending is not Ending.LOST)
        over: list[Order] = [BlockOver(block.name, taken_told(sight, taken), is_expected, taken is not None)]
        if self.is_stopping or self._is_no_failure(block, sight, taken):
            return over
        if block.ending is Ending.LATE:
            told = f"{told}\nIt ran, but no manager came within {self.start_timeout_s:g} s"
        if block.ending is Ending.STUCK:
            told = f"{told}; it would not start: {block.stuck_reason}"
        pool = self._pools[block.pool]
        if sight.phase is Phase.ENDED and block.has_served:
            pool.failures = 0
            return over
        started_at = block.running_since if block.running_since is not None else block.submitted_at
        if not block.has_served or now - started_at < pool.limits.pace.early_s:
            return over + self._fail(block, told, now, is_start=not block.has_served)
        return over

    def _taken(self, block: Block, sight: Sight, now: float) -> Taken | None:
        """By what a block was taken away: the batch system says so, or its time is over."""
        if sight.taken is not None or sight.phase is not Phase.FAILED:
            return sight.taken
        ends_at = sight.ends_at if sight.ends_at is not None else block.ends_at
        return Taken.WALLTIME if ends_at is not None and now >= ends_at else None

    def _is_no_failure(self, block: Block, sight: Sight, taken: Taken | None) -> bool:
        if block.ending in (Ending.GIVEN_BACK, Ending.STOPPED) or taken is Taken.PREEMPTION:
            return True
        return taken is Taken.WALLTIME and block.has_served

    def _fail(self, block: Block, told: str, now: float, *, is_start: bool) -> list[Order]:
        pool = self._pools[block.pool]
        pool.failures += 1
        pool.failed_at = now
        pool.last_failure = told
        if not is_start:
            return []
        pool.start_failures += 1
        is_served = any(other.managers for other in self.blocks.values())
        if is_served or any(p.start_failures < self.start_failure_limit for p in self._pools.values()):
            return []
        count = sum(p.start_failures for p in self._pools.values())
        return [Hopeless(f"{count} blocks in a row failed to start. The last: {told}"), *self.stop(0.0, now)]

    def _forgive(self, pool: _Pool, now: float) -> None:
        """Forget a pool's failures once a block that was started after the last of them has proved itself."""
        proved = now - pool.limits.pace.early_s
        if pool.failures and any(
            block.managers and pool.failed_at < block.submitted_at < proved for block in self._of(pool)
        ):
            pool.failures = 0

    # -- the clock --

    def _cancel(self, block: Block, ending: Ending, now: float) -> list[Order]:
        block.ending = block.ending or ending
        if not block.job:
            return []  # when it has been submitted
        pace = self._pools[block.pool].limits.pace
        block.cancels += 1
        block.cancel_at = now + (
            pace.cancel_again_s if block.cancels == 1 else max(pace.cancel_again_s, _CANCEL_LATER_S)
        )
        return [Cancel(block.name)]

    def _cancel_later(self, block: Block, at: float) -> None:
        block.cancel_at = at if block.cancel_at is None else min(block.cancel_at, at)

    def _cancel_due(self, now: float) -> list[Order]:
        orders: list[Order] = []
        for block in self.blocks.values():
            late_at = self._late_at(block)
            if late_at is not None and now >= late_at:
                orders += self._cancel(block, Ending.STUCK if block.stuck_since is not None else Ending.LATE, now)
            elif block.cancel_at is not None and now >= block.cancel_at:
                orders += self._cancel(block, block.ending or Ending.LOST, now)
        return orders

    def _late_at(self, block: Block) -> float | None:
        since = block.running_since if block.stuck_since is None else block.stuck_since
        if block.has_served or block.ending is not None or since is None:
            return None
        return since + self.start_timeout_s

    def _end_what_is_left(self, now: float) -> list[Order]:
        if not self.blocks:
            return []
        self._stop_by = now + _CANCEL_AT_END_S
        if self._leave_at is None:
            self._leave_at = now + _LEAVE_S
        return [order for block in self.blocks.values() for order in self._cancel(block, Ending.STOPPED, now)]

    def _warn_at(self) -> float | None:
        if self._waiting_since is None or self._warned or self.is_stopping:
            return None
        return self._waiting_since + self.start_warning_s

    def _warn(self, now: float) -> list[Order]:
        tasks = sum(demand.tasks for demand in self._demands)
        if not tasks or any(block.managers for block in self.blocks.values()):
            self._waiting_since, self._warned = None, False
            return []
        self._waiting_since = self._waiting_since if self._waiting_since is not None else now
        if self._warned or now < self._waiting_since + self.start_warning_s:
            return []
        self._warned = True
        waited_s = now - self._waiting_since
        return [Warned(f"{tasks} calls wait and no worker has come in {waited_s:.0f} s: {self.told()}")]

    def numbers(self) -> list[tuple[Limits, int | None, int, str]]:
        """Return of each pool its limits, what the user has ordered, the blocks ever started and the last failure."""
        pools = self._pools.values()
        return [(pool.limits, pool.ordered, pool.started, pool.last_failure if pool.failures else "") for pool in pools]

    def told(self) -> str:
        """Return the state of all blocks in words, and what failed last."""
        states = [block.told() for block in self.blocks.values()] or ["there is no block"]
        failures = [f"before, {pool.last_failure}" for pool in self._pools.values() if pool.failures]
        return "; ".join(states + failures)


def taken_told(sight: Sight, taken: Taken | None) -> str:
    """Return why a block is over, in words."""
    reason = sight.reason or sight.phase.value
    return f"{reason}; its {taken.value} was the cause" if taken is not None else reason
