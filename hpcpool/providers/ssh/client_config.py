"""What `~/.ssh/config` says about a machine: each hop on the way to it, with all that is needed to connect. Connects to
nothing.

The text is parsed by paramiko. Two things are added: `Include`, which it does not know, and options that were given
explicitly, which stand in front of the file's text, since there the first value counts.
"""

from __future__ import annotations

import dataclasses
import getpass
import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpcpool.errors import ConfigError
from hpcpool.providers.ssh.login import Destination, SSHLogin, jumps

_DEFAULT_CONNECT_TIMEOUT_S = 30.0
#: A silent cut is noticed before the nodes behind it are given up (`heartbeat_timeout_s`): they may still come back.
#: Also below the idle limits of usual firewalls and load balancers (60 s and more).
_DEFAULT_KEEPALIVE_S = 5.0
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_DEFAULT_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")
_CONFIG_FILES = ("~/.ssh/config", "/etc/ssh/ssh_config")
#: As deep as OpenSSH follows an `Include`; a jump host whose own jump host is itself must end somewhere, too.
_MAX_INCLUDES = 16
_MAX_HOPS = 8

_INCLUDE = re.compile(r"\s*include[\s=]+(.+)", re.IGNORECASE)
_BLOCK = re.compile(r"\s*(host|match)[\s=]", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One machine on the way, ready to connect to."""

    #: As the user wrote it; for messages.
    name: str
    host: str
    port: int
    user: str
    #: Private key files in the order in which they are tried; those that are only defaults need not exist.
    identities: tuple[str, ...]
    #: False: `identities` are the defaults of ssh, which come after the agent's keys.
    has_own_identities: bool
    #: Only keys of `identities` are offered, also if the agent has more.
    identities_only: bool
    use_agent: bool
    #: A shell command whose stdin and stdout are the connection; None: TCP.
    proxy_command: str | None
    known_hosts: tuple[str, ...]
    #: The name under which the key is in `known_hosts`; None: that of the host and port.
    host_key_alias: str | None
    connect_timeout_s: float
    keepalive_s: float

    @property
    def command(self) -> str:
        """What a user types to connect to it: ssh takes no port behind the name, and no brackets."""
        where = Destination.parse(self.name)
        port = f"-p {where.port} " if where.port else ""
        return f"ssh {port}{dataclasses.replace(where, port=None)}"

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" + (f" port {self.port}" if self.port != 22 else "")


def hops_to(login: SSHLogin) -> tuple[Hop, ...]:
    """The machines on the way to a login, the first to connect to first and the login itself last.

    Raises:
        ConfigError: the configuration cannot be read or cannot be followed.
    """
    return resolve(login, config_text(login.config), getpass.getuser())


def config_text(path: str | None) -> str:
    """The text of a configuration file, or of the user's and the system's; "none": no text."""
    if path == "none":
        return ""
    if path is not None and not os.path.isfile(os.path.expanduser(path)):
        raise ConfigError(f"SSHLogin.config: there is no file {path}")
    paths = _CONFIG_FILES if path is None else (path,)
    return "\nHost *\n".join(_with_includes_of(os.path.expanduser(name)) for name in paths)


def _with_includes_of(path: str) -> str:
    folder = os.path.dirname(path)

    def read(pattern: str) -> list[str]:
        pattern = os.path.expanduser(pattern)
        return [_read(found) for found in sorted(glob.glob(os.path.join(folder, pattern)))]

    return with_includes(_read(path), read)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"the SSH configuration {path} cannot be read: {error.strerror}") from error


def with_includes(text: str, read: Callable[[str], Sequence[str]], depth: int = 0) -> str:
    """The text with every `Include` replaced by what it names; `read` returns the texts that a pattern stands for.

    The block that an `Include` stands in goes on behind it. An included file's own `Host` lines count alone, not within
    that block.
    """
    if depth > _MAX_INCLUDES:
        raise ConfigError("the SSH configuration includes itself")
    lines, block = [], "Host *"
    for line in text.splitlines():
        if _BLOCK.match(line):
            block = line
        if found := _INCLUDE.fullmatch(line):
            for pattern in found[1].replace('"', "").split():
                lines += [with_includes(part, read, depth + 1) for part in read(pattern)]
            lines.append(block)
        else:
            lines.append(line)
    return "\n".join(lines)


def resolve(login: SSHLogin, text: str, local_user: str) -> tuple[Hop, ...]:
    """As `hops_to`, by the text of a configuration."""
    last, jump = _hop(login, login.target, text, local_user, is_target=True)
    way = jumps(login.jump if login.jump is not None else jump)
    return (*_way(login, way, text, local_user, 1), last)


def _way(login: SSHLogin, way: Sequence[Destination], text: str, local_user: str, depth: int) -> tuple[Hop, ...]:
    """The hops of a `ProxyJump`. Only the first of them may need a way of its own: the others are behind it."""
    if depth > _MAX_HOPS:
        raise ConfigError(f"the way to {login.destination} by ProxyJump has no end")
    hops: tuple[Hop, ...] = ()
    for number, destination in enumerate(way):
        hop, jump = _hop(login, destination, text, local_user, is_target=False)
        if number == 0:
            hops = _way(login, jumps(jump), text, local_user, depth + 1)
        hops = (*hops, hop)
    return hops


def _hop(
    login: SSHLogin, destination: Destination, text: str, local_user: str, *, is_target: bool
) -> tuple[Hop, str | None]:
    """One machine, and the `ProxyJump` that the configuration has for it."""
    found = _lookup(destination, text)
    given = (login.identity,) if is_target and login.identity else ()
    configured = tuple(found.get("identityfile", ()))
    defaults = tuple(f"~/.ssh/{name}" for name in _DEFAULT_KEYS)
    known = (login.known_hosts,) if login.known_hosts else _known_hosts(found)
    hop = Hop(
        name=str(destination),
        host=str(found["hostname"]),
        port=int(found.get("port", 22)),
        user=str(found.get("user", local_user)),
        identities=_expanded((*given, *configured) or defaults),
        has_own_identities=bool(given or configured),
        identities_only=found.get("identitiesonly", "no").lower() == "yes",
        use_agent=login.use_agent and found.get("identityagent", "").lower() != "none",
        proxy_command=found.get("proxycommand") if login.jump is None or not is_target else None,
        known_hosts=_expanded(known),
        host_key_alias=found.get("hostkeyalias"),
        connect_timeout_s=login.connect_timeout_s or _seconds(found, "connecttimeout", _DEFAULT_CONNECT_TIMEOUT_S),
        keepalive_s=_keepalive_s(login, found),
    )
    return hop, found.get("proxyjump")


def _lookup(destination: Destination, text: str) -> dict[str, str]:
    """What the configuration says about a machine, after what was given explicitly."""
    import paramiko  # takes a quarter of a second

    given = [f"Host {destination.host}"]
    given += [f"User {destination.user}"] if destination.user else []
    given += [f"Port {destination.port}"] if destination.port else []
    try:
        config = paramiko.SSHConfig.from_text("\n".join([*given, "Host *", text]))
        return dict(config.lookup(destination.host))
    except (paramiko.SSHException, ValueError, KeyError) as error:
        raise ConfigError(f"the SSH configuration for {destination} cannot be used: {error}") from error


def _known_hosts(found: dict[str, str]) -> tuple[str, ...]:
    user = found.get("userknownhostsfile")
    system = found.get("globalknownhostsfile")
    if user is None and system is None:
        return _DEFAULT_KNOWN_HOSTS
    users = user.split() if user is not None else _DEFAULT_KNOWN_HOSTS[:2]
    return (*users, *(system.split() if system is not None else _DEFAULT_KNOWN_HOSTS[2:]))


def _expanded(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(os.path.expanduser(path.strip('"')) for path in paths)


def _seconds(found: dict[str, str], key: str, default: float) -> float:
    try:
        return float(found.get(key, default))
    except ValueError:
        return default  # "none"


def _keepalive_s(login: SSHLogin, found: dict[str, str]) -> float:
    if login.keepalive_s is not None:
        return login.keepalive_s
    return _seconds(found, "serveraliveinterval", _DEFAULT_KEEPALIVE_S)
