"""Which blocks are on this machine, and which need no process of their own there."""

from __future__ import annotations

from hpcpool.config import NodePool
from hpcpool.providers import LocalProvider


def is_local(pool: NodePool) -> bool:
    """Say whether the blocks of a pool are processes of this machine, which end with the interchange."""
    return isinstance(pool.provider, LocalProvider)


def is_hosted(pool: NodePool) -> bool:
    """Say whether the blocks of a pool run on the interchange's own loop: there is one at a time, on this machine."""
    if not isinstance(pool.provider, LocalProvider) or pool.prepares_nodes:
        return False
    return not pool.provider.own_process and pool.max_blocks == 1
