"""`NodePool` and `Config`: all that a user can set, as frozen values that are checked when they are made."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import msgspec

from hpcpool.config.options import (
    ACCELERATORS,
    ADDRESSES,
    BYTES,
    FLAG,
    FOLDER,
    LABELS,
    NAME,
    PORTS,
    PROGRAM,
    SECONDS,
    SHARE,
    SHELL_LINES,
    VARIABLES,
    WALLTIME,
    Rule,
    call_text,
    choice,
    misfit,
    option_of,
    or_none,
    refuse,
    settle,
    shown,
    whole,
    with_hints,
)
from hpcpool.errors import ConfigError
from hpcpool.providers import LocalProvider, Provider
from hpcpool.providers.walltime import seconds_of

if TYPE_CHECKING:
    from hpcpool.containers import Container
    from hpcpool.launchers import Launcher

#: Names a TOML file to use where no configuration is given.
CONFIG_VARIABLE = "HPCPOOL_CONFIG"


def _provider(value: Any) -> Provider:
    if isinstance(value, type) or not isinstance(value, Provider) or not dataclasses.is_dataclass(value):
        raise TypeError
    return value


def _launcher(value: Any) -> Launcher:
    from hpcpool.launchers import Launcher  # as below

    if isinstance(value, type) or not isinstance(value, Launcher) or not dataclasses.is_dataclass(value):
        raise TypeError
    return value


def _container(value: Any) -> Container:
    from hpcpool.containers import Container  # a pool on this machine has none

    if not isinstance(value, Container):
        raise TypeError
    return value


def _pools(value: Any) -> tuple[NodePool, ...]:
    if not isinstance(value, tuple) or not value or not all(isinstance(pool, NodePool) for pool in value):
        raise TypeError
    return value


_PROVIDER = Rule("a provider, such as LocalProvider()", _provider)
_LAUNCHER = Rule("a launcher, such as SrunLauncher()", _launcher)
_CONTAINER = Rule('a container, such as Container("tools.sif")', _container)
_AFFINITY = choice("none", "block", "block-reverse", "alternating")
_POOLS = Rule("only node pools, as in Config(NodePool(LocalProvider()))", _pools)


@with_hints
@dataclass(frozen=True, repr=False)
class NodePool:
    """Blocks of one shape: where they come from, how large they are and how many there may be.

    Raises:
        ConfigError: an option is of the wrong type or impossible.
    """

    #: Where the blocks come from.
    provider: Provider = field(default_factory=LocalProvider, metadata=option_of(_PROVIDER))
    _: KW_ONLY
    #: Tells this pool from the others of the same `Config`, in messages, logs and file names.
    name: str = field(default="default", metadata=option_of(NAME))
    #: Workers on each node; None: as many as the cores that the manager may use on that node.
    workers_per_node: int | None = field(default=None, metadata=option_of(or_none(whole(1))))
    #: Cores of each worker: a node has as many workers as it has room for, and is divided evenly.
    cores_per_worker: int = field(default=1, metadata=option_of(whole(1)))
    #: Memory of each worker: bytes, or text such as "4GB" (kept as bytes). It is shared out, not enforced. None: an
    #: equal part of the node's.
    memory_per_worker: str | int | None = field(default=None, metadata=option_of(or_none(BYTES)))
    #: Accelerators (GPUs) of each node: how many, or their ids; those of one text, such as "0,1", stay together. Each
    #: worker sees only its own, and no node has more workers than there are, unless `workers_per_node` says so.
    accelerators: int | tuple[str, ...] = field(default=0, metadata=option_of(ACCELERATORS))
    #: How workers are bound to cores: "none"; "block": neighbours together, from the first core on; "block-reverse":
    #: the same from the last core on; "alternating": the cores of a worker are as far apart as can be.
    cpu_affinity: str = field(default="none", metadata=option_of(_AFFINITY))
    #: Nodes in each block.
    nodes_per_block: int = field(default=1, metadata=option_of(whole(1)))
    #: Blocks that are asked for at the start.
    init_blocks: int = field(default=1, metadata=option_of(whole(0)))
    #: Blocks that are kept when there is nothing to do.
    min_blocks: int = field(default=0, metadata=option_of(whole(0)))
    #: The most blocks at one time.
    max_blocks: int = field(default=1, metadata=option_of(whole(1)))
    #: Lines of bash that each node runs before its manager: `module load`, `source activate`. One that fails is no
    #: error unless it ends the shell.
    worker_init: str = field(default="", metadata=option_of(SHELL_LINES))
    #: Environment variables that each node sets before `worker_init`.
    env: Mapping[str, str] = field(default_factory=dict, metadata=option_of(VARIABLES))
    #: The interpreter on the nodes, a path or a name that `worker_init` puts on the `PATH`; None: the path of this one,
    #: in a container `python3`.
    python: str | None = field(default=None, metadata=option_of(or_none(PROGRAM)))
    #: How the nodes of a block are reached from its first one; None: as it is usual with the provider.
    launcher: Launcher | None = field(default=None, metadata=option_of(or_none(_LAUNCHER)))
    #: The container that managers and workers run in; None: none.
    container: Container | None = field(default=None, metadata=option_of(or_none(_CONTAINER)))
    #: Slots that are asked for, for each task: 1: all tasks can run at once; 0.5: half of them; 0: one block will do.
    parallelism: float = field(default=1.0, metadata=option_of(SHARE))
    #: A block that has had nothing to do for this long (seconds) is given back, down to `min_blocks`, and so is one
    #: that waits in the queue when the work for it has gone; None: blocks are kept. The block of this machine that
    #: needs no process of its own is always kept.
    max_idle_time: float | None = field(default=120.0, metadata=option_of(or_none(SECONDS)))
    #: How long a block may last: "01:30:00", "2-00:00:00", or seconds (kept as such); None: as the provider says.
    walltime: str | float | None = field(default=None, metadata=option_of(or_none(WALLTIME)))
    #: Words by which calls can choose this pool's nodes, such as "bigmem".
    labels: tuple[str, ...] = field(default=(), metadata=option_of(LABELS))

    def __post_init__(self) -> None:
        settle(self)
        if self.min_blocks > self.max_blocks:
            refuse(self, "min_blocks", f"must not be more than max_blocks ({self.max_blocks})", "max_blocks")
        if not self.min_blocks <= self.init_blocks <= self.max_blocks:
            limits = f"min_blocks ({self.min_blocks}) to max_blocks ({self.max_blocks})"
            refuse(self, "init_blocks", f"must be in the range {limits}", "min_blocks", "max_blocks")
        _ = self.walltime_s  # a provider of another package may have one that is none
        most = self.provider.max_nodes_per_block
        if most is not None and self.nodes_per_block > most:
            refuse(self, "nodes_per_block", f"must not be more than {most} with {self.provider!r}", "provider")

    @property
    def memory_per_worker_bytes(self) -> int | None:
        """Memory of each worker; None: an equal part of the node's."""
        return None if self.memory_per_worker is None else int(self.memory_per_worker)

    @property
    def prepares_nodes(self) -> bool:
        """Whether an option asks for more on the nodes than the manager's bare command."""
        return bool(self.worker_init or self.env or self.python or self.launcher or self.container)

    @property
    def walltime_s(self) -> float | None:
        """How long a block may last (seconds), by this pool's `walltime` or its provider's; None: neither says."""
        given = self.walltime if self.walltime is not None else getattr(self.provider, "walltime", None)
        return None if given is None else seconds_of(given)

    def __repr__(self) -> str:
        return call_text(self, [repr(self.provider)], NodePool())

    def replace(self, **changes: Any) -> NodePool:
        """This pool with some options changed, checked anew."""
        return dataclasses.replace(self, **changes)


@with_hints
@dataclass(frozen=True, init=False, repr=False)
class Config:
    """Everything that an executor can be told about where and how calls run.

    The same as a TOML file, for `Config.from_toml`:

        crash_limit = 2

        [[node_pools]]
        provider = "local"        # or a table with its options: provider = {kind = "local"}
        workers_per_node = 4

    Args:
        node_pools: at least one, each with its own `name`; none given: one pool that is this machine.

    Raises:
        ConfigError: an option is of the wrong type or impossible.
    """

    #: Where the calls run.
    node_pools: tuple[NodePool, ...] = field(metadata=option_of(_POOLS))
    #: After this many seconds of silence a process tells its peers that it is alive. Default 5.
    heartbeat_period_s: float = field(metadata=option_of(SECONDS))
    #: After this many seconds of silence a peer is taken for dead: longer than any network pause, also than that of a
    #: laptop which is to find its nodes again when it wakes up. Default 30.
    heartbeat_timeout_s: float = field(metadata=option_of(SECONDS))
    #: A call fails for good once it has killed this many workers. Default 1.
    crash_limit: int = field(metadata=option_of(whole(1)))
    #: A call is run again after its node was lost, this many times; then it fails with `NodeLost`. What the batch
    #: system takes away (the walltime is over, another job preempts it) does not count, once it tells. Default 3.
    loss_limit: int = field(metadata=option_of(whole(0)))
    #: False: a call whose node was lost fails at once, because it must not run twice. Default True.
    rerun_lost: bool = field(metadata=option_of(FLAG))
    #: The pool is broken after this many blocks in a row failed to start. Default 3.
    start_failure_limit: int = field(metadata=option_of(whole(1)))
    #: A block that runs, but whose manager is not heard of in this many seconds, failed to start. Default 120.
    start_timeout_s: float = field(metadata=option_of(SECONDS))
    #: After this many seconds with calls but without a worker, one warning tells why. Default 30.
    start_warning_s: float = field(metadata=option_of(SECONDS))
    #: The folder in which each run makes its own private folder; None: where the system keeps such files. A relative
    #: path starts at the current folder.
    run_dir: str | None = field(metadata=option_of(or_none(FOLDER)))
    #: Names or addresses of this host that nodes connect to; they try all at once. None: all that it has.
    addresses: tuple[str, ...] | None = field(metadata=option_of(or_none(ADDRESSES)))
    #: The TCP ports (first, last) of which the first free one is listened to; also a number, or text such as
    #: "50000-50100". Default 0, any free one. A pool on this machine has no port.
    ports: tuple[int, int] = field(metadata=option_of(PORTS))

    def __init__(
        self,
        *node_pools: NodePool,
        heartbeat_period_s: float = 5.0,
        heartbeat_timeout_s: float = 30.0,
        crash_limit: int = 1,
        loss_limit: int = 3,
        rerun_lost: bool = True,
        start_failure_limit: int = 3,
        start_timeout_s: float = 120.0,
        start_warning_s: float = 30.0,
        run_dir: str | os.PathLike[str] | None = None,
        addresses: str | Iterable[str] | None = None,
        ports: int | str | tuple[int, int] = 0,
    ) -> None:
        given = dict(locals(), node_pools=node_pools or (NodePool(),))
        for option in fields(self):
            object.__setattr__(self, option.name, given[option.name])
        settle(self)
        if self.heartbeat_timeout_s <= self.heartbeat_period_s:
            period = f"heartbeat_period_s ({self.heartbeat_period_s})"
            refuse(self, "heartbeat_timeout_s", f"must be more than {period}", "heartbeat_period_s")
        _refuse_shared_names(self)

    @classmethod
    def load(cls, source: Config | NodePool | Provider | str | os.PathLike[str] | None = None) -> Config:
        """The configuration that `source` stands for.

        Args:
            source: a `Config`, a node pool, a provider, or the path of a TOML file. None: the file that the environment
                variable `HPCPOOL_CONFIG` names; where it is unset or empty, this machine.

        Raises:
            ConfigError: it is none of these, or the file cannot be used.
        """
        if isinstance(source, Config):
            return source
        if isinstance(source, NodePool):
            return cls(source)
        if source is None:
            named = os.environ.get(CONFIG_VARIABLE)
            return _read(named, f" (named by ${CONFIG_VARIABLE})") if named else cls()
        if isinstance(source, str | os.PathLike):
            return cls.from_toml(source)
        if isinstance(source, Provider):
            return cls(NodePool(source))
        valid = "a Config, a NodePool, a provider, or the path of a TOML file"
        raise ConfigError(f"config is {shown(source)}; valid: {valid}")

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Config:
        """Read a TOML file.

        Raises:
            ConfigError: it cannot be read, is not TOML, or an option does not fit; with file, line and the nearest
                valid key.
        """
        return _read(path)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Config:
        """Build from plain data, in the shape of the TOML file.

        Raises:
            ConfigError: an option does not fit; with its path and the nearest valid key.
        """
        return _from_plain(data)

    @classmethod
    def from_json(cls, data: bytes) -> Config:
        """Build from what `to_json` returned.

        Raises:
            ConfigError: it is not JSON, or an option does not fit.
        """
        try:
            plain = msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise ConfigError(f"not JSON: {error}") from error
        return _from_plain(plain)

    def to_dict(self) -> dict[str, object]:
        """All options as plain data, from which `from_dict` makes an equal value.

        Raises:
            ConfigError: a provider cannot be rebuilt by its kind, or has an option that is not a plain value.
        """
        return _to_plain(self)

    def to_json(self) -> bytes:
        """All options as JSON, from which `from_json` makes an equal value; raises as `to_dict` does."""
        try:
            return msgspec.json.encode(self.to_dict())
        except UnicodeEncodeError as error:
            raise ConfigError(f"{self!r} has an option that is not text: {error}") from error

    def replace(self, **changes: Any) -> Config:
        """This configuration with some options changed (`node_pools`: a tuple), checked anew."""
        options = {option.name: getattr(self, option.name) for option in fields(self)} | changes
        return type(self)(*options.pop("node_pools"), **options)

    def __replace__(self, **changes: Any) -> Config:
        """What `copy.replace` calls from Python 3.13 on."""
        return self.replace(**changes)

    def __repr__(self) -> str:
        return call_text(self, map(repr, self.node_pools), Config())


def _refuse_shared_names(config: Config) -> None:
    times = Counter(pool.name for pool in config.node_pools)
    for index in reversed(range(len(config.node_pools))):
        name = config.node_pools[index].name
        if times[name] > 1:
            problem = f"is {name!r}, as in another node pool; give each a name of its own"
            raise misfit(("node_pools", index, "name"), problem, owner=config)


# These modules make the values above, so they cannot be imported before them; and the usual case, a `Config` made in
# Python, is spared a TOML parser.


def _read(path: str | os.PathLike[str], origin: str = "") -> Config:
    from hpcpool.config.toml_file import read_config

    return read_config(path, origin)


def _from_plain(data: object) -> Config:
    from hpcpool.config.plain import config_from

    return config_from(data)


def _to_plain(config: Config) -> dict[str, object]:
    from hpcpool.config.plain import plain_config

    return plain_config(config)
