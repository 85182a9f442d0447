"""Machines of the Research Computing Center of the University of Chicago."""

from __future__ import annotations

from typing import Any, TypeAlias

from hpcpool.config import Config, NodePool
from hpcpool.providers import SlurmProvider

Lines: TypeAlias = str | tuple[str, ...]


def midway(
    *,
    account: str,
    walltime: str | float = "00:30:00",
    partition: str = "caslake",
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for Midway3, for a program on one of its login nodes. Blocks are of whole nodes.

    Source: https://docs.rcc.uchicago.edu/slurm/sbatch/

    Args:
        account: the account that is charged, "pi-" and a name.
        walltime: how long a block may last; at most 36 hours.
        partition: "caslake" (48 cores), "amd", "bigmem", "gpu" (say with `scheduler_options` how many) ... On Midway2,
            whose nodes are being retired: "broadwl".
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    provider = SlurmProvider(
        partition=partition,
        account=account,
        exclusive=True,
        walltime=walltime,
        scheduler_options=scheduler_options,
    )
    return Config(NodePool(provider, **{"name": "midway", **node_pool}))
