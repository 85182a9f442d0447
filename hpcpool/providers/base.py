"""What a batch system must offer so that blocks run on it: values and two protocols; no code that runs anything.

A provider comes in two halves, because the user writes it in one process and the interchange uses it in another:

- `Provider`: the options, a frozen dataclass of plain values (numbers, text, lists, tables) that travels as JSON.
- `Driver`: the live half that `Provider.open` makes in the interchange. Three methods talk to the batch system
  (`submit`, `status`, `cancel`) and `close` lets go of what it holds. One thread makes it and calls it.

To add a batch system, write both, and name the `Provider` class in the entry-point group `hpcpool.providers` of the
package that it lives in, under its `kind`:

    [project.entry-points."hpcpool.providers"]
    mybatch = "mypackage.batch:MyBatchProvider"

Then `NodePool(MyBatchProvider(queue="short"))` and `provider = "mybatch"` in a TOML file both work.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from hpcpool.errors import HPCPoolError


class SubmitError(HPCPoolError, RuntimeError):
    """The batch system refused a block or could not be asked; the message is in the batch system's own words."""


class Unreachable(SubmitError):
    """The batch system could not be asked, so nothing is known about the block: it is tried again for ever."""


class JobState(enum.Enum):
    """Where a job is, in the only words that block control needs."""

    #: Queued, held, or not yet seen by the batch system.
    PENDING = "pending"
    #: Started, and not yet known to have ended.
    RUNNING = "running"
    #: Over as it should be: it finished, or it was cancelled by us.
    ENDED = "ended"
    #: Over in any other way: failed, killed, timed out, preempted, cancelled from outside.
    FAILED = "failed"
    #: Could not be found out this time. It counts as alive: a status command that fails says nothing about the job.
    UNKNOWN = "unknown"

    @property
    def is_over(self) -> bool:
        """True when the job will never run again."""
        return self in (JobState.ENDED, JobState.FAILED)


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What is known of one job."""

    state: JobState
    #: Exit code of the job's command; negative: the signal that ended it; None: still running, or not told.
    exit_code: int | None = None
    #: Why it is in this state, in the batch system's own words ("Priority", "exited with code 3"); may be empty.
    reason: str = ""
    #: The last lines that the job wrote to its stderr, once it is over and where they can be read; may be empty.
    stderr_tail: str = ""
    #: When the batch system will end the job (seconds since the epoch); None: not started, no limit, or not told.
    ends_at: float | None = None
    #: When the job started (seconds since the epoch); None: it has not, or it is not told.
    started_at: float | None = None
    #: True of a pending job that will not start as it is, however long it waits; `reason` says why.
    is_stuck: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRequest:
    """One block to start: the manager's command, once on each of `nodes` nodes."""

    #: Unique within the run; good for job names and file names.
    block_id: str
    #: How many nodes, at least 1.
    nodes: int
    #: The argv that starts the manager on a node. It is run without a shell.
    command: tuple[str, ...]
    #: The folder that the command starts in, an absolute path.
    cwd: str
    #: Where stdout and stderr of the block go: the path of a file, which is appended to, or an open file descriptor.
    #: Descriptors are given only to a driver that `is_local`.
    stdout: str | int
    stderr: str | int
    #: Shell lines that run on the first node and return when the block is over: they prepare the node, and start
    #: `command` on each node. Empty: run `command` itself (one node, nothing to prepare).
    script: str = ""
    #: What the nodes must be able to read before `command` starts: name and content. The driver keeps them, readable by
    #: the user alone, in `Driver.block_dir`.
    files: Mapping[str, bytes] = field(default_factory=dict)
    #: How long the block may last (seconds); None: as the provider's own options say.
    walltime_s: float | None = None
    #: What each node must have: cores and bytes of memory for all of its workers, accelerators; 0: do not ask for any.
    cores_per_node: int = 0
    memory_per_node: int = 0
    gpus_per_node: int = 0
    #: Added to the environment that the driver runs in (on a cluster: to the environment of the job).
    env: Mapping[str, str] = field(default_factory=dict)
    #: Open descriptors that the command inherits under the same numbers. Empty unless the driver `is_local`.
    pass_fds: tuple[int, ...] = ()


@runtime_checkable
class Driver(Protocol):
    """The live half of a provider: it starts, watches and ends jobs. Made and called by one thread.

    No method waits for a job, and none raises because of one job's fate: that is told by `status`.
    """

    @property
    def poll_interval_s(self) -> float:
        """Seconds between two calls of `status` where there is no `watch_fd`: what the batch system bears."""

    @property
    def watch_fd(self) -> int | None:
        """A descriptor that is readable when `status` may have news, and no longer once it was asked.

        With it `status` is called only then; None: it is called every `poll_interval_s`.
        """

    @property
    def is_local(self) -> bool:
        """True when blocks are processes of this host, which can inherit descriptors and reach its local sockets."""

    def block_dir(self, block_id: str) -> str:
        """Return where the files of a block are (see `BlockRequest.files`), as its nodes see it; an absolute path."""

    def submit(self, request: BlockRequest) -> str:
        """Ask for a block and return its job id, which is unique within the run.

        Raises:
            SubmitError: the block was refused or could not be started; nothing of it remains.
        """

    def status(self, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        """Tell the state of each of `job_ids`, all of them in one question to the batch system.

        Every id is answered. One that cannot be found out now is `JobState.UNKNOWN`, with the reason; nothing is
        raised for it. A job that is over keeps its answer.
        """

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Ask that these jobs end, and return at once. Ids that are unknown or over are passed by.

        The first call for a job lets its managers end their work in order. A caller who has waited long enough calls
        again: then the job is ended by force, where the batch system makes that difference.
        """

    def close(self) -> None:
        """Let go of everything that the driver holds; a second call does nothing.

        Jobs that do not outlive their driver (processes of this host) are ended by force; all others are cancelled by
        the caller before.
        """


@runtime_checkable
class RemoteDriver(Protocol):
    """What a driver offers besides, when its nodes may have no route to this machine, or not this hpcpool.

    Both are asked for before the block is submitted, in the driver's thread.
    """

    def reach(self, port: int) -> Sequence[str]:
        """Make a TCP port of this machine reachable from the nodes, for as long as the driver is open.

        A way that is lost is made anew by the driver itself, and leads here from the same addresses as before.

        Args:
            port: a port that something listens on here, at least at 127.0.0.1.

        Returns:
            Addresses, `host:port`, that may lead there from a node. A manager tries them together with those of this
            machine, and trusts nobody there but our interchange; should its connection break, it tries all of them
            again, and its calls go on. Empty: there is no other way than those of this machine.

        Raises:
            SubmitError: the way that there should be cannot be made now.
        """

    def python(self, block_id: str) -> str:
        """Return the path of a Python on the nodes of a block that has this hpcpool installed; empty: as it is here.

        It is there when the block's command starts, perhaps not before.

        Raises:
            SubmitError: the nodes have none, and it could not be brought there; with what to do.
        """


@runtime_checkable
class Provider(Protocol):
    """The options of a batch system: a frozen dataclass whose fields are plain values.

    Its class is found by `kind` in the interchange, which rebuilds it from its fields. Options that cannot be are
    refused in `__post_init__` with a `ConfigError` or any other `ValueError`. A field `walltime`, if there is one,
    tells how long a block lasts: "HH:MM:SS", "DAYS-HH:MM:SS", a number of seconds, or None. Longer calls are refused.
    """

    #: The word for this batch system in TOML files and in the registry.
    kind: ClassVar[str]

    @property
    def max_nodes_per_block(self) -> int | None:
        """The most nodes that one block can have; None: the batch system decides."""

    def open(self, run_dir: str) -> Driver:
        """Make the live half. Called in the interchange, in the thread that will use it.

        Args:
            run_dir: an existing private folder, of this run alone, for files such as job scripts.
        """
