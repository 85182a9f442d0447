"""Machines of the Texas Advanced Computing Center. Its Slurm gives whole nodes, and takes no memory or GPU options."""

from __future__ import annotations

from typing import Any, TypeAlias

from hpcpool.config import Config, NodePool
from hpcpool.providers import SlurmProvider

Lines: TypeAlias = str | tuple[str, ...]


def stampede3(
    *,
    partition: str,
    account: str | None = None,
    walltime: str | float = "00:30:00",
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for Stampede3, for a program on one of its login nodes.

    Source: https://docs.tacc.utexas.edu/hpc/stampede3/

    Args:
        partition: "skx" (48 cores), "skx-dev", "icx" (80 cores), "spr" (112 cores), "pvc" (4 GPUs), "h100" (4 GPUs) ...
        account: the project that is charged; who has one project need not name it.
        walltime: how long a block may last; at most 48 hours, 2 in skx-dev.
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    provider = SlurmProvider(
        partition=partition, account=account, walltime=walltime, scheduler_options=scheduler_options
    )
    return Config(NodePool(provider, **{"name": "stampede3", **node_pool}))


def stampede2(
    *,
    partition: str,
    account: str | None = None,
    walltime: str | float = "00:30:00",
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for Stampede2. **Stampede2 has retired (2023)**: use `stampede3`.

    Source: https://access-ci.atlassian.net/wiki/spaces/ACCESSdocumentation/pages/467111533/Stampede-2+-+TACC

    Args:
        partition: "normal" or "development" (68 cores), "skx-normal" or "skx-dev" (48 cores), "icx-normal" (80 cores).
        account: the project that is charged; who has one project need not name it.
        walltime: how long a block may last; at most 48 hours.
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    provider = SlurmProvider(
        partition=partition, account=account, walltime=walltime, scheduler_options=scheduler_options
    )
    return Config(NodePool(provider, **{"name": "stampede2", **node_pool}))
