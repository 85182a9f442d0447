"""The SSH provider: a list of machines without a batch system, as the user names them."""

from __future__ import annotations

import posixpath
import secrets
from dataclasses import dataclass
from typing import ClassVar

from hpcpool.errors import ConfigError
from hpcpool.providers import option_checks
from hpcpool.providers.ssh.driver import SSHDriver
from hpcpool.providers.ssh.host import Host
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.ssh.node_python import NodePython


@dataclass(frozen=True)
class SSHProvider:
    """Machines that are reached over SSH and have no batch system. A block is one or several of them.

    Each machine runs one block at a time, or as many as it is named times. What is started there goes on when the SSH
    connection is lost. Nodes reach this machine directly or through a tunnel of the SSH connection.

        >>> from hpcpool.providers import SSHProvider
        >>> SSHProvider(["ada@node1", "ada@node2"], identity="~/.ssh/cluster").max_nodes_per_block
        2

    Args:
        hosts: the machines, each as text ("user@host:port", or a `Host` of `~/.ssh/config`) or as an `SSHLogin`.
        port, identity, jump, config, known_hosts, use_agent, connect_timeout_s, keepalive_s: as in `SSHLogin`, for the
            machines that are named as text.
        python: the path of a Python on the machines that has this version of hpcpool; None: this program's own path
            where that is a Python with the same hpcpool, else a private environment in `~/.hpcpool/envs` there, made
            at the first use.
        wheels: a folder here with wheels of all that hpcpool needs, to make that environment without a package index.
        pip_options: more options for the `pip install` that makes it, such as ("--index-url", "https://...").
        scratch: a folder on each machine for the files of blocks.
        poll_interval_s: seconds between two looks at the jobs.

    Raises:
        ConfigError: an option does not fit.
    """

    hosts: tuple[SSHLogin | str, ...]
    port: int | None = None
    identity: str | None = None
    jump: str | None = None
    config: str | None = None
    known_hosts: str | None = None
    use_agent: bool = True
    connect_timeout_s: float | None = None
    keepalive_s: float | None = None
    python: str | None = None
    wheels: str | None = None
    pip_options: tuple[str, ...] = ()
    scratch: str = "/tmp"
    poll_interval_s: float = 5.0

    kind: ClassVar[str] = "ssh"

    def __post_init__(self) -> None:
        if isinstance(self.hosts, str | SSHLogin) or not self.hosts:
            raise ConfigError(f"SSHProvider.hosts is {self.hosts!r}; valid: a list of machines, at least one")
        object.__setattr__(self, "hosts", tuple(self.hosts))
        object.__setattr__(self, "pip_options", tuple(self.pip_options))
        if not self.scratch.startswith("/"):
            option_checks.refuse(self, "scratch", "an absolute path")
        option_checks.check_seconds(self, "poll_interval_s")
        self.logins()

    @property
    def max_nodes_per_block(self) -> int | None:
        return len(self.hosts)

    def logins(self) -> tuple[SSHLogin, ...]:
        """The machines, with all options."""
        return tuple(host if isinstance(host, SSHLogin) else self._login(host) for host in self.hosts)

    def _login(self, host: str) -> SSHLogin:
        return SSHLogin(
            host,
            port=self.port,
            identity=self.identity,
            jump=self.jump,
            config=self.config,
            known_hosts=self.known_hosts,
            use_agent=self.use_agent,
            connect_timeout_s=self.connect_timeout_s,
            keepalive_s=self.keepalive_s,
        )

    def open(self, run_dir: str) -> SSHDriver:
        """Make the driver; it connects to a machine when a block is started there."""
        run = posixpath.basename(run_dir.rstrip("/"))
        folder = posixpath.join(self.scratch, f"hpcpool-{run}-{secrets.token_hex(8)}")
        logins = self.logins()
        python = NodePython(self.python, self.wheels, self.pip_options)
        hosts = {login: Host(login, python) for login in logins}
        return SSHDriver([hosts[login] for login in logins], folder, self.poll_interval_s)
