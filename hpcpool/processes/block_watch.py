"""What the interchange knows of blocks: whose managers are there, which have nothing to do, which are to go.

It belongs to the interchange's thread, and tells block control what that must know, but nothing for each task: whether
a block is idle is found out by looking at it now and then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from hpcpool.config import Config
from hpcpool.core.block_orders import Retire
from hpcpool.core.demand import Demand
from hpcpool.core.scheduler import Scheduler
from hpcpool.processes.block_control import BlockControl
from hpcpool.processes.hosting import is_hosted
from hpcpool.processes.peer import Peer

log = logging.getLogger(__name__)

#: Blocks are looked at so many times within the shortest `max_idle_time`, within these limits (seconds).
_LOOKS = 10
_LEAST_PERIOD_S, _MOST_PERIOD_S = 0.05, 5.0


class BlockWatch:
    """Watches the managers of all blocks.

    Args:
        peers: all managers, by name.
        send_off: tells a manager to end in good order.
        evacuate: has all results fetched that a manager's node keeps; True when none is left there.
    """

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        peers: Mapping[bytes, Peer],
        send_off: Callable[[bytes], None],
        evacuate: Callable[[bytes], bool],
    ) -> None:
        self._scheduler = scheduler
        self._peers = peers
        self._send_off = send_off
        self._evacuate = evacuate
        self._control: BlockControl | None = None
        #: The managers of each block that has any.
        self._managers: dict[str, set[bytes]] = {}
        #: Managers that were sent tasks since the last look.
        self.used: set[bytes] = set()
        #: Blocks with nothing to do.
        self._idle: set[str] = set()
        #: Blocks that get no tasks any more: those that still have some, and those that were sent off.
        self._draining: set[str] = set()
        self._sent_off: set[str] = set()
        #: What tasks with needs of their own ask for; replaced, never changed: block control's thread reads it, too.
        self.demands: Sequence[Demand] = ()
        #: Pending tasks, as a power of two: when block control was last told that there are many, and at the last look.
        self._announced_load = 0
        self._seen_load = 0
        scalable = [pool for pool in config.node_pools if not is_hosted(pool)]
        shortest = min((pool.max_idle_time or math.inf for pool in scalable), default=math.inf)
        self._period_s = min(_MOST_PERIOD_S, max(_LEAST_PERIOD_S, shortest / _LOOKS))
        self._has_scalable = bool(scalable)
        #: When `look` must be called next (monotonic clock); inf: there is nothing to see (yet, or ever). Also while
        #: there is no manager: what is asked for may become less.
        self.look_at = math.inf

    def start(self, control: BlockControl) -> None:
        """Tell this control from now on."""
        self._control = control
        if self._has_scalable:
            self.look_at = 0.0
        control.start()

    def came(self, block: str, manager: bytes, slots: int) -> None:
        """A manager offers its slots."""
        self._managers.setdefault(block, set()).add(manager)
        if self._control is not None:
            self._control.manager_came(block, slots)

    def went(self, block: str, manager: bytes) -> None:
        """A manager has gone."""
        managers = self._managers.get(block, set())
        if manager not in managers:
            return
        managers.discard(manager)
        if not managers:
            del self._managers[block]
            for group in (self._idle, self._draining, self._sent_off):
                group.discard(block)
        if self._control is not None:
            self._control.manager_left(block)

    def has_managers(self, block: str) -> bool:
        """Say whether a manager of this block is there."""
        return block in self._managers

    def is_leaving(self, block: str) -> bool:
        """Say whether a block gets no tasks any more."""
        return block in self._draining or block in self._sent_off

    def retire(self, order: Retire) -> None:
        """End a block that has nothing to do; if the user has ordered it, also one that has, when it is done."""
        managers = self._managers.get(order.block, set())
        if self._control is None or not managers:
            return  # block control hears that they have gone
        if not order.is_ordered and not self._is_idle(managers):
            self._control.kept(order.block)
            return
        for manager in managers:
            self._peers[manager].is_retiring = True
            self._scheduler.capacity_changed(manager, *self._peers[manager].capacity)
        self._draining.add(order.block)
        self._send_off_if_done(order.block)

    def look(self, now: float) -> None:
        """Look at which blocks are idle, if it is time."""
        if now < self.look_at or self._control is None:
            return
        self.look_at = now + self._period_s
        for block, managers in self._managers.items():
            is_idle = self._is_idle(managers)
            if is_idle is not (block in self._idle):
                self._idle ^= {block}
                self._control.idle(block, now if is_idle else None)
        self.used.clear()
        for block in list(self._draining):
            self._send_off_if_done(block)
        load = self._scheduler.pending.bit_length()
        if load != self._seen_load:
            self._seen_load = load
            self._look(self._control)

    def call_for_blocks(self) -> None:
        """Wake block control when there is (by orders of magnitude) more work than the managers have slots."""
        load = self._scheduler.excess.bit_length()
        if load > self._announced_load and self._control is not None:
            self._look(self._control)
        self._announced_load = load if not load else max(load, self._announced_load)

    def _look(self, control: BlockControl) -> None:
        """Have block control look at what there is to do."""
        self.demands = [Demand(*asked) for asked in self._scheduler.asked() if asked.pools is not None]
        control.look()

    def _is_idle(self, managers: set[bytes]) -> bool:
        return self.used.isdisjoint(managers) and not any(map(self._scheduler.held_by, managers))

    def _send_off_if_done(self, block: str) -> None:
        managers = self._managers[block]
        if self._control is None or any(map(self._scheduler.held_by, managers)):
            return
        if sum(not self._evacuate(manager) for manager in managers):  # all are asked, not one after the other
            return
        log.info("block=%s has nothing to do and is given back", block)
        self._draining.discard(block)
        self._sent_off.add(block)
        for manager in managers:
            self._send_off(manager)
        self._control.retired(block)
