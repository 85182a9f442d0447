"""A login node: where a batch system's commands run, how nodes come back to this machine, and the Python they have."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hpcpool.errors import ConfigError, SSHError
from hpcpool.providers.base import SubmitError, Unreachable
from hpcpool.providers.ssh.gateway import Gateway
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.ssh.node_python import NodePython
from hpcpool.providers.ssh.runner import SSHRunner

logger = logging.getLogger(__name__)


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
        self._gateways: dict[int, Gateway] = {}

    def reach(self, port: int) -> Sequence[str]:
        """As `RemoteDriver.reach`; one that was lost is made anew."""
        gateway = self._gateways.pop(port, None)
        if gateway is not None and not gateway.is_alive:
            logger.warning("the tunnel from %s was lost, and is made anew", self._login.destination)
            gateway.close()
            gateway = None
        try:
            self._gateways[port] = gateway or Gateway(self._login, port)
        except SSHError as error:
            raise Unreachable(str(error)) from error
        except ConfigError as error:
            raise SubmitError(str(error)) from error
        return self._gateways[port].addresses

    def python(self) -> str:
        """As `RemoteDriver.python`, for all blocks."""
        try:
            self._python_path = self._python_path or self._python.find(self.runner, self._login.destination)
        except (OSError, ConfigError) as error:
            raise SubmitError(str(error)) from error
        return self._python_path

    def close(self) -> None:
        """Let go of all connections; a second call does nothing."""
        for gateway in self._gateways.values():
            gateway.close()
        self._gateways.clear()
        self.runner.close()
