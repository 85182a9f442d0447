"""hpcpool: the calls of `concurrent.futures.ProcessPoolExecutor`, on this machine and on others; the public names."""

from hpcpool.bash import BashResult
from hpcpool.config import Config, NodePool
from hpcpool.errors import (
    BashError,
    BashTimeout,
    BrokenPool,
    ConfigError,
    DependencyError,
    HPCPoolError,
    MissingOutputs,
    NodeLost,
    PayloadError,
    RemoteError,
    TaskKilled,
    TaskTimeout,
    UnsharableError,
    WorkerCrashed,
)
from hpcpool.executor import ExecutorView, HPCPoolExecutor
from hpcpool.processes.task_future import TaskFuture, TaskInfo
from hpcpool.wire.version import VERSION as __version__  # noqa: N811

__all__ = [
    "BashError",
    "BashResult",
    "BashTimeout",
    "BrokenPool",
    "Config",
    "ConfigError",
    "DependencyError",
    "ExecutorView",
    "HPCPoolError",
    "HPCPoolExecutor",
    "MissingOutputs",
    "NodeLost",
    "NodePool",
    "PayloadError",
    "RemoteError",
    "TaskFuture",
    "TaskInfo",
    "TaskKilled",
    "TaskTimeout",
    "UnsharableError",
    "WorkerCrashed",
    "__version__",
]
