"""How the cores and accelerators of a node are divided over its slots, and which slots a wide call gets. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

T = TypeVar("T")

#: Tell libraries how many threads to start: OpenMP, OpenBLAS, MKL, numexpr, Apple's Accelerate, BLIS, Numba.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
#: Tell the runtimes of CUDA, ROCm and oneAPI Level Zero which devices there are. All are set: which of them matters
#: is the node's affair, and the others are never read.
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


class Slot(NamedTuple):
    """What a worker may use."""

    #: Numbers of the cores it is bound to; (): it is not bound.
    cores: tuple[int, ...] = ()
    accelerators: tuple[str, ...] = ()


def divide(
    slots: int, cores_per_slot: int, cores: Sequence[int], affinity: str, accelerators: Sequence[str]
) -> list[Slot]:
    """Return the slots of a node.

    Args:
        slots: how many.
        cores_per_slot: how many cores each is bound to. Where there are too few, slots share cores.
        cores: the numbers of those that may be used.
        affinity: "none"; "block": neighbours together, from the first core on; "block-reverse": the same from the last
            core on; "alternating": the cores of a slot are as far apart as can be.
        accelerators: their ids; those that stay together are one id, such as "0,1".
    """
    parts = shares(accelerators, slots)
    return [Slot(_cores(slot, slots, cores_per_slot, cores, affinity), _devices(parts[slot])) for slot in range(slots)]


def _cores(slot: int, slots: int, each: int, cores: Sequence[int], affinity: str) -> tuple[int, ...]:
    if affinity == "none":
        return ()
    if affinity == "alternating":
        places = [slot + number * slots for number in range(each)]
    else:
        places = list(range(slot * each, (slot + 1) * each))
    if affinity == "block-reverse":
        places = [-1 - place for place in places]
    return tuple(sorted({cores[place % len(cores)] for place in places}))


def _devices(groups: Sequence[str]) -> tuple[str, ...]:
    return tuple(device for group in groups for device in group.split(","))


def shares(groups: Sequence[T], slots: int) -> list[Sequence[T]]:
    """Divide accelerators evenly over slots; with fewer than there are slots, several slots share one."""
    count = len(groups)
    firsts = [slot * count // slots for slot in range(slots + 1)]
    return [groups[first : max(end, first + 1)] for first, end in pairwise(firsts)]


def device_ids(accelerators: int | Sequence[str], visible: str | None) -> tuple[str, ...]:
    """Return the ids of a node's accelerators: those given or, of a mere number, the first that are visible.

    Args:
        accelerators: a number, or ids.
        visible: what the batch system lets this node's processes see, such as "2,3"; None: everything.
    """
    if not isinstance(accelerators, int):
        return tuple(accelerators)
    allotted = [device.strip() for device in (visible or "").split(",") if device.strip()]
    if len(allotted) >= accelerators:
        return tuple(allotted[:accelerators])
    return tuple(map(str, range(accelerators)))


def together(slots: Sequence[Slot]) -> Slot:
    """Return several slots as one."""
    cores = {core for slot in slots for core in slot.cores}
    devices = dict.fromkeys(device for slot in slots for device in slot.accelerators)
    return Slot(tuple(sorted(cores)), tuple(devices))


def choose(free: Collection[int], width: int) -> tuple[int, ...]:
    """Return the slots for a wide call; there are enough of them.

    Neighbours are preferred, and such as begin at a multiple of the width: their cores share caches, their accelerators
    are whole, and what is left has room for other wide calls.
    """
    runs = [first for first in sorted(free) if all(first + step in free for step in range(width))]
    if not runs:
        return tuple(sorted(free)[:width])
    first = next((first for first in runs if first % width == 0), runs[0])
    return tuple(range(first, first + width))


def environment(slot: Slot, threads: int | None) -> dict[str, str]:
    """Return the variables for a worker on this slot; `threads`: for each process; None: the libraries decide."""
    variables = {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))
    if slot.accelerators:
        variables |= dict.fromkeys(DEVICE_VARIABLES, ",".join(slot.accelerators))
    return variables
