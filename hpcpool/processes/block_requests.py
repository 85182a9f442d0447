"""What a provider is asked for when a block is wanted: the manager's command, how its nodes are prepared, its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hpcpool.config import NodePool
from hpcpool.processes.connection import Connection
from hpcpool.processes.start_command import start_command
from hpcpool.providers.base import BlockRequest, Driver, RemoteDriver

#: The file in a block's folder that tells its managers where the interchange is.
_CONNECTION = "connection.json"


class Surroundings(NamedTuple):
    """What every block is started with."""

    run_directory: str
    connection_file: str
    #: Descriptors for managers on this host: the user's stderr and the census.
    descriptors: tuple[int, int]
    #: Makes the connection file of a block on other hosts, with a key of its own; called in the driver's thread.
    #: The driver says how else this host is reached (`RemoteDriver.reach`).
    connection_for: Callable[[str, Callable[[int], Sequence[str]]], Connection]


def block_request(pool: NodePool, name: str, driver: Driver, surroundings: Surroundings) -> BlockRequest:
    """Return the request for a block of this pool.

    Args:
        pool: its options.
        name: of the block.
        driver: will be given the request.
        surroundings: of the run.
    """
    if driver.is_local:
        return _local_request(pool, name, driver, surroundings)
    folder = driver.block_dir(name)
    command = start_command("manager", os.path.join(folder, _CONNECTION), name, -1, -1)
    return BlockRequest(
        block_id=name,
        nodes=pool.nodes_per_block,
        command=tuple(command),
        script=_script(pool, command, folder, _installed_python(pool, name, driver)),
        cwd=folder,  # there on all nodes; workers go where the client is
        stdout=_output(surroundings, name, "out"),
        stderr=_output(surroundings, name, "err"),
        files={_CONNECTION: _connection_for(name, driver, surroundings)},
        walltime_s=pool.walltime_s,
        **_resources(pool),  # type: ignore[arg-type]  # it has no other keys
    )


def _resources(pool: NodePool) -> dict[str, int]:
    """What each node must have for all of its workers, as far as the pool says how many these are."""
    accelerators = pool.accelerators if isinstance(pool.accelerators, int) else len(pool.accelerators)
    workers = pool.workers_per_node or 0
    return {
        "cores_per_node": workers * pool.cores_per_worker,
        "memory_per_node": workers * (pool.memory_per_worker_bytes or 0),
        "gpus_per_node": accelerators,
    }


def _local_request(pool: NodePool, name: str, driver: Driver, surroundings: Surroundings) -> BlockRequest:
    command = start_command("manager", surroundings.connection_file, name, *surroundings.descriptors)
    return BlockRequest(
        block_id=name,
        nodes=pool.nodes_per_block,
        command=tuple(command),
        script=_script(pool, command, driver.block_dir(name)) if pool.prepares_nodes else "",
        cwd=surroundings.run_directory,
        stdout=1,
        stderr=_output(surroundings, name, "err"),
        walltime_s=pool.walltime_s,
        pass_fds=tuple(descriptor for descriptor in surroundings.descriptors if descriptor >= 0),
    )


def _installed_python(pool: NodePool, name: str, driver: Driver) -> str:
    """The Python that the driver brings to the nodes, unless the user has named one; empty: none."""
    return driver.python(name) if isinstance(driver, RemoteDriver) and pool.python is None else ""


def _script(pool: NodePool, command: list[str], folder: str, installed: str = "") -> str:
    # Imported here: a pool on this machine has no such script, and what its first call waits for must start fast.
    from hpcpool.block_script import block_script
    from hpcpool.launchers import usual_launcher

    return block_script(
        command,
        nodes=pool.nodes_per_block,
        block_dir=folder,
        worker_init=pool.worker_init,
        env=pool.env,
        launcher=pool.launcher or usual_launcher(pool.provider, pool.nodes_per_block),
        container=pool.container,
        python=pool.python or installed or None,
        is_installed=bool(installed),
    )


def _connection_for(block: str, driver: Driver, surroundings: Surroundings) -> bytes:
    """Return what a block's managers must know to reach the interchange, with the key that lets them in."""
    reach = driver.reach if isinstance(driver, RemoteDriver) else lambda port: ()
    return surroundings.connection_for(block, reach).to_json()


def _output(surroundings: Surroundings, name: str, kind: str) -> str:
    return os.path.join(surroundings.run_directory, f"block-{name}.{kind}")
