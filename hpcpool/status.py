"""What `status()` returns: how a pool is at one moment, as values that print as tables. It asks nobody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodePoolStatus:
    """A node pool.

    Attributes: `name`, `provider` (its kind), `min_blocks` and `max_blocks`, `ordered` (the number that `scale` has
    set; None: as the work needs), `started` (blocks asked for so far), `last_failure` (how the last block failed that
    did, in words; empty once another has proved itself).
    """

    name: str
    provider: str
    min_blocks: int
    max_blocks: int
    ordered: int | None = None
    started: int = 0
    last_failure: str = ""


@dataclass(frozen=True, slots=True)
class BlockStatus:
    """A block that is not known to be over.

    Attributes: `name`, `pool`, `job_id` (the batch system's; empty: not known yet), `state` ("submitting", "queued",
    "running": no manager has come yet, "serving", "ending"; a "?" behind it: the batch system did not answer last
    time), `reason` (in the batch system's words), `age_s` (seconds since it was asked for), `running_s` (seconds since
    it was seen to run; None: it was not), `ends_at` (seconds since the epoch; None: no end is known).
    """

    name: str
    pool: str
    job_id: str
    state: str
    reason: str
    age_s: float
    running_s: float | None
    ends_at: float | None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node whose manager is there.

    Attributes: `host`, `block`, `slots` (calls that it can run at once), `running` (calls that have a slot),
    `is_cut_off` (its tunnel is broken, and it has not come back yet).
    """

    host: str
    block: str
    slots: int
    running: int
    is_cut_off: bool = False


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """An executor's pool at one moment; `str()` of it is a table.

    Attributes: `state` ("not started", "starting", "open", "shut down", or "broken: …"), `waiting` (calls that wait for
    others), `pending` (calls that wait for a slot), `running` (calls that have one), `node_pools`, `blocks`, `nodes`,
    and `at` (when it was so, seconds since the epoch).
    """

    state: str
    waiting: int = 0
    pending: int = 0
    running: int = 0
    node_pools: tuple[NodePoolStatus, ...] = ()
    blocks: tuple[BlockStatus, ...] = ()
    nodes: tuple[NodeStatus, ...] = ()
    at: float = 0.0

    @property
    def workers(self) -> int:
        """How many calls can run at once."""
        return sum(node.slots for node in self.nodes)

    def __str__(self) -> str:
        calls = f"calls: {self.running} running, {self.pending} pending, {self.waiting} waiting for others"
        lines = [f"pool {self.state}; {calls}; {self.workers} workers"]
        for table in (self._node_pool_rows(), self._block_rows(), self._node_rows()):
            if len(table) > 1:
                lines += ["", *_aligned(table)]
        lines += [
            f"\nlast failure in {pool.name}: {pool.last_failure}" for pool in self.node_pools if pool.last_failure
        ]
        return "\n".join(lines)

    def _node_pool_rows(self) -> list[Sequence[str]]:
        rows: list[Sequence[str]] = [("NODE POOL", "PROVIDER", "BLOCKS", "LIMITS", "ORDERED", "STARTED")]
        for pool in self.node_pools:
            blocks = sum(1 for block in self.blocks if block.pool == pool.name)
            ordered = "-" if pool.ordered is None else str(pool.ordered)
            limits = f"{pool.min_blocks}..{pool.max_blocks}"
            rows.append((pool.name, pool.provider, str(blocks), limits, ordered, str(pool.started)))
        return rows

    def _block_rows(self) -> list[Sequence[str]]:
        rows: list[Sequence[str]] = [("BLOCK", "JOB", "STATE", "AGE", "RUNS", "LEFT", "NODES", "REASON")]
        for block in self.blocks:
            nodes = sum(1 for node in self.nodes if node.block == block.name)
            left_s = None if block.ends_at is None else max(0.0, block.ends_at - self.at)
            times = (_clock(block.age_s), _clock(block.running_s), _clock(left_s))
            rows.append((block.name, block.job_id or "-", block.state, *times, str(nodes), block.reason or "-"))
        return rows

    def _node_rows(self) -> list[Sequence[str]]:
        rows: list[Sequence[str]] = [("NODE", "BLOCK", "WORKERS", "RUNNING", "")]
        for node in self.nodes:
            note = "cut off" if node.is_cut_off else ""
            rows.append((node.host, node.block, str(node.slots), str(node.running), note))
        return rows


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _clock(seconds: float | None) -> str:
    """Return a length of time as batch systems write it.

    >>> _clock(4000), _clock(90061), _clock(None)
    ('01:06:40', '1-01:01:01', '-')
    """
    if seconds is None:
        return "-"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-{hour:02d}:{minute:02d}:{second:02d}" if days else f"{hour:02d}:{minute:02d}:{second:02d}"
