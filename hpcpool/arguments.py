"""The executor's arguments, checked as `ProcessPoolExecutor` checks them. Nothing is started here."""

from __future__ import annotations

import multiprocessing
from typing import Any, SupportsIndex

from hpcpool.config import Config
from hpcpool.processes.cores import usable_cores
from hpcpool.processes.memory import usable_memory_bytes
from hpcpool.processes.offers import offer_of
from hpcpool.quantities import integer


def whole(max_workers: SupportsIndex | None) -> int | None:
    """Return a plain integer; numpy's are welcome, too."""
    return None if max_workers is None else integer(max_workers, f"max_workers must be an integer, not {max_workers!r}")


def check_workers(
    max_workers: int | None, initializer: object, max_tasks_per_child: int | None, mp_context: Any
) -> None:
    """Raise what `ProcessPoolExecutor` raises for these."""
    if max_workers is not None and max_workers <= 0:
        raise ValueError("max_workers must be greater than 0")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if max_tasks_per_child is not None:
        if not isinstance(max_tasks_per_child, int):
            raise TypeError("max_tasks_per_child must be an integer")
        if max_tasks_per_child <= 0:
            raise ValueError("max_tasks_per_child must be >= 1")
        if mp_context is not None and mp_context.get_start_method(allow_none=False) == "fork":
            raise ValueError(
                "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; "
                "supply a different mp_context."
            )


def default_context(max_tasks_per_child: int | None) -> Any:
    """Return the context that `ProcessPoolExecutor` takes when none is given."""
    return multiprocessing.get_context("spawn") if max_tasks_per_child is not None else multiprocessing.get_context()


def count_workers(config: Config, max_workers: int | None) -> int:
    """Return how many workers the pool has at its largest, if its nodes are like this machine."""
    cores, memory = usable_cores(), usable_memory_bytes()
    return sum(
        max(1, offer_of(pool, max_workers).shape(cores, memory).slots) * pool.nodes_per_block * pool.max_blocks
        for pool in config.node_pools
    )
