"""One SSH connection, through its jump hosts: made, checked, kept alive and closed; not what runs over it.

A connection has one thread for each hop (paramiko's transports); they end with it. Host keys are checked before
anything else is sent.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from hpcpool.errors import HostKeyError, SSHError
from hpcpool.providers.ssh.authentication import authenticate
from hpcpool.providers.ssh.client_config import Hop, hops_to
from hpcpool.providers.ssh.keepalive import SILENT_PERIODS
from hpcpool.providers.ssh.known_hosts import (
    Finding,
    KnownKey,
    Verdict,
    fingerprint,
    host_name,
    judge,
    preferred,
    read_known_hosts,
)
from hpcpool.providers.ssh.login import SSHLogin

if TYPE_CHECKING:
    import paramiko

logger = logging.getLogger(__name__)

#: sshd drops connections at random once 10 wait for their login (`MaxStartups 10:30:100`), and others use it, too.
_MOST_AT_ONCE = 4
#: By the first host on the way and its port.
_GATES: dict[tuple[str, int], threading.BoundedSemaphore] = {}
#: Seconds before the next attempt after such a drop; each up to half as long again, so that ours do not meet again.
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
#: Opening a channel is one exchange of messages.
_CHANNEL_TIMEOUT_S = 20.0
_PROXY_END_S = 2.0


class _Dropped(SSHError):
    """The server hung up before it said anything: it is busy."""


class Connection:
    """An open connection. Its channels may be used by any thread."""

    def __init__(
        self, hops: Sequence[Hop], transports: Sequence[paramiko.Transport], close: Callable[[], object]
    ) -> None:
        self._hops = hops
        self._transports = transports
        self._close = close
        #: Held to close: several threads may want to at once.
        self._closing = threading.Lock()

    def __str__(self) -> str:
        return str(self._hops[-1])

    @property
    def transport(self) -> paramiko.Transport:
        """That of the last hop."""
        return self._transports[-1]

    @property
    def is_alive(self) -> bool:
        """False once it is known to be gone. After a cut this stays true for a while."""
        return all(transport.is_active() for transport in self._transports)

    @property
    def keepalive_s(self) -> float:
        """After so many silent seconds the other side is asked whether it is there; 0: never."""
        return self._hops[-1].keepalive_s

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is gone, or for a while; whether it is."""
        self.transport.join(timeout_s)  # it is a thread, and ends with those of the hops before it
        return not self.transport.is_alive()

    def ask(self, question: str) -> None:
        """Return when the other side has answered a global request in any way, or the connection is gone."""
        import paramiko

        try:
            self.transport.global_request(question, wait=True)
        except (paramiko.SSHException, EOFError, OSError) as error:
            logger.debug("%s cannot be asked: %s", self, error)
            self.close()

    def open_session(self, timeout_s: float = _CHANNEL_TIMEOUT_S) -> paramiko.Channel:
        """Open a channel for one command, within `timeout_s` or what is usual, whichever is less.

        Raises:
            SSHError: the connection is gone or silent, or has as many sessions as the server allows (`MaxSessions`).
        """
        import paramiko

        try:
            return self.transport.open_session(timeout=min(timeout_s, _CHANNEL_TIMEOUT_S))
        except paramiko.ChannelException as error:
            raise SSHError(f"{self} opens no further session on this connection (MaxSessions): {error.text}") from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise SSHError(f"the connection to {self} was lost: {_said(error)}") from error

    def close(self) -> None:
        """End it and all of its channels; a second call does nothing. From any thread."""
        with self._closing:
            self._close()


@contextlib.contextmanager
def limited(close: Callable[[], object], timeout_s: float) -> Iterator[None]:
    """Bound what paramiko waits for without a limit: closing a channel or a connection ends the waiting.

    Raises:
        TimeoutError: it took longer.
    """
    passed = threading.Event()

    def give_up() -> None:
        passed.set()
        close()

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if passed.is_set():
            raise TimeoutError(f"no answer within {timeout_s:g} s") from error
        raise
    finally:
        timer.cancel()
        timer.join()


def close_quietly(closed: paramiko.Channel | paramiko.Transport | socket.socket) -> None:
    """Close it, also if the connection that it runs over is gone: closing a channel tells the other side."""
    import paramiko

    try:
        closed.close()
    except (paramiko.SSHException, EOFError, OSError) as error:
        logger.debug("%s is closed without a word: %s", type(closed).__name__, _said(error))


def execute(channel: paramiko.Channel, line: str, timeout_s: float) -> None:
    """Have the shell of the other side run a line; the channel then carries its input and outputs.

    Raises:
        TimeoutError: the other side does not answer.
    """
    with limited(functools.partial(close_quietly, channel), timeout_s):
        channel.exec_command(line)


def connect(login: SSHLogin) -> Connection:
    """Connect to a machine and log in, through its jump hosts.

    Raises:
        HostKeyError: a host key on the way is not known, or is not the one that is known.
        SSHError: it cannot be reached, or it refuses the login.
        ConfigError: `~/.ssh/config` cannot be used.
    """
    hops = hops_to(login)
    first = (hops[0].host, hops[0].port)
    with _GATES.setdefault(first, threading.BoundedSemaphore(_MOST_AT_ONCE)):
        for pause_s in _PAUSES_S:
            try:
                return _connect_through(hops)
            except _Dropped as drop:
                logger.info("%s; trying again in %.1f s", drop, pause_s)
                time.sleep(pause_s * random.uniform(1.0, 1.5))
        return _connect_through(hops)


def _connect_through(hops: Sequence[Hop]) -> Connection:
    transports: list[paramiko.Transport] = []
    with contextlib.ExitStack() as undo:
        for number, hop in enumerate(hops):
            way = _dial(hop, undo) if number == 0 else _through(transports[-1], hops[number - 1], hop)
            undo.callback(close_quietly, way)
            transport = _greet(hop, way)
            undo.callback(close_quietly, transport)
            _login(transport, hop)
            transports.append(transport)
        logger.info("connected to %s", " through ".join(str(hop) for hop in reversed(hops)))
        return Connection(hops, transports, undo.pop_all().close)
    raise AssertionError("not reached: ExitStack swallows nothing")


def _login(transport: paramiko.Transport, hop: Hop) -> None:
    import paramiko

    try:
        authenticate(transport, hop)
    except SSHError:
        raise
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise SSHError(f"{hop} broke off the login: {_said(error)}") from error
    if hop.keepalive_s:
        transport.set_keepalive(max(1, round(hop.keepalive_s)))


# The way to a hop


def _dial(hop: Hop, undo: contextlib.ExitStack) -> socket.socket:
    """A stream to the first hop."""
    if hop.proxy_command is not None:
        return _run_proxy(hop.proxy_command, undo)
    try:
        stream = socket.create_connection((hop.host, hop.port), timeout=hop.connect_timeout_s)
    except socket.gaierror as error:
        raise SSHError(f"the host {hop.host} (of {hop.name}) is not known here: {error.strerror}") from error
    except TimeoutError as error:
        raise SSHError(f"{hop.host} port {hop.port} did not answer within {hop.connect_timeout_s:g} s") from error
    except OSError as error:
        raise SSHError(f"cannot connect to {hop.host} port {hop.port}: {error.strerror or error}") from error
    if hop.keepalive_s and hasattr(socket, "TCP_USER_TIMEOUT"):
        silence_ms = round(hop.keepalive_s * SILENT_PERIODS * 1000)  # then the kernel breaks the connection
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence_ms)
    return stream


def _run_proxy(command: str, undo: contextlib.ExitStack) -> socket.socket:
    """The stream of a `ProxyCommand`: a socket whose other end is the command's stdin and stdout."""
    ours, theirs = socket.socketpair()
    with theirs:
        end = theirs.fileno()
        process = subprocess.Popen(("/bin/sh", "-c", f"exec {command}"), stdin=end, stdout=end)
    undo.callback(_end, process)
    return ours


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_PROXY_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _through(outer: paramiko.Transport, gate: Hop, hop: Hop) -> paramiko.Channel:
    """A stream to a hop from the one before it."""
    import paramiko

    try:
        return outer.open_channel("direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=hop.connect_timeout_s)
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise SSHError(f"{gate} cannot connect to {hop.host} port {hop.port}: {_said(error)}") from error


# Greeting: versions, keys, the host's identity


def _greet(hop: Hop, way: socket.socket | paramiko.Channel) -> paramiko.Transport:
    """Agree on an encrypted connection with the host that it should be with."""
    import paramiko

    known = _known_hosts(hop)
    name = hop.host_key_alias or host_name(hop.host, hop.port)
    transport = paramiko.Transport(way)
    # Its own words for errors that are raised here as well: below ours they go where the user sends ours.
    transport.set_log_channel("hpcpool.paramiko")
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = hop.connect_timeout_s
    transport.channel_timeout = _CHANNEL_TIMEOUT_S
    options = transport.get_security_options()
    options.key_types = tuple(preferred(known, name, options.key_types))
    try:
        _check_key(hop, name, known, _agree(transport, hop))
    except BaseException:
        close_quietly(transport)
        raise
    return transport


def _agree(transport: paramiko.Transport, hop: Hop) -> paramiko.PKey:
    """Agree on keys, and return the key that the host has shown to be its own."""
    import paramiko

    began = time.monotonic()
    try:
        transport.start_client(timeout=hop.connect_timeout_s)
        return transport.get_remote_server_key()  # raises if it took too long: `start_client` only returns then
    except (paramiko.SSHException, EOFError, OSError) as error:
        said = _said(error)
        is_early = "banner" in said or isinstance(error, EOFError | ConnectionError)
        if is_early and time.monotonic() - began < hop.connect_timeout_s / 2:
            raise _Dropped(f"{hop.host} port {hop.port} hung up before a login was possible: {said}") from error
        within = f" within {hop.connect_timeout_s:g} s"
        raise SSHError(f"no SSH connection to {hop.host} port {hop.port}{within}: {said}") from error


def _known_hosts(hop: Hop) -> list[KnownKey]:
    keys: list[KnownKey] = []
    for path in hop.known_hosts:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                keys += read_known_hosts(path, file.read())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HostKeyError(f"the known hosts in {path} cannot be read: {error.strerror}") from error
    return keys


def _check_key(hop: Hop, name: str, known: Sequence[KnownKey], key: paramiko.PKey) -> None:
    finding = judge(known, name, key.get_name(), key.asbytes())
    if finding.verdict is not Verdict.KNOWN:
        raise HostKeyError(key_problem(hop, name, finding, key.get_name(), key.asbytes()))


def key_problem(hop: Hop, name: str, finding: Finding, key_type: str, key: bytes) -> str:
    """What is wrong with a host's key, and what the user can do."""
    shown = f"{key_type} {fingerprint(key)}"
    lines = ", ".join(finding.places)
    port = f" -p {hop.port}" if hop.port != 22 else ""
    if finding.verdict is Verdict.REVOKED:
        return f"THE HOST KEY OF {name} IS REVOKED ({lines}): {shown}. Nothing was sent. Ask those who run the machine."
    if finding.verdict is Verdict.CHANGED:
        return (
            f"THE HOST KEY OF {name} HAS CHANGED. Somebody may be listening in, or the machine was set up anew. "
            f"It shows {shown}, which is not the key in {lines}. Nothing was sent. Ask those who run the machine; only "
            f"if they confirm this fingerprint, remove the old key (`ssh-keygen -R '{name}'`) and connect once with ssh"
        )
    beside = f" (another kind of key is known: {lines})" if lines else ""
    file = hop.known_hosts[0] if hop.known_hosts else "~/.ssh/known_hosts"
    return (
        f"the host key of {name} is not known{beside}. It shows {shown}. Compare that with what the site publishes; if "
        f"it is the same, accept it: `{hop.command}` once, or `ssh-keyscan{port} {hop.host} >> {file}`"
    )


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
