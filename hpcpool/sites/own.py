"""Machines of your own: a list of hosts without a batch system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcpool.config import Config, NodePool
from hpcpool.errors import ConfigError
from hpcpool.providers import SSHLogin, SSHProvider


def ad_hoc(
    hosts: Sequence[str | SSHLogin],
    *,
    user: str | None = None,
    identity: str | None = None,
    jump: str | None = None,
    python: str | None = None,
    wheels: str | None = None,
    scratch: str = "/tmp",
    **node_pool: Any,
) -> Config:
    """Return a configuration for an ad-hoc cluster: machines that are reached over SSH and have no batch system.

    They come into use with the work, one after the other, until all of them are. What else `SSHProvider` can be told
    belongs into `~/.ssh/config`, or into an `SSHLogin` among the hosts.

    Source: https://github.com/Parsl/parsl/blob/00d93cdbbaa20e9a8c77555e375dd1a56472c48d/parsl/configs/ad_hoc.py

    Args:
        hosts: the machines, each as text ("user@host:port", or a `Host` of `~/.ssh/config`) or as an `SSHLogin`.
        user: your name on those of them that are named without one; None: as `~/.ssh/config` says.
        identity: the file of a private key; None: as `ssh` finds one.
        jump: machines to go through, with commas between them; None: as `~/.ssh/config` says.
        python: a Python there that has this hpcpool; None: one is looked for, and made if there is none.
        wheels: a folder here with wheels, for machines that reach no package index.
        scratch: a folder on each machine for the files of blocks.
        node_pool: any option of `NodePool`; `max_blocks` is for all machines unless you say less.

    Raises:
        ConfigError: an option does not fit.

    Example:
        >>> from hpcpool.sites import ad_hoc
        >>> ad_hoc(["node1", "node2", "eve@node3"], user="ada").node_pools[0].provider.hosts
        ('ada@node1', 'ada@node2', 'eve@node3')
    """
    if isinstance(hosts, str | SSHLogin) or not hosts:
        raise ConfigError(f"ad_hoc: hosts is {hosts!r}; valid: a list of machines, at least one")
    provider = SSHProvider(
        tuple(_named(host, user) for host in hosts),
        identity=identity,
        jump=jump,
        python=python,
        wheels=wheels,
        scratch=scratch,
    )
    nodes_per_block = node_pool.get("nodes_per_block", 1)
    blocks = max(1, len(hosts) // nodes_per_block) if isinstance(nodes_per_block, int) and nodes_per_block > 0 else 1
    return Config(NodePool(provider, **{"name": "ad_hoc", "max_blocks": blocks, **node_pool}))


def _named(host: str | SSHLogin, user: str | None) -> str | SSHLogin:
    if user is None or isinstance(host, SSHLogin) or "@" in host:
        return host
    return f"{user}@{host}"
