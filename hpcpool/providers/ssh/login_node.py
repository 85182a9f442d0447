"""A login node: where a batch system's commands run, how nodes come back to this machine, and the Python they have."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from hpcpool.errors import ConfigError
from hpcpool.providers.base import SubmitError, Unreachable
from hpcpool.providers.ssh.addresses import with_port
from hpcpool.providers.ssh.gateway import Gateway
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.ssh.node_python import NodePython
from hpcpool.providers.ssh.runner import SSHRunner
from hpcpool.providers.ssh.standing import Standing
from hpcpool.providers.ssh.tunnel import candidates

#: How many cuts in a row the login node may not notice: the ports of such a tunnel are taken until it does.
_GATEWAY_TRIES = 3
#: A tunnel that was lost just now is most likely back by then.
_BACK_S = 5.0


class LoginNode:
    """A login node and what is held open there. Used by one thread.

    Args:
        login: the machine.
        python: which Python the nodes have; they see the home directory of the login node.
    """

    def __init__(self, login: SSHLogin, python: NodePython) -> None:
        #: Where commands run; closed with this.
        self.runner = SSHRunner(login)
        self._login = login
        self._python = python
        #: Where that is; empty: not looked for yet.
        self._python_path = ""
        #: By the port here that they lead to.
        self._ways: dict[int, _WayBack] = {}

    def reach(self, port: int) -> Sequence[str]:
        """As `RemoteDriver.reach`: the same addresses as long as this is open, also after the tunnel was lost."""
        if port not in self._ways:
            self._ways[port] = self._way(port)
        return self._ways[port].addresses()

    def _way(self, port: int) -> _WayBack:
        try:
            return _WayBack(self._login, port)
        except ConfigError as error:
            raise SubmitError(str(error)) from error
        except OSError as error:
            raise Unreachable(str(error)) from error

    def python(self) -> str:
        """As `RemoteDriver.python`, for all blocks."""
        try:
            self._python_path = self._python_path or self._python.find(self.runner, self._login.destination)
        except (OSError, ConfigError) as error:
            raise SubmitError(str(error)) from error
        return self._python_path

    def close(self) -> None:
        """Let go of all connections; a second call does nothing."""
        for way in self._ways.values():
            way.close()
        self._ways.clear()
        self.runner.close()


class _WayBack:
    """The addresses by which nodes reach one port of this machine, and the gateway that stands behind them."""

    def __init__(self, login: SSHLogin, port: int) -> None:
        self._login = login
        self._ports = candidates(_GATEWAY_TRIES)
        #: In the order in which they were seen. A name may stand for several login nodes, and then there may be more.
        self._hosts: dict[str, None] = {}
        make = functools.partial(Gateway, login, port, self._ports)
        self._gateway = Standing(f"the tunnel from {login.destination}", make)

    def addresses(self) -> Sequence[str]:
        """All that may lead there, now or after it was made anew.

        Raises:
            Unreachable: it was lost, and is not back yet.
        """
        gateway = self._gateway.wait(_BACK_S)
        if gateway is None:
            raise Unreachable(f"the tunnel from {self._login.destination} is not back: {self._gateway.problem}")
        self._hosts.update(dict.fromkeys(gateway.hosts))
        return [address for port in self._ports for address in with_port(self._hosts, port)]

    def close(self) -> None:
        self._gateway.close()
