"""What a node pool offers as far as its options say: for the interchange, and for the client, who knows no nodes."""

from __future__ import annotations

from hpcpool.config import NodePool
from hpcpool.core.offer import Offer


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
    )
