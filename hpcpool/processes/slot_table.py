"""What the workers of a node get with their slots: cores, and an environment. No worker is started here."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from hpcpool.core.needs import Needs, Shape, width
from hpcpool.core.slots import DEVICE_VARIABLES, THREAD_VARIABLES, Slot, device_ids, divide, environment, together
from hpcpool.wire.messages import Nodes, Task, Welcome

#: Tell a call of whole nodes their names, with commas between, and how many processes it was said to start on them.
NODES_VARIABLE = "HPCPOOL_NODES"
RANKS_VARIABLE = "HPCPOOL_RANKS"

#: The cores that a worker is bound to ((): it is not), and what is added to its environment.
Gear = tuple[tuple[int, ...], dict[str, str]]


class SlotTable:
    """The slots of a node.

    Args:
        welcome: how they are to be.
        host: the node's name.
        cores: the numbers of the cores that may be used.
        environ: the environment that workers have anyway. What it says of threads is the user's word.
    """

    def __init__(self, welcome: Welcome, host: str, cores: Sequence[int], environ: Mapping[str, str]) -> None:
        self.shape = Shape(*welcome.shape) if welcome.shape is not None else Shape(welcome.workers or len(cores))
        self._host = host
        self._limits_threads = welcome.limits_threads
        self._given = {name for name in THREAD_VARIABLES if name in environ}
        visible = next((environ[name] for name in DEVICE_VARIABLES if environ.get(name)), None)
        accelerators = device_ids(welcome.accelerators, visible)
        self._slots = divide(self.shape.slots, self.shape.cores_per_slot, cores, welcome.affinity, accelerators)
        #: The nodes of tasks that have several.
        self._hosts: dict[int, list[str]] = {}

    def width_of(self, task: Task) -> int | None:
        """Return how many slots a task takes with a worker of its own; None: any worker does."""
        if task.needs is None:
            return None
        needs = Needs(*task.needs)
        slots = width(needs, self.shape) or 1
        return slots if slots > 1 or needs.wants_whole_nodes else None

    def note_nodes(self, message: Nodes, known: Container[int]) -> None:
        """A task that is about to come has these nodes; `known`: the tasks that are here."""
        self._hosts = {task: hosts for task, hosts in self._hosts.items() if task in known}
        self._hosts[message.id] = message.hosts

    def gear(self, slots: Sequence[int]) -> Gear:
        """Return what a worker for any call gets."""
        slot = self._together(slots)
        return slot.cores, self._environment(slot, self.shape.cores_per_slot if self._limits_threads else None)

    def own_gear(self, slots: Sequence[int], task: Task) -> Gear:
        """Return what a worker gets that is started for one task."""
        needs = Needs(*task.needs) if task.needs is not None else Needs()
        slot = self._together(slots)
        threads = len(slots) * self.shape.cores_per_slot
        variables = {}
        if needs.wants_whole_nodes:
            variables[NODES_VARIABLE] = ",".join(self._hosts.get(task.id, [self._host]))
        if needs.ranks:
            variables[RANKS_VARIABLE] = str(needs.ranks)
            threads = max(1, threads * needs.node_count // needs.ranks)
        return slot.cores, self._environment(slot, threads) | variables

    def _together(self, slots: Sequence[int]) -> Slot:
        return together([self._slots[slot] for slot in slots])

    def _environment(self, slot: Slot, threads: int | None) -> dict[str, str]:
        wanted = environment(slot, threads)
        return {name: value for name, value in wanted.items() if name not in self._given}
