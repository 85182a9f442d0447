"""Whether a call can find a node at all, as far as a configuration tells; no node is looked at."""

from __future__ import annotations

from hpcpool.config import Config
from hpcpool.config.options import did_you_mean
from hpcpool.core.needs import Needs
from hpcpool.core.offer import refusal
from hpcpool.processes.offers import offer_of, pools_by_label


def check_needs(needs: Needs, timeout_s: float, config: Config, workers: int) -> None:
    """Raise `ValueError` if no node pool can ever run a call that needs this.

    Args:
        needs: what the call asks for.
        timeout_s: how long it may run (seconds); 0: for ever.
        config: has the node pools.
        workers: on each node, as given to the executor; 0: as the node pools say.
    """
    known = pools_by_label(config.node_pools)
    if needs.pool and needs.pool not in known:
        hint = did_you_mean(needs.pool, list(known))
        raise ValueError(f"there is no node pool {needs.pool!r}{hint} (names and labels: {', '.join(known)})")
    reason = refusal(needs, [offer_of(pool, workers) for pool in config.node_pools], timeout_s)
    if reason is not None:
        raise ValueError(reason)
