"""How a pool is looked at and steered from outside its calls: `status`, `scale`, `wait_for_workers`, `job_script`."""

from __future__ import annotations

import shlex
import tempfile
import time
from typing import TYPE_CHECKING

from hpcpool.config import Config, NodePool
from hpcpool.errors import BrokenPool
from hpcpool.processes.block_requests import Surroundings, block_request
from hpcpool.processes.connection import Connection
from hpcpool.providers import LocalProvider
from hpcpool.quantities import integer, seconds
from hpcpool.status import BlockStatus, NodePoolStatus, NodeStatus, PoolStatus
from hpcpool.wire.messages import BlockState, Scale, StatusReport

if TYPE_CHECKING:
    from hpcpool.executor import HPCPoolExecutor
    from hpcpool.processes.client import Client

#: How long the interchange may take to answer (seconds): it does nothing that takes long, but its machine may be busy.
_ANSWER_S = 5.0
#: The same before its first answer: it may not have started yet.
_FIRST_ANSWER_S = 1.0


def status(executor: HPCPoolExecutor) -> PoolStatus:
    """Return how the pool is; `TimeoutError` if the interchange does not answer."""
    client, config = executor._client, executor._config
    node_pools = tuple(map(_at_rest, config.node_pools))
    if client is None:
        state = "shut down" if executor._is_shut_down else "not started"
        return PoolStatus(state, node_pools=node_pools, at=time.time())
    _check_thread(client, "status")
    was_answered = client.inquiries.is_answered
    patience_s = _ANSWER_S if was_answered else _FIRST_ANSWER_S
    report = client.inquiries.status(patience_s) if not client.is_over else None
    waiting, tasks = client.count_tickets()
    if report is None and client.is_over:
        state = f"broken: {client.broken}" if client.broken else "shut down"
        return PoolStatus(state, node_pools=node_pools, at=time.time())
    if report is None and not was_answered:
        return PoolStatus("starting", waiting, tasks - waiting, node_pools=node_pools, at=time.time())
    if report is None:
        raise TimeoutError(
            f"the interchange has not answered within {_ANSWER_S:g} s: this machine is overloaded, or it is stopped "
            "(its log is interchange.log in the run directory)"
        )
    state = f"broken: {client.broken}" if client.broken else "shut down" if executor._is_shut_down else "open"
    return _pool_status(state, waiting, tasks, report, time.time())


def _pool_status(state: str, waiting: int, tasks: int, report: StatusReport, now: float) -> PoolStatus:
    return PoolStatus(
        state,
        waiting,
        max(0, tasks - waiting - report.running),
        report.running,
        tuple(
            NodePoolStatus(p.name, p.provider, p.min_blocks, p.max_blocks, p.ordered, p.started, p.last_failure)
            for p in report.node_pools
        ),
        tuple(_block_status(block, now) for block in report.blocks),
        tuple(NodeStatus(node.host, node.block, node.slots, node.running, node.is_cut_off) for node in report.nodes),
        now,
    )


def _at_rest(pool: NodePool) -> NodePoolStatus:
    return NodePoolStatus(pool.name, pool.provider.kind, pool.min_blocks, pool.max_blocks)


def _block_status(block: BlockState, now: float) -> BlockStatus:
    return BlockStatus(
        block.name,
        block.pool,
        block.job,
        block.state,
        block.reason,
        max(0.0, now - block.submitted_at),
        max(0.0, now - block.running_since) if block.running_since else None,
        block.ends_at or None,
    )


def scale(executor: HPCPoolExecutor, blocks: int | None, pool: str | None) -> None:
    """Set the wanted number of blocks."""
    node_pool = _node_pool(executor._config, pool)
    if blocks is not None:
        blocks = integer(None if isinstance(blocks, bool) else blocks, f"blocks must be a number, not {blocks!r}")
        if not 0 <= blocks <= node_pool.max_blocks:
            limits = f"0 to max_blocks of node pool {node_pool.name!r} ({node_pool.max_blocks})"
            raise ValueError(f"blocks must be {limits}, not {blocks}")
    executor._check_open()
    client = executor._client or executor._start()
    client.tell(Scale(node_pool.name, blocks))


def wait_for_workers(executor: HPCPoolExecutor, n: int, timeout: float | None) -> None:
    """Wait until the pool has so many workers."""
    n = integer(None if isinstance(n, bool) else n, f"n must be a number, not {n!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    most = _most_workers(executor)
    if most is not None and n > most:
        raise ValueError(f"n must be at most {most}, as the node pools have no more workers with all of their blocks")
    timeout_s = seconds("timeout", timeout)
    executor._check_open()
    client = executor._client or executor._start()
    _check_thread(client, "wait_for_workers")
    if client.inquiries.wait_for_slots(n, timeout_s):
        return
    if client.broken:
        raise BrokenPool(client.broken)
    if client.is_over:
        raise RuntimeError("the executor was shut down while wait_for_workers() waited")
    raise TimeoutError(f"there are not {n} workers after {timeout_s:g} s: {_why_not(status(executor))}")


def _most_workers(executor: HPCPoolExecutor) -> int | None:
    """Return how many workers there can be; None: it depends on nodes that have not come yet."""
    is_known = all(
        executor._workers_per_node or pool.workers_per_node or isinstance(pool.provider, LocalProvider)
        for pool in executor._config.node_pools
    )
    return executor._max_workers if is_known else None


def _why_not(now: PoolStatus) -> str:
    jobs = [
        f"block {block.name}{f' (job {block.job_id})' if block.job_id else ''} is {block.state}"
        f"{f': {block.reason}' if block.reason else ''}"
        for block in now.blocks
    ]
    orders = [
        f"scale() has set node pool {pool.name} to {pool.ordered}"
        for pool in now.node_pools
        if pool.ordered is not None
    ]
    failures = [f"before, {pool.last_failure}" for pool in now.node_pools if pool.last_failure]
    return "; ".join([f"there are {now.workers}", *(jobs or ["there is no block"]), *orders, *failures])


def job_script(executor: HPCPoolExecutor, pool: str | None) -> str:
    """Return the script of a block."""
    node_pool = _node_pool(executor._config, pool)
    # A run directory of its own: closing a driver removes what it finds in the folder of its run.
    with tempfile.TemporaryDirectory(prefix="hpcpool-") as directory:
        surroundings = Surroundings(
            directory, f"{directory}/connection.json", (-1, -1), lambda block, reach: Connection([], "")
        )
        driver = node_pool.provider.open(directory)
        try:
            request = block_request(node_pool, f"{node_pool.name}-0", driver, surroundings)
            script_of = getattr(driver, "job_script", None)
            if script_of is not None:
                return str(script_of(request))
            return request.script or f"{shlex.join(request.command)}\n"
        finally:
            driver.close()


def _node_pool(config: Config, name: str | None) -> NodePool:
    names = [pool.name for pool in config.node_pools]
    if name is None:
        if len(names) > 1:
            raise ValueError(f"there are several node pools, so pool must name one of {', '.join(names)}")
        return config.node_pools[0]
    if name not in names:
        raise ValueError(f"there is no node pool {name!r} (there is {', '.join(names)})")
    return config.node_pools[names.index(name)]


def _check_thread(client: Client, method: str) -> None:
    if client.is_io_thread:
        raise RuntimeError(f"{method}() waits for an answer that a callback of a future keeps from coming")
