"""What a node pool offers to calls, before and after its nodes are known; and why a call can run in no pool. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from hpcpool.core.needs import Needs, Shape, asked_for, size, width
from hpcpool.core.slots import shares

#: More slots than any node has: stands for a number that is only known when a node has come.
_MANY = 1_000_000


class Offer(msgspec.Struct, frozen=True):
    """How the nodes of a pool are to be divided into slots."""

    pool: str
    #: Workers on each node; None: as many as the node has room for.
    workers: int | None = None
    cores_per_worker: int = 1
    #: None: an equal part of what the node has.
    memory_per_worker: int | None = None
    #: Of each group of accelerators that stays together, how many are in it.
    accelerators: tuple[int, ...] = ()
    nodes_per_block: int = 1
    #: How long a block lasts (seconds); None: not known.
    walltime_s: float | None = None
    #: Words by which it can be chosen, besides its name.
    labels: tuple[str, ...] = ()

    def shape(self, cores: int, memory_bytes: int) -> Shape:
        """Divide a node; a shape of 0 slots: the node is too small for one worker."""
        slots = self.workers
        if slots is None:
            slots = cores // self.cores_per_worker
            if self.memory_per_worker and memory_bytes:
                slots = min(slots, memory_bytes // self.memory_per_worker)
            if self.accelerators:
                slots = min(slots, len(self.accelerators))
        if not slots:
            return Shape(0, self.cores_per_worker)
        memory_per_slot = self.memory_per_worker or memory_bytes // slots
        return self._shape(slots, memory_per_slot)

    def _shape(self, slots: int, memory_per_slot: int) -> Shape:
        own = min(map(sum, shares(self.accelerators, slots))) if len(self.accelerators) >= slots else 0
        return Shape(slots, self.cores_per_worker, memory_per_slot, sum(self.accelerators), own)

    def is_chosen(self, needs: Needs) -> bool:
        """Say whether a call may come here as far as it has chosen a pool."""
        return needs.pool in ("", self.pool, *self.labels)

    def can_ever_run(self, needs: Needs) -> bool:
        """Say whether a call may find a node here, as far as that can be known before a node has come."""
        if not self.is_chosen(needs) or needs.nodes > self.nodes_per_block:
            return False
        if self.walltime_s is not None and needs.time_s > self.walltime_s:
            return False
        slots = self.workers or len(self.accelerators) or _MANY
        return width(needs, self._shape(slots, self.memory_per_worker or max(1, needs.memory_bytes))) is not None

    def __str__(self) -> str:
        workers = f"{self.workers}" if self.workers else "as many workers as there is room for"
        parts = [f"workers on each node: {workers}", f"cores for each: {self.cores_per_worker}"]
        if self.memory_per_worker:
            parts.append(f"memory for each: {size(self.memory_per_worker)}")
        parts.append(f"accelerators on each node: {sum(self.accelerators)}")
        parts.append(f"nodes in a block: {self.nodes_per_block}")
        if self.walltime_s is not None:
            parts.append(f"seconds that a block lasts: {self.walltime_s:g}")
        return f"node pool {self.pool!r} ({', '.join(parts)})"


def refusal(needs: Needs, offers: Iterable[Offer], timeout_s: float = 0.0) -> str | None:
    """Return why a call can run in none of the pools; None: it can, or that is not known yet.

    Args:
        needs: what it asks for.
        offers: of the pools.
        timeout_s: how long it may run (seconds), which counts unless it has asked for a time; 0: for ever.
    """
    known = list(offers)
    timed = needs if needs.time_s else needs._replace(time_s=timeout_s)
    if any(offer.can_ever_run(timed) for offer in known):
        return None
    candidates = [offer for offer in known if offer.is_chosen(needs)]
    return f"no node can run a call with {asked_for(needs, timeout_s)}: {'; '.join(map(str, candidates))}"
