"""The computing centre of the French institute of nuclear and particle physics, CC-IN2P3."""

from __future__ import annotations

from typing import Any, TypeAlias

from hpcpool.config import Config, NodePool
from hpcpool.providers import SlurmProvider

Lines: TypeAlias = str | tuple[str, ...]


def cc_in2p3(
    *,
    account: str | None = None,
    walltime: str | float = "00:30:00",
    partition: str = "htc",
    cores_per_node: int = 8,
    mem: str = "24G",
    licenses: str | None = "sps",
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for CC-IN2P3, for a program on one of its interactive servers. Nodes are shared.

    Grid Engine, which it had before, has been replaced by Slurm.

    Source: https://doc.cc.in2p3.fr/en/Computing/slurm/submit.html

    Args:
        account: the group that is charged; None: the user's main group.
        walltime: how long a block may last.
        partition: "htc" (blocks of one node), "hpc" (of several), "gpu", "flash" (tests of up to an hour) ...
        cores_per_node: cores of each node.
        mem: memory of each node.
        licenses: the storage that the calls use, which must be declared ("sps"); None: none.
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    extra = (scheduler_options,) if isinstance(scheduler_options, str) else scheduler_options
    provider = SlurmProvider(
        partition=partition,
        account=account,
        mem=mem,
        cores_per_node=cores_per_node,
        walltime=walltime,
        scheduler_options=(*((f"--licenses={licenses}",) if licenses else ()), *extra),
    )
    return Config(NodePool(provider, **{"name": "cc_in2p3", **node_pool}))
