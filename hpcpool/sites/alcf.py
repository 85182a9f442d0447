"""Machines of the Argonne Leadership Computing Facility. They give whole nodes."""

from __future__ import annotations

from typing import Any, TypeAlias

from hpcpool.config import Config, NodePool
from hpcpool.launchers import AprunLauncher, MpiExecLauncher
from hpcpool.providers import CobaltProvider, PBSProProvider

Lines: TypeAlias = str | tuple[str, ...]


def polaris(
    *,
    account: str,
    walltime: str | float = "00:30:00",
    queue: str = "debug",
    filesystems: str = "home:eagle",
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for Polaris, for a program on one of its login nodes.

    Source: https://docs.alcf.anl.gov/polaris/running-jobs/

    Args:
        account: the project that is charged.
        walltime: how long a block may last; at most 1 hour in "debug" and "debug-scaling".
        queue: "debug" (1 or 2 nodes), "debug-scaling" (up to 10), "prod" (10 and more), "preemptable" ...
        filesystems: the file systems that the calls need, joined by colons. A job waits while one of them is down.
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    extra = (scheduler_options,) if isinstance(scheduler_options, str) else scheduler_options
    provider = PBSProProvider(
        queue=queue,
        account=account,
        select_options="system=polaris",
        walltime=walltime,
        scheduler_options=(f"-l filesystems={filesystems}", *extra),
    )
    usual = {"name": "polaris", "launcher": MpiExecLauncher("--cpu-bind none")}
    return Config(NodePool(provider, **{**usual, **node_pool}))


def theta(
    *,
    project: str,
    walltime: str | float = "00:30:00",
    queue: str = "debug-cache-quad",
    attrs: str = "filesystems=home,theta-fs0",
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for Theta. **Theta retired on 31 December 2023**: use `polaris`.

    Source: https://docs.alcf.anl.gov/theta/queueing-and-running-jobs/job-and-queue-scheduling/

    Args:
        project: the project that is charged.
        walltime: how long a block may last.
        queue: "debug-cache-quad" or "debug-flat-quad" (up to 8 nodes), "default" (128 nodes and more).
        attrs: attributes of the job: the file systems that the calls need, the mode of the memory.
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    provider = CobaltProvider(
        queue=queue, project=project, attrs=attrs, walltime=walltime, scheduler_options=scheduler_options
    )
    # Four hardware threads of each of the 64 cores. The script runs beside the nodes: aprun reaches a single one, too.
    usual = {"name": "theta", "launcher": AprunLauncher("-d 256 -j 4")}
    return Config(NodePool(provider, **{**usual, **node_pool}))


def cooley(
    *,
    project: str,
    walltime: str | float = "00:30:00",
    queue: str = "default",
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for Cooley. **Cooley has retired, with Theta**: use `polaris`.

    Source: https://www.alcf.anl.gov/support-center/cooley

    Args:
        project: the project that is charged.
        walltime: how long a block may last.
        queue: "default" or "debug", of nodes with 12 cores and 2 K80.
        scheduler_options: more lines for the head of the job script.
        node_pool: any option of `NodePool`.

    Raises:
        ConfigError: an option does not fit.
    """
    provider = CobaltProvider(queue=queue, project=project, walltime=walltime, scheduler_options=scheduler_options)
    usual = {"name": "cooley", "launcher": MpiExecLauncher("-f $COBALT_NODEFILE")}
    return Config(NodePool(provider, **{**usual, **node_pool}))
