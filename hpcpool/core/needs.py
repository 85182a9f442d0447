"""What a call needs, what a node has, and how many of the node's slots the call takes. Pure.

A node is divided into slots that are all alike, one for each worker. A call takes a whole number of slots of one node,
its *width*: so whoever shares out work deals in one number.
"""

from __future__ import annotations

from typing import NamedTuple


class Needs(NamedTuple):
    """What a call asks for; 0 and "": it does not matter. Two calls of equal needs are queued together."""

    cores: int = 0
    gpus: int = 0
    memory_bytes: int = 0
    #: Whole nodes of one block.
    nodes: int = 0
    #: Processes that the call is going to start on its whole nodes.
    ranks: int = 0
    #: The node pool it must run in: its name, or a label that several may have.
    pool: str = ""
    #: How long it is expected to run (seconds).
    time_s: float = 0.0

    @property
    def wants_whole_nodes(self) -> bool:
        """Nobody else runs on its nodes."""
        return bool(self.nodes or self.ranks)

    @property
    def node_count(self) -> int:
        """How many nodes it runs on."""
        return max(1, self.nodes)

    def __str__(self) -> str:
        """Say what is asked for, as the user has written it."""
        asked = [f"{name}={value}" for name in ("cores", "gpus") if (value := getattr(self, name))]
        asked += [f"memory={size(self.memory_bytes)}"] if self.memory_bytes else []
        asked += [f"{name}={value}" for name in ("nodes", "ranks") if (value := getattr(self, name))]
        asked += [f"pool={self.pool!r}"] if self.pool else []
        asked += [f"time_request={self.time_s:g}"] if self.time_s else []
        return ", ".join(asked) or "nothing"


NO_NEEDS = Needs()


def asked_for(needs: Needs, timeout_s: float) -> str:
    """Say what a call asks for; its timeout (seconds, 0: none), too, unless it has asked for a time."""
    if not timeout_s or needs.time_s:
        return str(needs)
    return f"timeout={timeout_s:g}" if needs == NO_NEEDS else f"{needs}, timeout={timeout_s:g}"


class Shape(NamedTuple):
    """A node, divided into slots."""

    slots: int
    cores_per_slot: int = 1
    memory_per_slot: int = 0
    #: Accelerators of the whole node, and how many each slot has for itself; 0: slots share one.
    gpus: int = 0
    gpus_per_slot: int = 0

    def __str__(self) -> str:
        each = [counted(self.cores_per_slot, "core")]
        each += [size(self.memory_per_slot)] if self.memory_per_slot else []
        gpus = f", and {counted(self.gpus, 'accelerator')} in all" if self.gpus else ""
        return f"{counted(self.slots, 'slot')} of {', '.join(each)}{gpus}"


def width(needs: Needs, shape: Shape) -> int | None:
    """Return how many slots of a node of this shape the call takes; None: it can never run there."""
    slots = 1
    if needs.cores:
        slots = max(slots, _ceil(needs.cores, shape.cores_per_slot))
    if needs.memory_bytes:
        if not shape.memory_per_slot:
            return None
        slots = max(slots, _ceil(needs.memory_bytes, shape.memory_per_slot))
    if needs.gpus:
        if needs.gpus > shape.gpus:
            return None
        slots = max(slots, _slots_for_gpus(needs.gpus, shape))
    if slots > shape.slots:
        return None
    return shape.slots if needs.wants_whole_nodes else slots


def _slots_for_gpus(gpus: int, shape: Shape) -> int:
    if shape.gpus_per_slot:
        return min(shape.slots, _ceil(gpus, shape.gpus_per_slot))  # all slots together have all of them
    return _ceil(gpus * shape.slots, shape.gpus)


def _ceil(wanted: int, each: int) -> int:
    return -(-wanted // each)


def size(count: int) -> str:
    """Return a number of bytes in words."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count} B"


def counted(number: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
