"""Logging in: which keys are offered, in which order, and what is said when none is accepted. No password, ever."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hpcpool.errors import SSHError
from hpcpool.providers.ssh.client_config import Hop

if TYPE_CHECKING:
    import paramiko


def authenticate(transport: paramiko.Transport, hop: Hop) -> None:
    """Log in with the first key that the server accepts.

    Raises:
        SSHError: it accepts none, or wants more than a key.
    """
    import paramiko

    methods = _methods(transport, hop)
    if not methods:
        return
    if "publickey" not in methods:
        raise SSHError(f"{hop} does not let anybody log in with a key, only with {_listed(methods)}. {_NO_PASSWORD}")
    refused: list[str] = []
    unusable: list[str] = []
    with _agent(hop) as agent:
        for label, key in _offers(hop, agent, unusable):
            try:
                more = transport.auth_publickey(hop.user, key)
            except paramiko.AuthenticationException:
                refused.append(label)
            else:
                if more:
                    raise SSHError(f"{hop} accepts {label} but wants {_listed(more)} as well. {_NO_PASSWORD}")
                return
            if not transport.is_active():
                raise SSHError(
                    f"{hop} hung up after {len(refused)} keys ({_listed(refused)}). Name the right one: "
                    "SSHLogin(identity=...), or IdentityFile and IdentitiesOnly in ~/.ssh/config"
                )
    raise SSHError(_refusal(hop, refused, unusable))


_NO_PASSWORD = (
    "hpcpool asks for no passwords or codes and keeps none, and it cannot use a connection that ssh's ControlMaster "
    "holds: log in with a key or an agent that the site accepts alone, or run the program on the login node itself"
)


def _methods(transport: paramiko.Transport, hop: Hop) -> list[str]:
    """The ways in that the server offers; none: we are in already."""
    import paramiko

    try:
        transport.auth_none(hop.user)
    except paramiko.BadAuthenticationType as refusal:
        return list(refusal.allowed_types)
    except paramiko.AuthenticationException:
        return ["publickey"]  # it does not tell; then a key is worth a try
    return []


@contextlib.contextmanager
def _agent(hop: Hop) -> Iterator[Sequence[paramiko.AgentKey]]:
    """The keys of the agent, which signs with them as long as it is open."""
    import paramiko

    if not hop.use_agent:
        yield ()
        return
    agent = paramiko.Agent()
    try:
        yield agent.get_keys()
    finally:
        agent.close()


def _offers(hop: Hop, agent: Sequence[paramiko.AgentKey], unusable: list[str]) -> Iterator[tuple[str, paramiko.PKey]]:
    """The keys to offer, each with its name for messages: first what was configured, then the agent's, then defaults.

    Args:
        unusable: gets a sentence for each file that exists but cannot be used.
    """
    held = {key.asbytes(): key for key in agent}
    if not hop.has_own_identities and not hop.identities_only:
        yield from ((_name(key), key) for key in held.values())
        held = {}
    for path in hop.identities:
        of_agent = held.pop(_public_blob(path), None)
        if of_agent is not None:
            yield f"{path} (by the agent)", of_agent
        elif key := _load(path, hop, unusable):
            yield path, key
    if hop.has_own_identities and not hop.identities_only:
        yield from ((_name(key), key) for key in held.values())


def _name(key: paramiko.AgentKey) -> str:
    return f"the agent's {key.get_name()} {getattr(key, 'comment', '')}".rstrip()


def _public_blob(path: str) -> bytes:
    """The public half of a key file as the agent knows it; empty where there is no such file."""
    try:
        with open(f"{path}.pub", encoding="utf-8") as file:
            return base64.b64decode(file.read().split()[1])
    except (OSError, ValueError, IndexError, binascii.Error):
        return b""


def _load(path: str, hop: Hop, unusable: list[str]) -> paramiko.PKey | None:
    import paramiko
    from paramiko.pkey import UnknownKeyType

    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError:
        if hop.has_own_identities:
            unusable.append(f"{path} is not there")
    except (TypeError, paramiko.PasswordRequiredException):
        # (cryptography says it with a TypeError)
        unusable.append(f"{path} needs a passphrase (give the key to an agent: ssh-add {path})")
    except (OSError, ValueError, paramiko.SSHException, UnknownKeyType) as error:
        unusable.append(f"{path} cannot be used ({error})")
    return None


def _refusal(hop: Hop, refused: Sequence[str], unusable: Sequence[str]) -> str:
    tried = f"it refused {_listed(refused)}" if refused else "there was no key to offer"
    others = "".join(f"; {sentence}" for sentence in unusable)
    return (
        f"{hop} does not let us log in: {tried}{others}. Check that `{hop.command}` works without a question, and put "
        "the public key into its ~/.ssh/authorized_keys"
    )


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)
