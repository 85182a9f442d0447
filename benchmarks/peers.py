"""The pools that are compared, behind one small protocol; each is imported only where it is opened.

Every peer runs as it ships: no option is set but the number of workers, where it may write, and (Dask) no dashboard.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from benchmarks import calls


class Peer(Protocol):
    """A running pool. Futures are opaque to the works: only the peer that made one waits for it."""

    @property
    def takes_futures(self) -> bool:
        """Whether a future may be an argument of a call, which then starts when that future has a result."""
        ...

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        """Submit one call and return its future."""
        ...

    def gather(self, futures: Iterable[Any]) -> list[Any]:
        """Wait for all and return their results in order."""
        ...

    @property
    def chunksizes(self) -> Sequence[int | str]:
        """What a user of `map` would try for short calls, to find the fastest."""
        ...

    def map(self, fn: Callable[..., Any], items: Iterable[Any], chunksize: Any = 1) -> list[Any]:
        """Call `fn` once for each item, `chunksize` of them a call of the pool; return the results in order."""
        ...

    def bash(self, command: str) -> Any:
        """Run a command in a worker by whatever the pool offers for this, and return the future."""
        ...

    @property
    def put(self) -> Callable[[Any], Any] | None:
        """What makes of an object what stands for it in the arguments of calls; None where there is no such thing."""
        ...

    def close(self) -> None:
        """Shut down and wait for it."""
        ...


class Pace(enum.Enum):
    """How many calls a peer is given, so that each trial takes a few seconds at most; rates are what is compared."""

    FAST = "fast"
    SLOW = "slow"


class PeerKind(NamedTuple):
    """How a peer is imported and opened."""

    name: str
    #: The package whose version is recorded; None for the standard library.
    distribution: str | None
    #: Run first in a fresh interpreter and timed: what a program that uses this peer has to import.
    import_statement: str
    #: Makes the pool from the number of workers and a folder that it may write to.
    open: Callable[[int, Path], Peer]
    pace: Pace = Pace.FAST
    #: What a reader of its column must know; printed below the table.
    note: str = ""


class ExecutorPeer:
    """A `concurrent.futures.Executor` as a peer; a bash command is a call of `subprocess.run` unless it has better."""

    def __init__(
        self,
        executor: Executor,
        *,
        takes_futures: bool = False,
        bash: Callable[[str], Any] | None = None,
        put: Callable[[Any], Any] | None = None,
        chunksizes: Sequence[int | str] = (30, 100, 300, 1000, 3000, 10_000),
    ) -> None:
        self._executor = executor
        self.chunksizes = chunksizes
        self._bash = bash
        self.takes_futures = takes_futures
        self.put = put

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        return self._executor.submit(fn, *args)

    def gather(self, futures: Iterable[Any]) -> list[Any]:
        return [future.result() for future in futures]

    def map(self, fn: Callable[..., Any], items: Iterable[Any], chunksize: Any = 1) -> list[Any]:
        return list(self._executor.map(fn, items, chunksize=chunksize))

    def bash(self, command: str) -> Any:
        return self._executor.submit(calls.run_bash, command) if self._bash is None else self._bash(command)

    def close(self) -> None:
        self._executor.shutdown()


class DaskPeer:
    """A Dask client and its cluster. `pure=False`: by default equal calls are run only once."""

    takes_futures = True
    #: It has no chunks; `batch_size`, how many go into one message, helps short calls.
    chunksizes = (1, 1000)

    def __init__(self, cluster: Any, client: Any) -> None:
        self._cluster = cluster
        self._client = client

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        return self._client.submit(fn, *args, pure=False)

    def gather(self, futures: Iterable[Any]) -> list[Any]:
        # One request for all: a request for each future is several times slower, and nobody should do it.
        return list(self._client.gather(list(futures)))

    def map(self, fn: Callable[..., Any], items: Iterable[Any], chunksize: Any = 1) -> list[Any]:
        batch_size = None if chunksize == 1 else chunksize
        return self.gather(self._client.map(fn, list(items), pure=False, batch_size=batch_size))

    def bash(self, command: str) -> Any:
        return self.submit(calls.run_bash, command)

    def put(self, value: Any) -> Any:
        return self._client.scatter(value)

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


def _open_hpcpool(workers: int, scratch: Path) -> Peer:
    from hpcpool import HPCPoolExecutor

    executor = HPCPoolExecutor(max_workers=workers)
    # As often as the others try a chunksize: one try against the fastest of six would lose by chance.
    return ExecutorPeer(executor, takes_futures=True, bash=executor.bash, put=executor.put, chunksizes=("auto",) * 6)


def _open_processpool(workers: int, scratch: Path) -> Peer:
    from concurrent.futures import ProcessPoolExecutor

    return ExecutorPeer(ProcessPoolExecutor(workers))


def _open_loky(workers: int, scratch: Path) -> Peer:
    from loky import ProcessPoolExecutor

    return ExecutorPeer(ProcessPoolExecutor(workers))


def _open_parsl(workers: int, scratch: Path) -> Peer:
    from parsl import Config
    from parsl.concurrent import ParslPoolExecutor
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    # Loopback, so that it does not look for addresses that other nodes could reach. Encryption stays on, its default.
    htex = HighThroughputExecutor(
        max_workers_per_node=workers,
        address="127.0.0.1",
        loopback_address="127.0.0.1",
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    config = Config(executors=[htex], run_dir=str(scratch / "runinfo"))
    return ExecutorPeer(ParslPoolExecutor(config), takes_futures=True)


def _open_dask(workers: int, scratch: Path) -> Peer:
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        local_directory=str(scratch),
    )
    return DaskPeer(cluster, Client(cluster))


#: What all others are compared with.
BASELINE = "processpool"

PEERS = {
    kind.name: kind
    for kind in (
        PeerKind("hpcpool", "hpcpool", "from hpcpool import HPCPoolExecutor", _open_hpcpool),
        PeerKind(BASELINE, None, "from concurrent.futures import ProcessPoolExecutor", _open_processpool),
        PeerKind("loky", "loky", "from loky import ProcessPoolExecutor", _open_loky),
        PeerKind(
            "parsl",
            "parsl",
            "from parsl import Config; from parsl.concurrent import ParslPoolExecutor; "
            "from parsl.executors import HighThroughputExecutor; from parsl.providers import LocalProvider",
            _open_parsl,
            Pace.SLOW,
            "ParslPoolExecutor on HTEX as it ships, encrypted; up to 5 s of its start is the default strategy_period, "
            "after which the first block is started",
        ),
        PeerKind(
            "dask",
            "distributed",
            "from distributed import Client, LocalCluster",
            _open_dask,
            Pace.SLOW,
            "Client.submit on a LocalCluster of processes, pure=False, no dashboard",
        ),
    )
}
