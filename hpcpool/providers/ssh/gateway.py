"""A port of this machine, made reachable for the nodes behind a login node: by a tunnel and perhaps a relay there."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcpool.errors import SSHError
from hpcpool.providers.ssh import relay
from hpcpool.providers.ssh.addresses import seen_from_outside
from hpcpool.providers.ssh.connection import Connection, close_quietly, connect, execute, limited
from hpcpool.providers.ssh.keepalive import QUESTION
from hpcpool.providers.ssh.login import SSHLogin
from hpcpool.providers.ssh.remote_shell import command_line, own_output
from hpcpool.providers.ssh.tunnel import ALL_ADDRESSES, ReverseTunnel

if TYPE_CHECKING:
    import paramiko

logger = logging.getLogger(__name__)

_ASK_TIMEOUT_S = 30.0
#: What a relay that cannot be used has still to say is there, or on its way.
_LAST_WORDS_S = 2.0
_READ_BYTES = 65536
#: Runs the program on the first line of its stdin. What follows stays unread: its end is the end of the relay.
_RUN_FIRST_LINE = "import sys; exec(eval(sys.stdin.readline()))"
_LISTENING = "0A"

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Gateway:
    """Makes one port of this machine reachable on all addresses of a login node.

    Where sshd has `GatewayPorts no` (its default), the tunnel ends at any port of the login node's loopback address; a
    relay in Python, of the same user, then listens for the nodes.

    Args:
        login: the login node.
        port: the port here, of the loopback address.
        ports: those that the nodes may know it by. It takes the first that is free.

    Raises:
        SSHError: the login node cannot be reached, or allows neither; with what to do.
        ConfigError: `~/.ssh/config` cannot be used.
    """

    def __init__(
        self,
        login: SSHLogin,
        port: int,
        ports: Sequence[int],
        *,
        connect: Callable[[SSHLogin], Connection] = connect,
    ) -> None:
        #: Open as long as the relay is to run: paramiko closes a channel that nobody holds.
        self._relay: paramiko.Channel | None = None
        with contextlib.ExitStack() as undo:
            self._tunnel = ReverseTunnel(login, ("127.0.0.1", port), bind=ALL_ADDRESSES, connect=connect)
            undo.callback(self._tunnel.close)
            asked = _output_of(self._tunnel.connection, ("cat", "/proc/net/tcp", "/proc/net/tcp6"))
            listened = listening(asked, self._tunnel.port)
            if listened and not any(address.is_unspecified for address in listened):
                logger.info("%s has GatewayPorts off: a relay listens there", self._tunnel.connection)
                self._relay, self.port = self._start_relay(ports)
            else:
                self.port = self._move(ports, asked)
            names = _output_of(self._tunnel.connection, ("sh", "-c", "hostname -f; hostname; hostname -I"))
            #: The names and addresses of the login node, as the nodes may know it; never empty.
            self.hosts = tuple(seen_from_outside(names.split()) or [login.target.host])
            self._check_alive()
            self._close = undo.pop_all().close
        logger.info("port %d is reached by port %d of %s", port, self.port, ", ".join(self.hosts))

    def wait_for_end(self) -> None:
        """Return when its connection or its relay is gone, also by `close`."""
        # The status event is set by the exit of the relay, and by the end of the connection.
        self._tunnel.wait_for_end(self._relay.status_event.wait if self._relay is not None else None)

    def close(self) -> None:
        """End it with all that is connected through it; a second call does nothing."""
        self._close()

    def _check_alive(self) -> None:
        """What a connection says that is lost, or does not say, means nothing.

        It is asked, and is ended if it does not answer in half a minute.
        """
        connection = self._tunnel.connection
        with limited(connection.close, _ASK_TIMEOUT_S):
            connection.ask(QUESTION)  # its channels end before it is known to be gone
        if not connection.is_alive:
            raise SSHError(f"the connection to {connection} was lost")

    def _move(self, ports: Sequence[int], asked: str) -> int:
        # What others have for IPv4 only is not asked for: sshd would be content with IPv6.
        free = [port for port in ports if not listening(asked, port)]
        if not free:
            words = f"all ports for a tunnel are in use on {self._tunnel.connection}: {', '.join(map(str, ports))}"
            raise SSHError(words)
        self._tunnel.move(free)
        return self._tunnel.port

    def _start_relay(self, ports: Sequence[int]) -> tuple[paramiko.Channel, int]:
        """Start the relay; it ends with the channel, which is returned with the relay's port."""
        import paramiko

        channel = self._tunnel.connection.open_session()
        channel.settimeout(_ASK_TIMEOUT_S)
        line = "exec " + shlex.join(("python3", "-c", _RUN_FIRST_LINE, *map(str, (self._tunnel.port, *ports))))
        program = Path(relay.__file__).read_text(encoding="utf-8")
        said = b""
        try:
            execute(channel, line, _ASK_TIMEOUT_S)
            channel.sendall(f"{program!r}\n".encode())
            with channel.makefile("rb") as output:
                for line in output:
                    said += line
                    if re.fullmatch(rb"[0-9]+\n", line):
                        return channel, int(line)
        except (OSError, EOFError, paramiko.SSHException) as error:  # perhaps it has ended before it was told all
            said += str(error).encode()
        self._check_alive()
        channel.settimeout(_LAST_WORDS_S)
        with contextlib.suppress(OSError):  # it has not ended, and says no more
            while more := channel.recv_stderr(_READ_BYTES):
                said += more
        raise SSHError(
            f"nodes cannot reach this program through {self._tunnel.connection}: its sshd lets tunnels listen on the "
            "loopback address only (GatewayPorts no), and python3 cannot relay there "
            f"({' '.join(said.decode(errors='replace').split()) or 'it said nothing'}). Ask its administrators for "
            "`GatewayPorts clientspecified`, or run the program on the login node itself"
        )


def listening(text: str, port: int) -> frozenset[IPAddress]:
    """The addresses that a port is listened to on, by the text of `/proc/net/tcp` and `/proc/net/tcp6`.

    Source: https://www.kernel.org/doc/html/latest/networking/proc_net_tcp.html
    """
    return frozenset(address for address, other in _listeners(text) if other == port)


def _listeners(text: str) -> Iterator[tuple[IPAddress, int]]:
    for line in text.splitlines():
        if found := re.match(r"\s*\d+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) \S+ (\S\S) ", line):
            words = bytes.fromhex(found[1])
            if found[3] == _LISTENING:
                # Each group of four bytes is one number in the machine's own order: little-endian where we run.
                ordered = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
                yield ipaddress.ip_address(ordered), int(found[2], 16)


def _output_of(connection: Connection, argv: tuple[str, ...]) -> str:
    """What a short command prints, whatever its exit code; empty if it does not end."""
    import paramiko

    channel = connection.open_session()
    channel.settimeout(_ASK_TIMEOUT_S)
    try:
        execute(channel, command_line(argv, limit_s=_ASK_TIMEOUT_S), _ASK_TIMEOUT_S)
        return own_output(channel.makefile("rb").read().decode(errors="replace"))
    except (OSError, EOFError, paramiko.SSHException) as error:
        logger.warning("%s does not answer %s: %s", connection, argv[0], str(error) or type(error).__name__)
        return ""
    finally:
        close_quietly(channel)
