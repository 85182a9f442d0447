"""How to log in to a machine, as a value; it connects to nothing and reads no file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcpool.errors import ConfigError

#: What a host or user name may have in it: nothing that a shell, or a pattern of ssh_config, would read as more.
_HOST = re.compile(r"[A-Za-z0-9_.:-]+")
_USER = re.compile(r"[^\s@:/'\"`$!*?;&|<>()\\-][^\s:/'\"`$!*?;&|<>()\\]*")


@dataclass(frozen=True, slots=True)
class Destination:
    """A machine as users write it: `user@host:port`; what is not written is None."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Read `host`, `user@host`, `user@host:port` or `ssh://user@host:port`; an IPv6 address is in brackets.

        Raises:
            ConfigError: it is none of these.
        """
        if not isinstance(text, str):
            raise ConfigError(f"{text!r} is no machine to log in to; write 'user@host' or 'user@host:port'")
        user, at, rest = text.removeprefix("ssh://").rstrip("/").rpartition("@")
        host, port = _host_and_port(rest)
        is_valid = _HOST.fullmatch(host) and not host.startswith("-") and (not at or _USER.fullmatch(user))
        if not is_valid or (port is not None and not 0 < port < 65536):
            raise ConfigError(f"{text!r} is no machine to log in to; write 'user@host' or 'user@host:port'")
        return cls(host, user or None, port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and self.port else self.host
        return f"{f'{self.user}@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"


def _host_and_port(text: str) -> tuple[str, int | None]:
    if found := re.fullmatch(r"\[([^\]]*)\](?::([0-9]{1,5}))?", text):
        return found[1], int(found[2]) if found[2] else None
    host, colon, port = text.partition(":")
    if colon and ":" not in port:
        return host, int(port) if re.fullmatch("[0-9]{1,5}", port) else 0
    return text, None  # without brackets a second colon is part of an IPv6 address


@dataclass(frozen=True, repr=False)
class SSHLogin:
    """A machine that is reached over SSH, and how. What is not given comes from `~/.ssh/config`, as for `ssh` itself.

    Passwords are never asked for and never stored: log in by a key or an agent. The machine's host key must be in
    `known_hosts`: no key is ever accepted unseen.

        >>> from hpcpool.providers import SSHLogin
        >>> SSHLogin("ada@login.cluster", jump="gate.example.org")
        SSHLogin('ada@login.cluster', jump='gate.example.org')

    Args:
        destination: `host`, `user@host`, `user@host:port`, or a `Host` of `~/.ssh/config`.
        port: the port of its SSH server; None: as in `destination` or `~/.ssh/config`, else 22.
        identity: the file of a private key, to be used before all others; None: those of `~/.ssh/config`, of the
            agent, and `~/.ssh/id_*`.
        jump: machines to go through, as `ssh -J` takes them: `user@gate:port`, several with commas between them. None:
            as `~/.ssh/config` says; "none": go there directly.
        config: a file to read in place of `~/.ssh/config`; "none": read no such file.
        known_hosts: a file of host keys to use in place of `~/.ssh/known_hosts` and `/etc/ssh/ssh_known_hosts`.
        use_agent: ask the agent that `SSH_AUTH_SOCK` names for keys.
        connect_timeout_s: seconds for each step of a connection: to connect, to agree on keys, to log in. None: the
            `ConnectTimeout` of `~/.ssh/config`, else 30.
        keepalive_s: after this many silent seconds the other side is asked whether it is there; 0: never. None:
            the `ServerAliveInterval` of `~/.ssh/config`, else 5.
        login_shell: run each command in a login shell (`bash -l`), where only that finds the commands of the batch
            system. It is slower.

    Raises:
        ConfigError: an option cannot be.
    """

    destination: str
    port: int | None = None
    identity: str | None = None
    jump: str | None = None
    config: str | None = None
    known_hosts: str | None = None
    use_agent: bool = True
    connect_timeout_s: float | None = None
    keepalive_s: float | None = None
    login_shell: bool = False

    def __post_init__(self) -> None:
        Destination.parse(self.destination)
        if self.port is not None and self.port not in range(1, 65536):
            raise ConfigError(f"SSHLogin.port is {self.port!r}; valid: a whole number from 1 to 65535, or None")
        for name in ("identity", "jump", "config", "known_hosts"):
            value = getattr(self, name)
            if not (value is None or (isinstance(value, str) and value.strip())):
                raise ConfigError(f"SSHLogin.{name} is {value!r}; valid: text, or None")
        for name, least in (("connect_timeout_s", 0.1), ("keepalive_s", 0.0)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and least <= value < 1e6):
                raise ConfigError(f"SSHLogin.{name} is {value!r}; valid: seconds, at least {least:g}, or None")
        jumps(self.jump)

    def __repr__(self) -> str:
        given = [f"{name}={getattr(self, name)!r}" for name, default in _DEFAULTS if getattr(self, name) != default]
        return f"SSHLogin({', '.join([repr(self.destination), *given])})"

    @property
    def target(self) -> Destination:
        """The machine, with the port that was given."""
        written = Destination.parse(self.destination)
        return Destination(written.host, written.user, self.port or written.port)


_DEFAULTS = tuple((field.name, field.default) for field in SSHLogin.__dataclass_fields__.values())[1:]


def jumps(text: str | None) -> tuple[Destination, ...]:
    """The machines of a `ProxyJump`, the first to connect to first; "none" and None name none.

    Raises:
        ConfigError: one of them is no machine.
    """
    if text is None or text.strip().lower() == "none":
        return ()
    return tuple(Destination.parse(part.strip()) for part in text.split(","))


def login_of(value: SSHLogin | str) -> SSHLogin:
    """The login that a value stands for: itself, or the text of a destination."""
    return value if isinstance(value, SSHLogin) else SSHLogin(value)
