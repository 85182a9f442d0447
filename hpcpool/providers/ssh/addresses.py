"""The addresses of a login node, as its nodes may see them: what it says of itself, sorted out. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable


def seen_from_outside(words: Iterable[str]) -> list[str]:
    """The host names and IP addresses among `words` that mean one machine everywhere, each once.

    >>> seen_from_outside(["login1", "127.0.0.1", "10.0.0.5", "fe80::1%eth0", "10.0.0.5", "localhost", "aa:bb:cc"])
    ['login1', '10.0.0.5']
    """
    return list(dict.fromkeys(word for word in words if _is_for_others(word)))


def with_port(hosts: Iterable[str], port: int) -> list[str]:
    """Each host with a port: `host:port`, or `[address]:port` for IPv6."""
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]


def _is_for_others(word: str) -> bool:
    try:
        address = ipaddress.ip_address(word)
    except ValueError:
        # An interface also has a hardware address, and a link-local one may have a zone.
        return bool(word) and not any(sign in word for sign in ":%()") and not word.startswith("localhost")
    return not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast)
