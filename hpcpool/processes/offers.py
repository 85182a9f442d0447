"""What node pools offer as far as their options say: for the interchange, and for the client, who knows no nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpcpool.config import Config, NodePool
from hpcpool.core.offer import Offer

if TYPE_CHECKING:
    from hpcpool.core.scheduler import Scheduler


def offer_of(pool: NodePool, workers: int | None = None) -> Offer:
    """Return what a pool offers; `workers` on each node, if the user has said so for all pools."""
    groups = pool.accelerators
    sizes = (1,) * groups if isinstance(groups, int) else tuple(len(group.split(",")) for group in groups)
    return Offer(
        pool=pool.name,
        workers=workers or pool.workers_per_node,
        cores_per_worker=pool.cores_per_worker,
        memory_per_worker=pool.memory_per_worker_bytes,
        accelerators=sizes,
        nodes_per_block=pool.nodes_per_block,
        walltime_s=pool.walltime_s,
        labels=pool.labels,
    )


def pools_by_label(pools: Sequence[NodePool]) -> dict[str, tuple[str, ...]]:
    """Return the names of the pools that each word chooses, which is the name of one or a label."""
    words = dict.fromkeys(word for pool in pools for word in (pool.name, *pool.labels))
    return {word: tuple(pool.name for pool in pools if word in (pool.name, *pool.labels)) for word in words}


def scheduler_of(config: Config) -> Scheduler:
    """Return a scheduler for managers of these pools."""
    from hpcpool.core.scheduler import Scheduler  # the client has none, and must be there quickly

    pools = config.node_pools
    names = [pool.name for pool in pools]
    return Scheduler(config.loss_limit, config.rerun_lost, names, labels=pools_by_label(pools))
