"""hpcpool: the calls of `concurrent.futures.ProcessPoolExecutor`, on this machine and on others; the public names.

They are loaded when they are first used: a worker imports this package, too, and needs few of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpcpool.wire.version import VERSION as __version__  # noqa: N811

if TYPE_CHECKING:
    from hpcpool.bash import BashResult
    from hpcpool.config import Config, NodePool
    from hpcpool.errors import (
        BashError,
        BashTimeout,
        BrokenPool,
        ConfigError,
        DependencyError,
        FileMismatch,
        HPCPoolError,
        MissingOutputs,
        MPIError,
        NodeLost,
        PayloadError,
        RemoteError,
        ResourcesUnavailable,
        ResultLost,
        TaskKilled,
        TaskTimeout,
        UnsharableError,
        WorkerCrashed,
    )
    from hpcpool.executor import HPCPoolExecutor
    from hpcpool.file import File
    from hpcpool.processes.task_future import TaskFuture, TaskInfo
    from hpcpool.status import BlockStatus, NodePoolStatus, NodeStatus, PoolStatus
    from hpcpool.view import ExecutorView

__all__ = [
    "BashError",
    "BashResult",
    "BashTimeout",
    "BlockStatus",
    "BrokenPool",
    "Config",
    "ConfigError",
    "DependencyError",
    "ExecutorView",
    "File",
    "FileMismatch",
    "HPCPoolError",
    "HPCPoolExecutor",
    "MPIError",
    "MissingOutputs",
    "NodeLost",
    "NodePool",
    "NodePoolStatus",
    "NodeStatus",
    "PayloadError",
    "PoolStatus",
    "RemoteError",
    "ResourcesUnavailable",
    "ResultLost",
    "TaskFuture",
    "TaskInfo",
    "TaskKilled",
    "TaskTimeout",
    "UnsharableError",
    "WorkerCrashed",
    "__version__",
]

_HOMES = {
    "BashError": "hpcpool.errors",
    "BashResult": "hpcpool.bash",
    "BashTimeout": "hpcpool.errors",
    "BlockStatus": "hpcpool.status",
    "BrokenPool": "hpcpool.errors",
    "Config": "hpcpool.config",
    "ConfigError": "hpcpool.errors",
    "DependencyError": "hpcpool.errors",
    "ExecutorView": "hpcpool.view",
    "File": "hpcpool.file",
    "FileMismatch": "hpcpool.errors",
    "HPCPoolError": "hpcpool.errors",
    "HPCPoolExecutor": "hpcpool.executor",
    "MPIError": "hpcpool.errors",
    "MissingOutputs": "hpcpool.errors",
    "NodeLost": "hpcpool.errors",
    "NodePool": "hpcpool.config",
    "NodePoolStatus": "hpcpool.status",
    "NodeStatus": "hpcpool.status",
    "PayloadError": "hpcpool.errors",
    "PoolStatus": "hpcpool.status",
    "RemoteError": "hpcpool.errors",
    "ResourcesUnavailable": "hpcpool.errors",
    "ResultLost": "hpcpool.errors",
    "TaskFuture": "hpcpool.processes.task_future",
    "TaskInfo": "hpcpool.processes.task_future",
    "TaskKilled": "hpcpool.errors",
    "TaskTimeout": "hpcpool.errors",
    "UnsharableError": "hpcpool.errors",
    "WorkerCrashed": "hpcpool.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
