"""Machines of the San Diego Supercomputer Center."""

from __future__ import annotations

from typing import Any, TypeAlias

from hpcpool.config import Config, NodePool
from hpcpool.providers import SlurmProvider

Lines: TypeAlias = str | tuple[str, ...]


def expanse(
    *,
    account: str,
    walltime: str | float = "00:30:00",
    partition: str = "compute",
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for Expanse, for a program on one of its login nodes. Blocks are of whole nodes.

    Source: https://www.sdsc.edu/systems/expanse/user_guide.html

    Args:
        account: the allocation that is charged.
        walltime: how long a block may last; at most 48 hours.
        partition: "compute" or "debug" (128 cores), or "gpu" or "gpu-debug" (40 cores, 4 V100, all of which are asked
            for).
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    has_gpus = partition.startswith("gpu")
    provider = SlurmProvider(
        partition=partition,
        account=account,
        # What Slurm gives a job without being asked is 1 GB for each core.
        mem="0",
        cores_per_node=40 if has_gpus else 128,
        gpus_per_node=4 if has_gpus else None,
        walltime=walltime,
        scheduler_options=scheduler_options,
    )
    return Config(NodePool(provider, **{"name": "expanse", **node_pool}))


def comet(
    *,
    account: str,
    walltime: str | float = "00:30:00",
    partition: str = "compute",
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for Comet. **Comet retired on 15 July 2021**: use `expanse`.

    Source: https://www.sdsc.edu/support/user_guides/comet.html

    Args:
        account: the allocation that is charged.
        walltime: how long a block may last; at most 48 hours.
        partition: "compute" or "debug", of nodes with 24 cores.
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    provider = SlurmProvider(
        partition=partition,
        account=account,
        cores_per_node=24,
        walltime=walltime,
        scheduler_options=scheduler_options,
    )
    return Config(NodePool(provider, **{"name": "comet", **node_pool}))
