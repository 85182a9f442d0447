"""The Open Science Pool of the OSG Consortium (formerly the Open Science Grid)."""

from __future__ import annotations

import getpass
from typing import Any, TypeAlias

from hpcpool.config import Config, NodePool
from hpcpool.containers import Container
from hpcpool.providers import HTCondorProvider

Lines: TypeAlias = str | tuple[str, ...]


def open_science_pool(
    *,
    project: str,
    image: str,
    ports: int | str | tuple[int, int] = 0,
    walltime: str | float = "04:00:00",
    request_cpus: int = 1,
    request_memory: str = "2GB",
    request_disk: str = "4GB",
    requirements: str | None = "HAS_SINGULARITY == True",
    job_dir: str | None = None,
    scheduler_options: Lines = (),
    **node_pool: Any,
) -> Config:
    """Return a configuration for the Open Science Pool, for a program on one of its access points.

    The nodes share no folder with the access point, and have no hpcpool: it comes in a container. They must be able to
    open a TCP connection to the access point, which has to let some port through: ask its support which.

    Source: https://portal.osg-htc.org/documentation/

    Args:
        project: the project that the work belongs to.
        image: an Apptainer image with Python and hpcpool in it, as the nodes see it ("/cvmfs/singularity...").
        ports: the ports that the access point lets through, as for `Config`; 0: any.
        walltime: how long a block may last; at most 20 hours.
        request_cpus: cores of each node.
        request_memory: memory of each node.
        request_disk: disk of each node.
        requirements: what a node must have.
        job_dir: a folder that can be made both here and on the nodes; None: "/tmp/hpcpool-" and the user's name.
        scheduler_options: more lines of the submit description.
        node_pool: any option of `NodePool`; `nodes_per_block` is 1.

    Raises:
        ConfigError: an option does not fit.
    """
    extra = (scheduler_options,) if isinstance(scheduler_options, str) else scheduler_options
    provider = HTCondorProvider(
        request_cpus=request_cpus,
        request_memory=request_memory,
        request_disk=request_disk,
        requirements=requirements,
        transfer_files=True,
        walltime=walltime,
        scheduler_options=(f'+ProjectName = "{project}"', *extra),
        job_dir=job_dir or f"/tmp/hpcpool-{getpass.getuser()}",
    )
    usual = {"name": "osg", "container": Container(image, has_hpcpool=True)}
    return Config(NodePool(provider, **{**usual, **node_pool}), ports=ports)
