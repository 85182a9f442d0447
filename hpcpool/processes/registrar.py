"""What pools offer and calls need, in words of the wire: no manager and no task is kept here."""

from __future__ import annotations

from collections.abc import Mapping

from hpcpool.config import Config, NodePool
from hpcpool.core.leases import Reason
from hpcpool.core.needs import NO_NEEDS, Needs, Shape, asked_for, counted, size
from hpcpool.core.scheduler import Scheduler
from hpcpool.processes.hosting import is_local
from hpcpool.processes.offers import offer_of
from hpcpool.processes.peer import Peer
from hpcpool.wire.messages import NodeState, Outcome, Register, Setup, Status, Task, Welcome


def limits_threads(pool: NodePool) -> bool:
    """Say whether workers of a pool tell libraries how many threads to start.

    On this machine a call may use all cores, as with `ProcessPoolExecutor`, unless the user has said how many a worker
    has. Elsewhere each worker has its slot.
    """
    is_plain = pool.cores_per_worker == 1 and pool.cpu_affinity == "none"
    return not (is_plain and is_local(pool))


class TooSmall(Exception):
    """A node has no room for one worker, or not the accelerators; the message says what it lacks."""


def pool_of(config: Config, block: str) -> NodePool:
    """Return the pool of a block, by the name that it was given; of an unknown one, a pool as usual."""
    name = block.rpartition("-")[0]
    return next((pool for pool in config.node_pools if pool.name == name), NodePool())


def welcome_of(config: Config, setup: Setup, node: Register) -> tuple[Welcome, Shape]:
    """Return what the manager of a node is told, and its shape; `TooSmall` if it has less than its pool says."""
    pool = pool_of(config, node.block)
    if isinstance(pool.accelerators, int) and 0 <= node.accelerators < pool.accelerators:
        raise TooSmall(_too_few_accelerators(pool, node))
    shape = offer_of(pool, setup.workers).shape(node.cores, node.memory_bytes)
    if not shape.slots:
        raise TooSmall(_shortage(pool, node))
    welcome = Welcome(
        shape.slots,
        setup.start_method,
        setup.max_tasks_per_child,
        setup.setup,
        config.heartbeat_period_s,
        config.heartbeat_timeout_s,
        shape,
        pool.accelerators,
        pool.cpu_affinity,
        limits_threads(pool),
    )
    return welcome, shape


def in_words(node: Register) -> str:
    """Return what a node has, for the log."""
    devices = "" if node.accelerators < 0 else f", {counted(node.accelerators, 'accelerator')}"
    return f"{counted(node.cores, 'core')}, {size(node.memory_bytes)}{devices}"


def _shortage(pool: NodePool, node: Register) -> str:
    wants = f"cores_per_worker={pool.cores_per_worker}"
    if pool.memory_per_worker_bytes is not None:
        wants += f" and memory_per_worker={size(pool.memory_per_worker_bytes)}"
    has = f"{node.cores} cores and {size(node.memory_bytes)}"
    return f"{node.host} has {has}, too little for one worker of node pool {pool.name!r} with {wants}; ask for less"


def _too_few_accelerators(pool: NodePool, node: Register) -> str:
    wants = f"node pool {pool.name!r} says accelerators={pool.accelerators}"
    what = "ask the batch system for so many on each node, or say how many there are"
    return f"{node.host} lets this job use {counted(node.accelerators, 'accelerator')}, and {wants}; {what}"


def needs_of(task: Task) -> tuple[Needs | None, float]:
    """Return what a task needs (None: nothing), and how long it will run at most (seconds, 0: nobody knows)."""
    if task.needs is None:
        return None, task.timeout_s
    needs = Needs(*task.needs)
    return needs, needs.time_s or task.timeout_s


def ending(task: Task, reason: Reason, text: str, host: str, scheduler: Scheduler) -> Outcome:
    """Return the outcome of a task that no worker has ended; `text` says how it was lost, if it was."""
    match reason:
        case Reason.LOST:
            return Outcome(task.id, Status.LOST, text.encode(), host=host)
        case Reason.UNAVAILABLE:
            needs = asked_for(needs_of(task)[0] or NO_NEEDS, task.timeout_s)
            lack = f"needs {needs}, and there are only {scheduler.offered()}"
            return Outcome(task.id, Status.UNAVAILABLE, lack.encode())
        case _:
            return Outcome(task.id, Status.KILLED, host=host)


def nodes(managers: Mapping[bytes, Peer], scheduler: Scheduler) -> list[NodeState]:
    """Return all nodes, for who asks how the pool is."""
    return [
        NodeState(peer.hello.host, peer.block, peer.slots, min(peer.slots, scheduler.held_by(name)), peer.is_cut_off)
        for name, peer in managers.items()
        if peer.registered
    ]
