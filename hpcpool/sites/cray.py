"""Machines of the Cray Partner Network."""

from __future__ import annotations

from typing import Any, TypeAlias

from hpcpool.config import Config, NodePool
from hpcpool.launchers import AprunLauncher
from hpcpool.providers import TorqueProvider

Lines: TypeAlias = str | tuple[str, ...]


def swan(
    *,
    walltime: str | float = "00:30:00",
    queue: str | None = None,
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for Swan, a Cray XC50. **Swan has retired**: this shows Torque on a Cray.

    Source: https://github.com/Parsl/parsl/blob/741363b40974a38e88b028592d10c5540830179b/parsl/configs/swan_ipp_multinode.py

    Args:
        walltime: how long a block may last.
        queue: the queue; None: the default one.
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    provider = TorqueProvider(queue=queue, walltime=walltime, scheduler_options=scheduler_options)
    # The script runs beside the nodes: aprun reaches a single one, too.
    return Config(NodePool(provider, **{"name": "swan", "launcher": AprunLauncher(), **node_pool}))
