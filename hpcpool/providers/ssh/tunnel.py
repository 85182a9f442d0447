"""A reverse tunnel: a TCP port of this machine, made reachable on another one over an SSH connection of its own."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Sequence

from hpcpool.errors import SSHError
from hpcpool.providers.ssh.connection import Connection, connect, limited
from hpcpool.providers.ssh.keepalive import watch
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.ssh.pump import Pump

logger = logging.getLogger(__name__)

#: The addresses to listen on, as the SSH protocol writes them (RFC 4254, section 7.1). Not "localhost", which is IPv6
#: as well: sshd is content if one of the two ports is free.
ALL_ADDRESSES, LOOPBACK = "", "127.0.0.1"

#: Below the ports that kernels give out by themselves (from 32768 on).
_USUAL_PORTS = range(20000, 32768)
_ANSWER_S = 30.0


def candidates(count: int) -> tuple[int, ...]:
    """Ports for a tunnel that shall be found again at the same places: it takes the first that is free.

    One is not enough: after a cut that the other side has not noticed, its sshd holds the one of the tunnel before.
    """
    return tuple(random.sample(_USUAL_PORTS, count))


class ReverseTunnel:
    """Passes each TCP connection that comes to a port of another machine on to a port of this one.

    It has a connection of its own, because its traffic would delay commands, and one thread more (`Pump`). What is
    connected through it ends with it: here by a reset, since nobody there has ended it.

    Args:
        login: the other machine.
        target: host and port here.
        bind: `LOOPBACK`, or `ALL_ADDRESSES`: then sshd's `GatewayPorts` decides whether that is what happens.
        ports: those to try there, the first that is free is taken; 0: any.

    Raises:
        SSHError: the machine cannot be reached, or it allows no tunnel on any of these ports.
        ConfigError: `~/.ssh/config` cannot be used.
    """

    def __init__(
        self,
        login: SSHLogin,
        target: tuple[str, int],
        *,
        bind: str = LOOPBACK,
        ports: Sequence[int] = (0,),
        connect: Callable[[SSHLogin], Connection] = connect,
    ) -> None:
        with contextlib.ExitStack() as undo:
            self._pump = Pump(target, f"hpcpool-tunnel-{login.destination}")
            undo.callback(self._pump.close)
            # Closed before the pump, whose thread may be sending to somebody who is not there any more.
            self.connection = connect(login)
            undo.callback(self.connection.close)
            self._bind = bind
            #: The port there.
            self.port = self._forward(ports)
            self._close = undo.pop_all().close
        logger.info("port %d of %s leads to %s:%d here", self.port, self.connection, *target)

    @property
    def is_alive(self) -> bool:
        """False once its connection is known to be gone."""
        return self.connection.is_alive

    def wait_for_end(self, wait: Callable[[float | None], bool] | None = None) -> None:
        """Return when its connection is gone, also by `close`; end it if the other side is silent.

        Args:
            wait: waits instead for something that ends with the connection at the latest, or for so many seconds (None:
                for ever); whether it has ended.
        """
        watch(self.connection, wait or self.connection.wait, lambda: self._pump.heard_at)

    def move(self, ports: Sequence[int]) -> None:
        """Listen on the first of these ports that is free instead; nothing may be connected yet.

        Raises:
            SSHError: none of them can be had; then it listens nowhere.
        """
        import paramiko

        try:
            with limited(self.connection.close, _ANSWER_S):
                self.connection.transport.cancel_port_forward(self._bind, self.port)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise SSHError(f"the connection to {self.connection} was lost: {error}") from error
        self.port = self._forward(ports)

    def close(self) -> None:
        """End it with all that is connected through it; a second call does nothing."""
        self._close()

    def _forward(self, ports: Sequence[int]) -> int:
        import paramiko

        for port in ports:
            try:
                with limited(self.connection.close, _ANSWER_S):
                    return self.connection.transport.request_port_forward(
                        self._bind, port, lambda channel, origin, server: self._pump.add(channel)
                    )
            except (paramiko.SSHException, EOFError, OSError) as error:
                if not self.is_alive:
                    raise SSHError(f"the connection to {self.connection} was lost: {error}") from error
                logger.info("port %d of %s cannot be had for a tunnel: %s", port, self.connection, error)
        raise SSHError(
            f"{self.connection} allows no tunnel back to here (AllowTcpForwarding or PermitListen in its sshd_config, "
            f"or ports in use: {', '.join(map(str, ports))}). Ask those who run it, or run the program there"
        )
